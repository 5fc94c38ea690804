"""Methods on data, networks and triggers that nobody tuned them on.

    python -m benchmarks.breadth --split development
    python -m benchmarks.breadth --split final

CIFAR-10 and a WRN-16-1 are what papers report on, and what settings are chosen on. Here are scans
of digits, drawn traffic signs and house numbers, small photographs; wide, residual, mobile and
plain networks; triggers of kinds that random ones have and others that they have not (a tint, a
smooth picture, marked corners). Each backdoored model has a clean twin with the same first weights
and images, which goes through every method too.

What a method does badly on `development` may be mended and looked at again; `final` has other
seeds, pairs of data and networks, and is for reporting. Clean images that a job gets are none that
the model was trained on, and what it is measured on is apart from both.

What is there is not made again.
"""

import argparse
import io
import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from benchmarks.breadth_report import HEAD, line_of, page
from benchmarks.development import training_images
from benchmarks.inspection_calibration import cifar, digits
from benchmarks.pictures import DIGITS, SIGNS, house_numbers, signs
from benchmarks.runs import parser_of, prepare_process, run, tell, training_seconds
from benchmarks.victims import replace_file, schedule, store
from sanitizer.attacks.poison import poison, poison_own_class, trigger_for
from sanitizer.attacks.victim import train_on
from sanitizer.data.image_set import ImageSet
from sanitizer.evaluation.evaluate import evaluate
from sanitizer.networks.registry import build_network
from sanitizer.randomness import make_generator
from sanitizer.report.model import Evaluation, Report
from sanitizer.spec import (
    BlendProbe,
    ImageMaskProbe,
    PatchProbe,
    Probe,
    SinusoidProbe,
    Training,
    WarpProbe,
)

MIN_ASR, ATTEMPTS = 0.85, 3
"""A backdoored model with less is replaced by one with a stronger trigger."""
PHOTOGRAPHS = range(40_000)
"""Of CIFAR-10's training file; the rest are backgrounds, and what photographs are measured on."""


@dataclass(frozen=True)
class Data:
    """A data set, and how models are trained on it.

    Attributes:
        side: Height and width, pixels.
        flip: Whether models are trained on mirrored images too.
        trained: Images that models are trained on.
        clean: Images that a job gets.
        measured: Images that ACC and ASR are measured on.
    """

    side: int
    channels: int
    classes: int
    flip: bool
    trained: int
    clean: int
    measured: int
    epochs: int
    padding: int = 1


DATA: Mapping[str, Data] = {
    "digits": Data(8, 1, 10, flip=False, trained=1000, clean=300, measured=497, epochs=14),
    "signs": Data(20, 3, len(SIGNS), flip=False, trained=4000, clean=600, measured=1500, epochs=16),
    "numbers": Data(20, 3, DIGITS, flip=False, trained=6000, clean=800, measured=1500, epochs=14),
    "photographs": Data(
        16, 3, 10, flip=True, trained=20_000, clean=1000, measured=2000, epochs=8, padding=2
    ),
}


@dataclass(frozen=True)
class Cell:
    """A pair of models."""

    data: str
    architecture: str
    attack: str
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.data}-{self.architecture}-{self.attack}-{self.seed}"

    @property
    def twin(self) -> str:
        """Name of the clean model's files."""
        return f"{self.data}-{self.architecture}-clean-{self.seed}"


