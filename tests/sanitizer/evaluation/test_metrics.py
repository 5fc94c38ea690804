import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from sanitizer.errors import NotEnoughImages
from sanitizer.evaluation import metrics

CLASSES = 4
EMPTY = torch.zeros(0, dtype=torch.int64)
pairs = st.lists(
    st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1, max_size=60
)
targets = st.integers(0, CLASSES - 1)
shares = st.floats(0, 1)


def tensors(answers: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and labels of (prediction, label) pairs."""
    return torch.tensor([p for p, _ in answers]), torch.tensor([y for _, y in answers])


@given(pairs)
def test_accuracy_is_the_share_of_right_answers(answers: list[tuple[int, int]]) -> None:
    result = metrics.accuracy(*tensors(answers))
    assert result.count == sum(1 for predicted, label in answers if predicted == label)
    assert result.total == len(answers)
    assert result.value == result.count / result.total


@given(pairs)
def test_accuracy_per_class_is_that_of_each_class_present(answers: list[tuple[int, int]]) -> None:
    result = metrics.accuracy_per_class(*tensors(answers), CLASSES)
    expected: dict[int, list[bool]] = {}
    for predicted, label in answers:
        expected.setdefault(label, []).append(predicted == label)
    assert {c: (p.count, p.total) for c, p in result.items()} == {
        c: (sum(hits), len(hits)) for c, hits in expected.items()
    }


@given(pairs, targets)
def test_attack_figures_look_at_the_other_classes_alone(
    answers: list[tuple[int, int]], target: int
) -> None:
    others = [(predicted, label) for predicted, label in answers if label != target]
    assume(others)
    predicted, labels = tensors(answers)
    asr = metrics.attack_success_rate(predicted, labels, target)
    ra = metrics.robust_accuracy(predicted, labels, target)
    assert (asr.count, asr.total) == (sum(1 for p, _ in others if p == target), len(others))
    assert (ra.count, ra.total) == (sum(1 for p, y in others if p == y), len(others))
    assert metrics.natural_rate(predicted, labels, target) == asr
    assert asr.value + ra.value <= 1


@given(pairs, targets)
def test_attack_figures_per_class_add_up(answers: list[tuple[int, int]], target: int) -> None:
    assume(any(label != target for _, label in answers))
    predicted, labels = tensors(answers)
    for whole, parts in (
        (metrics.attack_success_rate, metrics.attack_success_rate_per_class),
        (metrics.robust_accuracy, metrics.robust_accuracy_per_class),
    ):
        by_class = parts(predicted, labels, target)
        assert sorted(by_class) == sorted({label for _, label in answers} - {target})
        assert sum(p.count for p in by_class.values()) == whole(predicted, labels, target).count
        assert sum(p.total for p in by_class.values()) == whole(predicted, labels, target).total


@given(st.integers(1, 100_000), st.data())
def test_the_wilson_interval_solves_its_equation(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, total))
    result = metrics.wilson(count, total)
    assert 0 <= result.low <= result.value <= result.high <= 1
    # The bounds are where the share lies 1.96 standard errors, taken at the bound, away.
    for bound in (result.low, result.high):
        distance = (result.value - bound) ** 2
        assert distance == pytest.approx(
            1.959963984540054**2 * bound * (1 - bound) / total, rel=1e-6, abs=1e-12
        )


def test_the_wilson_interval_of_a_textbook_case() -> None:
    # Newcombe 1998 (Statistics in Medicine 17:857), table I: 81 of 263, score method.
    result = metrics.wilson(81, 263)
    assert (round(result.low, 4), round(result.high, 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize(("count", "total"), [(-1, 5), (6, 5)])
def test_a_count_beyond_its_total_is_refused(count: int, total: int) -> None:
    with pytest.raises(ValueError, match="count"):
        metrics.wilson(count, total)


@given(shares, shares, shares, shares)
def test_defense_effectiveness_is_its_definition(a: float, b: float, c: float, d: float) -> None:
    asr_drop = c - d if c > d else 0
    acc_drop = a - b if a > b else 0
    result = metrics.defense_effectiveness(a, b, c, d)
    assert result == pytest.approx((1 + asr_drop - acc_drop) / 2)
    assert 0 <= result <= 1


def test_every_figure_of_an_empty_set_is_refused() -> None:
    for refuse in (
        lambda: metrics.wilson(0, 0),
        lambda: metrics.accuracy(EMPTY, EMPTY),
        lambda: metrics.accuracy_per_class(EMPTY, EMPTY, CLASSES),
        lambda: metrics.attack_success_rate(EMPTY, EMPTY, 0),
        lambda: metrics.attack_success_rate_per_class(EMPTY, EMPTY, 0),
        lambda: metrics.robust_accuracy(EMPTY, EMPTY, 0),
        lambda: metrics.robust_accuracy_per_class(EMPTY, EMPTY, 0),
        lambda: metrics.natural_rate(EMPTY, EMPTY, 0),
    ):
        with pytest.raises(NotEnoughImages):
            refuse()


def test_images_of_the_target_alone_are_refused() -> None:
    labels = torch.tensor([2, 2])
    with pytest.raises(NotEnoughImages, match="All 2 images are of the target class 2"):
        metrics.attack_success_rate(labels, labels, 2)


def test_predictions_that_do_not_fit_the_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2\] and \[3\]"):
        metrics.accuracy(torch.zeros(2), torch.zeros(3))


def test_labels_beyond_the_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="below 4, got 4"):
        metrics.accuracy_per_class(torch.tensor([0]), torch.tensor([4]), CLASSES)
