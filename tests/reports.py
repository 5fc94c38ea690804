"""Reports that tests start from; child processes import this, so it needs pydantic alone."""

from typing import Any

from sanitizer.report.model import (
    Cost,
    DataRecord,
    Decision,
    Evaluation,
    ModelFile,
    ModelRecord,
    ProbeResult,
    Proportion,
    Report,
    StageRecord,
    Verdict,
    WarningRecord,
)

SHA256 = "ab" * 32


def make_report(verdict: Verdict = Verdict.ALLOWED, *, cost: Cost | None = None) -> Report:
    """A small but whole report of a run that brought ASR from 0.99 to 0.01.

    Without `cost` one of a version that did not measure it.
    """
    return Report(
        model=ModelRecord(
            architecture="wrn-16-1",
            detected=True,
            num_classes=10,
            input_size=(32, 32),
            channels=3,
            mean=[0.0] * 3,
            std=[1.0] * 3,
            parameters=175_000,
            taps=["block1", "block2", "block3"],
            dropped_entries=["epoch"],
        ),
        input=ModelFile(filename="suspect.pt", format="pytorch", sha256=SHA256, bytes=4),
        output=ModelFile(filename="model.pt", format="pytorch", sha256=SHA256, bytes=4),
        clean_data=_data(),
        evaluation_data=_data(),
        method={"name": "argd", "preset": "paper"},
        seed=0,
        device="cpu",
        versions={"torch": "2.7"},
        before=_evaluation(asr=0.99),
        after=_evaluation(asr=0.01),
        der={"trigger": 0.99},
        decision=Decision(verdict=verdict, reasons=["asr.trigger 0.01 <= 0.05"]),
        stages=[
            StageRecord(stage="baseline", seconds=1),
            StageRecord(stage="teacher", seconds=3),
            StageRecord(stage="distil", seconds=5),
            StageRecord(stage="evaluate", seconds=1),
        ],
        warnings=[WarningRecord(code="images_resized", message="All were resized.")],
        seconds=12.5,
        resumed=0,
        cost=cost,
    )


def make_cost(**changes: Any) -> Cost:
    """What that run took, on a CPU."""
    return Cost.model_validate(
        {
            "device": "cpu",
            "processor": "AMD EPYC",
            "threads": 2,
            "start_seconds": 1.5,
            "curve_images": 0,
            "curve_seconds": 0,
            "peak_host_bytes": 800_000_000,
            "peak_device_bytes": None,
            "forward_macs": 26_000_000,
            "speeds": [],
            **changes,
        }
    )


def _proportion(value: float) -> Proportion:
    return Proportion(
        value=value,
        count=round(value * 100),
        total=100,
        low=max(0, value - 0.1),
        high=min(1, value + 0.1),
    )


def _evaluation(*, asr: float) -> Evaluation:
    return Evaluation(
        accuracy=_proportion(0.9),
        accuracy_per_class={0: _proportion(0.9)},
        probes=[
            ProbeResult(
                name="trigger",
                target_class=0,
                asr=_proportion(asr),
                ra=_proportion(0.8),
                asr_per_class={1: _proportion(asr)},
                ra_per_class={1: _proportion(1 - asr)},
                natural_rate=_proportion(0.02),
            )
        ],
    )


def _data() -> DataRecord:
    return DataRecord(images=100, images_available=100, per_class=[10] * 10, seed=0, source="given")