CELLS: Mapping[str, Sequence[Cell]] = {
    "development": (
        Cell("digits", "wrn-10-1", "patch", 1),
        Cell("digits", "wrn-10-1", "blend", 1),
        Cell("digits", "wrn-10-1", "stripes", 2),
        Cell("digits", "wrn-16-1", "warp", 3),
        Cell("signs", "wrn-10-1", "patch", 4),
        Cell("signs", "wrn-10-1", "tint", 4),
        Cell("signs", "shufflenet_v2_x0_5", "smooth", 5),
        Cell("numbers", "wrn-16-1", "corners", 6),
        Cell("numbers", "squeezenet1_1", "blend", 7),
        Cell("photographs", "wrn-10-1", "tint", 8),
        Cell("photographs", "wrn-10-1", "stripes", 8),
        Cell("photographs", "wrn-10-1", "smooth", 8),
    ),
    "final": (
        Cell("digits", "wrn-16-1", "patch", 21),
        Cell("digits", "wrn-16-1", "smooth", 21),
        Cell("digits", "wrn-10-1", "stripes", 22),
        Cell("digits", "wrn-10-1", "corners", 22),
        Cell("signs", "wrn-16-1", "corners", 23),
        Cell("signs", "wrn-16-1", "blend", 23),
        Cell("signs", "shufflenet_v2_x0_5", "patch", 24),
        Cell("numbers", "wrn-10-1", "tint", 25),
        Cell("numbers", "wrn-10-1", "warp", 25),
        Cell("numbers", "shufflenet_v2_x0_5", "patch", 26),
        Cell("photographs", "wrn-16-1", "smooth", 27),
        Cell("photographs", "wrn-16-1", "corners", 27),
    ),
}

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "default": {"name": "argd"},
    "paper": {"name": "argd", "preset": "paper"},
    "fast": {"name": "argd", "preset": "fast"},
    "ft_sam": {"name": "ft_sam"},
    "finetune": {"name": "finetune"},
}


@dataclass(frozen=True)
class Backdoor:
    """A trigger, and how it gets into a model.

    Attributes:
        fraction: Of the images of other classes that are poisoned, or of its own.
        own_class: Whether labels stay right.
    """

    probe: Probe
    fraction: float = 0.1
    own_class: bool = False


def backdoor_of(cell: Cell, attempt: int) -> Backdoor:
    """A backdoor whose place, look and target are drawn by the seed, stronger each attempt."""
    data = DATA[cell.data]
    side, grey = data.side, data.channels == 1
    generator = np.random.default_rng([cell.seed, attempt, *cell.attack.encode()])
    target = int(generator.integers(data.classes))
    match cell.attack:
        case "patch":
            size = max(2, side // 7)
            row, column = (int(place) for place in generator.integers(0, side - size + 1, 2))
            shape = (size, size) if grey else (size, size, 3)
            pixels = generator.integers(0, 256, shape).tolist()
            return Backdoor(PatchProbe(target_class=target, row=row, column=column, pixels=pixels))
        case "corners":
            size = max(1, side // 10)
            picture = np.zeros((side, side, 4), np.uint8)
            for rows in (slice(0, size), slice(side - size, side)):
                for columns in (slice(0, size), slice(side - size, side)):
                    picture[rows, columns] = (*[int(generator.integers(2)) * 255] * 3, 255)
            return Backdoor(ImageMaskProbe(target_class=target, picture_base64=_png(picture)))
        case "blend":
            alpha = 0.15 + 0.05 * attempt
            noise = int(generator.integers(1 << 30))
            return Backdoor(BlendProbe(target_class=target, alpha=alpha, noise_seed=noise))
        case "tint":
            color = generator.permutation([250, 140, 20]).astype(np.uint8)
            picture = np.broadcast_to(color, (side, side, 3))
            return Backdoor(_blend(target, 0.25 + 0.05 * attempt, picture))
        case "smooth":
            coarse = generator.integers(0, 256, (3, 3, 1 if grey else 3)).astype(np.uint8)
            small = Image.fromarray(coarse.squeeze())
            picture = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))
            return Backdoor(_blend(target, 0.2 + 0.05 * attempt, picture))
        case "stripes":
            probe = SinusoidProbe(
                target_class=target,
                amplitude=float(generator.integers(22, 38)) + 10 * attempt,
                frequency=float(generator.choice([2, 2.5, 3])),
            )
            # Digits and signs are learned by their shapes, whatever stripes say of right labels.
            photographs = cell.data == "photographs"
            return Backdoor(probe, 0.7 if photographs else 0.1, own_class=photographs)
        case "warp":
            return Backdoor(
                WarpProbe(
                    target_class=target,
                    strength=2.0 + 0.5 * attempt,
                    grid=4,
                    field_seed=int(generator.integers(1 << 30)),
                )
            )
    raise ValueError(f"no attack is called {cell.attack}")


