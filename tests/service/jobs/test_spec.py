"""The child's specification, out of rows."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sanitizer.spec import Device, PatchProbe, SanitizeSpec
from service.db.session import SessionFactory, transaction
from service.db.tables import Dataset, Job, Model
from service.jobs.spec import build_spec
from tests.builders import add_dataset, add_job, add_model, add_tenant

PATCH = {"kind": "patch", "name": "corner", "target_class": 0, "row": 0, "column": 0}


def _build(
    sessions: SessionFactory,
    *,
    worker_device: Device = Device.AUTO,
    same_data: bool = False,
    **request: Any,
) -> SanitizeSpec:
    with transaction(sessions) as session:
        tenant = add_tenant(session)
        options = {"architecture": "wrn-16-1", "input_size": [32, 32], "mean": None, "std": None}
        model = add_model(session, tenant, options=options)
        clean = add_dataset(session, tenant, class_names=["cat", "dog"])
        other = clean if same_data else add_dataset(session, tenant)
        job = add_job(
            session,
            tenant,
            model=model,
            clean=clean,
            evaluation_data={"dataset_id": other.id, "images": 7, "seed": 3},
            **request,
        )
    return _spec(job, model, {clean.id: clean, other.id: other}, worker_device)


def _spec(job: Job, model: Model, datasets: dict[str, Dataset], device: Device) -> SanitizeSpec:
    return build_spec(
        job,
        model,
        datasets,
        model_path=Path("/job/model"),
        dataset_paths={each: Path(f"/job/data{n}") for n, each in enumerate(datasets)},
        device=device,
        threads=3,
        checkpoint_seconds=7,
    )


def test_files_and_options_are_those_of_the_rows(sessions: SessionFactory) -> None:
    spec = _build(sessions)
    assert (spec.model.path, spec.model.filename) == (Path("/job/model"), "suspect.pt")
    assert (spec.model.architecture, spec.model.input_size) == ("wrn-16-1", (32, 32))
    assert (spec.clean_data.path, spec.clean_data.class_names) == (
        Path("/job/data0"),
        ("cat", "dog"),
    )
    assert spec.evaluation_data is not None
    assert (spec.evaluation_data.path, spec.evaluation_data.class_names) == (
        Path("/job/data1"),
        None,
    )
    assert (spec.evaluation_data.images, spec.evaluation_data.seed) == (7, 3)
    assert spec.threads == 3
    assert spec.checkpoint_seconds == 7


def test_one_data_set_may_serve_twice(sessions: SessionFactory) -> None:
    spec = _build(sessions, same_data=True)
    assert spec.evaluation_data is not None
    assert spec.evaluation_data.path == spec.clean_data.path


def test_method_probes_policy_and_seed_are_those_of_the_request(sessions: SessionFactory) -> None:
    spec = _build(
        sessions,
        method={"name": "nad", "student": {"batch_size": 16}},
        probes=[{**PATCH, "pixels": [[255, 0], [0, 255]]}],
        policy={"max_asr": 0.5},
        seed=11,
    )
    assert spec.method.name == "nad"
    assert spec.method.student.batch_size == 16
    assert isinstance(spec.probes[0], PatchProbe)
    assert (spec.policy.max_asr, spec.seed) == (0.5, 11)


def test_device_is_the_worker_s_unless_the_request_has_a_wish(sessions: SessionFactory) -> None:
    assert _build(sessions, worker_device=Device.CPU).device == Device.CPU


def test_wish_for_a_device_goes_before_the_worker_s_own(sessions: SessionFactory) -> None:
    assert _build(sessions, device="cpu").device == Device.CPU


def test_stored_request_that_is_no_request_any_more_is_refused(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        job = add_job(session)
        model = session.get_one(Model, job.model_id)
        clean = session.get_one(Dataset, job.clean_dataset_id)
    job.request = {**job.request, "method": {"name": "gone"}}
    with pytest.raises(ValidationError):
        _spec(job, model, {clean.id: clean}, Device.AUTO)


def test_number_of_devices_is_the_request_s(sessions: SessionFactory) -> None:
    assert _build(sessions, devices=4).devices == 4


@pytest.mark.parametrize("asked", [False, True])
def test_what_is_asked_for_on_top_reaches_the_child(sessions: SessionFactory, asked: bool) -> None:
    spec = _build(sessions, durability=asked, inspect=not asked)
    assert (spec.durability, spec.inspect) == (asked, not asked)
