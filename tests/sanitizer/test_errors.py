import json

from sanitizer.errors import ArchitectureMismatch, ClassMismatch, UnsafeCheckpoint


def test_an_error_stays_small_however_much_a_file_names() -> None:
    names = [f"{i}-{'x' * 2000}" for i in range(20_000)]
    for error in (
        ClassMismatch("too many", data_classes=names),
        UnsafeCheckpoint(names),
        ArchitectureMismatch(
            "resnet18",
            missing=names,
            unexpected=names,
            misshaped=dict.fromkeys(names, ((1,), (2,))),
        ),
    ):
        assert len(json.dumps(error.data)) + len(error.message) < 1 << 20


def test_what_was_left_out_of_a_list_is_counted() -> None:
    error = ClassMismatch("too many", data_classes=[str(i) for i in range(600)])
    assert len(error.data["data_classes"]) == 501
    assert error.data["data_classes"][-1] == "... and 100 more"
