"""The ARGD authors' own backdoored checkpoint, as it comes, on CIFAR-10."""

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.user import User

GRID = {
    "kind": "patch",
    "name": "grid",
    "target_class": 0,
    "row": 18,
    "column": 18,
    "pixels": [[255, 128, 255], [128, 255, 128], [255, 128, 128]],
}


def request(user: User, shared: Path, **changes: Any) -> dict[str, Any]:
    checkpoint = shared / "data" / "models" / "argd-gridtrigger-wrn-16-1.pth.tar"
    data = shared / "data" / "cifar10"
    return {
        "model_id": user.upload_model(checkpoint),
        "clean_data": {"dataset_id": user.upload_data(data / "train.parquet"), "images": 2500},
        "evaluation_data": {"dataset_id": user.upload_data(data / "test.parquet")},
        "probes": [GRID],
    } | changes


@pytest.mark.real_data
def test_the_checkpoint_as_it_comes_is_measured_and_written_back_in_its_format(
    user: User, shared: Path, tmp_path: Path
) -> None:
    once = {"phases": [{"epochs": 1, "learning_rate": 0.01}], "least_epoch_images": 0}
    body = request(
        user, shared, method={"name": "argd", "preset": "paper", "teacher": once, "student": once}
    )
    job = user.wait(
        user.submit(**body | {"evaluation_data": {**body["evaluation_data"], "images": 1000}}),
        seconds=600,
    )
    assert job["status"] == "succeeded", job
    assert job["summary"]["architecture"] == "wrn-16-1"
    before = job["summary"]["before"]
    # 72.67% and 99.92% over all 10,000 images; a draw of 1,000 is within its error.
    assert before["accuracy"] == pytest.approx(0.7267, abs=0.04)
    assert before["probes"][0]["asr"] == pytest.approx(0.9992, abs=0.005)

    file = user.http.get(f"/v1/models/{job['result_model_id']}/file")
    (tmp_path / "result.pth.tar").write_bytes(file.content)
    uploaded = torch.load(
        shared / "data" / "models" / "argd-gridtrigger-wrn-16-1.pth.tar",
        weights_only=True,
        map_location="cpu",
    )
    result = torch.load(tmp_path / "result.pth.tar", weights_only=True)
    assert list(result) == ["state_dict"]
    assert list(result["state_dict"]) == list(uploaded["state_dict"])


@pytest.mark.slow
@pytest.mark.real_data
def test_argd_at_the_published_settings_meets_the_goal_over_three_seeds(
    user: User, shared: Path
) -> None:
    body = request(user, shared, method={"name": "argd", "preset": "paper"})
    jobs = [user.submit(**body | {"seed": seed}) for seed in range(3)]
    after = [user.wait(job, seconds=3000)["summary"]["after"] for job in jobs]
    accuracy = statistics.mean(figures["accuracy"] for figures in after)
    asr = statistics.mean(figures["probes"][0]["asr"] for figures in after)
    assert accuracy >= 0.747
    assert asr <= 0.046
