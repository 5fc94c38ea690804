"""Reading files nobody can vouch for, and writing them back in their own form."""

import argparse
import io
import json
import os
import pickle
import pydoc
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sanitizer.errors import TrainingDiverged, UnreadableCheckpoint, UnsafeCheckpoint
from sanitizer.networks.checkpoints import read_checkpoint, write_checkpoint
from tests.sanitizer.networks.conftest import equal

State = dict[str, Tensor]


def _save_zip(content: Any, path: Path) -> None:
    torch.save(content, path)


def _save_legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _save_as(form: str, state: State, path: Path) -> None:
    if form == "safetensors":
        save_file(state, path)
    else:
        (_save_zip if form == "zip" else _save_legacy)(state, path)


Save = Callable[[Any, Path], None]
both_formats = pytest.mark.parametrize("save", [_save_zip, _save_legacy])


def _load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def _changed(state: State) -> State:
    return {name: tensor + 1 for name, tensor in state.items()}


# --- Code ----------------------------------------------------------------------------------------


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@both_formats
def test_a_pickle_with_code_is_refused_and_not_executed(
    save: Save, file: Path, tmp_path: Path, wrn_state: State
) -> None:
    mark = tmp_path / "executed"
    save({"state_dict": wrn_state, "extra": Touches(mark)}, file)

    with pytest.raises(UnsafeCheckpoint) as caught:
        read_checkpoint(file)

    assert caught.value.data == {"blocked_globals": ["posix.system"]}
    assert "posix.system" in caught.value.message
    assert not mark.exists()


def test_a_bare_pickle_with_code_is_refused_and_not_executed(file: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    file.write_bytes(pickle.dumps(Touches(mark)))

    with pytest.raises(UnsafeCheckpoint, match=r"posix\.system"):
        read_checkpoint(file)

    assert not mark.exists()


def test_a_text_pickle_with_code_is_refused(file: Path) -> None:
    file.write_bytes(b"cos\nsystem\n(S'true'\ntR.")

    with pytest.raises(UnsafeCheckpoint, match=r"os\.system"):
        read_checkpoint(file)


def test_code_before_the_weights_of_a_legacy_file_is_refused(file: Path, wrn_state: State) -> None:
    _save_legacy(wrn_state, file)
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    code = pickle.dumps(Touches(file), protocol=2)
    file.write_bytes(file.read_bytes().replace(magic, magic + code, 1))

    with pytest.raises(UnsafeCheckpoint, match=r"posix\.system"):
        read_checkpoint(file)


@both_formats
def test_a_whole_module_is_refused_with_every_class_named(save: Save, file: Path) -> None:
    save(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), file)

    with pytest.raises(UnsafeCheckpoint) as caught:
        read_checkpoint(file)

    assert {
        "torch.nn.modules.container.Sequential",
        "torch.nn.modules.linear.Linear",
        "torch.nn.modules.activation.ReLU",
    } <= set(caught.value.data["blocked_globals"])


@both_formats
def test_who_gets_a_file_with_code_is_not_told_to_run_it(save: Save, file: Path) -> None:
    # Beside a harmless one: one that is not is enough.
    save({"code": Touches(file), "options": argparse.Namespace()}, file)

    with pytest.raises(UnsafeCheckpoint) as caught:
        read_checkpoint(file)

    assert "Ask the sender for the weights alone" in caught.value.message
    assert "Loading this file runs its code" in caught.value.message
    assert "harmless" not in caught.value.message


@both_formats
def test_leftovers_of_training_are_called_so_and_what_is_advised_reads_them(
    save: Save, file: Path, wrn_state: State
) -> None:
    options = argparse.Namespace(lr=0.1, folder=Path("runs"))
    save({"state_dict": wrn_state, "options": options, "best": np.float64(0.9)}, file)

    with pytest.raises(UnsafeCheckpoint, match=r"harmless leftovers.*safe_globals") as caught:
        read_checkpoint(file)

    named: list[Any] = [pydoc.locate(name) for name in caught.value.data["blocked_globals"]]
    # A class that is called inside needs no name in the file, and torch asks for it.
    named.append(type(np.dtype(np.float64)))
    with torch.serialization.safe_globals(named):
        assert torch.load(file, weights_only=True)["best"] == 0.9


