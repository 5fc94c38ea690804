"""Requests over the small real inputs of the library's tests."""

from pathlib import Path
from typing import Any

from tests.e2e.user import User
from tests.sanitizer.builders import CORNER_PROBE, QUICK_TRAINING, write_model, write_npz

INPUT_SIZE = "8,8"
QUICK = {"name": "argd", "preset": "paper", "teacher": QUICK_TRAINING, "student": QUICK_TRAINING}
ENDLESS = {
    "name": "finetune",
    "training": QUICK_TRAINING | {"phases": [{"epochs": 1000, "learning_rate": 1e-6}]},
}
"""Minutes long: for tests that stop it."""


def quick_request(user: User, folder: Path, **changes: Any) -> dict[str, Any]:
    """A job of a few seconds over freshly uploaded files."""
    model = write_model(folder / "suspect.pth")
    clean = write_npz(folder / "clean.npz", 0, 160)
    evaluation = write_npz(folder / "evaluation.npz", 200, 400)
    return {
        "model_id": user.upload_model(model, input_size=INPUT_SIZE),
        "clean_data": {"dataset_id": user.upload_data(clean)},
        "evaluation_data": {"dataset_id": user.upload_data(evaluation)},
        "method": QUICK,
        "probes": [CORNER_PROBE],
    } | changes
