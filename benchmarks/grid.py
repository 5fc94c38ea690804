"""Victims by variants of methods by seeds: what benchmarks of many runs have in common.

Figures of finished runs are kept in one JSON file, by a key of all that decides them: a run that is
there is not repeated. A run that was killed goes on from its checkpoint.

Runs take turns over all cores, a thread each: on so small a network that does more in an hour than
one run at a time with many threads. Seconds are those of a run beside others.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, TypeAdapter

from benchmarks.runs import run, training_seconds
from sanitizer.attacks.trigger import Trigger, make_trigger
from sanitizer.data.image_set import ImageSet, decode
from sanitizer.data.readers import open_source
from sanitizer.data.splits import draw
from sanitizer.report.model import Durability, Evaluation, Report
from sanitizer.spec import METHOD_ADAPTER, DataSource, Probe

TWIN = "clean"
IMAGES = 2500
"""5% of CIFAR-10's training images."""

SIZE = (32, 32)
PLACES = ("--shared", "--victims", "--results", "--work")
"""Options that say where things lie."""
PROBE: TypeAdapter[Probe] = TypeAdapter(Probe)
OWN_CLASS = ("sig", "refool", "cl")
"""Attacks that leave labels right: their images are taken from the target's class."""

# fmt: off
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on
"""Quantiles of Student's t distribution for 1 to 30 degrees of freedom; beyond, the normal's are
4% smaller at most."""
NORMAL_975 = 1.960


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        variant: What the table calls the method with these settings.
        method: As a request has it.
        curve: Whether it is measured after each epoch, if the options ask for curves at all.
        durability: Whether copies of the result are trained further.
        poisoned: Share of the clean images that get the victim's trigger and its target's label.
    """

    victim: str
    variant: str
    method: Mapping[str, Any]
    images: int
    seed: int
    curve: bool = True
    durability: bool = False
    poisoned: float = 0.0

    def settings(self) -> dict[str, Any]:
        """Every setting of the method, as the run has it."""
        return METHOD_ADAPTER.validate_python(self.method).model_dump(mode="json")


class Grid:
    """Victims, the figures that are there, and how more of them are made.

    Args:
        options: Parsed from what `add_options` added.
        name: Of the JSON file in the folder of results.

    Raises:
        SystemExit: There are no victims, or not those that were asked for.
    """

    def __init__(self, options: argparse.Namespace, name: str) -> None:
        manifest = options.victims / "manifest.json"
        if not manifest.is_file():
            raise SystemExit(f"{manifest} is not there; `python -m benchmarks.victims` makes it.")
        self.options = options
        self.victims: dict[str, Any] = json.loads(manifest.read_text())["victims"]
        asked = options.attacks or list(self.victims)
        unknown = sorted(set(asked) - self.victims.keys())
        if unknown:
            there = ", ".join(self.victims)
            raise SystemExit(f"No victim {', '.join(unknown)}; there are {there}.")
        self.chosen = [victim for victim in self.victims if victim in asked]
        self._name = name
        self._path: Path = options.results / f"{name}.json"
        content = json.loads(self._path.read_text()) if self._path.is_file() else {"runs": {}}
        current = {victim["sha256"] for victim in self.victims.values()}
        # Of no use to anybody are runs of victims that have been trained anew since.
        self._runs: dict[str, Any] = {
            renewed(key): kept
            for key, kept in content["runs"].items()
            if json.loads(key)["victim"] in current
        }

    @property
    def architecture(self) -> str:
        """Of the victims."""
        names = {victim["recipe"]["architecture"] for victim in self.victims.values()}
        return ", ".join(sorted(names))

    def results(self, cells: Sequence[Cell]) -> list[dict[str, Any]]:
        """What is there of these, in their order; each says which variant it is."""
        keys = [(self._key(cell), cell) for cell in cells]
        return [
            self._runs[key] | {"victim": cell.victim, "variant": cell.variant}
            for key, cell in keys
            if key in self._runs
        ]

    def fill(self, cells: Sequence[Cell], renew: Callable[[], object]) -> None:
        """Runs those that are missing, several at once.

        Args:
            renew: Called after each.
        """
        missing = {key: cell for cell in cells if (key := self._key(cell)) not in self._runs}
        begun, done = monotonic(), 0
        with ThreadPoolExecutor(self.options.at_once) as pool:
            waiting: dict[Future[Report], str] = {
                pool.submit(
                    run, self._spec(missing[key]), self._folder(missing[key], key), threads=1
                ): key
                for key in missing
            }
            try:
                while waiting:
                    finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in finished:
                        key = waiting.pop(future)
                        self._runs[key] = record(missing[key], future.result())
                        done += 1
                        left = (monotonic() - begun) / done * len(waiting)
                        _tell(missing[key], self._runs[key], len(waiting), left)
                        self._save()
                        renew()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def publish(
        self, cells: Sequence[Cell], page: Callable[[Sequence[Mapping[str, Any]], int], str]
    ) -> None:
        """Runs what is missing and prints the document, which stands beside the JSON file.

        Args:
            page: Makes the document of results and of how many are missing; called after each run.
        """

        def renew() -> str:
            results = self.results(cells)
            if not results:
                return "Nothing has been run yet.\n"
            text = page(results, len(cells) - len(results))
            self._path.with_suffix(".md").write_text(text)
            return text

        if not self.options.cached:
            self.fill(cells, renew)
        sys.stdout.write(renew())

    def probes(self, victim: str) -> list[dict[str, Any]]:
        """The triggers that are measured: a victim's own, all of them on the clean twin."""
        if victim == TWIN:
            return [entry["probe"] for entry in self.victims.values() if entry["probe"]]
        return [self.victims[victim]["probe"]]

    def _key(self, cell: Cell) -> str:
        parts = {
            "victim": self.victims[cell.victim]["sha256"],
            "probes": [probe["name"] for probe in self.probes(cell.victim)],
            "method": cell.settings(),
            "images": cell.images,
            "seed": cell.seed,
        }
        if cell.durability:
            parts["durability"] = True
        if cell.poisoned:
            parts["poisoned"] = cell.poisoned
        return json.dumps(parts, sort_keys=True)

    def _folder(self, cell: Cell, key: str) -> Path:
        # Other settings must not find the report of these.
        short = hashlib.sha256(key.encode()).hexdigest()[:12]
        folder: Path = self.options.work / f"{cell.victim}-{cell.images}-{cell.seed}-{short}"
        return folder

    def _spec(self, cell: Cell) -> dict[str, Any]:
        data = self.options.shared / "data" / "cifar10"
        drawn = {"path": str(data / "train.parquet"), "images": cell.images, "seed": cell.seed}
        if cell.poisoned:
            drawn = {"path": str(self._poisoned(cell, DataSource.model_validate(drawn)))}
        return {
            "model": {"path": str(self.options.victims / self.victims[cell.victim]["file"])},
            "clean_data": drawn,
            "evaluation_data": {"path": str(data / "test.parquet")},
            "method": cell.settings(),
            "probes": self.probes(cell.victim),
            "seed": cell.seed,
            "device": self.options.device,
            "curve_images": self.options.curve_images if cell.curve else 0,
            "durability": cell.durability,
        }

    def _poisoned(self, cell: Cell, data: DataSource) -> Path:
        """The file of the same draw of clean images, some with the victim's trigger."""
        path: Path = self.options.work / (
            f"{cell.victim}-{cell.images}-{cell.seed}-{cell.poisoned:g}.npz"
        )
        if not path.is_file():
            source = open_source(data)
            images = decode(
                source,
                draw(source.labels, cell.images, cell.seed),
                input_size=SIZE,
                channels=3,
                folder=self.options.work / "decoded",
            )
            (probe,) = self.probes(cell.victim)
            trigger = make_trigger(
                PROBE.validate_python(probe), input_size=SIZE, channels=3, num_classes=10
            )
            poisoned, _ = with_triggers(
                images, trigger, cell.poisoned, cell.seed, own_class=cell.victim in OWN_CLASS
            )
            np.savez(path, images=poisoned.images, labels=poisoned.labels)
        return path

    def _save(self) -> None:
        self.options.results.mkdir(parents=True, exist_ok=True)
        content = {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "runs": self._runs,
        }
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(self._path)


