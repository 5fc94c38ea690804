"""How far off the estimates are: small jobs of many kinds, each estimated before it runs.

    python -m benchmarks.estimate_error
    python -m benchmarks.estimate_error --suggest

Each run is a process of its own, `python -m sanitizer run`, exactly as a worker starts it. Each is
estimated twice: by the rule of thumb alone, as on a new installation, and with the jobs before it
as history. Prints both against what the report says the run took, and writes JSON. With `--suggest`
it also fits the rule of thumb to what was measured. Goes on where it stopped: a run whose report is
there is not repeated; give `--repeats 3` where the machine is not this benchmark's alone.

The networks are untrained ones: what they learn is not looked at, and costs the same.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from sanitizer.cost.estimate import RULES, Estimate, Rule, estimate, rule_of_thumb
from sanitizer.cost.workload import Measured, Workload, training_work
from sanitizer.networks.registry import build_network
from sanitizer.randomness import make_generator
from sanitizer.report.model import Report
from sanitizer.spec import METHOD_ADAPTER, SanitizeSpec

CLASSES = 10
PROBE = {"kind": "patch", "name": "corner", "target_class": 0, "row": -3, "column": -3}
PIXELS = [[255, 0, 255], [0, 255, 0], [255, 0, 255]]
STEPS = (2.0, 1.3, 1.1, 1.03)
"""Factors by which the fit moves a constant, coarse ones first."""


@dataclass(frozen=True)
class Case:
    """One job.

    Attributes:
        epochs: Of each training stage.
    """

    architecture: str
    side: int
    method: str
    clean: int
    evaluation: int
    epochs: int
    batch: int = 64
    curve: int = 1000

    @property
    def name(self) -> str:
        """What the table and the folder call it."""
        return f"{self.architecture}-{self.side}px-{self.method}-{self.clean}x{self.epochs}"


CASES = (
    Case("wrn-10-1", 16, "finetune", 500, 500, 2),
    Case("wrn-16-1", 32, "argd", 500, 1000, 2),
    Case("wrn-16-1", 32, "argd", 2500, 2000, 3),
    Case("wrn-28-2", 32, "nad", 1000, 500, 1),
    Case("preact_resnet18", 32, "finetune", 500, 300, 1),
    Case("preact_resnet18", 32, "argd", 300, 300, 1, curve=0),
    Case("squeezenet1_1", 64, "nad", 500, 300, 1),
    Case("shufflenet_v2_x1_0", 64, "argd", 500, 300, 1, batch=32),
    Case("resnet18", 64, "finetune", 500, 300, 1, curve=0),
    Case("mobilenet_v2", 96, "finetune", 200, 100, 1, batch=32),
)


def write_spec(case: Case, shared: Path, folder: Path, device: str, threads: int) -> SanitizeSpec:
    """The model's file and the specification of a job, in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model.pth"
    network = build_network(case.architecture, CLASSES, 3, make_generator(0))
    torch.save(network.state_dict(), model)
    training = {
        # A rate at which nothing diverges, whatever the network.
        "phases": [{"epochs": case.epochs, "learning_rate": 1e-4}],
        "batch_size": case.batch,
    }
    stages = ("training",) if case.method == "finetune" else ("teacher", "student")
    cifar = shared / "data" / "cifar10"
    spec = SanitizeSpec.model_validate(
        {
            "model": {
                "path": model,
                "architecture": case.architecture,
                "input_size": [case.side] * 2,
            },
            "clean_data": {"path": cifar / "train.parquet", "images": case.clean},
            "evaluation_data": {"path": cifar / "test.parquet", "images": case.evaluation},
            "method": {"name": case.method, "preset": "paper", **dict.fromkeys(stages, training)},
            "probes": [{**PROBE, "pixels": PIXELS}],
            "device": device,
            "threads": threads,
            "curve_images": case.curve,
        }
    )
    (folder / "spec.json").write_text(spec.model_dump_json())
    return spec


