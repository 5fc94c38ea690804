import os
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from sanitizer.data.source import (
    DEFAULT_LIMITS,
    ImageSource,
    MadeNames,
    Payload,
    check_classes,
    check_every_class,
    check_same_order,
    order_classes,
    order_numbered,
    packed,
)
from sanitizer.errors import ClassMismatch, EmptyClass


class Labels(ImageSource):
    """Labels alone, to check."""

    layout = "labels"

    def __init__(self, labels: Sequence[int], names: Sequence[str] | None = None) -> None:
        classes, ordered = order_numbered(np.array(labels, dtype=np.int64), names, None)
        super().__init__(
            labels=ordered, classes=classes, names=[""] * len(labels), limits=DEFAULT_LIMITS
        )

    def read(self, indices: NDArray[np.int64]) -> Iterator[tuple[int, Payload]]:
        raise NotImplementedError

    def digest(self) -> str:
        raise NotImplementedError


def test_numbers_below_the_models_classes_fit() -> None:
    check_classes(Labels([0, 1, 3]), 10)


def test_a_number_beyond_the_models_classes_is_refused_with_both_sides() -> None:
    with pytest.raises(ClassMismatch, match="classes 1, 10, the model has 10, numbered 0 to 9"):
        check_classes(Labels([1, 10]), 10)


@pytest.mark.parametrize(
    ("labels", "told"), [([1, 2, 3], True), ([1, 2, 4], False), ([0, 2, 3], False)]
)
def test_numbers_that_count_from_1_are_told_as_such(labels: list[int], told: bool) -> None:
    with pytest.raises(ClassMismatch) as caught:
        check_classes(Labels(labels), 3)
    assert ("count from 1: subtract 1 from each" in caught.value.message) == told


def test_another_number_of_named_classes_is_refused_with_both_sides() -> None:
    with pytest.raises(ClassMismatch) as caught:
        check_classes(Labels([0, 1], ["cat", "dog"]), 3, what="clean data")
    assert caught.value.data == {"data_classes": ["cat", "dog"], "model_classes": 3}
    assert "The clean data has 2 classes (cat, dog), the model has 3." in caught.value.message


def test_a_class_without_an_image_is_named() -> None:
    with pytest.raises(EmptyClass, match=r"no image of class 1 \(dog\), 3;") as caught:
        check_every_class(np.array([0, 2]), 4, ["cat", "dog", "cow"])
    assert caught.value.data["empty_classes"] == [1, 3]


def test_every_class_present_passes() -> None:
    check_every_class(np.array([2, 0, 1]), 3)


def test_the_same_names_in_another_order_are_refused() -> None:
    with pytest.raises(ClassMismatch, match="the same class_names"):
        check_same_order(Labels([0], ["cat", "dog"]), Labels([0], ["dog", "cat"]))


def test_names_on_one_side_alone_pass() -> None:
    check_same_order(Labels([0, 1], ["cat", "dog"]), Labels([0, 1]))


def test_an_absurd_class_number_is_refused_without_making_names() -> None:
    with pytest.raises(ClassMismatch, match="999999999999"):
        order_classes(["0", "999999999999"], None)


def test_packed_names_are_the_names() -> None:
    names = ["a/1.png", "", "é/ü\n.jpg", os.fsdecode(b"raw/\xff.png"), "z"]
    kept = packed(names)
    assert list(kept) == names
    assert (kept[-1], kept[1:3], len(kept)) == ("z", names[1:3], 5)
    with pytest.raises(IndexError):
        kept[5]


def test_names_are_made_when_somebody_asks() -> None:
    made: list[int] = []

    def make(position: int) -> str:
        made.append(position)
        return f"row {position}"

    names = MadeNames(10**9, make)
    assert (len(names), made) == (10**9, [])
    assert names[3] == "row 3"
    assert names[-2:] == ["row 999999998", "row 999999999"]
    assert made == [3, 999_999_998, 999_999_999]