def renewed(key: str) -> str:
    """The key of a run as this version writes it: settings that came since are the preset's.

    But for those that say what a run did not do, since nobody could do it then.
    """
    parts = json.loads(key)
    method = parts["method"]
    argd = method if method["name"] == "argd" else method.get("argd")
    if argd is not None:
        argd.setdefault("suspect_share", 0.0)
        for hardening in ("hardening", "student_hardening"):
            if hardening in argd:
                argd[hardening].setdefault("ascent_share", 1.0)
    whole = METHOD_ADAPTER.validate_python(method).model_dump(mode="json")
    return json.dumps(parts | {"method": whole}, sort_keys=True)


def add_options(parser: argparse.ArgumentParser, work: str) -> None:
    """Options that every such benchmark has."""
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--victims", type=Path, default=Path("benchmarks/victims"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--work", type=Path, default=Path(work))
    parser.add_argument("--attacks", nargs="+", help="victims by name; all if left out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--curve-images", type=int, default=0, help="measured after each epoch")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--cached", action="store_true", help="run nothing: print what is there")


def with_triggers(
    images: ImageSet, trigger: Trigger, share: float, seed: int, *, own_class: bool
) -> tuple[ImageSet, NDArray[np.int64]]:
    """Some images with a trigger and its target's label, and where they are."""
    pixels, labels = np.array(images.images), np.array(images.labels)
    candidates = np.flatnonzero((labels == trigger.target_class) == own_class)
    generator = np.random.default_rng(seed)
    count = min(round(share * len(labels)), len(candidates))
    places = np.sort(generator.choice(candidates, count, replace=False))
    if count:
        pixels[places] = trigger.apply(torch.from_numpy(pixels[places])).numpy()
        labels[places] = trigger.target_class
    return ImageSet(pixels, labels, images.class_names, images.names), places


