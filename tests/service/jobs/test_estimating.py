"""What a job will take, over rows of finished ones."""

from typing import Any

import httpx
import pytest
from sqlalchemy.orm import Session

from sanitizer.cost.estimate import EstimateBasis, rule_of_thumb
from sanitizer.cost.workload import Measured
from sanitizer.report.model import Report
from service.db.base import utc_now
from service.db.session import SessionFactory, transaction
from service.db.tables import Dataset, Job, JobCost, Model, Tenant, WorkerRecord
from service.jobs import service as jobs
from service.jobs.estimating import UNKNOWN_IMAGES, estimate_job
from service.jobs.schemas import JobEstimate, JobRequest
from service.settings import Settings
from tests.builders import add_dataset, add_job, add_model, add_tenant, make_artifacts
from tests.databases import every_database
from tests.reports import make_cost, make_report
from tests.service.jobs.builders import job_body

pytestmark = every_database

WRN = {"architecture": "wrn-16-1", "input_size": [32, 32], "mean": None, "std": None}
AUTO = {**WRN, "architecture": "auto", "input_size": None}


def finish(
    session: Session,
    tenant: Tenant,
    *,
    model: Model | None = None,
    clean: Dataset | None = None,
    **changes: Any,
) -> Report:
    """Runs a job of a tenant to its end; `changes` are those of its report."""
    model = model or add_model(session, tenant, sha256="cd" * 32)
    clean = clean or add_dataset(session, tenant)
    job = add_job(session, tenant, model=model, clean=clean)
    claim = jobs.claim(session, job.id, "w1", 60)
    assert claim is not None
    report = make_report(cost=make_cost()).model_copy(update=changes)
    jobs.succeed(session, claim, report, make_artifacts(job.id))
    return report


def ask(
    session: Session,
    tenant: Tenant,
    settings: Settings,
    *,
    model: Model | None = None,
    clean: Dataset | None = None,
    images: int | None = 2500,
    **fields: Any,
) -> JobEstimate:
    """The estimate for a request of a tenant."""
    model = model or add_model(session, tenant, options=WRN)
    clean = clean or add_dataset(session, tenant)
    request = JobRequest.model_validate(
        {
            "model_id": model.id,
            "clean_data": {"dataset_id": clean.id, "images": images},
            **fields,
        }
    )
    ours = settings.model_copy(update={"threads_per_job": 2, "device": "auto"})
    return estimate_job(session, tenant.id, request, ours)


