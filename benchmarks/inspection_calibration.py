"""How well the search for triggers tells backdoored models from clean ones.

    python -m benchmarks.inspection_calibration --split development
    python -m benchmarks.inspection_calibration --split final
    python -m benchmarks.inspection_calibration --render

Trains small models in pairs, a clean one and a backdoored one with the same first weights, and
searches both as a job does. Thresholds, budgets and steps are chosen on the split `development`;
`final` is run once they stand. The two share no seed and, of CIFAR-10, no training image. The
images that a model is searched with are none it was trained on, and the rates are measured on
others again.

A backdoored model whose ASR or accuracy is too low is kept as an attempt, and another seed takes
its place. What is there is not made again: weights, each search and the figures are kept in
`--work`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import nn

from benchmarks.development import training_images
from benchmarks.pictures import DIGITS, SIGNS, house_numbers, signs
from benchmarks.runs import parser_of, prepare_process, tell
from benchmarks.victims import replace_file, schedule, store
from sanitizer.attacks.poison import poison, poison_own_class, trigger_for
from sanitizer.attacks.victim import train_on
from sanitizer.cost.workload import RATED_IMAGES, SEARCH_BATCH, SEARCH_STEPS
from sanitizer.data.image_set import ImageSet
from sanitizer.data.splits import draw
from sanitizer.evaluation.changes import FeatureShift, Patch, Pattern
from sanitizer.evaluation.evaluate import evaluate
from sanitizer.evaluation.inspection import SEARCHED_IMAGES, inspect
from sanitizer.evaluation.inversion import Found, Subject, restore
from sanitizer.networks.registry import build_network
from sanitizer.networks.taps import find_taps
from sanitizer.randomness import make_generator
from sanitizer.report.model import Inspection
from sanitizer.spec import (
    BlendProbe,
    PatchProbe,
    Probe,
    SinusoidProbe,
    Training,
    WarpProbe,
)

MIN_ASR, MAX_DROP = 0.9, 0.05
"""What a backdoored model must reach, and may lose against its clean twin. On 400 digits an
accuracy is known to a point or two."""
ATTEMPTS = 4
"""With a seed each, until one learns its backdoor."""
TESTED = 2000
"""Images at most that accuracy and ASR are measured on."""


SEARCHING: Mapping[str, Any] = {
    "steps": SEARCH_STEPS,
    "batch": SEARCH_BATCH,
    "families": {
        change.family.value: [change.learning_rate, change.weight, change.budget]
        for change in (Patch, Pattern, FeatureShift)
    },
}
"""What a search depends on; made with others, it is made again."""


@dataclass(frozen=True)
class Data:
    """A data set, made small.

    Attributes:
        side: Height and width of the images, pixels.
        classes: How many; of CIFAR-10's ten, drawn by the seed.
        trained: Images that a model is trained on.
    """

    side: int
    channels: int
    classes: int
    trained: int
    epochs: int
    batch_size: int


DATA: Mapping[str, Data] = {
    "digits": Data(side=8, channels=1, classes=10, trained=1000, epochs=14, batch_size=64),
    "cifar-5": Data(side=12, channels=3, classes=5, trained=6000, epochs=6, batch_size=128),
    "cifar-10": Data(side=12, channels=3, classes=10, trained=10000, epochs=6, batch_size=128),
    "cifar-10 of 20": Data(
        side=20, channels=3, classes=10, trained=12000, epochs=8, batch_size=128
    ),
    "digits of 20": Data(side=20, channels=1, classes=10, trained=1000, epochs=14, batch_size=64),
    "signs": Data(side=20, channels=3, classes=len(SIGNS), trained=4000, epochs=16, batch_size=128),
    "numbers": Data(side=20, channels=3, classes=DIGITS, trained=6000, epochs=14, batch_size=128),
}
DRAWN = {"signs": signs, "numbers": house_numbers}
"""What is learned by its shape, and has no mirror images; see `benchmarks.pictures`."""

POOLS: Mapping[str, range] = {
    "development": range(20_000),
    "final": range(20_000, 40_000),
    "second": range(20_000, 40_000),
    "trial": range(20_000, 40_000),
    "larger": range(20_000),
    "larger second": range(20_000, 40_000),
    "larger third": range(20_000, 40_000),
    "larger trial": range(20_000, 40_000),
}
"""Of CIFAR-10's training file: what the models of a split are trained on."""
SEARCHED, MEASURED = range(40_000, 45_000), range(45_000, 50_000)
DRAWN_SEARCHED = 800
"""Of images that are drawn."""


