"""Attacks by methods by seeds: what each defense leaves of accuracy and backdoor.

    python -m benchmarks.paper_table

Every cell is a job like any other: `python -m sanitizer run` on a victim of `benchmarks/victims`,
with clean images drawn from CIFAR-10's training file, measured on its test file with the victim's
own trigger. Nothing is chosen by these figures: methods run with their presets, and take the last
epoch. The clean twin goes through every method too, measured with the trigger of every victim.

Figures of finished runs stand in `docs/results/paper_table.json`; a run that is there, of the same
victim (by hash) with the same settings, is not repeated, and a run that was killed goes on from its
checkpoint. The table is renewed after every run.

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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from benchmarks.runs import run, training_seconds
from sanitizer.catalog import METHODS
from sanitizer.report.model import Evaluation, Report
from sanitizer.spec import METHOD_ADAPTER

TWIN = "clean"
FRACTIONS_OF = ("finetune", "nad", "argd")
"""Methods that are also run with fewer clean images."""
FEWER = (500, 1000)
"""1% and 2% of CIFAR-10's training images; the table's 2,500 are 5%."""
IMAGES = 2500

T_975: Mapping[int, float] = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447}
"""Quantiles of Student's t distribution by degrees of freedom; beyond, the normal's."""


@dataclass(frozen=True)
class Cell:
    """One run."""

    victim: str
    method: str
    images: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.victim}-{self.method}-{self.images}-{self.seed}"


def cells(victims: Sequence[str], options: argparse.Namespace) -> Iterator[Cell]:
    """All runs, those of the main table and of the first seed first."""
    for images in dict.fromkeys((IMAGES, *reversed(FEWER))):
        for seed in range(options.seeds):
            for victim in victims:
                for method in options.methods:
                    fewer = images != IMAGES
                    if images in options.images and not (fewer and method not in FRACTIONS_OF):
                        yield Cell(victim, method, images, seed)


def settings(cell: Cell) -> dict[str, Any]:
    """Every setting of the cell's method, as the run has it."""
    method = METHOD_ADAPTER.validate_python({"name": cell.method, "preset": "paper"})
    return method.model_dump(mode="json")


def key(cell: Cell, victims: Mapping[str, Any]) -> str:
    """Of all that decides the figures, but for the machine."""
    parts = {
        "victim": victims[cell.victim]["sha256"],
        "probes": [probe["name"] for probe in probes(cell, victims)],
        "method": settings(cell),
        "images": cell.images,
        "seed": cell.seed,
    }
    return json.dumps(parts, sort_keys=True)