class TestSpeed:
    """What the speed is taken from."""

    def test_new_installation_goes_by_the_rule_of_thumb(
        self, sessions: SessionFactory, settings: Settings
    ) -> None:
        with transaction(sessions) as session:
            found = ask(session, add_tenant(session), settings)
        assert found.basis is EstimateBasis.RULE_OF_THUMB
        assert found.explanation == [
            "By a rule of thumb for 2 threads of a CPU; nothing was measured here yet."
        ]
        assert (found.architecture, found.device) == ("wrn-16-1", "cpu")
        assert (found.clean_images, found.evaluation_images) == (2000, 500)
        assert 0 < found.seconds_low < found.seconds < found.seconds_high

    def test_search_for_triggers_counts_by_the_classes_of_the_data(
        self, sessions: SessionFactory, settings: Settings
    ) -> None:
        with transaction(sessions) as session:
            tenant = add_tenant(session)
            named = add_dataset(session, tenant, class_names=["cat", "dog"])
            without = ask(session, tenant, settings, clean=named)
            two = ask(session, tenant, settings, clean=named, inspect=True)
            unknown = ask(session, tenant, settings, inspect=True)
        assert without.evaluation_seconds < two.evaluation_seconds < unknown.evaluation_seconds
        assert two.training_seconds == without.training_seconds
        assert two.explanation == without.explanation
        assert "10 are reckoned with" in unknown.explanation[-1]

    def test_trying_several_methods_costs_all_of_them_and_one_search(
        self, sessions: SessionFactory, settings: Settings
    ) -> None:
        with transaction(sessions) as session:
            tenant = add_tenant(session)
            named = add_dataset(session, tenant, class_names=["cat", "dog"])
            one = ask(session, tenant, settings, clean=named)
            inspected = ask(session, tenant, settings, clean=named, inspect=True)
            several = ask(session, tenant, settings, clean=named, method={"name": "auto"})
        assert several.training_seconds > 2 * one.training_seconds
        assert one.evaluation_seconds < several.evaluation_seconds < inspected.evaluation_seconds

    def test_methods_that_there_is_no_time_to_try_do_not_count(
        self, sessions: SessionFactory, settings: Settings
    ) -> None:
        with transaction(sessions) as session:
            tenant = add_tenant(session)
            named = add_dataset(session, tenant, class_names=["cat", "dog"])
            first, every, short, long = (
                ask(session, tenant, settings, clean=named, method={"name": "auto", **fields})
                for fields in ({"methods": ["argd"]}, {}, {"seconds": 1}, {"seconds": 1e6})
            )
        assert short.training_seconds == first.training_seconds < every.training_seconds
        assert short.explanation[-1] == (
            "In 1 s not all methods can be tried: without ft_sam, fst."
        )
        assert long == every

    def test_retuning_counts_by_the_triggers_that_were_given(
        self, sessions: SessionFactory, settings: Settings
    ) -> None:
        patch = {"kind": "patch", "target_class": 0, "row": 0, "column": 0, "pixels": [[255]]}
        with transaction(sessions) as session:
            tenant = add_tenant(session)
            without = ask(session, tenant, settings, probes=[patch])
            none = ask(session, tenant, settings, durability=True)
            one = ask(session, tenant, settings, probes=[patch], durability=True)
        assert without.training_seconds < none.training_seconds < one.training_seconds
        assert one.evaluation_seconds == without.evaluation_seconds
        assert one.explanation == without.explanation

    def test_own_job_with_the_architecture_goes_before_all_others(
        self, sessions: SessionFactory, settings: Settings
    ) -> None:
        with transaction(sessions) as session:
            tenant = add_tenant(session)
            report = finish(session, tenant)
            finish(session, add_tenant(session, "globex"), seconds=1000.0)
            found = ask(session, tenant, settings, method=report.method)
        assert found.basis is EstimateBasis.OWN_JOBS
        assert found.explanation == [
            "From what 1 of your finished jobs took with a wrn-16-1 on the same kind of device."
        ]
        measured = Measured.of_report(report)
        assert measured is not None
        # It trained on 100 images and this one on 2000, in batches as large.
        ratio = measured.spent.training_seconds / rule_of_thumb(measured.workload).training_seconds
        assert found.training_seconds == pytest.approx(20 * 8, rel=0.2)
        assert ratio > 1

    def test_jobs_of_others_tell_the_speed_of_the_machine_and_no_more(
        self, sessions: SessionFactory, settings: Settings
    ) -> None:
        with transaction(sessions) as session:
            tenant = add_tenant(session)
            bare = ask(session, tenant, settings)
            finish(session, add_tenant(session, "globex"))
            found = ask(session, tenant, settings)
        assert found.basis is EstimateBasis.INSTALLATION
        assert found.seconds != bare.seconds
        assert found.explanation == [
            "From the speed that this installation has measured, with other work."
        ]

    def test_measurements_on_another_kind_of_device_do_not_count(
        self, sessions: SessionFactory, settings: Settings
    ) -> None:
        with transaction(sessions) as session:
            tenant = add_tenant(session)
            finish(session, tenant, cost=make_cost(device="cuda", peak_device_bytes=1 << 30))
            assert ask(session, tenant, settings).basis is EstimateBasis.RULE_OF_THUMB
            on_gpu = ask(session, tenant, settings, device="cuda")
        assert on_gpu.basis is EstimateBasis.OWN_JOBS
        assert on_gpu.peak_device_bytes is not None

    def test_row_that_another_version_wrote_is_passed_over(
        self, sessions: SessionFactory, settings: Settings
    ) -> None:
        with transaction(sessions) as session:
            tenant = add_tenant(session)
            finish(session, tenant)
            session.query(JobCost).one().measured = {"workload": "other"}
            session.flush()
            assert ask(session, tenant, settings).basis is EstimateBasis.RULE_OF_THUMB

    @pytest.mark.parametrize("changes", [{"resumed": 1}, {"cost": None}, {"method": {}}])
    def test_run_that_is_no_measurement_succeeds_all_the_same(
        self, sessions: SessionFactory, changes: dict[str, Any]
    ) -> None:
        with transaction(sessions) as session:
            finish(session, add_tenant(session), **changes)
            assert session.query(JobCost).count() == 0
            assert session.query(Job).one().status == "succeeded"


