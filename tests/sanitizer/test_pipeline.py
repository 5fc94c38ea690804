import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sanitizer.attacks.trigger import make_trigger
from sanitizer.attacks.victim import VictimRecipe, train_victim
from sanitizer.compute import prepare
from sanitizer.cost.workload import Spent, Workload
from sanitizer.data.image_set import ImageSet
from sanitizer.errors import ClassMismatch, InvalidSpec, ProbeOutsideImage, TrainingDiverged
from sanitizer.events import Event, MetricEvent, ProgressEvent, ResultEvent, StageEvent, parse
from sanitizer.networks.registry import build_network
from sanitizer.pipeline import sanitize
from sanitizer.randomness import make_generator
from sanitizer.report.artifacts import result_name
from sanitizer.report.model import Report, Try, TryOutcome, Verdict
from sanitizer.spec import PatchProbe, SanitizeSpec
from tests.sanitizer.builders import CORNER_PROBE, QUICK_TRAINING, digits, write_npz, write_spec
from tests.sanitizer.evaluation.conftest import TRAINING as SCHOOLING


def run(spec: Path, out: Path, work: Path | None = None) -> tuple[Report, list[Event]]:
    events: list[Event] = []
    parsed = SanitizeSpec.model_validate_json(spec.read_bytes())
    return sanitize(parsed, out, work or out / "work", events.append), events