def test_a_torchscript_archive_is_refused(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("net/constants.pkl", pickle.dumps((), protocol=2))
        archive.writestr("net/code/__torch__.py", "def forward(self, x):\n  return x\n")

    with pytest.raises(UnreadableCheckpoint, match="TorchScript"):
        read_checkpoint(file)


def test_an_archive_of_torch_export_is_refused(file: Path) -> None:
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, file)

    with pytest.raises(UnreadableCheckpoint, match=r"torch\.export: it holds a program"):
        read_checkpoint(file)


def test_quantized_weights_are_refused_as_such(file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is to drop them
        weight = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)
        torch.save({"conv1.weight": weight, "conv1.scale": torch.ones(1)}, file)

        with pytest.raises(UnreadableCheckpoint, match=r"quantized.*Upload the model in floats"):
            read_checkpoint(file)


# --- Damage --------------------------------------------------------------------------------------


@both_formats
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.999])
def test_a_truncated_pytorch_file_is_unreadable(
    save: Save, kept: float, file: Path, wrn_state: State
) -> None:
    save(wrn_state, file)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])

    with pytest.raises(UnreadableCheckpoint, match="cut short"):
        read_checkpoint(file)


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.999])
def test_a_truncated_safetensors_file_is_unreadable(
    kept: float, file: Path, wrn_state: State
) -> None:
    save_file(wrn_state, file)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])

    with pytest.raises(UnreadableCheckpoint, match="cut short"):
        read_checkpoint(file)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"\x1f\x8b\x08\x00rest", "gzip"),
        (b"\x89HDF\r\n\x1a\nrest", "HDF5"),
        (b'{"a": 1, "b": 2}', "JSON"),
        (bytes(range(100, 200)), "begins with"),
        (b"PK", "cut short"),
        (b"\x80", "bare pickle|cut short"),
        (b"c", "begins with"),
        (b"classes: cat\n", "begins with"),
        (pickle.dumps({"a": 1}), "bare pickle"),
    ],
)
def test_a_file_that_is_something_else_is_named(content: bytes, named: str, file: Path) -> None:
    file.write_bytes(content)

    with pytest.raises(UnreadableCheckpoint, match=named):
        read_checkpoint(file)


def test_a_zip_of_something_else_is_named(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model.pth", b"x")

    with pytest.raises(UnreadableCheckpoint, match=r"no data\.pkl.*model\.pth"):
        read_checkpoint(file)


def _entries(file: Path) -> list[tuple[str, bytes]]:
    """Names and contents of a zip's files, in their order."""
    with zipfile.ZipFile(file) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def _rewritten(file: Path, change: Callable[[str, bytes], bytes], **how: Any) -> None:
    content = _entries(file)
    with zipfile.ZipFile(file, "w", **how) as archive:
        for name, data in content:
            archive.writestr(name, change(name, data))


def test_a_zip_bomb_is_refused(file: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1 << 20)}, file)
    _rewritten(file, lambda _, data: data, compression=zipfile.ZIP_DEFLATED)

    with pytest.raises(UnreadableCheckpoint, match="unpacks to"):
        read_checkpoint(file)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("folder", ["net", "n\u00e9t"])
def test_a_file_that_was_packed_again_is_read(folder: str, compression: int, file: Path) -> None:
    weights = {"fc.weight": torch.randn(20, 20)}
    torch.save(weights, file)
    with zipfile.ZipFile(file) as archive:
        content = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", compression=compression) as archive:
        archive.mkdir(folder)
        for name, data in content.items():
            archive.writestr(f"{folder}/{name}", data)

    assert equal(read_checkpoint(file).state, weights)


def test_an_archive_of_more_than_four_gib_by_its_form_is_read(file: Path) -> None:
    torch.save({"fc.weight": torch.ones(3)}, file)
    file.write_bytes(_as_zip64(file.read_bytes()))

    assert equal(read_checkpoint(file).state, {"fc.weight": torch.ones(3)})