def workload_of(case: Case, spec: SanitizeSpec, device: str, threads: int) -> Workload:
    """What is known of a job before it runs."""
    method = METHOD_ADAPTER.validate_python(spec.method)
    return Workload(
        architecture=case.architecture,
        input_size=(case.side, case.side),
        model_bytes=spec.model.path.stat().st_size,
        training=training_work(method, case.clean),
        evaluation_images=case.evaluation,
        curve_images=min(case.curve, case.evaluation),
        probes=len(spec.probes),
        device="cuda" if device == "cuda" else "cpu",
        threads=threads,
    )


def run(folder: Path, repeats: int) -> tuple[Report, float]:
    """The report of a job's fastest run and the seconds of its process.

    What else goes on at a machine only ever makes a run slower.
    """
    runs = [_run_once(folder, folder / f"run-{number}") for number in range(repeats)]
    return min(runs, key=lambda made: made[0].seconds)


def _run_once(case: Path, folder: Path) -> tuple[Report, float]:
    """The report of one run and the seconds of its process, made if they are not there."""
    folder.mkdir(exist_ok=True)
    report, wall = folder / "report.json", folder / "wall.json"
    if not (report.is_file() and wall.is_file()):
        begun = monotonic()
        with (folder / "events.jsonl").open("w") as events:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "sanitizer", "run", str(case / "spec.json")]
                + ["--out", str(folder)],
                stdout=events,
            )
        if done.returncode not in (0, 1):
            raise SystemExit(f"{case.name} failed; see {folder / 'events.jsonl'}")
        wall.write_text(json.dumps(monotonic() - begun))
    return Report.model_validate_json(report.read_bytes()), float(json.loads(wall.read_text()))


def off(estimated: float, took: float) -> float:
    """Error of an estimate, per cent of what it took."""
    return 100 * (estimated - took) / took


def result_of(
    case: Case, said: Estimate, knowing: Estimate, measured: Measured, wall: float
) -> dict[str, Any]:
    """One job's figures, as they go into the JSON."""
    took = measured.spent
    return {
        "case": asdict(case),
        "wall_seconds": wall,
        "spent": {**took.model_dump(), "seconds": took.seconds},
        "rule_of_thumb": asdict(said),
        "with_history": asdict(knowing),
        "error_percent": {
            "seconds_rule_of_thumb": off(said.seconds, took.seconds),
            "seconds_with_history": off(knowing.seconds, took.seconds),
            "bytes_rule_of_thumb": off(said.host_bytes, took.host_bytes),
            "bytes_with_history": off(knowing.host_bytes, took.host_bytes),
        },
        "within_range": {
            "rule_of_thumb": said.seconds_low <= took.seconds <= said.seconds_high,
            "with_history": knowing.seconds_low <= took.seconds <= knowing.seconds_high,
        },
    }


def print_table(results: Sequence[dict[str, Any]]) -> None:
    """The jobs, and the mean of the absolute errors."""
    out = sys.stdout
    out.write(
        "| job | took s | rule s | off % | history s | off % | basis "
        "| took MB | rule MB | off % | history MB | off % |\n" + "|---" * 12 + "|\n"
    )
    for result in results:
        case, took, error = Case(**result["case"]), result["spent"], result["error_percent"]
        rule, history = result["rule_of_thumb"], result["with_history"]
        out.write(
            f"| {case.name} | {took['seconds']:.1f} "
            f"| {rule['seconds']:.1f} | {error['seconds_rule_of_thumb']:+.0f} "
            f"| {history['seconds']:.1f} | {error['seconds_with_history']:+.0f} "
            f"| {history['basis']} | {took['host_bytes'] / 1e6:.0f} "
            f"| {rule['host_bytes'] / 1e6:.0f} | {error['bytes_rule_of_thumb']:+.0f} "
            f"| {history['host_bytes'] / 1e6:.0f} | {error['bytes_with_history']:+.0f} |\n"
        )
    for name in results[0]["error_percent"]:
        mean = statistics.mean(abs(result["error_percent"][name]) for result in results)
        out.write(f"mean absolute error, {name.replace('_', ' ')}: {mean:.0f} %\n")
    for name in results[0]["within_range"]:
        within = sum(result["within_range"][name] for result in results)
        out.write(f"within the range, {name.replace('_', ' ')}: {within} of {len(results)}\n")


