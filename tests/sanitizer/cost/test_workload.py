import pytest

from sanitizer.cost.workload import (
    CHANGING_BATCH,
    EXPECTED_IMAGES,
    Measured,
    Spent,
    Workload,
    retunings,
    training_work,
    tried_images,
)
from sanitizer.evaluation.expectation import LOOKED_AT
from sanitizer.events import Stage
from sanitizer.methods.plan import TrainingStage, plan
from sanitizer.report.model import Report, StageRecord
from sanitizer.spec import (
    METHOD_ADAPTER,
    AnpConfig,
    ArgdConfig,
    AutoConfig,
    ClpConfig,
    FinePruningConfig,
    FinetuneConfig,
    FstConfig,
    FtSamConfig,
    Hardening,
    IBauConfig,
    McrConfig,
    MethodConfig,
    NadConfig,
    Preset,
)
from tests.reports import make_cost, make_report
from tests.sanitizer.cost.builders import make_workload
from tests.sanitizer.report.builders import build_durability


@pytest.mark.parametrize(
    "method",
    [
        FinetuneConfig(),
        NadConfig(),
        ArgdConfig(),
        ArgdConfig(preset=Preset.PAPER),
        ArgdConfig(student_hardening=Hardening(rho=2, perturbation=3)),
        ArgdConfig(hardening=Hardening(perturbation=9, perturbed_share=0.5)),
        ArgdConfig(hardening=Hardening(random_triggers=True, rho=1)),
        FinePruningConfig(),
        AnpConfig(),
        ClpConfig(),
        FtSamConfig(),
        FstConfig(),
        IBauConfig(),
        McrConfig(),
        AutoConfig(),
    ],
    ids=lambda method: method.name,
)
def test_stages_of_a_method_are_those_that_it_runs(method: MethodConfig) -> None:
    expected = [
        (stage.stage, stage.training.epochs, stage.training.batch_size, stage.relative_cost)
        if isinstance(stage, TrainingStage)
        else (stage.stage, 1, CHANGING_BATCH, stage.passes)
        for stage in plan(method)
        if stage.stage is not Stage.GO_BACK  # counts as measuring: `tried_images`
    ]
    found = [
        (work.stage, work.epochs, work.batch_size, work.passes)
        for work in training_work(method, 100)
    ]
    assert found == expected


def test_work_of_a_stage_is_what_goes_through_the_network() -> None:
    *_, trained, going_back = plan(ArgdConfig())
    assert isinstance(trained, TrainingStage)
    assert trained.work(100) == 2500 * 2 * trained.relative_cost  # an epoch has no fewer images
    assert trained.work(3000) == 3000 * 2 * trained.relative_cost
    assert going_back.work(2500) == tried_images(ArgdConfig(), 2500) > 0


def test_every_method_is_compared_with_what_it_runs() -> None:
    names = {
        choice["properties"]["name"]["const"]
        for choice in METHOD_ADAPTER.json_schema()["$defs"].values()
        if "name" in choice.get("properties", {})
    }
    assert names == {
        "finetune",
        "nad",
        "argd",
        "fine_pruning",
        "anp",
        "clp",
        "ft_sam",
        "fst",
        "i_bau",
        "mcr",
        "auto",
    }


def test_several_methods_are_trained_on_what_is_not_held_out() -> None:
    assert training_work(AutoConfig(methods=("ft_sam",)), 2500)[0].images == 2250
    assert training_work(AutoConfig(), 50_000)[0].images == 49_000


def test_an_epoch_of_few_images_goes_through_them_more_than_once() -> None:
    teacher, student = training_work(ArgdConfig(), 500)
    assert (teacher.images, teacher.steps, student.images) == (2500, 70, 2500)
    assert training_work(ArgdConfig(), 4000)[0].images == 4000
    workload = Workload(
        architecture="wrn-16-1",
        input_size=(32, 32),
        model_bytes=1,
        training=(teacher, student),
        different_images=500,
        evaluation_images=100,
        curve_images=0,
        probes=0,
        device="cpu",
        threads=1,
    )
    assert (workload.clean_images, workload.decoded_images) == (500, 600)
    without = workload.model_copy(update={"different_images": 0})
    assert without.clean_images == 2500  # of a version that did not say


def test_images_that_are_screened_are_measured_once_more() -> None:
    found = Workload.of_report(make_report(cost=make_cost(curve_images=0)))
    assert found is not None
    screened = found.model_copy(update={"screened_images": 100})
    assert screened.evaluated == found.evaluated + 100


