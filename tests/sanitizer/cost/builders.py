"""Workloads and finished jobs to reckon with."""

from typing import Any

from sanitizer.cost.estimate import rule_of_thumb
from sanitizer.cost.workload import Measured, Spent, Workload, training_work
from sanitizer.spec import ArgdConfig


def make_workload(
    *, images: int = 2500, batch_size: int = 64, epochs: int = 10, **changes: Any
) -> Workload:
    """The README's job: ARGD with a WRN-16-1 at 32 x 32."""
    training = {
        "phases": [{"epochs": epochs, "learning_rate": 0.1}],
        "batch_size": batch_size,
    }
    method = ArgdConfig.model_validate(
        {"name": "argd", "preset": "paper", "teacher": training, "student": training}
    )
    return Workload.model_validate(
        {
            "architecture": "wrn-16-1",
            "input_size": (32, 32),
            "model_bytes": 1_000_000,
            "training": training_work(method, images),
            "evaluation_images": 10_000,
            "curve_images": 1000,
            "probes": 1,
            "device": "cpu",
            "threads": 2,
            **changes,
        }
    )


def make_measured(
    slower: float = 1.0, *, memory: float = 1.0, workload: Workload | None = None
) -> Measured:
    """A job that took so many times what the rule of thumb gives for it."""
    workload = workload or make_workload()
    rule = rule_of_thumb(workload)
    return Measured(
        workload=workload,
        spent=Spent(
            training_seconds=rule.training_seconds * slower,
            evaluation_seconds=rule.evaluation_seconds * slower,
            other_seconds=rule.other_seconds * slower,
            host_bytes=round(rule.host_bytes * memory),
            device_bytes=None,
        ),
        clean_available=50_000,
        evaluation_available=10_000,
    )