class TestNetwork:
    """Which network is reckoned with."""

    def test_earlier_job_on_the_same_file_has_found_the_architecture(
        self, sessions: SessionFactory, settings: Settings
    ) -> None:
        with transaction(sessions) as session:
            tenant = add_tenant(session)
            finish(session, tenant, model=add_model(session, tenant, sha256="11" * 32))
            again = add_model(session, tenant, sha256="11" * 32, options=AUTO)
            found = ask(session, tenant, settings, model=again)
        assert found.architecture == "wrn-16-1"
        assert len(found.explanation) == 1

    def test_what_others_found_out_about_a_file_is_not_told(
        self, sessions: SessionFactory, settings: Settings
    ) -> None:
        with transaction(sessions) as session:
            tenant, other = add_tenant(session), add_tenant(session, "globex")
            finish(session, other, model=add_model(session, other, sha256="11" * 32))
            same = add_model(session, tenant, sha256="11" * 32, options=AUTO, bytes=102_600_000)
            found = ask(session, tenant, settings, model=same)
        assert found.architecture != "wrn-16-1"

    def test_architecture_is_guessed_by_the_size_of_the_file_and_that_is_told(
        self, sessions: SessionFactory, settings: Settings
    ) -> None:
        with transaction(sessions) as session:
            tenant = add_tenant(session)
            model = add_model(session, tenant, options=AUTO, bytes=102_500_000)
            found = ask(session, tenant, settings, model=model)
            known = add_model(session, tenant, options={**AUTO, "architecture": "resnet50"})
            told = ask(session, tenant, settings, model=known)
        assert found.architecture == "resnet50"
        assert "by the size of its file it may be resnet50" in found.explanation[1]
        assert found.seconds == pytest.approx(told.seconds)
        assert found.seconds_high > told.seconds_high

    def test_file_of_a_size_that_no_network_has_gets_a_wide_range(
        self, sessions: SessionFactory, settings: Settings
    ) -> None:
        with transaction(sessions) as session:
            tenant = add_tenant(session)
            model = add_model(session, tenant, options=AUTO, bytes=4)
            found = ask(session, tenant, settings, model=model)
        assert "no network of the catalog has a file of this size" in found.explanation[1]
        assert found.seconds_high / found.seconds == pytest.approx(12, rel=0.01)

    def test_name_of_no_network_is_told(self, sessions: SessionFactory, settings: Settings) -> None:
        with transaction(sessions) as session:
            tenant = add_tenant(session)
            model = add_model(session, tenant, options={**WRN, "architecture": "resnet51"})
            found = ask(session, tenant, settings, model=model)
        assert found.architecture == "resnet18"
        assert "There is no architecture resnet51" in found.explanation[1]


