import pytest

from sanitizer.choice import Tried, best_of, records_of, standard_error, worst_of
from sanitizer.evaluation.metrics import wilson
from sanitizer.report.model import ChangeFamily, ClassInspection, FoundChange, TryOutcome


def tried(method: str, right: int, residual: float = 0.0, *, of: int = 250) -> Tried:
    hits = [True] * right + [False] * (of - right)
    return Tried(method, right=hits, residual=residual, images=225, target=3, seconds=4.0)


def inspection(target: int, rate: int, natural: int) -> ClassInspection:
    change = FoundChange(
        family=ChangeFamily.PATCH, size=0.01, reached=True, rate=wilson(rate, 200), anomaly=0
    )
    return ClassInspection(
        target_class=target,
        natural_rate=wilson(natural, 200),
        changes=[change],
        estimated_asr=change.rate.value,
    )


def test_what_misleads_most_beyond_what_goes_there_anyway_is_the_residual() -> None:
    found = [inspection(0, 40, 30), inspection(1, 30, 4), inspection(2, 0, 10)]
    residual, target, images = worst_of(found)
    assert residual == pytest.approx(0.13)
    assert (target, images) == (1, 200)


def test_a_change_that_leads_away_from_its_class_leaves_no_residual() -> None:
    assert worst_of([inspection(2, 3, 10)]) == (0.0, 2, 200)
    assert worst_of([]) == (0.0, -1, 0)


def test_the_better_one_is_kept_wherever_it_stands() -> None:
    good, bad = tried("argd", 200, 0.05), tried("fst", 180, 0.4)
    assert best_of([good, bad]) is good
    assert best_of([bad, good]) is good


def test_a_residual_weighs_as_much_as_accuracy() -> None:
    accurate, clean = tried("argd", 220, 0.5), tried("fst", 200, 0.02)
    assert best_of([accurate, clean]) is clean


def test_of_two_that_chance_may_tell_apart_the_first_is_kept() -> None:
    first, second = tried("argd", 200, 0.05), tried("ft_sam", 202, 0.05)
    assert second.score > first.score
    assert best_of([first, second]) is first
    assert best_of([second, first]) is second


def test_accuracies_on_the_same_images_are_compared_image_by_image() -> None:
    one, other = tried("argd", 200), tried("fst", 180)
    # 20 of 250 images differ, all in one direction.
    share = 20 / 250
    assert standard_error(one, other) == pytest.approx((share * (1 - share) / 250) ** 0.5)
    assert standard_error(one, one) == 0


@pytest.mark.parametrize(("images", "later"), [(15, False), (43, True)])
def test_a_later_one_has_to_be_better_by_a_standard_error(images: int, later: bool) -> None:
    """Of 15 images five points are 0.9 of it, of 43 one and a half."""
    right = [True] * 100
    first = Tried("argd", right=right, residual=0.05, images=images)
    second = Tried("fst", right=right, residual=0.0, images=images)
    assert (best_of([first, second]) is second) == later


def test_both_residuals_are_known_no_better_than_their_images_tell() -> None:
    one = Tried("argd", right=[True] * 10, residual=0.2, images=100)
    other = Tried("fst", right=[True] * 10, residual=0.1, images=50)
    expected = (0.2 * 0.8 / 100 + 0.1 * 0.9 / 50) ** 0.5
    assert standard_error(one, other) == pytest.approx(expected)
    assert standard_error(other, one) == pytest.approx(expected)


def test_every_method_is_accounted_for() -> None:
    first, second = tried("argd", 200, 0.3), tried("ft_sam", 210, 0.02)
    kept = tried("fst", 212, 0.02)
    left_out = Tried("fst", left_out="It would have taken about 90 s more; of 60 s 12 were left.")
    records = records_of([first, second, left_out])
    assert [record.method for record in records] == ["argd", "ft_sam", "fst"]
    assert [record.outcome for record in records] == [
        TryOutcome.DROPPED,
        TryOutcome.KEPT,
        TryOutcome.LEFT_OUT,
    ]
    assert "accuracy -4.0 points, misled +28.0 points" in records[0].reason
    assert "84.0% of held-out images right, 2.0% misled" in records[1].reason
    assert records[1].accuracy == wilson(210, 250)
    assert records[2].reason == left_out.left_out
    assert records[2].accuracy is None
    late = records_of([second, kept])[1]
    assert late.outcome is TryOutcome.DROPPED
    assert "Too little to pass what came first" in late.reason


def test_one_that_was_left_out_is_never_kept() -> None:
    through = tried("fst", 10)
    assert best_of([Tried("argd", left_out="no"), through]) is through
    with pytest.raises(ValueError, match="at least one"):
        best_of([Tried("argd", left_out="no")])