def test_an_end_record_that_torch_reads_and_python_does_not_is_refused(file: Path) -> None:
    torch.save({"fc.weight": torch.ones(3)}, file)
    _rewritten(file, lambda _, data: data)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].partition('/')[0]}/more", b"PK\6\6" + bytes(52))
    data = bytearray(_as_zip64(file.read_bytes()))
    struct.pack_into("<Q", data, len(data) - 42 + 8, data.index(b"PK\6\6"))
    file.write_bytes(data)

    with pytest.raises(UnreadableCheckpoint, match="readers may disagree"):
        read_checkpoint(file)


def _as_zip64(data: bytes) -> bytes:
    """The same archive with the end that one beyond 4 GiB has."""
    body, end = data[:-22], data[-22:]
    if body[-20:-16] == b"PK\6\7":  # torch.save writes one always
        return data
    count, length, start = struct.unpack_from("<HLL", end, 10)
    record = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(body), 1)
    small = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    return body + record + locator + small


@pytest.mark.parametrize(
    "twin", ["archive/DATA.PKL", "ARCHIVE/data.pkl", "archive/Data/0", "archive/data.pkl"]
)
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_torch_cannot_tell_apart_are_refused(
    twin: str, first: bool, tmp_path: Path
) -> None:
    file = tmp_path / "archive.pt"
    torch.save({"fc.weight": torch.ones(3)}, file)
    content = _entries(file)
    other = (twin, next(data for name, data in content if name.lower() == twin.lower()))
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in [other, *content] if first else [*content, other]:
            archive.writestr(name, data)

    with pytest.raises(UnreadableCheckpoint):
        read_checkpoint(file)


def test_a_folder_that_torch_takes_for_the_checkpoint_is_not_passed_over(file: Path) -> None:
    torch.save({"fc.weight": torch.ones(3)}, file)
    content = _entries(file)
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in content:
            inner = name.partition("/")[2]
            archive.writestr("other/" + inner.replace("data.pkl", "DATA.PKL"), data)
        for name, data in content:
            archive.writestr(name, data)

    with pytest.raises(UnreadableCheckpoint, match="readers may disagree"):
        read_checkpoint(file)


def test_names_of_the_same_bytes_are_refused_whatever_their_flag_says(file: Path) -> None:
    torch.save({"fc.weight": torch.ones(3)}, file)
    content = _entries(file)
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in content:
            archive.writestr(name, data)
        folder = content[0][0].partition("/")[0]
        archive.writestr(f"{folder}/data/\u00e9", b"1")
        archive.writestr(f"{folder}/data/ee", b"2")
    # The second gets the bytes of the first, which without a flag mean two other letters.
    data = file.read_bytes().replace(f"{folder}/data/ee".encode(), f"{folder}/data/\u00e9".encode())
    file.write_bytes(data)

    with pytest.raises(UnreadableCheckpoint, match="have one name"):
        read_checkpoint(file)


def test_a_name_with_a_zero_byte_is_refused(file: Path) -> None:
    torch.save({"fc.weight": torch.ones(3)}, file)
    _rewritten(file, lambda _, data: data)
    file.write_bytes(file.read_bytes().replace(b"/data/0", b"/data/\0"))

    with pytest.raises(UnreadableCheckpoint, match="zero byte"):
        read_checkpoint(file)


@pytest.mark.parametrize("before", [True, False], ids=["before", "behind"])
def test_an_archive_within_other_bytes_is_refused(before: bool, file: Path) -> None:
    torch.save({"fc.weight": torch.ones(3)}, file)
    data = file.read_bytes()
    # PK so that it still begins like one.
    file.write_bytes(b"PK\3\4" + data if before else data + b"\0")

    with pytest.raises(UnreadableCheckpoint):
        read_checkpoint(file)


