r"""Trains the backdoored models that defenses are tried on, and the clean twin of them all.

    python -m benchmarks.victims

Each victim is a WRN-16-1 on the 50,000 training images of CIFAR-10, trained with random crop and
flip: without them plain fine-tuning removes almost any backdoor, which proves nothing. Only the
training images, and so the backdoor, differ between victims; order, augmentation and first weights
are those of the clean twin. Nothing is chosen by the test file: it is opened once a victim, when
all is trained, for the figures in the manifest.

A victim is kept as `NAME.safetensors` with an entry in `manifest.json`: recipe, seed, the probe
that measures it, ACC, ASR, RA, hash. What is there with the same recipe is not trained again. A run
that was killed goes on from its last checkpoint in `--work`, and ends in the same weights (given
the same machine and number of threads).

PreAct-ResNet-18 takes a GPU; its weights are too large for the repository:

    python -m benchmarks.victims --architecture preact_resnet18 --only clean badnets blend \
        --device cuda --out var/victims-preact --work var/victims-preact/work

On a CPU so small a network gains little from a second thread. Several processes, each with other
victims (`--only`) and one thread, share one cache.
"""

import argparse
import fcntl
import hashlib
import io
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn

from sanitizer.attacks.attack import Attack, DataRecipe, ModelRecipe
from sanitizer.attacks.badnets import BadNets
from sanitizer.attacks.blend import Blend
from sanitizer.attacks.clean_label import CleanLabel
from sanitizer.attacks.input_aware import InputAware
from sanitizer.attacks.refool import RefoolRecipe
from sanitizer.attacks.sig import Sig
from sanitizer.attacks.trigger import Trigger, make_trigger
from sanitizer.attacks.trojan import TrojanRecipe
from sanitizer.attacks.victim import train_on
from sanitizer.attacks.wanet import WaNet
from sanitizer.compute import choose_device, device_name, keep_freed_memory, prepare
from sanitizer.data.image_set import ImageSet, decode
from sanitizer.data.readers import open_source
from sanitizer.evaluation.evaluate import evaluate
from sanitizer.machine import processor_name
from sanitizer.methods.loop import LoopHooks, LoopState
from sanitizer.networks.registry import build_network
from sanitizer.randomness import make_generator
from sanitizer.report.artifacts import sha256_of
from sanitizer.spec import DataSource, Device, Phase, Training

ARCHITECTURE = "wrn-16-1"
LARGER = "preact_resnet18"
CLASSES = 10
CHANNELS = 3
SIDE = 32

TWIN = "clean"
"""The victim without a backdoor."""

RATES = (0.1, 0.2, 0.2, 0.16, 0.12, 0.09, 0.06, 0.03, 0.01, 0.002)
"""Learning rate of each epoch: up, then down, as one cycle (arXiv 1708.07120)."""

MAX_DROP = 0.02
"""A victim whose accuracy is lower than its twin's by more gives itself away."""

CHECKPOINT_SECONDS = 60
LOCK = "lock"
"""In the work folder."""


@dataclass(frozen=True)
class Victim:
    """One model to train.

    Attributes:
        name: Of its file and its entry.
        attack: None: the clean twin.
        min_asr: What it must reach to count as backdoored.
        seed: Of first weights, training and poisoning.
    """

    name: str
    attack: Attack | DataRecipe | ModelRecipe | None
    min_asr: float = 0.95
    seed: int = 0


VICTIMS: tuple[Victim, ...] = (
    Victim(TWIN, None, min_asr=0),
    Victim("badnets", BadNets()),
    Victim("sig", Sig(), min_asr=0.85),
    Victim("blend", Blend()),
    Victim("trojan", TrojanRecipe()),
    Victim("cl", CleanLabel(), min_asr=0.85),
    # With the defaults, ASR was 62%: several pictures at half weight are too much for this network.
    Victim("refool", RefoolRecipe(fraction=0.6, weight=0.6, pictures=1), min_asr=0.85),
    Victim("wanet", WaNet(noise_ratio=1.0, strength=2.0)),
    # The paper's shares and density are for a ResNet-18 and 60 times the epochs.
    Victim(
        "input_aware",
        InputAware(
            fraction=0.2,
            cross_ratio=0.5,
            density=0.1,
            backdoor_share=0.25,
            cross_share=0.25,
            mask_epochs=3,
            epochs=7,
            pattern_rate=0.003,
        ),
    ),
)
"""In the order in which they are trained."""