@pytest.mark.parametrize(
    ("method", "stages"),
    [
        ({"name": "finetune", "training": QUICK_TRAINING}, ["finetune"]),
        (
            {"name": "nad", "teacher": QUICK_TRAINING, "student": QUICK_TRAINING},
            ["teacher", "distil"],
        ),
        (
            {
                "name": "argd",
                "teacher": QUICK_TRAINING,
                "student": QUICK_TRAINING,
                # What is untrained has little to lose: whether it does would be chance.
                "back_off": False,
            },
            ["seek", "teacher", "distil", "go_back"],
        ),
        (
            {"name": "fine_pruning", "training": QUICK_TRAINING},
            ["prune", "finetune"],
        ),
        (
            {"name": "anp", "mask_training": QUICK_TRAINING, "threshold": 1},
            ["mask", "prune"],
        ),
        ({"name": "clp", "deviations": 1}, ["prune"]),
        ({"name": "ft_sam", "training": QUICK_TRAINING}, ["finetune"]),
        ({"name": "fst", "training": QUICK_TRAINING}, ["shift"]),
        ({"name": "i_bau", "training": QUICK_TRAINING}, ["unlearn"]),
        (
            {"name": "mcr", "endpoint": QUICK_TRAINING, "curve": QUICK_TRAINING},
            ["teacher", "curve", "statistics"],
        ),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_each_method_goes_through_its_stages_and_leaves_model_report_and_pictures(
    tmp_path: Path, method: dict[str, Any], stages: list[str]
) -> None:
    report, events = run(write_spec(tmp_path / "in", method=method), tmp_path / "out")

    begun = [event.stage for event in events if isinstance(event, StageEvent)]
    assert begun == ["load", "screen", "baseline", *stages, "evaluate", "write"]
    assert isinstance(events[-1], ResultEvent)
    for artifact in events[-1].artifacts:
        assert (tmp_path / "out" / artifact.name).stat().st_size == artifact.bytes
    assert [artifact.name for artifact in events[-1].artifacts] == [
        "sanitized-suspect.pth",
        "report.json",
        "report.html",
        "curves.png",
        "before_after.png",
        "examples.png",
    ]
    written = Report.model_validate_json((tmp_path / "out" / "report.json").read_bytes())
    assert written == report
    assert report.model.architecture == "wrn-10-1"
    assert report.model.detected
    assert report.model.dropped_entries == ["epoch"]
    assert report.clean_data.images == 160
    assert report.evaluation_data.images == 200
    assert report.output.sha256 != report.input.sha256
    for stage in report.stages:
        at_once = ("seek", "go_back", "prune", "statistics")
        trains = stage.stage in stages and stage.stage not in at_once
        assert len(stage.epochs) == (2 if trains else 0)
    epochs = [event for event in events if isinstance(event, MetricEvent) and event.epoch]
    for epoch in epochs:
        assert {"loss", "train_accuracy", "accuracy", "asr.corner", "ra.corner"} <= set(
            epoch.values
        )
    pruned = [event for event in events if isinstance(event, MetricEvent) if event.stage == "prune"]
    for event in pruned:
        assert 0 < event.values["pruned_channels"] < event.values["channels"]
    assert len(pruned) == stages.count("prune")


def test_the_result_has_the_keys_of_the_upload_and_nothing_else(tmp_path: Path) -> None:
    run(write_spec(tmp_path), tmp_path / "out")
    uploaded = torch.load(tmp_path / "suspect.pth", weights_only=True)
    result = torch.load(tmp_path / "out" / "sanitized-suspect.pth", weights_only=True)
    assert list(result) == ["state_dict"]
    assert list(result["state_dict"]) == list(uploaded["state_dict"])
    for key, value in uploaded["state_dict"].items():
        assert result["state_dict"][key].dtype == value.dtype
        assert result["state_dict"][key].shape == value.shape


def test_the_figures_are_those_of_the_file_in_its_own_precision(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    suspect = torch.load(tmp_path / "suspect.pth", weights_only=True)["state_dict"]
    halves = {key: v.to(torch.float8_e4m3fn) if v.ndim == 4 else v for key, v in suspect.items()}
    torch.save(halves, tmp_path / "suspect.pth")
    report, _events = run(spec, tmp_path / "out")

    # The result, run once more and trained by next to nothing, is measured as it was when it left.
    (tmp_path / "suspect.pth").write_bytes(
        (tmp_path / "out" / "sanitized-suspect.pth").read_bytes()
    )
    still = {"phases": [{"epochs": 1, "learning_rate": 1e-12}], "least_epoch_images": 0}
    again = write_spec(tmp_path, method={"name": "finetune", "training": still})
    second, _events = run(again, tmp_path / "again")
    assert second.before == report.after


def test_the_report_says_what_the_run_took(tmp_path: Path) -> None:
    report, _events = run(write_spec(tmp_path), tmp_path / "out")
    cost = report.cost
    assert cost is not None
    assert (cost.device, cost.threads, cost.curve_images) == ("cpu", 1, 50)
    assert cost.peak_device_bytes is None
    # An 8 x 8 grey's stem counts as one of 3 channels, and 10 classes as 1000.
    assert cost.forward_macs == 12_208 * 64 + 64_000
    assert cost.peak_host_bytes > 50e6
    speeds = {speed.stage: speed for speed in cost.speeds}
    probed = report.after.probes[0].asr.total
    assert speeds["evaluate"].images == 200 + probed
    assert speeds["baseline"].images == 200 + probed + 2 * 160  # what the model expects
    assert speeds["teacher"].images == speeds["distil"].images == 2 * 160
    for stage, passes in {"baseline": 1, "teacher": 3, "distil": 4, "evaluate": 1}.items():
        speed = speeds[stage]
        assert speed.images_per_second == pytest.approx(speed.images / speed.seconds, rel=0.01)
        assert speed.images_per_second is not None
        assert speed.macs_per_second == pytest.approx(
            speed.images_per_second * passes * cost.forward_macs, rel=0.01
        )
    stages = sum(stage.seconds for stage in report.stages)
    assert cost.curve_seconds > 0
    assert stages + cost.curve_seconds <= report.seconds + 0.01


def test_a_damaged_checkpoint_is_told_and_the_run_starts_over(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    (work / "checkpoint.pt").write_bytes(b"half a file")
    report, _events = run(spec, tmp_path / "out", work)
    codes = [warning.code for warning in report.warnings]
    assert codes == ["checkpoint_damaged", "suspect_near_chance"]  # it is untrained
    assert report.resumed == 0


@pytest.mark.parametrize(
    ("upload", "result"),
    [
        ("model.pth.tar", "sanitized-model.pth.tar"),
        ("x" * 300 + ".safetensors", "sanitized-model.safetensors"),
        ("模" * 70, "sanitized-model"),
    ],
)
def test_the_result_has_a_name_that_a_file_system_takes(upload: str, result: str) -> None:
    assert result_name(upload) == result


def test_without_evaluation_data_a_part_of_the_clean_images_is_kept_apart(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, evaluation_data=None, holdout=0.25)
    report, _events = run(spec, tmp_path / "out")
    assert report.evaluation_data.source == "held_out"
    assert (report.clean_data.images, report.evaluation_data.images) == (120, 40)


def test_images_trained_on_that_are_evaluated_on_too_are_told(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    write_npz(tmp_path / "evaluation.npz", 100, 300)
    report, _events = run(spec, tmp_path / "out")
    warned = {warning.code: warning.message for warning in report.warnings}
    assert warned["data_overlap"].startswith("60 of 200 evaluation images")


def test_without_a_probe_the_verdict_is_undecided(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, probes=[], policy={"max_accuracy_drop": 1})
    report, _events = run(spec, tmp_path / "out")
    assert report.decision.verdict is Verdict.UNDECIDED
    assert not (tmp_path / "out" / "examples.png").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"probes": [{**CORNER_PROBE, "row": 7}]},
            ProbeOutsideImage,
            "8",
        ),
        (
            {"method": {"name": "nad", "node_weights": [1, 2]}},
            InvalidSpec,
            "node_weights has 2 values, the model has 3 taps",
        ),
        (
            {"method": {"name": "argd", "taps": [0, 3]}},
            InvalidSpec,
            "names tap 3; the model has 3, 0 to 2",
        ),
        (
            {"method": {"name": "argd", "taps": [0, 2], "node_weights": [1, 2, 3]}},
            InvalidSpec,
            r"node_weights has 3 values, method\.taps 2",
        ),
    ],
    ids=["probe outside", "node weights", "no such tap", "node weights of chosen taps"],
)
def test_what_only_the_model_can_tell_is_refused_before_training(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(write_spec(tmp_path, **changes), tmp_path / "out")


def test_classes_that_the_model_does_not_have_are_refused(tmp_path: Path) -> None:
    from tests.sanitizer.builders import write_model

    spec = write_spec(tmp_path)
    write_model(tmp_path / "suspect.pth", classes=7)
    with pytest.raises(ClassMismatch, match="7"):
        run(spec, tmp_path / "out")


def search_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What searches do with what they find does not hang on how well they search."""
    monkeypatch.setattr("sanitizer.evaluation.inversion.SEARCH_STEPS", 10)


def test_a_search_for_triggers_is_in_the_report_and_knows_no_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_briefly(monkeypatch)
    reports = []
    for probes in ([], [CORNER_PROBE]):
        spec = write_spec(
            tmp_path / "in", probes=probes, inspect=True, policy={"max_accuracy_drop": 1}
        )
        report, events = run(spec, tmp_path / f"out{len(probes)}")
        reports.append(report)

    begun = [event.stage for event in events if isinstance(event, StageEvent)]
    stages = ["baseline", "inspect", "teacher", "distil", "evaluate", "reinspect", "write"]
    assert begun == ["load", "screen", *stages]
    assert (tmp_path / "out1" / "inspection.png").stat().st_size > 0
    without, with_probe = (report.inspections for report in reports)
    assert without is not None
    assert with_probe is not None
    for name in ("before", "after"):
        first, second = getattr(without, name), getattr(with_probe, name)
        assert first.classes == second.classes
        assert [each.target_class for each in first.classes] == list(range(10))
        assert first.searched_images == 160
        assert first.measured_images == 200
    assert with_probe.before.classes != with_probe.after.classes
    assert [len(each.changes) for each in with_probe.carried] == [2] * 10
    searched = [e for e in events if isinstance(e, MetricEvent) and e.stage == "reinspect"]
    assert searched[0].values["anomaly"] == with_probe.after.anomaly
    (reason,) = (r for r in reports[0].decision.reasons if r.startswith("Triggers were searched"))
    assert "every class" in reason
    assert reports[0].decision.verdict is Verdict.UNDECIDED


QUICK_AUTO = {
    "name": "auto",
    "argd": {"teacher": QUICK_TRAINING, "student": QUICK_TRAINING},
    "ft_sam": {"training": QUICK_TRAINING},
    "fst": {"training": QUICK_TRAINING},
}


def test_several_methods_are_tried_and_the_best_is_kept_and_every_one_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_briefly(monkeypatch)
    report, events = run(write_spec(tmp_path / "in", method=QUICK_AUTO), tmp_path / "out")

    begun = [event.stage for event in events if isinstance(event, StageEvent)]
    methods = ["seek", "teacher", "distil", "go_back", "finetune", "shift"]
    # What is untrained has little to lose: whether a stage backs off, and begins again, is chance.
    assert list(dict.fromkeys(begun)) == [
        "load",
        "screen",
        "baseline",
        "inspect",
        *methods,
        "choose",
        "evaluate",
        "write",
    ]
    assert report.tries is not None
    assert [each.method for each in report.tries] == ["argd", "ft_sam", "fst"]
    (kept,) = (each for each in report.tries if each.outcome is TryOutcome.KEPT)
    for each in report.tries:
        assert each.accuracy is not None
        # A tenth of the 160 clean images.
        assert each.accuracy.total == 16
        assert each.seconds > 0
        assert each.reason
    (chosen,) = (e for e in events if isinstance(e, MetricEvent) and e.stage == "choose")
    assert kept.accuracy is not None
    assert chosen.values[f"accuracy.{kept.method}"] == kept.accuracy.value
    assert report.inspections is None  # nobody asked for those figures
    assert "Methods that were tried" in (tmp_path / "out" / "report.html").read_text()


def test_what_is_kept_is_what_its_method_made_alone_of_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_briefly(monkeypatch)
    learns = {**QUICK_TRAINING, "phases": [{"epochs": 8, "learning_rate": 0.1}], "batch_size": 16}
    alone = {
        "name": "auto",
        "methods": ["ft_sam"],
        "ft_sam": {"training": learns, "rho": 0.05},
    }
    single, _ = run(write_spec(tmp_path / "in", method=alone), tmp_path / "alone")
    # One that learns nothing comes first: what it did must leave no trace.
    idle = {"phases": [{"epochs": 1, "learning_rate": 1e-9}], "least_epoch_images": 0}
    first = {
        **alone,
        "methods": ["argd", "ft_sam"],
        "argd": {"teacher": idle, "student": idle},
    }
    both, _ = run(write_spec(tmp_path / "in", method=first), tmp_path / "both")
    assert both.tries is not None
    assert [each.outcome for each in both.tries] == [TryOutcome.DROPPED, TryOutcome.KEPT]
    assert both.output.sha256 == single.output.sha256


def test_a_method_that_diverges_costs_its_own_result_and_not_the_others(tmp_path: Path) -> None:
    wild = {**QUICK_TRAINING, "phases": [{"epochs": 2, "learning_rate": 10}], "weight_decay": 1}
    learns = {"training": QUICK_TRAINING}
    method = {"name": "auto", "methods": ["fst", "ft_sam"], "ft_sam": learns}
    method["fst"] = {"training": wild, "alpha": 100}
    with pytest.MonkeyPatch.context() as patch:
        search_briefly(patch)
        report, _ = run(write_spec(tmp_path / "in", method=method), tmp_path / "out")
        assert report.tries is not None
        assert [each.outcome for each in report.tries] == [TryOutcome.LEFT_OUT, TryOutcome.KEPT]
        assert "Lower the learning rate (method.fst.training.phases)." in report.tries[0].reason
        alone = {**method, "methods": ["fst"]}
        with pytest.raises(TrainingDiverged):
            run(write_spec(tmp_path / "in", method=alone), tmp_path / "alone")


def test_a_network_that_asks_weights_for_their_version_is_sanitized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sanitizer.evaluation.inversion.SEARCH_STEPS", 1)
    model = tmp_path / "in" / "mnasnet.safetensors"
    training = {"training": {**QUICK_TRAINING, "phases": [{"epochs": 1, "learning_rate": 0.01}]}}
    method = {"name": "auto", "methods": ["ft_sam", "fst"], "ft_sam": training, "fst": training}
    spec = write_spec(
        tmp_path / "in",
        model={"path": str(model), "input_size": [8, 8]},
        method=method,
        curve_images=0,
        screen=False,
    )
    write_npz(tmp_path / "in" / "clean.npz", 0, 80)
    network = build_network("mnasnet0_5", 10, 1, generator=make_generator(0))
    save_file(network.state_dict(), model)
    report, _ = run(spec, tmp_path / "out")
    assert report.model.architecture == "mnasnet0_5"
    assert report.tries is not None
    assert not [each for each in report.tries if each.outcome is TryOutcome.LEFT_OUT]
    assert report.output.sha256 != report.input.sha256


def test_a_method_is_chosen_where_all_held_out_images_are_of_one_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_briefly(monkeypatch)
    method = {**QUICK_AUTO, "methods": ["ft_sam", "fst"]}
    spec = write_spec(tmp_path / "in", method=method, screen=False)
    write_npz(tmp_path / "in" / "clean.npz", 0, 11)  # 0 to 9, and another 0
    report, _ = run(spec, tmp_path / "out")
    assert report.tries is not None
    for each in report.tries:
        assert each.accuracy is not None
        assert each.accuracy.total == 1
        assert each.target_class != 0  # no image is left that could be led there
    assert report.tries[0].outcome is TryOutcome.KEPT


@pytest.mark.parametrize(
    "method",
    [
        {**QUICK_AUTO, "methods": ["ft_sam"]},
        {"name": "fine_pruning", "training": QUICK_TRAINING},
        {"name": "anp", "mask_training": QUICK_TRAINING, "threshold": 1},
    ],
    ids=lambda method: method["name"],
)
def test_one_image_of_each_class_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any]
) -> None:
    search_briefly(monkeypatch)
    spec = write_spec(tmp_path / "in", method=method, screen=False)
    write_npz(tmp_path / "in" / "clean.npz", 0, 10)
    report, _ = run(spec, tmp_path / "out")
    assert report.clean_data.per_class == [1] * 10


def test_methods_that_would_take_too_long_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_briefly(monkeypatch)
    method = {**QUICK_AUTO, "seconds": 0.001}
    report, events = run(write_spec(tmp_path / "in", method=method), tmp_path / "out")
    assert report.tries is not None
    assert [each.outcome for each in report.tries] == [
        TryOutcome.KEPT,
        TryOutcome.LEFT_OUT,
        TryOutcome.LEFT_OUT,
    ]
    assert "0 were left" in report.tries[1].reason
    begun = [event.stage for event in events if isinstance(event, StageEvent)]
    assert "finetune" not in begun
    workload = Workload.of_report(report)
    assert workload is not None
    assert [work.stage for work in workload.training] == ["teacher", "distil"]
    assert (workload.inspected_classes, workload.inspections) == (10, 1)


def test_how_long_a_method_would_take_is_reckoned_by_the_images_of_its_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_briefly(monkeypatch)
    long = {**QUICK_TRAINING, "least_epoch_images": 3000}  # the others' epochs have 144
    method = {**QUICK_AUTO, "argd": {"teacher": long, "student": long}, "seconds": 0.001}
    report, _ = run(write_spec(tmp_path / "in", method=method), tmp_path / "out")
    assert report.tries is not None
    first, other, _ = report.tries
    assert first.seconds is not None
    assert other.outcome is TryOutcome.LEFT_OUT
    expected = float(other.reason.split("about ")[1].split(" s more")[0])
    assert expected < first.seconds / 4


def test_durability_is_in_the_report_and_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "in", durability=True, policy={"max_accuracy_drop": 1})
    report, events = run(spec, tmp_path / "out")
    plain, _events = run(write_spec(tmp_path / "in"), tmp_path / "plain")

    begun = [event.stage for event in events if isinstance(event, StageEvent)]
    stages = ["baseline", "teacher", "distil", "evaluate", "retune", "write"]
    assert begun == ["load", "screen", *stages]
    assert report.output.sha256 == plain.output.sha256
    assert (report.after, plain.durability) == (plain.after, None)
    durability = report.durability
    assert durability is not None
    assert (durability.images, durability.measured_images) == (160, 200)
    assert durability.accuracy == report.after.accuracy  # of all images, since they are so few
    (probe,) = durability.probes
    assert probe.delivered == report.after.probes[0].asr
    assert (probe.target_class, probe.control_class, probe.poisoned_images) == (0, 1, 2)
    (told,) = (e for e in events if isinstance(e, MetricEvent) and e.stage == "retune")
    assert told.values == {
        "retuned_accuracy": durability.clean_accuracy.value,
        "retuned_asr.corner": probe.clean.value,
        "poisoned_asr.corner": probe.poisoned.value,
        "control_asr.corner": probe.control.value,
    }
    assert any("Copies of the sanitized model" in reason for reason in report.decision.reasons)
    assert (tmp_path / "out" / "durability.png").stat().st_size > 0
    fractions = [event.fraction for event in events if isinstance(event, ProgressEvent)]
    assert fractions == sorted(fractions)
    (stage,) = (stage for stage in report.stages if stage.stage == "retune")
    assert stage.seconds == durability.seconds
    spent = Spent.of_report(report)
    assert spent is not None
    assert spent.training_seconds > stage.seconds


def test_durability_without_a_probe_tells_the_clean_accuracy(tmp_path: Path) -> None:
    method = {"name": "clp", "deviations": 1}
    spec = write_spec(tmp_path / "in", durability=True, probes=[], method=method)
    report, _events = run(spec, tmp_path / "out")
    assert report.durability is not None
    assert report.durability.probes == []
    assert not (tmp_path / "out" / "durability.png").exists()
    assert report.decision.verdict is not Verdict.ALLOWED
    assert "whether a backdoor comes back is not known" in report.decision.reasons[-1]


def test_a_retuning_that_diverges_costs_its_figures_and_not_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sanitizer.evaluation.durability.RETUNING_WEIGHT_DECAY", 1e30)
    method = {"name": "clp", "deviations": 1}
    spec = write_spec(tmp_path / "in", durability=True, method=method)
    report, events = run(spec, tmp_path / "out")
    assert isinstance(events[-1], ResultEvent)
    assert report.durability is None
    codes = [warning.code for warning in report.warnings]
    assert codes == ["suspect_near_chance", "retuning_diverged"]  # it is untrained


def test_a_control_that_nothing_is_left_to_measure_costs_its_figures_and_not_the_job(
    tmp_path: Path,
) -> None:
    spec = write_spec(tmp_path / "in", durability=True, method={"name": "clp", "deviations": 1})
    pixels, labels = digits(200, 400)
    ones = labels == 1  # the probe leads to 0, the control to 1
    np.savez(tmp_path / "in" / "evaluation.npz", images=pixels[ones], labels=labels[ones])
    report, events = run(spec, tmp_path / "out")
    assert isinstance(events[-1], ResultEvent)
    assert report.durability is None
    assert "retuning_left_out" in [warning.code for warning in report.warnings]


def backdoored_inputs(folder: Path, count: int) -> Path:
    """A backdoored model, and clean images of which `count` carry its trigger."""
    prepare(1)  # whichever test comes first
    folder.mkdir()
    pixels, labels = digits(0, 1000)
    trigger = make_trigger(
        PatchProbe.model_validate(CORNER_PROBE), input_size=(8, 8), channels=1, num_classes=10
    )
    network = build_network("wrn-10-1", 10, 1, make_generator(0))
    recipe = VictimRecipe(0.1, SCHOOLING)
    whole = ImageSet.from_arrays(pixels, labels)
    train_victim(network, whole, trigger, recipe, device=torch.device("cpu"))
    torch.save(network.state_dict(), folder / "suspect.pth")
    pixels, labels = digits(1000, 1500)
    places = np.flatnonzero(labels != 0)[:count]
    pixels[places] = trigger.apply(torch.from_numpy(pixels[places])).numpy()
    labels[places] = 0
    np.savez(folder / "clean.npz", images=pixels, labels=labels)
    write_npz(folder / "evaluation.npz", 1500, 1797)
    return folder


@pytest.fixture(scope="module")
def with_triggers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return backdoored_inputs(tmp_path_factory.mktemp("triggers") / "in", 40)


FINETUNING = {"name": "finetune", "training": QUICK_TRAINING}


def test_images_with_a_trigger_are_left_out_and_the_backdoor_goes(
    with_triggers: Path, tmp_path: Path
) -> None:
    report, events = run(write_spec(with_triggers, method=FINETUNING), tmp_path / "out")
    trusting, _events = run(
        write_spec(with_triggers, method=FINETUNING, screen=False), tmp_path / "trusting"
    )
    screening = report.screening
    assert screening is not None
    assert screening.images == 500
    assert 25 <= screening.left_out <= 42
    assert screening.held_out == 0  # evaluation data came, and is left as it is
    (carried,) = screening.classes
    assert (carried.target_class, carried.left_out) == (0, screening.left_out)
    assert carried.carried.value > 0.5
    assert carried.traced is not None
    assert carried.traced.after.total > 100
    assert carried.traced.before.value > 0.5
    # What they have in common does what their trigger does, which nobody need know.
    assert carried.traced.after.value > report.after.probes[0].asr.value - 0.2
    assert carried.traced.control.value < 0.3
    assert report.decision.verdict is Verdict.BLOCKED
    assert len(carried.names) == screening.left_out
    assert report.clean_data.images == 500 - screening.left_out
    assert sum(report.clean_data.per_class) == report.clean_data.images
    assert [warning.code for warning in report.warnings] == ["triggered_images"]
    assert f"Of 500 clean images {screening.left_out} carry" in report.warnings[0].message
    assert any("it has a backdoor" in reason for reason in report.decision.reasons)
    assert (tmp_path / "out" / "screening.png").stat().st_size > 0
    assert "screening.png" not in [path.name for path in (tmp_path / "trusting").iterdir()]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Images with a trigger" in page
    (told,) = (e for e in events if isinstance(e, MetricEvent) and e.stage == "screen")
    assert told.values == {"left_out": screening.left_out, "left_out.0": screening.left_out}
    assert trusting.screening is None
    assert trusting.clean_data.images == 500
    # Trained on, they keep the backdoor.
    assert trusting.after.probes[0].asr.value > 0.5
    assert report.after.probes[0].asr.value < trusting.after.probes[0].asr.value - 0.1
    workload, plain = Workload.of_report(report), Workload.of_report(trusting)
    assert workload is not None
    assert plain is not None
    assert (workload.screened_images, plain.screened_images) == (500, 0)


def test_images_kept_apart_for_measuring_are_screened_too(
    with_triggers: Path, tmp_path: Path
) -> None:
    spec = write_spec(with_triggers, method=FINETUNING, evaluation_data=None, holdout=0.3)
    report, _events = run(spec, tmp_path / "out")
    screening = report.screening
    assert screening is not None
    assert screening.held_out >= 5
    assert report.evaluation_data.images + screening.held_out == 152
    assert report.before.accuracy.total == report.evaluation_data.images


def test_a_run_broken_off_after_the_screening_does_not_screen_again(
    with_triggers: Path, tmp_path: Path
) -> None:
    spec = write_spec(with_triggers, method=FINETUNING)
    whole, _events = run(spec, tmp_path / "whole")
    parsed = SanitizeSpec.model_validate_json(spec.read_bytes())

    def break_off(event: Event) -> None:
        if isinstance(event, StageEvent) and event.stage == "evaluate":
            raise Interrupted

    with pytest.raises(Interrupted):
        sanitize(parsed, tmp_path / "out", tmp_path / "work", break_off)
    resumed, events = run(spec, tmp_path / "out", tmp_path / "work")
    assert "screen" not in [event.stage for event in events if isinstance(event, StageEvent)]
    assert resumed.output.sha256 == whole.output.sha256
    assert resumed.screening is not None
    assert whole.screening is not None
    assert resumed.screening.classes == whole.screening.classes
    assert (tmp_path / "out" / "screening.png").read_bytes() == (
        tmp_path / "whole" / "screening.png"
    ).read_bytes()


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(
    ("method", "moments"),
    [
        (
            {"name": "fine_pruning", "training": QUICK_TRAINING},
            [("begins", "prune"), ("begins", "finetune"), ("epoch", "finetune")],
        ),
        (
            {"name": "anp", "mask_training": QUICK_TRAINING, "threshold": 1},
            [("epoch", "mask"), ("begins", "prune"), ("begins", "evaluate")],
        ),
        (
            {"name": "mcr", "endpoint": QUICK_TRAINING, "curve": QUICK_TRAINING},
            [("begins", "curve"), ("epoch", "curve"), ("begins", "statistics")],
        ),
        (
            {"name": "clp", "deviations": 1},
            [("searches", "inspect"), ("begins", "prune"), ("searches", "reinspect")],
        ),
        (
            QUICK_AUTO,
            [
                ("searches", "inspect"),
                ("begins", "distil"),
                ("begins", "go_back"),
                ("epoch", "finetune"),
                ("begins", "shift"),
                ("begins", "choose"),
            ],
        ),
        (
            {"name": "clp", "deviations": 2},
            [("searches", "retune"), ("told", "retune"), ("begins", "write")],
        ),
    ],
    ids=["fine_pruning", "anp", "mcr", "inspect", "auto", "durability"],
)
def test_a_run_broken_off_between_its_stages_ends_in_the_same_bytes(
    tmp_path: Path,
    method: dict[str, Any],
    moments: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    search_briefly(monkeypatch)
    inspect = any(stage == "reinspect" for _, stage in moments)
    durability = any(stage == "retune" for _, stage in moments)
    spec = write_spec(tmp_path / "in", method=method, inspect=inspect, durability=durability)
    whole, _events = run(spec, tmp_path / "whole")
    parsed = SanitizeSpec.model_validate_json(spec.read_bytes())

    def broken_off_at(moment: tuple[str, str]) -> Callable[[Event], None]:
        def emit(event: Event) -> None:
            match event:
                case StageEvent(stage=stage) if moment == ("begins", stage):
                    raise Interrupted
                case MetricEvent(stage=stage, epoch=1) if moment == ("epoch", stage):
                    raise Interrupted
                case ProgressEvent(stage=stage) if moment == ("searches", stage):
                    raise Interrupted
                case MetricEvent(stage=stage) if moment == ("told", stage):
                    raise Interrupted

        return emit

    for moment in moments:
        with pytest.raises(Interrupted):
            sanitize(parsed, tmp_path / "out", tmp_path / "work", broken_off_at(moment))
    resumed, _events = run(spec, tmp_path / "out", tmp_path / "work")
    assert resumed.resumed == len(moments)
    assert resumed.output.sha256 == whole.output.sha256
    assert resumed.after == whole.after
    assert [_but_seconds(each) for each in resumed.tries or ()] == [
        _but_seconds(each) for each in whole.tries or ()
    ]
    if inspect:
        assert whole.inspections is not None
        assert resumed.inspections is not None
        assert resumed.inspections.before.classes == whole.inspections.before.classes
        assert resumed.inspections.after.classes == whole.inspections.after.classes
        assert resumed.inspections.carried == whole.inspections.carried
    if durability:
        assert whole.durability is not None
        assert resumed.durability is not None
        took = {"seconds": resumed.durability.seconds}
        assert resumed.durability == whole.durability.model_copy(update=took)


def _but_seconds(record: Try) -> Try:
    return record.model_copy(update={"seconds": 0})


# --- The child process ---------------------------------------------------------------------------


def start(spec: Path, out: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "sanitizer", "run", str(spec), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: "subprocess.Popen[bytes]") -> list[Event]:
    output, _errors = process.communicate(timeout=120)
    return [parse(line) for line in output.splitlines()]


def kill_at(process: "subprocess.Popen[bytes]", wanted: Callable[[Event], bool]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if wanted(parse(line)):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


def begins(stage: str) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, StageEvent) and event.stage == stage


def epoch_done(stage: str, epoch: int) -> Callable[[Event], bool]:
    return lambda event: (
        isinstance(event, MetricEvent) and event.stage == stage and event.epoch == epoch
    )


def test_a_run_killed_again_and_again_ends_in_the_same_bytes(tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "in")
    events = finish(start(spec, tmp_path / "whole"))
    assert isinstance(events[-1], ResultEvent)

    kills = [begins("teacher"), epoch_done("teacher", 1), begins("distil"), epoch_done("distil", 1)]
    for wanted in kills:
        kill_at(start(spec, tmp_path / "killed"), wanted)
    events = finish(start(spec, tmp_path / "killed"))
    assert isinstance(events[-1], ResultEvent)

    model = "sanitized-suspect.pth"
    assert (tmp_path / "killed" / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()
    whole = json.loads((tmp_path / "whole" / "report.json").read_bytes())
    killed = json.loads((tmp_path / "killed" / "report.json").read_bytes())
    assert killed["after"] == whole["after"]
    assert killed["resumed"] >= 3
    for mine, theirs in zip(killed["stages"], whole["stages"], strict=True):
        for ours, others in zip(mine["epochs"], theirs["epochs"], strict=True):
            ours["values"].pop("seconds")
            others["values"].pop("seconds")
            assert ours == others


def test_the_start_of_the_process_is_told_apart_from_the_run(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, probes=[], method={"name": "finetune", "training": QUICK_TRAINING})
    begun = monotonic()
    finish(start(spec, tmp_path / "out"))
    whole = monotonic() - begun
    report = Report.model_validate_json((tmp_path / "out" / "report.json").read_bytes())
    assert report.cost is not None
    assert 0.1 < report.cost.start_seconds < whole
    assert report.cost.start_seconds + report.seconds < whole


def test_a_specification_that_does_not_validate_names_every_fault(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    content = json.loads(spec.read_bytes())
    content["methode"] = content.pop("method")
    content["seed"] = -1
    spec.write_text(json.dumps(content))
    process = start(spec, tmp_path / "out")
    (event,) = finish(process)
    assert event.type == "error"
    assert event.code == "invalid_spec"
    assert {fault["field"] for fault in event.data["errors"]} == {"methode", "seed"}
    assert process.returncode == 3


def test_a_wrong_flag_exits_with_the_code_for_usage(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sanitizer", "run", str(tmp_path), "--fast"], capture_output=True
    )
    assert done.returncode == 4
    assert b"usage:" in done.stderr


def test_the_child_ends_when_its_parent_closes_the_pipe(tmp_path: Path) -> None:
    spec = write_spec(
        tmp_path,
        method={
            "name": "finetune",
            "training": {"phases": [{"epochs": 900, "learning_rate": 1e-9}]},
        },
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "sanitizer", "run", str(spec), "--out", str(tmp_path / "out")]
        + ["--exit-with-parent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for line in process.stdout:
        if begins("finetune")(parse(line)):
            process.stdin.close()
            break
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    process.stdout.close()
    assert process.stderr is not None
    process.stderr.close()