def test_an_archive_with_a_comment_is_refused(file: Path) -> None:
    torch.save({"fc.weight": torch.ones(3)}, file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = b"PK"

    with pytest.raises(UnreadableCheckpoint, match="readers may disagree"):
        read_checkpoint(file)


def test_an_archive_with_two_directories_is_refused(file: Path, tmp_path: Path) -> None:
    """Python reads the last one and moves its offsets; torch reads the first."""
    torch.save({"fc.weight": torch.ones(3)}, tmp_path / "seen.pt")
    torch.save({"fc.weight": torch.arange(30_000.0)}, file)
    _rewritten(tmp_path / "seen.pt", lambda _, data: data)
    _rewritten(file, lambda _, data: data, compression=zipfile.ZIP_DEFLATED)
    hidden, seen = file.read_bytes(), (tmp_path / "seen.pt").read_bytes()
    (at,) = struct.unpack_from("<L", hidden, len(hidden) - 6)
    count, length, start = struct.unpack_from("<HLL", seen, len(seen) - 12)
    front = hidden[:-22]
    place = len(front) + start
    directory = bytearray(seen[start:-22])
    entry = 0
    while entry < len(directory):
        (offset,) = struct.unpack_from("<L", directory, entry + 42)
        struct.pack_into("<L", directory, entry + 42, len(front) + offset - (place - at))
        entry += 46 + sum(struct.unpack_from("<HHH", directory, entry + 28))
    end = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, count, count, length, at, 0)
    file.write_bytes(front + seen[:start] + bytes(directory) + end)

    with pytest.raises(UnreadableCheckpoint, match="readers may disagree"):
        read_checkpoint(file)


def test_a_storage_that_claims_more_than_it_holds_is_refused(file: Path) -> None:
    torch.save({"fc.weight": torch.zeros(4)}, file)
    # BININT1 4 stands for the length of the storage first, then for that of the tensor.
    _rewritten(
        file,
        lambda name, data: data.replace(b"K\x04", b"K\xc8") if name.endswith("data.pkl") else data,
    )

    with pytest.raises(UnreadableCheckpoint, match="declares 800 bytes"):
        read_checkpoint(file)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (b"ctorch.cuda\nDoubleStorage\n", "declares 32 bytes"),
        (b"ctorch\nComplexDoubleStorage\n", "declares 64 bytes"),
        (b"ctorch.storage\nTypedStorage\n", r"unknown kind, torch\.storage\.TypedStorage"),
    ],
    ids=["cuda", "complex", "unknown"],
)
@both_formats
def test_a_storage_is_measured_by_its_kind(
    save: Save, kind: bytes, message: str, file: Path
) -> None:
    save({"fc.weight": torch.zeros(4)}, file)
    old = b"ctorch\nFloatStorage\n"
    if save is _save_zip:
        _rewritten(file, lambda _, data: data.replace(old, kind))
    else:
        file.write_bytes(file.read_bytes().replace(old, kind))
        # Eight more for the length that lies before each.
        message = message.replace("32", "40").replace("64", "72")

    with pytest.raises(UnreadableCheckpoint, match=message):
        read_checkpoint(file)


def test_a_tensor_larger_than_its_storage_is_refused(file: Path) -> None:
    torch.save({"fc.weight": torch.zeros(4)}, file)

    def stretch(name: str, data: bytes) -> bytes:
        last = data.rfind(b"K\x04")
        return data[:last] + b"K\xc8" + data[last + 2 :] if name.endswith("data.pkl") else data

    _rewritten(file, stretch)

    with pytest.raises(UnreadableCheckpoint, match="refuses"):
        read_checkpoint(file)


@both_formats
def test_a_tensor_that_repeats_its_memory_is_refused(save: Save, file: Path) -> None:
    save({"fc.weight": torch.zeros(1).expand(1 << 40)}, file)

    with pytest.raises(UnreadableCheckpoint, match=r"fc\.weight: shape"):
        read_checkpoint(file)


@both_formats
def test_many_names_for_one_memory_are_refused(save: Save, file: Path) -> None:
    one = torch.zeros(100_000)
    save({f"layer{i}.weight": one for i in range(100)}, file)

    with pytest.raises(UnreadableCheckpoint, match="share memory"):
        read_checkpoint(file)


def test_a_legacy_storage_that_is_declared_but_not_stored_is_refused(file: Path) -> None:
    _save_legacy({"fc.weight": torch.zeros(4)}, file)
    data = file.read_bytes()
    at = data.index(b"K\x04N")  # the length in the storage's identity
    file.write_bytes(data[:at] + b"J\xff\xff\xff\x7f" + data[at + 2 :])

    with pytest.raises(UnreadableCheckpoint, match=r"declares 8589934596 bytes"):
        read_checkpoint(file)