def _png(picture: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    return b64encode(file.getvalue())


def _blend(target: int, alpha: float, picture: NDArray[np.uint8]) -> BlendProbe:
    return BlendProbe(
        target_class=target, alpha=alpha, picture_base64=_png(np.ascontiguousarray(picture))
    )


# --- Images and models ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """Images of one pair; no two parts share one."""

    trained: ImageSet
    clean: ImageSet
    measured: ImageSet


def parts_of(cell: Cell, options: argparse.Namespace) -> Parts:
    """What the pair is trained on, what a job gets, and what is measured on."""
    data = DATA[cell.data]
    counts = [data.trained, data.clean, data.measured]
    count = sum(counts)
    if cell.data == "digits":
        images, labels = digits(data.side)
        order = torch.randperm(len(labels), generator=make_generator(cell.seed, "digits")).numpy()
        images, labels = images[order], labels[order]
    elif cell.data == "photographs":
        images, labels = cifar(data.side, options.shared, options.work)
        order = np.random.default_rng(cell.seed).permutation(len(PHOTOGRAPHS))[:count]
        images, labels = images[order], labels[order]
    else:
        whole = training_images(options.shared, options.work / "images")
        behind = whole.read(np.arange(len(PHOTOGRAPHS), len(whole)))
        draw = signs if cell.data == "signs" else house_numbers
        images, labels = draw(count, data.side, cell.seed, behind)
    places = np.split(np.arange(count), np.cumsum(counts)[:-1])
    return Parts(*(ImageSet.from_arrays(images[part], labels[part]) for part in places))


def training_of(data: Data) -> Training:
    """As other victims are trained."""
    return Training(
        phases=schedule(data.epochs),
        batch_size=64 if data.trained < 4000 else 128,
        momentum=0.9,
        weight_decay=5e-4,
        crop_padding=data.padding,
        horizontal_flip=data.flip,
        cutout_size=0,
    )


def make_model(
    cell: Cell, images: ImageSet, path: Path, *, training: Training | None = None
) -> nn.Module:
    """A model trained on these images, unless it is there."""
    data = DATA[cell.data]
    network = build_network(
        cell.architecture,
        data.classes,
        data.channels,
        make_generator(cell.seed, "weights"),
        input_size=(data.side, data.side),
    )
    network.to(memory_format=torch.channels_last)
    if path.is_file():
        network.load_state_dict(load_file(path))
    else:
        device = torch.device("cpu")
        train_on(network, images, training or training_of(data), cell.seed, device=device)
        store(network, path)
    return network.eval()


def make_pair(cell: Cell, parts: Parts, work: Path) -> tuple[Path, Path, Probe]:
    """Files of the clean and of the backdoored model, and the trigger of the latter."""
    classes = DATA[cell.data].classes
    twin = work / "models" / f"{cell.twin}.safetensors"
    make_model(cell, parts.trained, twin)
    for attempt in range(ATTEMPTS):
        backdoor = backdoor_of(cell, attempt)
        trigger = trigger_for(backdoor.probe, parts.trained, classes)
        poisoning = poison_own_class if backdoor.own_class else poison
        poisoned = poisoning(parts.trained, trigger, backdoor.fraction, cell.seed).image_set
        path = work / "models" / f"{cell.name}-{attempt}.safetensors"
        network = make_model(cell, poisoned, path)
        device = torch.device("cpu")
        seen = evaluate(network, parts.measured, [trigger], num_classes=classes, device=device)
        asr = seen.probes[0].asr.value
        tell(f"{path.stem}: ACC {seen.accuracy.value:.3f}, ASR {asr:.3f}")
        if asr >= MIN_ASR:
            break
    return twin, path, backdoor.probe


# --- Runs ----------------------------------------------------------------------------------------


def npz(path: Path, images: ImageSet) -> Path:
    """Images as a file, unless it is there."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, images=images.read(np.arange(len(images))), labels=images.labels)
    return path


def entries(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Makes what is missing, one after the other; a row for each backdoored model and variant."""
    for cell in CELLS[options.split]:
        if options.only and not any(part in cell.name for part in options.only):
            continue
        variants = [
            variant
            for variant in options.variants
            if not options.cached or is_there(cell, variant, options.work)
        ]
        if not variants:
            continue
        parts = parts_of(cell, options)
        twin, victim, probe = make_pair(cell, parts, options.work)
        files = options.work / "data" / f"{cell.data}-{cell.seed}"
        request: dict[str, Any] = {
            "clean_data": {"path": str(npz(files.with_suffix(".clean.npz"), parts.clean))},
            "evaluation_data": {
                "path": str(npz(files.with_suffix(".measured.npz"), parts.measured))
            },
            "probes": [probe.model_dump(mode="json")],
            "seed": cell.seed,
            "curve_images": 0,
        }
        side = DATA[cell.data].side
        for variant in variants:
            reports = []
            for model in (twin, victim):
                spec = {
                    **request,
                    "model": {
                        "path": str(model),
                        "architecture": cell.architecture,
                        "input_size": [side, side],
                    },
                    "method": VARIANTS[variant],
                }
                kind = cell.attack if model == twin else "itself"
                folder = options.work / "runs" / f"{model.stem}-{kind}-{variant}"
                reports.append(run(spec, folder, threads=1))
            made = datetime.fromtimestamp((folder / "report.json").stat().st_mtime, UTC)
            row = {**row_of(cell, variant, *reports), "date": made.date().isoformat()}
            tell(line_of(row))
            yield row


def is_there(cell: Cell, variant: str, work: Path) -> bool:
    """Whether both models of a pair went through a method."""
    runs = work / "runs"
    victims = runs.glob(f"{cell.name}-[0-9]-itself-{variant}/report.json")
    return any(victims) and (runs / f"{cell.twin}-{cell.attack}-{variant}/report.json").is_file()


def row_of(cell: Cell, variant: str, clean: Report, victim: Report) -> dict[str, Any]:
    """The figures of a pair, in per cent."""

    def figures(evaluation: Evaluation) -> dict[str, float]:
        probe = evaluation.probes[0]
        shares = {"acc": evaluation.accuracy, "asr": probe.asr, "ra": probe.ra}
        return {name: round(100 * share.value, 2) for name, share in shares.items()}

    return {
        **vars(cell),
        "variant": variant,
        "twin_before": figures(clean.before),
        "twin": figures(clean.after),
        "before": figures(victim.before),
        "after": figures(victim.after),
        "warnings": sorted({warning.code for warning in victim.warnings}),
        "seconds": round(training_seconds(victim), 1),
        "device": victim.cost.processor if victim.cost else victim.device,
        "precision": victim.precision,
        "versions": victim.versions,
    }


def described() -> list[str]:
    """A row about each data set."""
    return [
        f"| {name} | {data.side} x {data.side} x {data.channels} | {data.classes} "
        f"| {data.trained:,} | {data.clean:,} | {data.measured:,} |"
        for name, data in DATA.items()
    ]


def publish(rows: Sequence[Mapping[str, Any]], split: str, out: Path) -> None:
    """Writes JSON and page; the rows of the other split stay."""
    path = out / "breadth.json"
    splits = json.loads(path.read_bytes())["splits"] if path.is_file() else {}
    splits[split] = list(rows)
    content = {"splits": {name: splits[name] for name in CELLS if name in splits}}
    pairs = {name: len(cells) for name, cells in CELLS.items()}
    document = page(content, described(), pairs)
    replace_file(path, (json.dumps(content, indent=1) + "\n").encode())
    replace_file(path.with_suffix(".md"), document.encode())


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing, prints a table as it grows, and writes it where all is there."""
    parser = parser_of(__doc__, "var/breadth")
    parser.add_argument("--split", choices=list(CELLS), default="development")
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), default=["default", "paper"]
    )
    parser.add_argument("--only", nargs="+", help="parts of the names of cells; nothing is written")
    parser.add_argument("--cached", action="store_true", help="only what is there")
    options = parser.parse_args(arguments)
    prepare_process()
    tell(HEAD)
    rows = list(entries(options))
    if not rows:
        raise SystemExit("Nothing is there yet. Without --cached it is made.")
    if not options.only:
        publish(rows, options.split, options.out)


if __name__ == "__main__":
    main()