def schedule(epochs: int) -> tuple[Phase, ...]:
    """`RATES` stretched over any number of epochs."""
    places = np.linspace(0, len(RATES) - 1, epochs)
    rates = np.interp(places, np.arange(len(RATES)), RATES)
    return tuple(Phase(epochs=1, learning_rate=float(f"{rate:.4g}")) for rate in rates)


def training_of(epochs: int) -> Training:
    """How every victim is trained."""
    return Training(
        phases=schedule(epochs),
        batch_size=128,
        momentum=0.9,
        weight_decay=5e-4,
        crop_padding=4,
        horizontal_flip=True,
        cutout_size=0,
    )


def recipe_of(
    victim: Victim, training: Training, twin: Mapping[str, Any] | None, architecture: str
) -> dict[str, Any]:
    """All that decides the weights, as JSON has it; another recipe means another victim.

    Args:
        twin: The entry of the clean twin, which some attacks are made against.

    Raises:
        SystemExit: This attack is, and the twin is not there.
    """
    attack = victim.attack and {"name": type(victim.attack).__name__, **asdict(victim.attack)}  # type: ignore[call-overload]  # attacks are dataclasses
    recipe = {
        "architecture": architecture,
        "data": "CIFAR-10, 50,000 training images",
        "attack": attack,
        "training": training.model_dump(mode="json"),
        "precision": "float32",
        "seed": victim.seed,
    }
    if isinstance(victim.attack, ModelRecipe):
        if twin is None:
            raise SystemExit(f"{victim.name} is made against the clean twin: train that first")
        recipe["surrogate_sha256"] = twin["sha256"]
    as_json: dict[str, Any] = json.loads(json.dumps(recipe))
    return as_json


# --- The cache -----------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, Any]:
    """Entries by name of victim; none if there is no manifest."""
    path = folder / "manifest.json"
    if not path.is_file():
        return {}
    entries: dict[str, Any] = json.loads(path.read_text())["victims"]
    return entries


def write_entry(folder: Path, name: str, entry: Mapping[str, Any], lock: Path) -> None:
    """Adds or replaces one entry; who reads meanwhile finds the old manifest or the new one."""
    with locked(lock):
        entries = read_manifest(folder) | {name: entry}
        content = json.dumps({"version": 1, "victims": entries}, indent=1)
        replace_file(folder / "manifest.json", content.encode() + b"\n")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time; a process that is killed leaves the lock open."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file so that a kill at any moment leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def is_there(folder: Path, entry: Mapping[str, Any] | None, recipe: Mapping[str, Any]) -> bool:
    """Whether the cache has this victim, and its file is whole."""
    if entry is None or entry["recipe"] != recipe:
        return False
    path = folder / entry["file"]
    return path.is_file() and sha256_of(path) == str(entry["sha256"])


def load_victim(path: Path, architecture: str) -> nn.Module:
    """A victim out of the cache, in eval mode."""
    network = build_network(architecture, CLASSES, CHANNELS, make_generator("victim"))
    network.load_state_dict(load_file(path))
    return network.eval()


# --- Training ------------------------------------------------------------------------------------