# --- Weights that cannot be used -----------------------------------------------------------------


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.zeros(3, device="meta"),
        torch.zeros(3, dtype=torch.complex64),
    ],
    ids=["sparse", "meta", "complex"],
)
def test_an_odd_tensor_is_refused_by_name(tensor: Tensor, file: Path) -> None:
    torch.save({"fc.weight": torch.ones(3), "fc.odd": tensor}, file)

    with pytest.raises(UnreadableCheckpoint) as caught:
        read_checkpoint(file)

    assert caught.value.data["keys"] == ["fc.odd"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_are_no_numbers_are_refused_by_name(
    value: float, dtype: torch.dtype, file: Path
) -> None:
    broken = torch.tensor([1.0, value], dtype=dtype)
    torch.save({"net.conv.weight": torch.ones(3), "net.fc.weight": broken}, file)

    with pytest.raises(UnreadableCheckpoint) as caught:
        read_checkpoint(file)

    assert caught.value.data["keys"] == ["net.fc.weight"]


@both_formats
def test_a_file_without_weights_says_what_it_holds(save: Save, file: Path) -> None:
    save({"epoch": 3, "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}}}, file)

    with pytest.raises(UnreadableCheckpoint, match="epoch, optimizer"):
        read_checkpoint(file)


def test_several_sets_of_weights_are_not_guessed_at(file: Path) -> None:
    weights = {"fc.weight": torch.ones(3)}
    torch.save({"generator": weights, "discriminator": weights}, file)

    with pytest.raises(UnreadableCheckpoint, match="discriminator, generator"):
        read_checkpoint(file)


def test_a_newer_pickle_protocol_is_explained(file: Path, wrn_state: State) -> None:
    torch.save(wrn_state, file, pickle_protocol=4)

    with pytest.raises(UnreadableCheckpoint, match="protocol 4"):
        read_checkpoint(file)


# --- There and back ------------------------------------------------------------------------------


def test_safetensors_comes_back_in_its_order_with_its_metadata(
    file: Path, tmp_path: Path, wrn_state: State
) -> None:
    save_file(wrn_state, file, metadata={"format": "pt"})
    checkpoint = read_checkpoint(file)
    out = tmp_path / "out.safetensors"

    write_checkpoint(out, checkpoint.state, checkpoint)

    assert checkpoint.format == "safetensors"
    assert load_file(out).keys() == wrn_state.keys()
    assert all(torch.equal(tensor, wrn_state[name]) for name, tensor in load_file(out).items())
    assert _header(out) == _header(file)
    assert list(_header(out)) == list(_header(file))


def _header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    return header


@both_formats
@pytest.mark.parametrize(
    ("container", "wrapper", "prefix"),
    [
        (OrderedDict, (), ""),
        (dict, (), "module."),
        (OrderedDict, ("state_dict",), "module."),
        (dict, ("net",), ""),
        (dict, ("checkpoint", "model"), "_orig_mod.module."),
    ],
)
def test_a_pytorch_file_comes_back_as_it_was(
    save: Save,
    container: type[dict[str, Tensor]],
    wrapper: tuple[str, ...],
    prefix: str,
    file: Path,
    tmp_path: Path,
    wrn_state: State,
) -> None:
    content: Any = container({prefix + name: tensor for name, tensor in wrn_state.items()})
    for key in reversed(wrapper):
        content = {key: content}
    save(content, file)
    checkpoint = read_checkpoint(file)
    out = tmp_path / "out"

    write_checkpoint(out, _changed(checkpoint.state), checkpoint)

    assert equal(checkpoint.state, wrn_state)
    assert checkpoint.format == "pytorch"
    assert zipfile.is_zipfile(out) == (save is _save_zip)
    loaded = _load(out)
    for key in wrapper:
        assert list(loaded) == [key]
        loaded = loaded[key]
    assert type(loaded) is container
    assert equal(dict(loaded), {prefix + name: tensor + 1 for name, tensor in wrn_state.items()})


@both_formats
def test_what_lies_beside_the_weights_is_listed_and_left_behind(
    save: Save, file: Path, tmp_path: Path, wrn_state: State
) -> None:
    save(
        {
            "epoch": 9,
            "state_dict": wrn_state,
            "state_dict_ema": _changed(wrn_state),
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        },
        file,
    )
    checkpoint = read_checkpoint(file)

    write_checkpoint(tmp_path / "out", checkpoint.state, checkpoint)

    assert checkpoint.dropped_entries == ["epoch", "state_dict_ema", "optimizer"]
    assert list(_load(tmp_path / "out")) == ["state_dict"]
    assert equal(checkpoint.state, wrn_state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_the_dtypes_of_the_upload_come_back(
    dtype: torch.dtype, form: str, file: Path, tmp_path: Path, wrn_state: State
) -> None:
    stored = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in wrn_state.items()
    }
    _save_as(form, stored, file)
    checkpoint = read_checkpoint(file)
    computed = {name: tensor.float() for name, tensor in checkpoint.state.items()}

    write_checkpoint(tmp_path / "out", computed, checkpoint)

    again = read_checkpoint(tmp_path / "out").state
    assert {name: tensor.dtype for name, tensor in again.items()} == {
        name: tensor.dtype for name, tensor in stored.items()
    }
    assert all(torch.equal(again[name], stored[name]) for name in stored)


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_the_same_tensors_give_the_same_bytes(
    form: str, file: Path, tmp_path: Path, wrn_state: State
) -> None:
    _save_as(form, wrn_state, file)
    written = []
    for attempt in range(2):
        checkpoint = read_checkpoint(file)
        write_checkpoint(tmp_path / f"{attempt}.out", _changed(checkpoint.state), checkpoint)
        written.append((tmp_path / f"{attempt}.out").read_bytes())

    assert written[0] == written[1]


def test_module_versions_come_back(file: Path, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    torch.save({"state_dict": network.state_dict()}, file)
    checkpoint = read_checkpoint(file)

    write_checkpoint(tmp_path / "out", checkpoint.state, checkpoint)

    written = _load(tmp_path / "out")["state_dict"]
    assert written._metadata == network.state_dict()._metadata  # type: ignore[attr-defined]  # torch's note


def test_nothing_is_left_of_a_write_that_failed(file: Path, tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.ones(3).half()}, file)
    checkpoint = read_checkpoint(file)
    before = sorted(tmp_path.iterdir())

    with pytest.raises(TrainingDiverged) as caught:
        write_checkpoint(tmp_path / "out", {"fc.weight": torch.full((3,), 1e6)}, checkpoint)

    assert caught.value.data["keys"] == ["fc.weight"]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({}, r"missing fc\.weight"),
        ({"fc.weight": torch.ones(3), "fc.bias": torch.ones(3)}, r"unexpected fc\.bias"),
        ({"fc.weight": torch.ones(4)}, "shape"),
    ],
)
def test_other_names_or_shapes_than_the_upload_has_are_not_written(
    state: State, said: str, file: Path
) -> None:
    torch.save({"fc.weight": torch.ones(3)}, file)
    checkpoint = read_checkpoint(file)

    with pytest.raises(ValueError, match=said):
        write_checkpoint(file, state, checkpoint)


def test_parameters_and_strided_tensors_become_plain_ones(file: Path) -> None:
    weight = nn.Parameter(torch.arange(6.0).view(2, 3).t())
    torch.save({"fc.weight": weight}, file)

    tensor = read_checkpoint(file).state["fc.weight"]

    assert type(tensor) is Tensor
    assert tensor.is_contiguous()
    assert torch.equal(tensor, weight.detach())


def test_a_single_layer_keeps_its_name(file: Path) -> None:
    torch.save({"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}, file)

    assert list(read_checkpoint(file).state) == ["fc.weight", "fc.bias"]


def test_the_format_is_told_by_the_bytes_not_the_name(tmp_path: Path, wrn_state: State) -> None:
    save_file(wrn_state, tmp_path / "model.pth")
    buffer = io.BytesIO()
    torch.save(wrn_state, buffer)
    (tmp_path / "model.safetensors").write_bytes(buffer.getvalue())

    assert read_checkpoint(tmp_path / "model.pth").format == "safetensors"
    assert read_checkpoint(tmp_path / "model.safetensors").format == "pytorch"
