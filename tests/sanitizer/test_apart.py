"""Images that measure train nothing and choose nothing, and figures are of the model they name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sanitizer.data.image_set import ImageSet
from sanitizer.methods.heldout import hold_out_clean
from sanitizer.pipeline import sanitize
from sanitizer.report.model import Report
from sanitizer.spec import SanitizeSpec
from tests.sanitizer.builders import CORNER_PROBE, QUICK_TRAINING, digits, write_npz
from tests.sanitizer.jobs import digits_job

AUTO = {"name": "auto", "methods": ["ft_sam"], "ft_sam": {"training": QUICK_TRAINING}}


def spec_for(folder: Path, **changes: Any) -> SanitizeSpec:
    """A job on a model that tells most digits."""
    return digits_job(folder, clean=range(800, 960), evaluation=range(1000, 1200), **changes)


def run(spec: SanitizeSpec, folder: Path) -> Report:
    return sanitize(spec, folder / "out", folder / "work", lambda _event: None)


@pytest.fixture(autouse=True)
def _search_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sanitizer.evaluation.inversion.SEARCH_STEPS", 2)


def test_evaluation_images_choose_no_method(tmp_path: Path) -> None:
    spec = spec_for(tmp_path / "in", method=AUTO)
    first = run(spec, tmp_path / "first")
    write_npz(tmp_path / "in" / "evaluation.npz", 1200, 1600)
    other = run(spec, tmp_path / "other")

    assert other.before != first.before
    assert first.tries is not None
    assert other.tries is not None
    for one, another in zip(first.tries, other.tries, strict=True):
        assert one.model_copy(update={"seconds": 0}) == another.model_copy(update={"seconds": 0})
    assert other.output.sha256 == first.output.sha256


def test_images_held_out_to_choose_by_train_no_method(tmp_path: Path) -> None:
    spec = spec_for(tmp_path / "in", method=AUTO)
    first = run(spec, tmp_path / "first")
    images, labels = digits(800, 960)
    trained_on, held = hold_out_clean(ImageSet.from_arrays(images, labels), spec.seed)
    assert (len(trained_on), len(held)) == (144, 16)
    places = {image.tobytes() for image in held.images}
    for image in images:
        if image.tobytes() in places:
            image[:] = 255 - image
    np.savez(tmp_path / "in" / "clean.npz", images=images, labels=labels)
    other = run(spec, tmp_path / "other")

    assert first.tries is not None
    assert other.tries is not None
    # The same model, of which far less is right now.
    assert other.output.sha256 == first.output.sha256
    accuracies = [tries[0].accuracy for tries in (first.tries, other.tries)]
    assert accuracies[0] is not None
    assert accuracies[1] is not None
    assert accuracies[1].value < accuracies[0].value - 0.3


def test_figures_on_the_way_are_of_the_network_that_is_trained(tmp_path: Path) -> None:
    """While the teacher unlearns everything, the student stays what it is."""
    wild = {**QUICK_TRAINING, "phases": [{"epochs": 2, "learning_rate": 1.0}], "weight_decay": 0.1}
    still = {**QUICK_TRAINING, "phases": [{"epochs": 1, "learning_rate": 1e-9}]}
    method = {"name": "nad", "teacher": wild, "student": still, "node_weights": [0, 0, 0]}
    report = run(spec_for(tmp_path / "in", method=method, curve_images=200), tmp_path)

    by_stage = {stage.stage: stage.epochs for stage in report.stages}
    before = report.before.accuracy.value
    assert before > 0.8
    assert by_stage["teacher"][-1].values["accuracy"] < before - 0.3
    assert by_stage["distil"][-1].values["accuracy"] > before - 0.1


def test_effectiveness_counts_what_the_attack_lost_and_what_the_accuracy_did(
    tmp_path: Path,
) -> None:
    """On a model that calls what carries a patch of its own making a 0."""
    wild = {**QUICK_TRAINING, "phases": [{"epochs": 1, "learning_rate": 0.3}]}
    bar = {**CORNER_PROBE, "name": "bar", "row": 2, "column": 3, "pixels": [[0, 0]] * 4}
    method = {"name": "finetune", "training": wild}
    report = run(spec_for(tmp_path / "in", method=method, probes=[CORNER_PROBE, bar]), tmp_path)

    lost = report.before.accuracy.value - report.after.accuracy.value
    assert lost > 0.02
    fell = {}
    for before, after in zip(report.before.probes, report.after.probes, strict=True):
        fell[before.name] = before.asr.value - after.asr.value
        expected = (1 + max(0.0, fell[before.name]) - lost) / 2
        assert report.der[before.name] == pytest.approx(expected)
    assert fell["bar"] > 0.05
