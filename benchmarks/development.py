"""The default recipe, part by part, on victims that exist for its development alone.

    python -m benchmarks.development

What settings of `argd` do, by ACC, ASR and RA, without a look at what the results are reported on:
the victims, triggers and seeds are others than those of `benchmarks.victims`, and the test file is
not opened. Development victims are trained as those are, from first weights on, but on the first
40,000 images of the training file; clean images are drawn from these, as the table's are drawn from
all, and the last 5,000 of the file, which no development victim has seen, are measured on.

What is there is not made again. Several processes, each with other victims (`--only`), share the
folder.
"""

import argparse
import fcntl
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.runs import run, training_seconds
from benchmarks.victims import ARCHITECTURE, CHANNELS, CLASSES, store, training_of
from sanitizer.attacks.poison import poison, poison_own_class, trigger_for
from sanitizer.attacks.refool import RefoolRecipe
from sanitizer.attacks.victim import train_on
from sanitizer.compute import choose_precision, prepare
from sanitizer.data.image_set import ImageSet, decode
from sanitizer.data.readers import open_source
from sanitizer.networks.registry import build_network
from sanitizer.randomness import make_generator
from sanitizer.spec import (
    BlendProbe,
    DataSource,
    PatchProbe,
    Probe,
    SinusoidProbe,
    WarpProbe,
)

TRAINED = range(40_000)
"""Of the training file: what victims are trained on, and clean images drawn from."""
MEASURED = range(45_000, 50_000)
EPOCHS = 10


@dataclass(frozen=True)
class Development:
    """One victim.

    Attributes:
        trigger: Or how it is made of the training images. The clean twin is measured with all.
        fraction: Of the images that are poisoned: of other classes, or of its own.
        own_class: Whether labels stay right.
    """

    trigger: Probe | RefoolRecipe
    fraction: float
    own_class: bool = False


TWIN = "clean"
_NOISE = np.random.default_rng(5).integers(0, 256, (3, 3, 3)).tolist()
ATTACKS: Mapping[str, Development] = {
    "patch": Development(
        PatchProbe(name="patch", target_class=3, row=4, column=-6, pixels=_NOISE), 0.05
    ),
    "sinusoid": Development(
        SinusoidProbe(name="sinusoid", target_class=6, amplitude=20, frequency=8),
        fraction=0.8,
        own_class=True,
    ),
    "stripes": Development(
        SinusoidProbe(name="stripes", target_class=9, amplitude=32, frequency=5),
        fraction=0.6,
        own_class=True,
    ),
    "blend": Development(BlendProbe(name="blend", target_class=7, alpha=0.15, noise_seed=11), 0.1),
    "warp": Development(
        WarpProbe(name="warp", target_class=8, strength=2.0, grid=4, field_seed=3), 0.15
    ),
    "reflection": Development(
        RefoolRecipe(
            target_class=5,
            weight=0.55,
            pictures=1,
            max_brightness=90,
            ghost=(1, 4),
            ghost_weight=0.3,
        ),
        fraction=0.8,
        own_class=True,
    ),
}


def _both(**hardening: float | bool) -> Mapping[str, Any]:
    """The same of teacher and student."""
    return {"hardening": hardening, "student_hardening": hardening}


_NO_GRAPH = {"node_scale": 0, "edge_weight": 0, "embedding_weight": 0}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "paper": {"preset": "paper"},
    "no worse weights": {"hardening": {"rho": 0}, "student_hardening": {"rho": 0}},
    "no random triggers": _both(random_triggers=False),
    "no random triggers for the student": {"student_hardening": {"random_triggers": False}},
    "a perturbation too": {"hardening": {"perturbation": 9.2}},
    "a perturbation instead": {
        "hardening": {"perturbation": 9.2, "random_triggers": False},
        "student_hardening": {"random_triggers": False},
    },
    "nothing sought": _both(found_share=0),
    "nothing chosen": _both(trigger_candidates=1),
    "neither": _both(found_share=0, trigger_candidates=1),
    "student not hardened": {"student_hardening": {"rho": 0}},
    "all of a batch for the ascent": _both(ascent_share=1),
    "a quarter changed": _both(perturbed_share=0.25, perturbed_weight=0.25),
    "no smoothing": {"label_smoothing": 0},
    "small batches": {"teacher": {"batch_size": 64}, "student": {"batch_size": 64}},
    "classifier shift": {"classifier_shift": 0.01},
    "no graph": _NO_GRAPH,
    "graph x 10": {"node_scale": 1},
    "student from the suspect": {"student_from": "suspect"},
}
"""Of the request's method, beside its name."""


def training_images(shared: Path, folder: Path) -> ImageSet:
    """All 50,000, in the order of the file."""
    source = open_source(DataSource(path=shared / "data" / "cifar10" / "train.parquet"))
    places = np.arange(len(source), dtype=np.int64)
    folder.mkdir(parents=True, exist_ok=True)
    # Processes that share the folder would write the same file at a time.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return decode(source, places, input_size=(32, 32), channels=3, folder=folder)