def test_a_look_at_what_the_model_expects_counts_for_every_job() -> None:
    assert EXPECTED_IMAGES == LOOKED_AT
    few = make_workload(images=100, different_images=100)
    assert few.evaluated - make_workload(different_images=40).evaluated == 2 * (100 - 40)
    # Of many images 256 are looked at.
    many = make_workload(different_images=50_000).evaluated
    assert many == make_workload(different_images=256).evaluated == few.evaluated + 2 * 156


def test_last_smaller_batch_is_a_step_too() -> None:
    teacher, student = training_work(ArgdConfig(preset=Preset.PAPER), 130)
    assert (teacher.steps, student.steps) == (30, 30)


def test_workload_of_a_finished_job_is_what_its_report_says() -> None:
    report = make_report(cost=make_cost(threads=3, curve_images=40))
    found = Workload.of_report(report)
    assert found is not None
    assert (found.architecture, found.input_size) == ("wrn-16-1", (32, 32))
    assert (found.clean_images, found.evaluation_images, found.probes) == (100, 100, 1)
    assert (found.device, found.threads, found.curve_images) == ("cpu", 3, 40)
    assert found.evaluated == 2 * (2 * 100 + 20 * 40) + 2 * 100


def test_what_a_job_took_adds_up_to_the_whole() -> None:
    report = make_report(cost=make_cost(start_seconds=2, curve_seconds=1))
    found = Spent.of_report(report)
    assert found is not None
    assert found.training_seconds == 8
    assert found.evaluation_seconds == 3
    assert found.seconds == pytest.approx(2 + report.seconds)


def test_report_of_an_older_version_says_nothing_of_costs() -> None:
    assert Measured.of_report(make_report()) is None


def test_job_that_was_taken_up_again_is_no_measurement() -> None:
    report = make_report(cost=make_cost())
    assert Measured.of_report(report) is not None
    assert Measured.of_report(report.model_copy(update={"resumed": 1})) is None


def test_job_that_several_devices_shared_is_no_measurement_of_one() -> None:
    report = make_report(cost=make_cost())
    assert Measured.of_report(report.model_copy(update={"devices": 2})) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"method": {"name": "unheard_of"}},
        {"seconds": float("inf")},
        {"seconds": float("nan")},
        {"cost": make_cost(peak_host_bytes=2**80)},
        {"cost": make_cost(curve_images=2**80)},
    ],
    ids=["method", "infinite", "nan", "bytes", "images"],
)
def test_what_no_run_can_have_taken_is_no_measurement(changes: dict[str, object]) -> None:
    content = make_report(cost=make_cost()).model_copy(update=changes)
    assert Measured.of_report(Report.model_construct(**dict(content))) is None


def test_a_search_counts_as_the_passes_it_is_worth() -> None:
    none = make_workload()
    ten = make_workload(inspected_classes=10)
    # Twice, ten classes, three families: 100 steps of 32 images, two passes each, and 500 images.
    assert ten.evaluated - none.evaluated == 2 * 10 * 3 * (100 * 32 * 2 + 500)
    # Of many classes 16 are searched.
    assert make_workload(inspected_classes=1000).evaluated == (
        make_workload(inspected_classes=16).evaluated
    )


def test_retuning_counts_as_the_training_and_the_measuring_it_takes() -> None:
    assert make_workload().retuning is None
    assert make_workload().retuned_evaluated == 0
    two = make_workload(probes=2, retunings=retunings(2))
    assert two.retuning is not None
    # Clean, and each of two triggers with both labels: three epochs of 40 batches.
    assert (two.retunings, two.retuning.epochs, two.retuning.steps) == (5, 15, 15 * 40)
    # Of 10,000 images 2,000 are measured: without triggers six times, and with one, delivered four
    # times, retuned on clean images twice, each of the others once.
    assert two.retuned_evaluated == 2000 * (6 + 4 + 2 + 4)
    assert two.evaluated == make_workload(probes=2).evaluated


def test_retuning_of_a_finished_job_counts_as_training() -> None:
    report = make_report(cost=make_cost())
    stages = [*report.stages, StageRecord(stage="retune", seconds=4)]
    retuned = report.model_copy(
        update={"durability": build_durability(), "stages": stages, "seconds": 16.5}
    )
    workload, spent = Workload.of_report(retuned), Spent.of_report(retuned)
    assert workload is not None
    assert spent is not None
    assert workload.retunings == 3
    assert spent.training_seconds == 12
    assert spent.seconds == pytest.approx(1.5 + 16.5)
    without = Workload.of_report(report)
    assert without is not None
    assert without.retunings == 0


def test_workload_of_an_older_version_has_no_retuning() -> None:
    content = make_workload().model_dump()
    del content["retunings"]
    assert Workload.model_validate(content) == make_workload()
