import numpy as np
import pytest
from torch import nn

from sanitizer.evaluation.inspection import anomalies_of, inspect
from sanitizer.evaluation.inversion import Found
from tests.sanitizer.evaluation.builders import TARGET, subject_of


def test_an_inspection_goes_on_where_it_was_interrupted(backdoored: nn.Module) -> None:
    subject = subject_of(backdoored)
    whole: list[Found] = []
    first = inspect(subject, whole)
    searches = 0

    def count() -> None:
        nonlocal searches
        searches += 1

    second = inspect(subject, whole[:20], count)

    assert searches == 1
    assert second.model_copy(update={"seconds": first.seconds}) == first
    assert first.suspicious[:1] == [TARGET]
    assert first.strongest.target_class == TARGET


def test_an_anomaly_is_the_distance_from_the_median_in_deviations() -> None:
    sizes = np.exp([0.0, 1.0, 2.0, 3.0, 4.0, -6.0])

    anomalies = anomalies_of([float(size) for size in sizes])

    # Median 1.5; absolute distances 1.5, 0.5, 0.5, 1.5, 2.5, 7.5, of which the median is 1.5.
    expected = [(1.5 - value) / (1.4826 * 1.5) for value in (0, 1, 2, 3, 4, -6)]
    assert anomalies == pytest.approx(expected)


def test_sizes_that_are_all_alike_have_no_outlier() -> None:
    assert max(anomalies_of([1.0, 1.001, 0.999, 1.0, 0.99])) < 0.1