def measured(evaluation: Evaluation) -> dict[str, Any]:
    """ACC, and ASR and RA by trigger, in per cent."""
    return {
        "acc": 100 * evaluation.accuracy.value,
        "asr": {probe.name: 100 * probe.asr.value for probe in evaluation.probes},
        "ra": {probe.name: 100 * probe.ra.value for probe in evaluation.probes},
    }


def record(cell: Cell, report: Report) -> dict[str, Any]:
    """What is kept of a run."""
    kept = {
        "method": cell.method["name"],
        "images": cell.images,
        "seed": cell.seed,
        "before": measured(report.before),
        "after": measured(report.after),
        "der": {name: 100 * value for name, value in report.der.items()},
        "training_seconds": round(training_seconds(report), 2),
        "seconds": round(report.seconds, 2),
        "curve": [
            {"stage": stage.stage, "epoch": epoch.epoch}
            | {k: v for k, v in epoch.values.items() if k == "accuracy" or k[:4] in ("asr.", "ra.")}
            for stage in report.stages
            for epoch in stage.epochs
        ],
        "precision": report.precision,
        "device": report.cost.processor if report.cost else report.device,
        "versions": report.versions,
        "date": datetime.now(UTC).date().isoformat(),
    }
    if report.screening is not None:
        kept["left_out"] = report.screening.left_out
    if report.durability is not None:
        kept["durability"] = _durability(report.durability)
    return kept


def _durability(durability: Durability) -> dict[str, Any]:
    """Shares in per cent."""

    def percent(part: BaseModel, names: Sequence[str]) -> dict[str, float]:
        return {name: 100 * getattr(part, name).value for name in names}

    return {
        "epochs": durability.epochs,
        "learning_rate": durability.learning_rate,
        "measured_images": durability.measured_images,
        "acc": 100 * durability.accuracy.value,
        "retuned_acc": 100 * durability.clean_accuracy.value,
        "probes": {
            probe.name: {
                "poisoned_images": probe.poisoned_images,
                **percent(
                    probe, ("delivered", "clean", "poisoned", "control_delivered", "control")
                ),
            }
            for probe in durability.probes
        },
        "seconds": durability.seconds,
    }