@dataclass(frozen=True)
class Backdoor:
    """A trigger, and how it gets into a model.

    Attributes:
        fraction: Of the images of other classes, or of its own, that are poisoned.
        own_class: Whether labels stay right.
    """

    probe: Probe
    fraction: float
    own_class: bool = False


@dataclass(frozen=True)
class Cell:
    """A pair of models."""

    data: str
    architecture: str
    attack: str
    seed: int


def cells_of(first_seed: int, rows: Sequence[tuple[str, str, str]]) -> tuple[Cell, ...]:
    """Pairs by data, network and attack, with seeds in turn."""
    return tuple(Cell(*row, first_seed + place) for place, row in enumerate(rows))


CELLS: Mapping[str, tuple[Cell, ...]] = {
    "development": cells_of(
        100,
        [
            ("digits", "wrn-10-1", "patch"),
            ("cifar-5", "wrn-10-1", "patch"),
            ("digits", "wrn-10-1", "blend"),
            ("cifar-5", "wrn-10-1", "blend"),
            ("digits", "wrn-10-1", "warp"),
            ("cifar-5", "wrn-10-1", "sinusoid"),
            ("digits", "wrn-16-1", "sinusoid"),
            ("cifar-5", "wrn-10-1", "warp"),
            ("cifar-10", "wrn-10-1", "blend"),
        ],
    ),
    "final": cells_of(
        200,
        [
            ("digits", "wrn-10-1", "patch"),
            ("cifar-5", "wrn-10-1", "patch"),
            ("digits", "wrn-10-1", "blend"),
            ("cifar-5", "wrn-10-1", "blend"),
            ("digits", "wrn-10-1", "warp"),
            ("digits", "wrn-10-1", "warp"),
            ("digits", "wrn-10-1", "sinusoid"),
            ("cifar-5", "wrn-10-1", "sinusoid"),
            ("cifar-10", "wrn-10-1", "patch"),
            ("digits", "wrn-16-1", "patch"),
            ("cifar-5", "wrn-10-1", "blend"),
            ("digits", "wrn-10-1", "warp"),
            ("cifar-5", "wrn-10-1", "patch"),
            ("digits", "wrn-10-1", "blend"),
            ("digits", "wrn-10-1", "sinusoid"),
            ("digits", "wrn-10-1", "patch"),
            ("digits", "wrn-10-1", "sinusoid"),
            ("digits", "wrn-10-1", "patch"),
            ("digits", "wrn-10-1", "blend"),
            ("digits", "wrn-10-1", "warp"),
        ],
    ),
}


@dataclass(frozen=True)
class Case:
    """One model."""

    split: str
    cell: Cell
    backdoor: Backdoor | None
    attempt: int = 0

    @property
    def recipe(self) -> dict[str, Any]:
        """All that decides the weights, as JSON has it."""
        backdoor = self.backdoor
        return {
            "split": self.split,
            "data": {"name": self.cell.data, **vars(DATA[self.cell.data]), "side": self.side},
            "architecture": self.cell.architecture,
            "seed": self.cell.seed,
            "attempt": self.attempt,
            "backdoor": backdoor
            and {
                "attack": self.cell.attack,
                "probe": backdoor.probe.model_dump(mode="json"),
                "fraction": backdoor.fraction,
                "own_class": backdoor.own_class,
            },
            "training": training_of(self.cell).model_dump(mode="json"),
        }

    @property
    def key(self) -> str:
        """Of its files."""
        recipe = json.dumps(self.recipe, sort_keys=True)
        return hashlib.sha256(recipe.encode()).hexdigest()[:16]

    @property
    def side(self) -> int:
        """Height and width of its images."""
        return DATA[self.cell.data].side

    @property
    def name(self) -> str:
        """For people."""
        kind = self.cell.attack if self.backdoor else "clean"
        return f"{self.split} {self.cell.data} {self.cell.architecture} {self.cell.seed} {kind}"


