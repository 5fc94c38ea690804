import itertools
from typing import Any

import pytest

from sanitizer.cost.estimate import (
    EVALUATION_BATCH,
    MARGINS,
    MAX_FACTOR,
    EstimateBasis,
    estimate,
    rule_of_thumb,
)
from sanitizer.evaluation.evaluate import BATCH_SIZE
from tests.sanitizer.cost.builders import make_measured, make_workload


@pytest.mark.parametrize(
    "rising",
    [
        [{"epochs": n} for n in (1, 2, 10, 500)],
        [{"images": n} for n in (10, 64, 65, 2500, 10**6)],
        [{"evaluation_images": n} for n in (100, 10_000, 50_000)],
        [{"probes": n} for n in (0, 1, 8)],
        [{"input_size": (n, n)} for n in (16, 32, 224)],
        [{"curve_images": n} for n in (0, 1000)],
        [{"retunings": n} for n in (0, 1, 3)],
        [{"batch_size": n} for n in (256, 64, 2)],
        [{"threads": n} for n in (16, 2, 1)],
        [{"architecture": name} for name in ("wrn-10-1", "wrn-16-1", "resnet50", "vit_h_14")],
    ],
    ids=lambda rising: next(iter(rising[0])),
)
def test_more_work_takes_longer(rising: list[dict[str, Any]]) -> None:
    seconds = [estimate(make_workload(**changes)).seconds for changes in rising]
    assert all(less < more for less, more in itertools.pairwise(seconds))


@pytest.mark.parametrize(
    "rising",
    [
        [{"batch_size": n} for n in (256, 1024, 2048)],
        [{"architecture": name} for name in ("wrn-16-1", "resnet18", "vit_h_14")],
        [{"images": n} for n in (2500, 50_000)],
        [{"input_size": (n, n)} for n in (32, 224)],
        [{"model_bytes": n} for n in (10**8, 10**9)],
    ],
    ids=lambda rising: next(iter(rising[0])),
)
def test_larger_things_take_more_memory(rising: list[dict[str, Any]]) -> None:
    sizes = [estimate(make_workload(**changes)).host_bytes for changes in rising]
    assert all(less < more for less, more in itertools.pairwise(sizes))


def test_new_installation_goes_by_the_rule_of_thumb_and_says_so() -> None:
    found = estimate(make_workload())
    rule = rule_of_thumb(make_workload())
    assert found.basis is EstimateBasis.RULE_OF_THUMB
    assert found.seconds == pytest.approx(rule.seconds)
    assert found.seconds == pytest.approx(
        found.training_seconds + found.evaluation_seconds + found.other_seconds
    )
    assert found.seconds_low == pytest.approx(rule.seconds / 3)
    assert found.seconds_high == pytest.approx(rule.seconds * 3)


def test_same_job_again_is_expected_to_take_what_it_took() -> None:
    before = make_measured(2.5, memory=0.7)
    found = estimate(before.workload, own=[before])
    assert found.basis is EstimateBasis.OWN_JOBS
    assert found.seconds == pytest.approx(before.spent.seconds)
    assert found.host_bytes == pytest.approx(before.spent.host_bytes, abs=1)


def test_longer_job_is_expected_to_take_longer_than_the_one_before() -> None:
    found = estimate(make_workload(epochs=20), own=[make_measured(2.0)])
    rule = rule_of_thumb(make_workload(epochs=20))
    assert found.training_seconds == pytest.approx(2 * rule.training_seconds)


def test_one_job_that_stood_still_does_not_count() -> None:
    history = [make_measured(slower) for slower in (1.1, 1.2, 40.0)]
    rule = rule_of_thumb(make_workload())
    assert estimate(make_workload(), installation=history).seconds == pytest.approx(
        1.2 * rule.seconds
    )


def test_own_jobs_go_before_those_of_the_installation() -> None:
    found = estimate(
        make_workload(), own=[make_measured(2.0)], installation=[make_measured(5.0)] * 3
    )
    assert found.seconds == pytest.approx(2 * rule_of_thumb(make_workload()).seconds)


def test_weaker_basis_gives_a_wider_range() -> None:
    measured = make_measured()
    widths = [
        found.seconds_high / found.seconds_low
        for found in (
            estimate(make_workload(), own=[measured]),
            estimate(make_workload(), installation=[measured]),
            estimate(make_workload()),
            estimate(make_workload(), doubt=4),
        )
    ]
    assert all(less < more for less, more in itertools.pairwise(widths))


def test_own_jobs_that_differ_widen_the_range() -> None:
    found = estimate(make_workload(), own=[make_measured(1.0), make_measured(3.0)])
    assert found.seconds == pytest.approx(2 * rule_of_thumb(make_workload()).seconds)
    assert found.seconds_high / found.seconds == pytest.approx(2)


def test_jobs_of_others_do_not_show_in_the_range() -> None:
    alike = estimate(make_workload(), installation=[make_measured(2.0)])
    apart = estimate(make_workload(), installation=[make_measured(s) for s in (0.5, 2.0, 9.0)])
    assert apart.seconds_high == pytest.approx(alike.seconds_high)
    assert apart.seconds_high / apart.seconds == pytest.approx(MARGINS[EstimateBasis.INSTALLATION])


@pytest.mark.parametrize("claimed", [1e-6, 1e6])
def test_measurement_beyond_reason_moves_the_estimate_no_further_than_its_bound(
    claimed: float,
) -> None:
    rule = rule_of_thumb(make_workload())
    short = make_workload(images=10, evaluation_images=10, curve_images=0)
    found = estimate(make_workload(), installation=[make_measured(claimed, workload=short)])
    assert rule.seconds / MAX_FACTOR * 0.99 < found.seconds < rule.seconds * MAX_FACTOR * 1.01


def test_job_on_a_gpu_gets_an_estimate_of_its_memory_too() -> None:
    assert estimate(make_workload()).device_bytes is None
    small = estimate(make_workload(device="cuda")).device_bytes
    large = estimate(make_workload(device="cuda", architecture="resnet50")).device_bytes
    assert small is not None
    assert large is not None
    assert 0 < small < large


def test_network_without_a_profile_counts_as_a_resnet18() -> None:
    found = estimate(make_workload(architecture="resnet51"))
    assert found == estimate(make_workload(architecture="resnet18"))


def test_images_are_measured_in_the_batches_that_are_reckoned_with() -> None:
    assert EVALUATION_BATCH == BATCH_SIZE
