"""Small real inputs: scanned digits and a network that learns them in seconds."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from sanitizer.networks.registry import build_network
from sanitizer.randomness import make_generator
from sanitizer.spec import SanitizeSpec

CORNER_PROBE = {
    "kind": "patch",
    "name": "corner",
    "target_class": 0,
    "row": -2,
    "column": -2,
    "pixels": [[255, 0], [0, 255]],
}
QUICK_TRAINING = {
    "phases": [{"epochs": 1, "learning_rate": 0.05}, {"epochs": 1, "learning_rate": 0.01}],
    "least_epoch_images": 0,  # not what preset `default` has, nor is this:
    "easy_batch_size": None,
    "batch_size": 32,
    "crop_padding": 1,
    "horizontal_flip": False,
    "cutout_size": 1,
}


def digits(start: int, end: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Scans [N, 1, 8, 8] and labels [N]."""
    data = load_digits()
    images = np.round(data.images[start:end] * (255 / 16)).astype(np.uint8)
    return images[:, None], data.target[start:end].astype(np.int64)


def write_npz(path: Path, start: int, end: int) -> Path:
    images, labels = digits(start, end)
    np.savez(path, images=images, labels=labels)
    return path


def write_model(path: Path, *, classes: int = 10, seed: int = 0) -> Path:
    """An untrained WRN-10-1 for 8 x 8 greys; safetensors or PyTorch by the suffix."""
    state = build_network("wrn-10-1", classes, 1, generator=make_generator(seed)).state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"epoch": 3, "state_dict": state}, path)
    return path


def write_spec(folder: Path, **changes: Any) -> Path:
    """A whole quick run: model, clean and evaluation images, a probe."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "suspect.pth"
    content: dict[str, Any] = {
        "model": {"path": str(model), "input_size": [8, 8]},
        "clean_data": {"path": str(folder / "clean.npz")},
        "evaluation_data": {"path": str(folder / "evaluation.npz")},
        "method": {
            "name": "argd",
            "preset": "paper",
            "teacher": QUICK_TRAINING,
            "student": QUICK_TRAINING,
        },
        "probes": [CORNER_PROBE],
        "device": "cpu",
        "threads": 1,
        "curve_images": 50,
        "checkpoint_seconds": 0,
    } | changes
    if not model.exists():
        write_model(model)
        write_npz(folder / "clean.npz", 0, 160)
        write_npz(folder / "evaluation.npz", 200, 400)
    path = folder / "spec.json"
    path.write_text(SanitizeSpec.model_validate(content).model_dump_json())
    return path
