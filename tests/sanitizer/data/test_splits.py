from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sanitizer.data.splits import draw, hold_out
from sanitizer.errors import NotEnoughImages

label_lists = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(
    lambda values: np.array(values, dtype=np.int64)
)
seeds = st.integers(0, 2**63 - 1)


@given(label_lists, seeds, st.data())
def test_a_draw_is_stratified_and_without_repeats(
    labels: NDArray[np.int64], seed: int, data: st.DataObject
) -> None:
    images = data.draw(st.integers(1, len(labels)))
    drawn = draw(labels, images, seed)
    counts, chosen = Counter(labels.tolist()), Counter(labels[drawn].tolist())
    assert len(drawn) == images == len(set(drawn.tolist()))
    assert drawn.tolist() == sorted(drawn.tolist())
    assert len(chosen) == len(counts) or images < len(counts)
    for label, count in counts.items():
        quota = images * count / len(labels)
        # Classes raised to one take at most one image each from the others.
        assert chosen[label] >= min(1, images // len(counts))
        assert chosen[label] < quota + 1 or chosen[label] == 1
        assert chosen[label] <= count


def test_shares_are_rounded_by_largest_remainder() -> None:
    labels = np.repeat(np.arange(3), [50, 30, 20])
    # Quotas 3.5, 2.1, 1.4: the one left over goes to the largest remainder.
    assert np.bincount(labels[draw(labels, 7, 0)]).tolist() == [4, 2, 1]


def test_a_rare_class_gets_an_image() -> None:
    labels = np.repeat(np.arange(2), [999, 1])
    assert np.bincount(labels[draw(labels, 10, 0)]).tolist() == [9, 1]


def test_a_draw_is_a_function_of_its_seed() -> None:
    labels = np.repeat(np.arange(5), 40)
    assert draw(labels, 50, 1).tolist() == draw(labels, 50, 1).tolist()
    assert draw(labels, 50, 1).tolist() != draw(labels, 50, 2).tolist()


def test_a_draw_is_the_one_it_has_always_been() -> None:
    # Jobs are repeated by their seed: a change here changes what every recorded seed means.
    assert draw(np.arange(30) % 3, 6, 7).tolist() == [3, 6, 8, 13, 25, 26]


def test_no_number_draws_all() -> None:
    assert draw(np.zeros(4, dtype=np.int64), None, 0).tolist() == [0, 1, 2, 3]


def test_more_than_there_are_is_refused_with_both_numbers() -> None:
    with pytest.raises(NotEnoughImages) as caught:
        draw(np.zeros(4, dtype=np.int64), 5, 0)
    assert caught.value.data == {"asked": 5, "available": 4}


@given(label_lists, seeds, st.floats(0.01, 0.99))
def test_a_hold_out_parts_every_class(
    labels: NDArray[np.int64], seed: int, fraction: float
) -> None:
    counts = Counter(labels.tolist())
    if max(counts.values()) < 2:
        with pytest.raises(NotEnoughImages):
            hold_out(labels, fraction, seed)
        return
    kept, held = hold_out(labels, fraction, seed)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert kept.tolist() == sorted(kept.tolist())
    assert held.tolist() == sorted(held.tolist())
    apart = Counter(labels[held].tolist())
    for label, count in counts.items():
        assert abs(apart[label] - fraction * count) <= 1
        assert (0 < apart[label] < count) == (count > 1)


def test_a_hold_out_is_a_function_of_its_seed() -> None:
    labels = np.repeat(np.arange(5), 40)
    assert hold_out(labels, 0.2, 1)[1].tolist() == hold_out(labels, 0.2, 1)[1].tolist()
    assert hold_out(labels, 0.2, 1)[1].tolist() != hold_out(labels, 0.2, 2)[1].tolist()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_a_hold_out_of_nothing_or_all_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        hold_out(np.zeros(4, dtype=np.int64), fraction, 0)


def test_of_many_small_classes_no_more_is_held_out_than_was_asked_for() -> None:
    labels = np.repeat(np.arange(1000), 2)
    kept, held = hold_out(labels, 0.1, 0, every_class=False)
    assert (len(kept), len(held)) == (1800, 200)
    assert len(np.unique(labels[kept])) == 1000


def test_of_classes_that_are_alike_a_lot_decides_which_are_held_out() -> None:
    labels = np.repeat(np.arange(100), 4)
    held = [hold_out(labels, 0.1, seed, every_class=False)[1] for seed in range(20)]
    assert all(len(each) == 40 for each in held)
    assert set(np.concatenate([labels[each] for each in held]).tolist()) == set(range(100))


def test_seats_of_classes_that_have_none_to_give_go_to_others() -> None:
    labels = np.concatenate([np.arange(100), np.repeat(100, 58)])
    _, held = hold_out(labels, 0.1, 0, every_class=False)
    assert len(held) == 16
    assert set(labels[held].tolist()) == {100}


@pytest.mark.parametrize("seed", [0, 1])
def test_of_large_classes_each_gives_its_share_either_way(seed: int) -> None:
    labels = np.repeat(np.arange(10), 250)
    for either, other in zip(
        hold_out(labels, 0.1, seed), hold_out(labels, 0.1, seed, every_class=False), strict=True
    ):
        np.testing.assert_array_equal(either, other)


@pytest.mark.parametrize("counts", [(2, 2, 1), (7, 7), (97, 3), (40, 2, 1, 1), (2, 97)])
def test_what_is_held_out_is_of_two_classes_where_two_can_give_an_image(
    counts: tuple[int, ...],
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    for seed in range(10):
        kept, held = hold_out(labels, 0.1, seed, every_class=False)
        assert len(set(labels[held].tolist())) >= 2
        assert len(set(labels[kept].tolist())) == len(counts)
        assert len(held) == max(2, round(0.1 * len(labels)))


def test_where_one_class_alone_can_give_images_it_gives_all() -> None:
    labels = np.repeat(np.arange(3), (30, 1, 1))
    _, held = hold_out(labels, 0.1, 0, every_class=False)
    assert set(labels[held].tolist()) == {0}


def test_one_image_is_held_out_at_least_and_no_class_is_lost() -> None:
    kept, held = hold_out(np.array([0, 0, 1]), 0.1, 0, every_class=False)
    assert held.tolist() in ([0], [1])
    assert len(kept) == 2
    for few in ([0, 1], [0, 0], [0]):
        with pytest.raises(NotEnoughImages, match=f"{len(few)} clean images. At least 3"):
            hold_out(np.array(few), 0.1, 0, every_class=False)


@pytest.mark.parametrize(("images", "expected"), [(3, 1), (10, 2), (200, 20)])
def test_where_no_class_has_two_images_some_give_their_only_one(images: int, expected: int) -> None:
    labels = np.arange(images)
    kept, held = hold_out(labels, 0.1, 0, every_class=False)
    assert (len(kept), len(held)) == (images - expected, expected)
    assert held.tolist() != hold_out(labels, 0.1, 1, every_class=False)[1].tolist()
