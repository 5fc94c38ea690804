"""Files that only the child can judge: the job fails with a code, nothing is lost."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.e2e.inputs import INPUT_SIZE, quick_request
from tests.e2e.user import User
from tests.sanitizer.builders import CORNER_PROBE, digits, write_model

Change = Callable[[User, Path], dict[str, Any]]


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def pickle_with_code(user: User, folder: Path) -> dict[str, Any]:
    path = folder / "evil.pth"
    torch.save({"state_dict": {"conv1.weight": torch.ones(1)}, "x": _Bomb(folder / "ran")}, path)
    return {"model_id": user.upload_model(path)}


def plain_pickle_with_code(user: User, folder: Path) -> dict[str, Any]:
    path = folder / "evil.pkl"
    path.write_bytes(pickle.dumps(_Bomb(folder / "ran")))
    return {"model_id": user.upload_model(path)}


def truncated_model(user: User, folder: Path) -> dict[str, Any]:
    whole = write_model(folder / "whole.pth").read_bytes()
    path = folder / "half.pth"
    path.write_bytes(whole[: len(whole) // 2])
    return {"model_id": user.upload_model(path, input_size=INPUT_SIZE)}


def other_architecture(user: User, folder: Path) -> dict[str, Any]:
    path = write_model(folder / "wrn.pth")
    return {"model_id": user.upload_model(path, architecture="resnet18", input_size=INPUT_SIZE)}


def classes_that_do_not_match(user: User, folder: Path) -> dict[str, Any]:
    path = write_model(folder / "seven.pth", classes=7)
    return {"model_id": user.upload_model(path, input_size=INPUT_SIZE)}


def write_folders(path: Path, *, without: int | None = None, corrupt: str | None = None) -> Path:
    images, labels = digits(0, 60)
    with zipfile.ZipFile(path, "w") as archive:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            if label == without:
                continue
            name = f"{label}/{index:02d}.png"
            buffer = io.BytesIO()
            Image.fromarray(np.asarray(image[0])).save(buffer, "PNG")
            content = buffer.getvalue()
            archive.writestr(name, content[:40] if name == corrupt else content)
    return path


def empty_class(user: User, folder: Path) -> dict[str, Any]:
    path = write_folders(folder / "gap.zip", without=3)
    return {"clean_data": {"dataset_id": user.upload_data(path)}}


def corrupt_image(user: User, folder: Path) -> dict[str, Any]:
    path = write_folders(folder / "torn.zip", corrupt="5/05.png")
    return {"clean_data": {"dataset_id": user.upload_data(path)}}


def probe_outside(user: User, folder: Path) -> dict[str, Any]:
    # The model's record says nothing of its input, so that only the child can tell.
    path = write_model(folder / "plain.pth")
    return {
        "model_id": user.upload_model(path),
        "probes": [{**CORNER_PROBE, "row": 31, "column": 31}],
    }


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (pickle_with_code, "unsafe_checkpoint", "posix.system"),
        (plain_pickle_with_code, "unsafe_checkpoint", "posix.system"),
        (truncated_model, "unreadable_checkpoint", "cut short"),
        (other_architecture, "architecture_mismatch", "resnet18"),
        (classes_that_do_not_match, "class_mismatch", "7"),
        (empty_class, "empty_class", "3"),
        (corrupt_image, "corrupt_image", "5/05.png"),
        (probe_outside, "probe_outside_image", "32"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_job_fails_with_a_code_and_says_what_is_wrong(
    user: User, tmp_path: Path, change: Change, code: str, said: str
) -> None:
    request = quick_request(user, tmp_path) | change(user, tmp_path)
    job = user.wait(user.submit(**request))

    assert job["status"] == "failed"
    assert job["error"]["code"] == code
    assert said in job["error"]["message"]
    assert job["attempt"] == 1  # the input is at fault: no second try
    assert job["verdict"] is None
    assert job["result_model_id"] is None
    assert not (tmp_path / "ran").exists()  # nothing in the file was executed
    model = user.http.get(f"/v1/models/{request['model_id']}")
    assert model.status_code == 200  # nothing was lost


def test_what_does_not_fit_an_architecture_is_listed_by_key(user: User, tmp_path: Path) -> None:
    request = quick_request(user, tmp_path) | other_architecture(user, tmp_path)
    data = user.wait(user.submit(**request))["error"]["data"]
    assert "layer1.0.conv1.weight" in data["missing"]
    assert "block1.layer.0.conv1.weight" in data["unexpected"]
    assert data["misshaped"]["conv1.weight"] == {
        "expected": [64, 1, 7, 7],
        "received": [16, 1, 3, 3],
    }