def trained_on(images: ImageSet) -> ImageSet:
    """Of the whole training file, those that victims are trained on."""
    return images.subset(np.array(TRAINED, dtype=np.int64))


def probe_of(name: str, images: ImageSet) -> Probe:
    """The trigger of an attack, as a request describes it.

    Args:
        images: What victims are trained on.
    """
    trigger = ATTACKS[name].trigger
    return (
        trigger.prepare(images, seed=1).probe(name)
        if isinstance(trigger, RefoolRecipe)
        else trigger
    )


def make_victim(options: argparse.Namespace, name: str, images: ImageSet) -> Path:
    """The file of a development victim, which is trained if it is not there."""
    path: Path = options.work / "victims" / f"{name}.safetensors"
    if path.is_file():
        return path
    trained = trained_on(images)
    if name != TWIN:
        attack = ATTACKS[name]
        trigger = trigger_for(probe_of(name, trained), trained, CLASSES)
        poisoning = poison_own_class if attack.own_class else poison
        trained = poisoning(trained, trigger, attack.fraction, seed=1).image_set
    network = build_network(ARCHITECTURE, CLASSES, CHANNELS, make_generator(1, "weights"))
    network.to(memory_format=torch.channels_last)
    device = torch.device("cpu")
    precision = choose_precision(options.precision, device)
    train_on(network, trained, training_of(EPOCHS), 1, device=device, precision=precision)
    path.parent.mkdir(parents=True, exist_ok=True)
    store(network, path)
    return path


def clean_places(labels: NDArray[np.int64], amount: int, seed: int) -> NDArray[np.int64]:
    """As many of each class, out of `TRAINED`."""
    generator = np.random.default_rng(1000 + seed)
    pool = np.array(TRAINED)
    chosen = [
        generator.choice(pool[labels[pool] == label], amount // CLASSES, replace=False)
        for label in range(CLASSES)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def write_images(path: Path, images: ImageSet, places: NDArray[np.int64]) -> Path:
    """As an npz, unless it is there."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, images=images.read(places), labels=images.labels[places])
    return path


def results(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Runs what is missing, one after the other."""
    images = training_images(options.shared, options.work / "images")
    measured = write_images(
        options.work / "measured.npz", images, np.array(MEASURED, dtype=np.int64)
    )
    for seed in options.seeds:
        places = clean_places(images.labels, options.images, seed)
        clean = write_images(options.work / f"clean-{options.images}-{seed}.npz", images, places)
        for name in options.only:
            probes = [probe_of(n, trained_on(images)) for n in ATTACKS if name in (n, TWIN)]
            victim = make_victim(options, name, images)
            for variant in options.variants:
                spec = {
                    "model": {"path": str(victim)},
                    "clean_data": {"path": str(clean)},
                    "evaluation_data": {"path": str(measured)},
                    "method": {"name": "argd", **VARIANTS[variant]},
                    "probes": [probe.model_dump(mode="json") for probe in probes],
                    "seed": seed,
                    "curve_images": 0,
                }
                short = variant.replace(" ", "-")
                folder = options.work / "runs" / f"{name}-{options.images}-{seed}-{short}"
                report = run(spec, folder, threads=1)
                for before, after in zip(report.before.probes, report.after.probes, strict=True):
                    yield {
                        "victim": name,
                        "trigger": before.name,
                        "variant": variant,
                        "images": options.images,
                        "seed": seed,
                        "acc_before": 100 * report.before.accuracy.value,
                        "acc": 100 * report.after.accuracy.value,
                        "asr_before": 100 * before.asr.value,
                        "asr": 100 * after.asr.value,
                        "ra_before": 100 * before.ra.value,
                        "ra": 100 * after.ra.value,
                        "seconds": round(training_seconds(report), 1),
                        "precision": report.precision,
                    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing, and prints a table as it grows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--work", type=Path, default=Path("var/development"))
    names = [TWIN, *ATTACKS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--images", type=int, default=2500)
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the training of victims that are not there",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args(arguments)
    prepare(1)
    sys.stdout.write(
        "| victim | trigger | variant | ACC % | ASR % | RA % | s |\n" + "|---" * 7 + "|\n"
    )
    rows = []
    for row in results(options):
        rows.append(row)
        sys.stdout.write(
            f"| {row['victim']} | {row['trigger']} | {row['variant']} "
            f"| {row['acc_before']:.2f} to {row['acc']:.2f} "
            f"| {row['asr_before']:.2f} to {row['asr']:.2f} "
            f"| {row['ra_before']:.2f} to {row['ra']:.2f} | {row['seconds']:.0f} |\n"
        )
        sys.stdout.flush()
    name = f"results-{'-'.join(options.only)}.json"
    (options.work / name).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