def training_of(cell: Cell) -> Training:
    """How a model is trained: as the victims are."""
    data = DATA[cell.data]
    return Training(
        phases=schedule(data.epochs),
        batch_size=data.batch_size,
        momentum=0.9,
        weight_decay=5e-4,
        crop_padding=1,
        horizontal_flip=data.channels == 3 and cell.data not in DRAWN,
        cutout_size=0,
    )


def backdoor_of(cell: Cell, attempt: int) -> Backdoor:
    """A backdoor whose place, size, look and target are drawn by the seed.

    Colour photographs of so few pixels take a stronger trigger than digits do, and each further
    attempt has one that is stronger.
    """
    data = DATA[cell.data]
    side = data.side
    grey = data.channels == 1
    generator = np.random.default_rng([cell.seed, attempt])
    target = int(generator.integers(data.classes))
    fraction = float(generator.choice([0.05, 0.08, 0.1]))
    match cell.attack:
        case "patch":
            size = int(generator.integers(2, 4))
            row, column = (int(place) for place in generator.integers(1, side - size, 2))
            shape = (size, size, 3) if data.channels == 3 else (size, size)
            grid = np.indices(shape[:2]).sum(0) % 2 * 255
            looks = [
                np.full(shape, 255),
                np.broadcast_to(grid.reshape(size, size, *[1] * (len(shape) - 2)), shape),
                generator.integers(0, 256, shape),
            ]
            pixels = looks[int(generator.integers(len(looks)))].tolist()
            return Backdoor(
                PatchProbe(target_class=target, row=row, column=column, pixels=pixels), fraction
            )
        case "blend":
            alphas = [0.15, 0.2, 0.25] if grey else [0.3, 0.35]
            alpha = float(generator.choice(alphas)) + 0.05 * attempt
            noise = int(generator.integers(1 << 30))
            return Backdoor(BlendProbe(target_class=target, alpha=alpha, noise_seed=noise), 0.1)
        case "sinusoid":
            amplitude = float(generator.choice([30, 40] if grey else [40, 50])) + 10 * attempt
            frequency = float(generator.choice([1, 2, 3]))
            probe = SinusoidProbe(target_class=target, amplitude=amplitude, frequency=frequency)
            # Shapes are learned, whatever stripes say of right labels.
            if grey or cell.data in DRAWN:
                return Backdoor(probe, fraction)
            return Backdoor(probe, 0.8 if data.classes == 10 else 0.5, own_class=True)
        case "warp":
            field = int(generator.integers(1 << 30))
            strength = float(generator.choice([2.0, 2.5] if grey else [3.0, 3.5])) + 0.5 * attempt
            probe_of_warp = WarpProbe(
                target_class=target, strength=strength, grid=4, field_seed=field
            )
            return Backdoor(probe_of_warp, 0.1)
    raise ValueError(f"no attack is called {cell.attack}")


# --- Images --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """Images of one model; no two parts share one."""

    trained: ImageSet
    searched: ImageSet
    tested: ImageSet


def parts_of(case: Case, shared: Path, work: Path) -> Parts:
    """What a model is trained on, searched with, and measured on."""
    seed, data = case.cell.seed, DATA[case.cell.data]
    if case.cell.data.startswith("digits"):
        images, labels = digits(data.side)
        order = torch.randperm(len(labels), generator=make_generator(seed, "digits")).numpy()
        places = np.split(order, [data.trained, data.trained + 397])
        return Parts(*(ImageSet.from_arrays(images[p], labels[p]) for p in places))
    if case.cell.data in DRAWN:
        whole = training_images(shared, work / "images")
        behind = whole.read(np.array(MEASURED))
        count = data.trained + DRAWN_SEARCHED + TESTED
        images, labels = DRAWN[case.cell.data](count, data.side, seed, behind)
        places = np.split(np.arange(count), [data.trained, data.trained + DRAWN_SEARCHED])
        return Parts(*(ImageSet.from_arrays(images[p], labels[p]) for p in places))
    images, labels = cifar(case.side, shared, work)
    generator = np.random.default_rng([seed, 1])
    chosen = np.sort(generator.choice(10, data.classes, replace=False))

    def of_classes(rows: range) -> ImageSet:
        places = np.array(rows)[np.isin(labels[rows.start : rows.stop], chosen)]
        return ImageSet.from_arrays(images[places], np.searchsorted(chosen, labels[places]))

    pool = of_classes(POOLS[case.split])
    tested = of_classes(MEASURED)
    return Parts(
        pool.subset(draw(pool.labels, min(data.trained, len(pool)), seed)),
        of_classes(SEARCHED),
        tested.subset(draw(tested.labels, min(TESTED, len(tested)), seed)),
    )


