"""Finding out what a pickle names, without executing it."""

import collections
import io
import os
import pickle

import pytest
from torch._weights_only_unpickler import _get_allowed_globals

from sanitizer.networks.pickle_scan import ITEM_BYTES, DamagedPickle, PickleScan, scan_pickle


def _scan(data: bytes) -> PickleScan:
    return scan_pickle(io.BytesIO(data), len(data))


class Callable:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_function_is_listed_in_every_protocol(protocol: int) -> None:
    scan = _scan(pickle.dumps({"a": [1, Callable()]}, protocol=protocol))

    assert scan.blocked == ("posix.system",)


def test_all_blocked_names_are_listed_and_no_allowed_one() -> None:
    scan = _scan(
        b"\x80\x02cos\nsystem\n0ctorch\nFloatStorage\n0cbuiltins\neval\n0"
        b"ccollections\nOrderedDict\n."
    )

    assert scan.blocked == ("os.system", "builtins.eval")
    assert scan.globals == (
        "os.system",
        "torch.FloatStorage",
        "builtins.eval",
        "collections.OrderedDict",
    )


def test_a_name_put_together_from_the_memo_is_resolved() -> None:
    # The strings lie in the memo and only meet at the STACK_GLOBAL.
    data = b"\x80\x04\x8c\x06system\x94\x8c\x05posix\x94N0h\x01h\x00\x93."

    assert _scan(data).blocked == ("posix.system",)


def test_a_name_that_only_execution_would_give_is_listed_as_such() -> None:
    # The module is what a call returns.
    data = b"\x80\x04c_codecs\nencode\n\x8c\x05posix\x85R\x8c\x06system\x93."

    assert _scan(data).blocked == ("a name computed at byte 35",)


def test_a_python_2_name_is_translated() -> None:
    assert _scan(b"\x80\x02c__builtin__\neval\n.").blocked == ("builtins.eval",)


def test_an_instance_operation_is_listed() -> None:
    assert _scan(b"(S'true'\nios\nsystem\n.").blocked == ("os.system",)


def test_an_extension_code_is_listed() -> None:
    assert _scan(b"\x80\x02\x82\x07.").blocked == ("copyreg extension 7",)


def test_a_list_of_strings_is_read() -> None:
    assert _scan(pickle.dumps(["0", "1"], protocol=2)).strings == ("0", "1")


def test_plain_values_are_not_blocked() -> None:
    value = {"a": (1, 2.5, None, True, "x"), "b": collections.OrderedDict(c=[1]), 3: b"x"}

    assert _scan(pickle.dumps(value, protocol=2)).blocked == ()


def test_a_broken_off_pickle_still_tells_what_it_named() -> None:
    with pytest.raises(DamagedPickle) as caught:
        _scan(b"\x80\x02cos\nsystem\nX\xff\xff\xff\x7f")

    assert caught.value.scan is not None
    assert caught.value.scan.blocked == ("os.system",)


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x02", b"\x80\x02R.", b"\x80\x02t.", b"\x80\x02h\x05."]
)
def test_nonsense_is_damaged(data: bytes) -> None:
    with pytest.raises(DamagedPickle):
        _scan(data)


def test_a_huge_declared_length_allocates_nothing() -> None:
    with pytest.raises(DamagedPickle):
        _scan(b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc")


def test_the_size_of_every_storage_that_torch_allows_is_known() -> None:
    allowed = {k: kind for k, kind in _get_allowed_globals().items() if k.endswith("Storage")}
    # The base of the others: it has no type of its own, and torch cannot read one.
    del allowed["torch.storage.TypedStorage"]
    untyped = allowed.pop("torch.storage.UntypedStorage")

    sizes = {name: kind.dtype.itemsize for name, kind in allowed.items()}

    assert {**sizes, f"{untyped.__module__}.UntypedStorage": 1} == ITEM_BYTES