def _tell(cell: Cell, kept: Mapping[str, Any], left: int, seconds: float) -> None:
    after = kept["after"]
    asr = statistics.mean(after["asr"].values() or [math.nan])
    sys.stderr.write(
        f"{cell.victim}, {cell.variant}, {cell.images} images, seed {cell.seed}: "
        f"ACC {after['acc']:.2f}, ASR {asr:.2f}; {left} left, about {seconds / 60:.0f} min\n"
    )
    sys.stderr.flush()


def command_of(module: str, arguments: Sequence[str] | None) -> str:
    """What a person types for a benchmark; without arguments, those of this process.

    Without where things lie, which is another place on each machine and decides no figure.
    """
    given = iter(sys.argv[1:] if arguments is None else arguments)
    kept = []
    for argument in given:
        if argument in PLACES:
            next(given, None)
        # What is there was not made by printing it.
        elif argument != "--cached" and argument.partition("=")[0] not in PLACES:
            kept.append(argument)
    return " ".join([f"python -m {module}", *kept])


# --- Tables --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mean:
    """A mean with the half width of its 95% interval (Student's t); one value has none."""

    value: float
    reach: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Of at least one value."""
        if len(values) == 1:
            return cls(values[0], None)
        spread = statistics.stdev(values) / math.sqrt(len(values))
        freedom = len(values) - 1
        quantile = T_975[freedom - 1] if freedom <= len(T_975) else NORMAL_975
        return cls(statistics.mean(values), spread * quantile)

    def __str__(self) -> str:
        return f"{self.value:.2f}" + ("" if self.reach is None else f" ± {self.reach:.2f}")


def rows(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, in the order of `results`; on the clean twin the mean over triggers."""
    found: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for result in results:
        which = (result["victim"], result["variant"], result["images"])
        found.setdefault(which, []).append(result)

    def of(result: Mapping[str, Any], figure: str, when: str) -> float:
        return float(statistics.mean(result[when][figure].values() or [math.nan]))

    return [
        {
            "victim": victim,
            "variant": variant,
            "images": images,
            "seeds": len(runs),
            "before": (runs[0]["before"]["acc"], of(runs[0], "asr", "before")),
            "acc": Mean.of([result["after"]["acc"] for result in runs]),
            "asr": Mean.of([of(result, "asr", "after") for result in runs]),
            "ra": Mean.of([of(result, "ra", "after") for result in runs]),
            "der": Mean.of([statistics.mean(result["der"].values()) for result in runs]),
            "seconds": statistics.median(result["training_seconds"] for result in runs),
        }
        for (victim, variant, images), runs in found.items()
    ]


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a block of lines per victim, the clean twin last."""
    lines = [
        "| victim | method | ACC % | ASR % | RA % | DER % | n | seconds |",
        "|---" * 8 + "|",
    ]
    before = None
    for row in sorted(rows(results), key=lambda row: order_of(row["victim"])):
        if row["victim"] != before:
            before = row["victim"]
            acc, asr = row["before"]
            lines.append(f"| **{before}** | as trained | {acc:.2f} | {asr:.2f} | | | | |")
        lines.append(
            f"| | {row['variant']} | {row['acc']} | {row['asr']} | {row['ra']} | {row['der']} "
            f"| {row['seeds']} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def order_of(victim: str) -> tuple[bool, str]:
    """The clean twin comes last."""
    return victim == TWIN, victim


def origin(results: Sequence[Mapping[str, Any]]) -> str:
    """Machines, versions and dates of runs, in one line."""
    machines = sorted({f"{result['device']}, {result['precision']}" for result in results})
    versions = sorted({f"torch {result['versions']['torch']}" for result in results})
    dates = sorted({result["date"] for result in results})
    return f"{'; '.join(machines)}; {', '.join(versions)}; {dates[0]} to {dates[-1]}."


def missing_note(missing: int) -> str:
    """What the document says as long as runs are missing."""
    if not missing:
        return ""
    return f"\n**{missing} runs are still missing**; the command goes on with them.\n"