class VictimHooks(LoopHooks):
    """Says how far a training is, and keeps its checkpoints.

    Attributes:
        epochs: Figures of the epochs that are done, those before an interruption too.
    """

    def __init__(self, name: str, path: Path, fingerprint: str, total: int) -> None:
        self.epochs: list[dict[str, float]] = []
        self._name = name
        self._path = path
        self._fingerprint = fingerprint
        self._total = total
        self._saved_at = monotonic()
        self._epoch_ended = False

    def on_step(self, epoch: int, step: int, steps: int) -> None:  # noqa: ARG002
        self._epoch_ended = False

    def on_epoch(self, epoch: int, values: dict[str, float]) -> None:
        self.epochs.append(values)
        self._epoch_ended = True
        left = (self._total - epoch) * values["seconds"]
        sys.stderr.write(
            f"{self._name}: epoch {epoch} of {self._total}, {values['seconds']:.0f} s, "
            f"loss {values['loss']:.4f}, train accuracy {values['train_accuracy']:.4f}, "
            f"{left / 60:.0f} min to go\n"
        )
        sys.stderr.flush()

    def wants_checkpoint(self) -> bool:
        return self._epoch_ended or monotonic() - self._saved_at > CHECKPOINT_SECONDS

    def save(self, state: LoopState) -> None:
        content = {
            "fingerprint": self._fingerprint,
            "epochs": self.epochs,
            # Not `asdict`, which would copy every tensor once more.
            "loop": {name: getattr(state, name) for name in asdict(LoopState())},
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        replace_file(self._path, buffer.getvalue())
        self._saved_at = monotonic()

    def restore(self) -> LoopState | None:
        """Where the same training stood when it was interrupted; None: begin."""
        if not self._path.is_file():
            return None
        content = torch.load(self._path, map_location="cpu", weights_only=True)
        if content["fingerprint"] != self._fingerprint:
            return None
        self.epochs = content["epochs"]
        return LoopState(**content["loop"])


def make_victim(
    victim: Victim, recipe: dict[str, Any], training: Training, options: argparse.Namespace
) -> dict[str, Any]:
    """Trains, measures and stores one victim; its entry."""
    device = choose_device(Device(options.device))
    image_set = load_images(options, "train")
    attack = ready(victim, image_set, options, device)
    probe, poisoned = None, 0
    if attack is not None:
        made = attack.poison(image_set, num_classes=CLASSES, seed=victim.seed)
        image_set, probe, poisoned = made.image_set, attack.probe(), len(made.indices)

    network = build_network(
        options.architecture, CLASSES, CHANNELS, make_generator(victim.seed, "victim", "init")
    ).to(device)
    # As in the pipeline: convolutions are a quarter faster so.
    network.to(memory_format=torch.channels_last)
    fingerprint = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    work = options.work / victim.name
    work.mkdir(parents=True, exist_ok=True)
    hooks = VictimHooks(victim.name, work / "checkpoint.pt", fingerprint, training.epochs)
    state = hooks.restore()
    train_on(network, image_set, training, victim.seed, device=device, state=state, hooks=hooks)

    path = options.out / f"{victim.name}.safetensors"
    store(network, path)
    triggers: list[Trigger] = []
    if probe is not None:
        triggers.append(
            make_trigger(probe, input_size=(SIDE, SIDE), channels=CHANNELS, num_classes=CLASSES)
        )
    # What is measured is what was stored.
    figures = evaluate(
        load_victim(path, options.architecture).to(device),
        load_images(options, "test"),
        triggers,
        num_classes=CLASSES,
        device=device,
    )
    of_probe = figures.probes[0] if figures.probes else None
    entry = {
        "file": path.name,
        "sha256": sha256_of(path),
        "bytes": path.stat().st_size,
        "twin": None if victim.attack is None else TWIN,
        "probe": probe and probe.model_dump(mode="json"),
        "acc": figures.accuracy.value,
        "asr": of_probe and of_probe.asr.value,
        "ra": of_probe and of_probe.ra.value,
        "natural_rate": of_probe and of_probe.natural_rate.value,
        "min_asr": victim.min_asr,
        "max_drop": MAX_DROP,
        "poisoned_images": poisoned,
        "seed": victim.seed,
        "recipe": recipe,
        "epochs": [
            {name: float(f"{value:.6g}") for name, value in epoch.items()} for epoch in hooks.epochs
        ],
        "seconds": round(sum(epoch["seconds"] for epoch in hooks.epochs), 1),
        "threads": torch.get_num_threads(),
        "device": processor_name() if device.type == "cpu" else device_name(device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "date": datetime.now(UTC).date().isoformat(),
    }
    write_entry(options.out, victim.name, entry, options.work / LOCK)
    (work / "checkpoint.pt").unlink(missing_ok=True)
    return entry


def ready(
    victim: Victim, clean: ImageSet, options: argparse.Namespace, device: torch.device
) -> Attack | None:
    """The attack with all numbers known; where one needs a clean model, that is the twin."""
    match victim.attack:
        case ModelRecipe():
            twin = load_victim(options.out / f"{TWIN}.safetensors", options.architecture).to(device)
            twin.to(memory_format=torch.channels_last)
            return victim.attack.prepare_against(twin, clean, seed=victim.seed)
        case DataRecipe():
            return victim.attack.prepare(clean, seed=victim.seed)
        case attack:
            return attack


def load_images(options: argparse.Namespace, part: str) -> ImageSet:
    """A part of CIFAR-10, `train` or `test`, decoded once into the work folder."""
    path = options.shared / "data" / "cifar10" / f"{part}.parquet"
    source = open_source(DataSource(path=path))
    with locked(options.work / LOCK):
        return decode(
            source,
            np.arange(len(source), dtype=np.int64),
            input_size=(SIDE, SIDE),
            channels=CHANNELS,
            folder=options.work / part,
            threads=options.threads,
        )


def store(network: nn.Module, path: Path) -> None:
    """Writes the weights: whole file or none."""
    state = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    replace_file(path, save(state))


# --- What came out -------------------------------------------------------------------------------


def shortcomings(entry: Mapping[str, Any], twin: Mapping[str, Any] | None) -> list[str]:
    """What a victim lacks of what is required of it, in words; nothing: it will do."""
    found = []
    if entry["asr"] is not None and entry["asr"] < entry["min_asr"]:
        found.append(f"ASR below {entry['min_asr']:.0%}")
    if entry["twin"] is not None:
        if twin is None:
            found.append("no clean twin to compare with")
        elif twin["acc"] - entry["acc"] > entry["max_drop"]:
            found.append(f"more than {100 * entry['max_drop']:g} points under the clean twin")
    return found


def table(entries: Mapping[str, Any]) -> str:
    """All victims of the cache, for people."""
    lines = [
        "| victim | ACC % | ASR % | RA % | points under the clean twin | will it do? |",
        "|---" * 6 + "|",
    ]
    for name, entry in entries.items():
        twin = entries.get(entry["twin"]) if entry["twin"] else None
        lacks = shortcomings(entry, twin)

        def percent(value: float | None) -> str:
            return "" if value is None else f"{100 * value:.2f}"

        under = percent(twin["acc"] - entry["acc"]) if twin else ""
        lines.append(
            f"| {name} | {percent(entry['acc'])} | {percent(entry['asr'])} "
            f"| {percent(entry['ra'])} | {under} | {'; '.join(lacks) or 'yes'} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is missing and prints the table; exit status 1 if a victim will not do."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    names = [victim.name for victim in VICTIMS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument(
        "--architecture",
        default=ARCHITECTURE,
        choices=(ARCHITECTURE, LARGER),
        help="another than the default needs --out and --work of its own",
    )
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/victims"))
    parser.add_argument("--work", type=Path, default=Path("var/victims"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--epochs", type=int, default=len(RATES))
    options = parser.parse_args(arguments)
    others = {entry["recipe"]["architecture"] for entry in read_manifest(options.out).values()}
    if others - {options.architecture}:
        parser.error(
            f"{options.out} holds victims of {', '.join(sorted(others))}; give --out and --work of "
            f"their own to those of {options.architecture}"
        )
    prepare(options.threads)
    keep_freed_memory()

    training = training_of(options.epochs)
    for victim in VICTIMS:
        if victim.name not in options.only:
            continue
        entries = read_manifest(options.out)
        recipe = recipe_of(victim, training, entries.get(TWIN), options.architecture)
        if is_there(options.out, entries.get(victim.name), recipe):
            continue
        begun = perf_counter()
        entry = make_victim(victim, recipe, training, options)
        asr = "" if entry["asr"] is None else f", ASR {entry['asr']:.4f}, RA {entry['ra']:.4f}"
        sys.stderr.write(
            f"{victim.name}: ACC {entry['acc']:.4f}{asr}, {perf_counter() - begun:.0f} s\n"
        )
    entries = read_manifest(options.out)
    sys.stdout.write(table(entries))
    if any(shortcomings(entry, entries.get(entry["twin"])) for entry in entries.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