def suggest(history: Sequence[Measured], reports: Sequence[Report]) -> Rule:
    """The rule of thumb that fits what was measured best, all of it on one kind of device."""
    rule = RULES[history[0].workload.device]
    costs = [report.cost for report in reports if report.cost is not None]
    writing = [s.seconds for report in reports for s in report.stages if s.stage == "write"]
    rule = replace(
        rule,
        start_seconds=statistics.median(cost.start_seconds for cost in costs),
        write_seconds=statistics.median(writing),
    )

    def by_work(tried: Rule) -> float:
        expected = [rule_of_thumb(measured.workload, tried) for measured in history]
        pairs = [
            pair
            for measured, given in zip(history, expected, strict=True)
            for pair in (
                (given.training_seconds, measured.spent.training_seconds),
                (given.evaluation_seconds, measured.spent.evaluation_seconds),
            )
        ]
        return statistics.mean(abs(math.log(given / took)) for given, took in pairs if took > 0)

    def by_rest(tried: Rule) -> float:
        return statistics.mean(
            abs(
                math.log(
                    rule_of_thumb(measured.workload, tried).other_seconds
                    / measured.spent.other_seconds
                )
            )
            for measured in history
        )

    def by_memory(tried: Rule) -> float:
        return statistics.mean(
            abs(
                math.log(
                    rule_of_thumb(measured.workload, tried).host_bytes / measured.spent.host_bytes
                )
            )
            for measured in history
        )

    speeds = (
        "macs_per_second",
        "saved_bytes_per_second",
        "training_factor",
        "operation_seconds",
    )
    rule = fit(rule, by_work, speeds)
    rule = fit(rule, by_rest, ("load_seconds", "image_seconds", "pixel_seconds"))
    return fit(rule, by_memory, ("host_bytes", "layer_factor"))


def fit(rule: Rule, error: Callable[[Rule], float], names: Sequence[str]) -> Rule:
    """Moves constants, one at a time, for as long as that lowers the error."""
    for step in STEPS:
        improved = True
        while improved:
            improved = False
            for name in names:
                for factor in (step, 1 / step):
                    tried = replace(rule, **{name: getattr(rule, name) * factor})
                    if error(tried) < error(rule) - 1e-9:
                        rule, improved = tried, True
    return rule


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing, prints the table and writes JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("var/estimate_error"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=1, help="the fastest run of each counts")
    parser.add_argument("--suggest", action="store_true", help="print constants that would fit")
    options = parser.parse_args(arguments)

    history: list[Measured] = []
    reports: list[Report] = []
    results: list[dict[str, Any]] = []
    for case in CASES:
        folder = options.out / f"{options.device}-{options.threads}" / case.name
        spec = write_spec(case, options.shared, folder, options.device, options.threads)
        workload = workload_of(case, spec, options.device, options.threads)
        own = [m for m in history if m.workload.architecture == case.architecture]
        said, knowing = estimate(workload), estimate(workload, own=own, installation=history)
        report, wall = run(folder, options.repeats)
        measured = Measured.of_report(report)
        if measured is None:
            raise SystemExit(f"{folder} was taken up again or is of an old version; remove it")
        results.append(result_of(case, said, knowing, measured, wall))
        history.append(measured)
        reports.append(report)
    print_table(results)
    document = {
        "device": options.device,
        "processor": reports[0].cost.processor if reports[0].cost else None,
        "threads": options.threads,
        "repeats": options.repeats,
        "versions": reports[0].versions,
        "jobs": results,
    }
    if options.suggest:
        suggested = suggest(history, reports)
        document["suggested_rule"] = asdict(suggested)
        sys.stdout.write("constants that would fit:\n")
        for name, value in asdict(suggested).items():
            sys.stdout.write(f"        {name}={value:.3g},\n")
    (options.out / "results.json").write_text(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