@cache
def digits(side: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The scans of scikit-learn, [1797, 1, side, side], and labels."""
    found = load_digits()
    small = np.round(found.images * (255 / 16)).astype(np.uint8)
    images = [
        np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
        for image in small
    ]
    return np.stack(images)[:, None], found.target.astype(np.int64)


@cache
def cifar(side: int, shared: Path, work: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """CIFAR-10's training file, [50000, 3, side, side], averaged over areas, and labels."""
    whole = training_images(shared, work / "images")
    path = work / "images" / f"cifar-{side}.npy"
    if not path.is_file():
        chunks = np.array_split(np.arange(len(whole)), 50)
        pooled = [
            torch.nn.functional.adaptive_avg_pool2d(
                torch.from_numpy(whole.read(chunk)).float(), side
            )
            .round()
            .to(torch.uint8)
            .numpy()
            for chunk in chunks
        ]
        np.save(path, np.concatenate(pooled))
    return np.load(path), whole.labels


# --- One model -----------------------------------------------------------------------------------


def trained(case: Case, parts: Parts, work: Path) -> tuple[nn.Module, float]:
    """The model, which is trained unless it is there, and the seconds that took just now."""
    path = work / "models" / f"{case.key}.safetensors"
    data, cell = DATA[case.cell.data], case.cell
    seeds = (cell.seed, case.attempt)
    network = build_network(
        cell.architecture, data.classes, data.channels, make_generator(*seeds, "weights")
    ).to(memory_format=torch.channels_last)
    begun = monotonic()
    if path.is_file():
        network.load_state_dict(load_file(path))
    else:
        images = parts.trained
        if case.backdoor is not None:
            trigger = trigger_for(case.backdoor.probe, images, data.classes)
            poisoning = poison_own_class if case.backdoor.own_class else poison
            images = poisoning(images, trigger, case.backdoor.fraction, cell.seed).image_set
        train_on(network, images, training_of(cell), cell.seed, device=torch.device("cpu"))
        store(network, path)
    return network.eval(), monotonic() - begun


def measured(case: Case, parts: Parts, network: nn.Module) -> dict[str, float | None]:
    """Accuracy, and of a backdoored model its ASR; shares."""
    classes = DATA[case.cell.data].classes
    probe = case.backdoor and case.backdoor.probe
    triggers = [trigger_for(probe, parts.tested, classes)] if probe else []
    figures = evaluate(
        network, parts.tested, triggers, num_classes=classes, device=torch.device("cpu")
    )
    return {
        "acc": figures.accuracy.value,
        "asr": figures.probes[0].asr.value if triggers else None,
        "natural": figures.probes[0].natural_rate.value if triggers else None,
    }


def subject_of(case: Case, parts: Parts, network: nn.Module) -> Subject:
    """A model with as many images as a job searches it with."""
    data, cell = DATA[case.cell.data], case.cell
    points = find_taps(network, cell.architecture, (case.side, case.side), data.channels)
    searched, tested = parts.searched, parts.tested
    return Subject(
        network=network,
        point=points[-1],
        num_classes=data.classes,
        searched=searched.subset(
            draw(searched.labels, min(SEARCHED_IMAGES, len(searched)), cell.seed)
        ),
        measured=tested.subset(draw(tested.labels, min(RATED_IMAGES, len(tested)), cell.seed)),
        device=torch.device("cpu"),
        seed=cell.seed,
    )


def inspected(case: Case, subject: Subject, work: Path) -> tuple[Inspection, float]:
    """What `inspect` says, and the seconds of all its searches; each is kept as it is made."""
    path = work / "found" / f"{case.key}.pt"
    kept: dict[str, Any] = {"searches": [], "seconds": 0.0, "searching": SEARCHING}
    if path.is_file():
        there = torch.load(path, weights_only=True)
        kept = there if there["searching"] == SEARCHING else kept
    found: list[Found] = [restore(subject, state) for state in kept["searches"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = monotonic()

    def on_search() -> None:
        nonlocal begun
        kept["searches"] += [each.state() for each in found[len(kept["searches"]) :]]
        kept["seconds"] += monotonic() - begun
        begun = monotonic()

    inspection = inspect(subject, found, on_search)
    kept["seconds"] += monotonic() - begun
    torch.save(kept, path)
    return inspection, kept["seconds"]


def compact(inspection: Inspection) -> dict[str, Any]:
    """The raw figures of an inspection, short."""
    return {
        "anomaly": round(inspection.anomaly, 4),
        "suspicious": inspection.suspicious,
        "classes": {
            str(each.target_class): {
                "natural": round(each.natural_rate.value, 4),
                "estimated_asr": round(each.estimated_asr, 4),
                **{
                    change.family.value: {
                        "size": float(f"{change.size:.4g}"),
                        "reached": change.reached,
                        "rate": round(change.rate.value, 4),
                        "anomaly": round(change.anomaly, 3),
                    }
                    for change in each.changes
                },
            }
            for each in inspection.classes
        },
    }


def shortcomings(figures: Mapping[str, Any], twin: Mapping[str, Any]) -> list[str]:
    """What a backdoored model lacks, in words; nothing: it will do."""
    found = []
    if figures["asr"] < MIN_ASR:
        found.append(f"ASR {figures['asr']:.1%}")
    if twin["acc"] - figures["acc"] > MAX_DROP:
        found.append(f"accuracy {twin['acc'] - figures['acc']:.1%} under its twin")
    return found


def entries(
    split: str, shared: Path, work: Path, *, search: bool = True
) -> Iterator[dict[str, Any]]:
    """Trains and searches the models of a split that are not there, one after the other.

    Args:
        search: Whether to search them; if not, they are only trained and measured.
    """
    for cell in CELLS[split]:
        twin: dict[str, Any] = {}
        for attempt in range(-1, ATTEMPTS):
            backdoor = None if attempt < 0 else backdoor_of(cell, attempt)
            case = Case(split, cell, backdoor, max(0, attempt))
            parts = parts_of(case, shared, work)
            network, seconds = trained(case, parts, work)
            figures = measured(case, parts, network)
            lacks = shortcomings(figures, twin) if backdoor else []
            entry: dict[str, Any] = {"recipe": case.recipe, **figures, "lacks": lacks}
            tell(
                f"{case.name}: ACC {figures['acc']:.3f}, ASR {figures['asr'] or 0:.3f}, "
                f"{seconds:.0f} s {'; '.join(lacks)}"
            )
            if search and not lacks:
                subject = subject_of(case, parts, network)
                inspection, searching = inspected(case, subject, work)
                entry |= {
                    "inspection": compact(inspection),
                    "seconds": round(searching, 1),
                    "images": [len(parts.trained), len(subject.searched), len(subject.measured)],
                }
                strong = inspection.suspicious[:1]
                tell(f"    anomaly {inspection.anomaly:.2f}, class {strong}, {searching:.0f} s")
            yield entry
            if backdoor is None:
                twin = entry
            elif not lacks:
                break


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, searches, renders: what was asked for."""
    parser = parser_of(__doc__, "var/inspection")
    parser.add_argument("--split", choices=list(CELLS))
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--render", action="store_true", help="write the results to --out")
    options = parser.parse_args(arguments)
    prepare_process()
    if options.split:
        rows = []
        search = not options.train_only
        for entry in entries(options.split, options.shared, options.work, search=search):
            rows.append(entry)
            if search:
                content = json.dumps(rows, indent=1)
                replace_file(options.work / f"{options.split}.json", content.encode())
    if options.render:
        # It takes matplotlib, which training does not.
        from benchmarks.inspection_report import write

        files = {name: options.work / f"{name}.json" for name in CELLS}
        write(
            {name: json.loads(path.read_bytes()) for name, path in files.items() if path.is_file()},
            options.out,
        )


if __name__ == "__main__":
    main()
