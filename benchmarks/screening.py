r"""Clean sets that some triggered images got into: which are found, and what is accused wrongly.

    python -m benchmarks.screening

Clean images are drawn from CIFAR-10's training file for every victim of `benchmarks/victims`; some
get the victim's trigger, and its target's label if they have another. Then the victim's screening
runs over them, as in a job. The clean twin goes through the same with every victim's trigger: to it
they are clean. No network is trained, and CIFAR-10's test file is not read.

Writes `docs/results/screening.json` and `.md`. What is there, of the same victim, is not repeated.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.grid import OWN_CLASS, PROBE, SIZE, TWIN, add_options, command_of, with_triggers
from sanitizer.attacks.trigger import make_trigger
from sanitizer.compute import prepare
from sanitizer.data.image_set import ImageSet, decode
from sanitizer.data.readers import open_source
from sanitizer.data.splits import draw
from sanitizer.evaluation.metrics import wilson
from sanitizer.evaluation.screening import Screen
from sanitizer.networks.registry import build_network
from sanitizer.networks.taps import find_taps
from sanitizer.randomness import make_generator
from sanitizer.spec import DataSource

CLASSES = 10
IMAGES = (2500, 500)
SHARES = (0.0, 0.01, 0.02, 0.05)


@dataclass(frozen=True)
class Case:
    """One screening.

    Attributes:
        victim: Whose eyes are used.
        attack: Whose trigger is put on images.
        share: Of the images, that get it.
    """

    victim: str
    attack: str
    images: int
    share: float
    seed: int

    @property
    def key(self) -> str:
        """Of a result."""
        return f"{self.victim}/{self.attack}/{self.images}/{self.share:g}/{self.seed}"


def cases(victims: Mapping[str, Any], seeds: int) -> Iterator[Case]:
    """Each victim with its own trigger, the clean twin with everybody's."""
    attacks = [name for name in victims if name != TWIN]
    for images in IMAGES:
        for seed in range(seeds):
            for victim in victims:
                # Without a trigger on any image it does not matter whose.
                yield Case(victim, victim, images, 0.0, seed)
                for attack in attacks if victim == TWIN else [victim]:
                    for share in SHARES[1:]:
                        yield Case(victim, attack, images, share, seed)


def screened(case: Case, options: argparse.Namespace, source: ImageSet) -> dict[str, Any]:
    """What came of a case."""
    victims = json.loads((options.victims / "manifest.json").read_text())["victims"]
    network = build_network(options.architecture, CLASSES, 3, make_generator(0))
    network.load_state_dict(load_file(options.victims / victims[case.victim]["file"]))
    network.to(memory_format=torch.channels_last).eval()
    (*_, point) = find_taps(network, options.architecture, SIZE, 3)
    images = source.subset(draw(source.labels, case.images, case.seed))
    places = np.empty(0, dtype=np.int64)
    if case.share:
        probe = PROBE.validate_python(victims[case.attack]["probe"])
        trigger = make_trigger(probe, input_size=SIZE, channels=3, num_classes=CLASSES)
        images, places = with_triggers(
            images, trigger, case.share, case.seed, own_class=case.attack in OWN_CLASS
        )
    carriers = Screen(network, point, torch.device("cpu")).carriers(images, case.seed)
    parts = [carrier.places for carrier in carriers]
    found = np.unique(np.concatenate([*parts, np.empty(0, dtype=np.int64)]))
    return {
        "sha256": victims[case.victim]["sha256"],
        "with_trigger": len(places),
        "found": int(np.isin(found, places).sum()),
        "accused": int((~np.isin(found, places)).sum()),
        "classes": sorted({carrier.target for carrier in carriers}),
        "rates": [round(carrier.rate, 3) for carrier in carriers],
        "separations": [round(carrier.split.separation, 2) for carrier in carriers],
    }


def page(results: Mapping[str, Any], command: str) -> str:
    """The whole document."""
    kept = [(key.split("/"), value) for key, value in results.items()]
    lines = [
        "# Images with a trigger among the clean ones",
        "",
        f"    {command}",
        "",
        "Clean images of CIFAR-10's training file, of which some get the trigger of the victim "
        "whose features are looked at.",
        "Found: images with the trigger that were left out, of all that had it, over all draws. "
        "Accused: images without one that were left out. Nothing is trained.",
        "sig, refool and cl have their triggers on images of the target's own class.",
        "",
    ]
    for images in IMAGES:
        lines += [
            f"## {images:,} images",
            "",
            "| victim | " + " | ".join(f"{share:.0%}" for share in SHARES[1:]) + " | accused |",
            "|---|" + "---|" * len(SHARES),
        ]
        of_size = [(parts, value) for parts, value in kept if int(parts[2]) == images]
        for victim in dict.fromkeys(parts[0] for parts, _ in of_size):
            own = [(parts, value) for parts, value in of_size if parts[0] == victim]
            cells = [_found(own, share) for share in SHARES[1:]]
            accused = sum(value["accused"] for _, value in own)
            runs = sum(bool(value["accused"]) for _, value in own)
            lines.append(
                f"| {victim} | {' | '.join(cells)} | {accused} in {runs} of {len(own)} runs |"
            )
        lines.append("")
    clean = [value for parts, value in kept if float(parts[3]) == 0]
    accusing = wilson(sum(bool(value["classes"]) for value in clean), len(clean))
    lines += [
        f"Sets without any trigger: something was left out in {accusing.count} of "
        f"{accusing.total} ({accusing.low:.0%} to {accusing.high:.0%}).",
        "",
    ]
    return "\n".join(lines)


def _found(own: Sequence[tuple[Sequence[str], Mapping[str, Any]]], share: float) -> str:
    same = [value for parts, value in own if float(parts[3]) == share]
    there = sum(value["with_trigger"] for value in same)
    return f"{sum(value['found'] for value in same)} of {there}" if there else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Screens what is missing, prints the table and writes JSON and Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add_options(parser, "var/screening")
    parser.add_argument("--architecture", default="wrn-16-1", help="of the victims")
    options = parser.parse_args(arguments)
    victims = json.loads((options.victims / "manifest.json").read_text())["victims"]
    path = options.results / "screening.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    current = {victim["sha256"] for victim in victims.values()}
    results = {key: value for key, value in results.items() if value["sha256"] in current}
    command = command_of("benchmarks.screening", arguments)
    if not options.cached:
        prepare(1)
        source = open_source(DataSource(path=options.shared / "data" / "cifar10" / "train.parquet"))
        places = np.arange(len(source), dtype=np.int64)
        images = decode(source, places, input_size=SIZE, channels=3, folder=options.work)
        for case in cases(victims, options.seeds):
            if case.key not in results:
                results[case.key] = screened(case, options, images)
                sys.stderr.write(f"{case.key}: {results[case.key]}\n")
                path.write_text(json.dumps(results, indent=1) + "\n")
    text = page(results, command)
    (options.results / "screening.md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