class TestImages:
    """How many images are reckoned with."""

    def test_earlier_job_has_counted_the_images(
        self, sessions: SessionFactory, settings: Settings
    ) -> None:
        with transaction(sessions) as session:
            tenant = add_tenant(session)
            clean = add_dataset(session, tenant)
            finish(session, tenant, clean=clean)  # it had 100
            found = ask(session, tenant, settings, clean=clean, images=None, holdout=0.25)
            fewer = ask(session, tenant, settings, clean=clean, images=10, holdout=0.5)
            more = ask(session, tenant, settings, clean=clean, images=4000, holdout=0.5)
        assert (found.clean_images, found.evaluation_images) == (75, 25)
        assert fewer.clean_images == 5
        assert more.clean_images == 50
        assert len(found.explanation) == 1

    def test_images_of_an_array_are_guessed_from_its_size(
        self, sessions: SessionFactory, settings: Settings
    ) -> None:
        with transaction(sessions) as session:
            tenant = add_tenant(session)
            clean = add_dataset(session, tenant, bytes=1000 * 3 * 32 * 32)
            found = ask(session, tenant, settings, clean=clean, images=None, holdout=0.2)
        assert (found.clean_images, found.evaluation_images) == (800, 200)
        assert "guessed from the size of its file: 1,000." in found.explanation[1]

    def test_data_that_lies_elsewhere_is_reckoned_with_a_number_that_is_told(
        self, sessions: SessionFactory, settings: Settings
    ) -> None:
        with transaction(sessions) as session:
            tenant = add_tenant(session)
            clean = add_dataset(
                session, tenant, bytes=None, storage_key=None, reference="file:///x"
            )
            found = ask(session, tenant, settings, clean=clean, images=None)
        assert found.clean_images + found.evaluation_images == UNKNOWN_IMAGES
        assert "is not known; 10,000 are reckoned with" in found.explanation[1]


class TestDevice:
    """What it is reckoned to run on."""

    @pytest.mark.parametrize(
        ("workers", "asked", "expected"),
        [
            ([], None, "cpu"),
            (["cuda"], None, "cuda"),
            (["cuda", "cpu"], None, "cpu"),
            (["cuda"], "cpu", "cpu"),
            ([], "cuda", "cuda"),
        ],
    )
    def test_device_is_what_is_asked_for_or_what_the_workers_have(
        self,
        sessions: SessionFactory,
        settings: Settings,
        workers: list[str],
        asked: str | None,
        expected: str,
    ) -> None:
        with transaction(sessions) as session:
            for number, device in enumerate(workers):
                session.add(
                    WorkerRecord(
                        id=f"w{number}",
                        hostname="h",
                        device=device,
                        slots=1,
                        heartbeat_at=utc_now(),
                    )
                )
            session.flush()
            found = ask(session, add_tenant(session), settings, device=asked)
        assert found.device == expected
        assert (found.peak_device_bytes is not None) == (expected == "cuda")

    def test_job_of_several_devices_is_reckoned_for_one_and_that_is_told(
        self, sessions: SessionFactory, settings: Settings
    ) -> None:
        with transaction(sessions) as session:
            tenant = add_tenant(session)
            one = ask(session, tenant, settings)
            several = ask(session, tenant, settings, devices=4)
        assert several.seconds == one.seconds
        assert several.explanation == [
            *one.explanation,
            "It is reckoned for one device; 4 share the run.",
        ]


def test_request_that_is_only_checked_is_answered_with_an_estimate(client: httpx.Client) -> None:
    body = job_body(client, validate_only=True)
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 200, answer.text
    found = answer.json()["estimate"]
    assert found["basis"] == "rule_of_thumb"
    assert found["architecture"] == "wrn-16-1"
    assert 0 < found["seconds_low"] < found["seconds"] < found["seconds_high"]
    assert found["peak_host_bytes"] > 0
    assert found["peak_device_bytes"] is None


def test_rows_of_costs_go_with_their_job(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        finish(session, add_tenant(session))
        assert session.query(JobCost).count() == 1
        session.query(Model).update({"source_job_id": None})
        session.delete(session.query(Job).one())
        session.flush()
        assert session.query(JobCost).count() == 0