def short_hash(name: str) -> str:
    """Of a key, for the name of a folder."""
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def probes(cell: Cell, victims: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The triggers that are measured: a victim's own, all of them on the clean twin."""
    if cell.victim == TWIN:
        return [entry["probe"] for entry in victims.values() if entry["probe"]]
    return [victims[cell.victim]["probe"]]


def spec_of(cell: Cell, victims: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The job."""
    data = options.shared / "data" / "cifar10"
    return {
        "model": {"path": str(options.victims / victims[cell.victim]["file"])},
        "clean_data": {
            "path": str(data / "train.parquet"),
            "images": cell.images,
            "seed": cell.seed,
        },
        "evaluation_data": {"path": str(data / "test.parquet")},
        "method": settings(cell),
        "probes": probes(cell, victims),
        "seed": cell.seed,
        "device": options.device,
        "curve_images": options.curve_images,
    }


def measured(evaluation: Evaluation) -> dict[str, Any]:
    """ACC, and ASR and RA by trigger, in per cent."""
    return {
        "acc": 100 * evaluation.accuracy.value,
        "asr": {probe.name: 100 * probe.asr.value for probe in evaluation.probes},
        "ra": {probe.name: 100 * probe.ra.value for probe in evaluation.probes},
    }


def record(cell: Cell, report: Report) -> dict[str, Any]:
    """What is kept of a run."""
    return {
        "victim": cell.victim,
        "method": cell.method,
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


# --- The table -----------------------------------------------------------------------------------


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
        return cls(statistics.mean(values), spread * T_975.get(len(values) - 1, 1.96))

    def __str__(self) -> str:
        return f"{self.value:.2f}" + ("" if self.reach is None else f" ± {self.reach:.2f}")


def rows(results: Sequence[Mapping[str, Any]], images: int) -> list[dict[str, Any]]:
    """Means over seeds, in the order of `results`; on the clean twin the mean over triggers."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for result in results:
        if result["images"] == images:
            found.setdefault((result["victim"], result["method"]), []).append(result)

    def of(result: Mapping[str, Any], figure: str, when: str) -> float:
        return float(statistics.mean(result[when][figure].values() or [math.nan]))

    return [
        {
            "victim": victim,
            "method": method,
            "seeds": len(runs),
            "before": [runs[0]["before"]["acc"], of(runs[0], "asr", "before")],
            "acc": Mean.of([result["after"]["acc"] for result in runs]),
            "asr": Mean.of([of(result, "asr", "after") for result in runs]),
            "ra": Mean.of([of(result, "ra", "after") for result in runs]),
            "der": Mean.of([statistics.mean(result["der"].values()) for result in runs]),
            "seconds": statistics.median(result["training_seconds"] for result in runs),
        }
        for (victim, method), runs in found.items()
    ]


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a section per number of clean images."""
    sections = []
    for images in sorted({result["images"] for result in results}, reverse=True):
        lines = [
            f"## {images:,} clean images ({images / 500:g}%)",
            "",
            "| victim | method | ACC % | ASR % | RA % | DER % | n | seconds |",
            "|---" * 8 + "|",
        ]
        before = None
        for row in sorted(rows(results, images), key=lambda row: order_of(row["victim"])):
            if row["victim"] != before:
                before = row["victim"]
                acc, asr = row["before"]
                lines.append(f"| **{before}** | as trained | {acc:.2f} | {asr:.2f} | | | | |")
            lines.append(
                f"| | {row['method']} | {row['acc']} | {row['asr']} | {row['ra']} | {row['der']} "
                f"| {row['seeds']} | {row['seconds']:.0f} |"
            )
        sections.append("\n".join(lines))
    return "\n\n".join(sections) + "\n"


def order_of(victim: str) -> tuple[bool, str]:
    """The clean twin comes last."""
    return victim == TWIN, victim


def page(results: Sequence[Mapping[str, Any]], command: str, missing: int) -> str:
    """The whole document."""
    machines = sorted({f"{r['device']}, {r['precision']}" for r in results})
    versions = sorted({f"torch {r['versions']['torch']}" for r in results})
    dates = sorted({r["date"] for r in results})
    left = f"\n**{missing} runs are still missing**; the command goes on with them.\n" * bool(
        missing
    )
    return (
        "# Attacks by methods\n\n"
        f"    {command}\n\n"
        "WRN-16-1 on CIFAR-10, measured on its 10,000 test images. Means over seeds with 95% "
        "intervals (Student's t); the seed decides the draw of clean images and the training. Each "
        "method runs with its preset `paper`, and nothing was chosen by these figures. ASR, RA and "
        "DER are those of the victim's own trigger; on the clean model, means over all triggers: "
        "its ASR is what a model without a backdoor makes of them. Seconds: of the method alone, "
        "one thread, beside another run.\n\n"
        f"{'; '.join(machines)}; {', '.join(versions)}; {dates[0]} to {dates[-1]}.\n{left}\n"
        + table(results)
    )


# --- Running -------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing, prints the table and writes JSON and Markdown."""
    names = [entry.name for entry in METHODS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--victims", type=Path, default=Path("benchmarks/victims"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--work", type=Path, default=Path("var/paper_table"))
    parser.add_argument("--attacks", nargs="+", help="victims by name; all if left out")
    parser.add_argument("--methods", nargs="+", choices=names, default=names)
    parser.add_argument("--images", nargs="+", type=int, default=[IMAGES, *FEWER])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--curve-images", type=int, default=0, help="measured after each epoch")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--cached", action="store_true", help="run nothing: print what is there")
    options = parser.parse_args(arguments)

    manifest = options.victims / "manifest.json"
    if not manifest.is_file():
        raise SystemExit(
            f"{manifest} is not there: train victims by `python -m benchmarks.victims`."
        )
    victims: dict[str, Any] = json.loads(manifest.read_text())["victims"]
    unknown = sorted(set(options.attacks or ()) - victims.keys())
    if unknown:
        raise SystemExit(f"No victim {', '.join(unknown)}; there are {', '.join(victims)}.")
    chosen = [name for name in victims if not options.attacks or name in options.attacks]

    path = options.results / "paper_table.json"
    kept: dict[str, Any] = json.loads(path.read_text())["runs"] if path.is_file() else {}
    wanted = {key(cell, victims): cell for cell in cells(chosen, options)}
    missing = [] if options.cached else [name for name in wanted if name not in kept]
    command = " ".join(["python -m benchmarks.paper_table", *(arguments or sys.argv[1:])])

    def write() -> str:
        # Runs of victims that have been trained anew since are of no use to anybody.
        current = {victim["sha256"] for victim in victims.values()}
        for name in [name for name in kept if json.loads(name)["victim"] not in current]:
            del kept[name]
        results = [kept[name] for name in wanted if name in kept]
        text = page(results, command, len(wanted) - len(results)) if results else ""
        options.results.mkdir(parents=True, exist_ok=True)
        content = {"torch": torch.__version__, "python": platform.python_version(), "runs": kept}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(path)
        if text:
            (options.results / "paper_table.md").write_text(text)
        return text

    begun, done = monotonic(), 0
    with ThreadPoolExecutor(options.at_once) as pool:
        waiting: dict[Future[Report], str] = {
            pool.submit(
                run,
                spec_of(wanted[name], victims, options),
                # Other settings must not find the report of these.
                options.work / f"{wanted[name].name}-{short_hash(name)}",
                threads=1,
            ): name
            for name in missing
        }
        try:
            while waiting:
                finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    name = waiting.pop(future)
                    kept[name] = record(wanted[name], future.result())
                    done += 1
                    left = (monotonic() - begun) / done * len(waiting)
                    after = kept[name]["after"]
                    asr = statistics.mean(after["asr"].values() or [math.nan])
                    sys.stderr.write(
                        f"{wanted[name].name}: ACC {after['acc']:.2f}, ASR {asr:.2f}; "
                        f"{len(waiting)} left, about {left / 60:.0f} min\n"
                    )
                    sys.stderr.flush()
                    write()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    sys.stdout.write(write() or "Nothing has been run yet.\n")


if __name__ == "__main__":
    main()
