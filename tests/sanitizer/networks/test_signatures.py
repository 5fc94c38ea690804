"""What is told of a file without opening it agrees with what is in it."""

import io
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from sanitizer.errors import UnreadableCheckpoint
from sanitizer.networks.signatures import (
    LEGACY_START,
    checkpoint_folder,
    foreign_kind,
    names_in_zip,
)

WEIGHTS = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}


def saved(**options: bool) -> bytes:
    file = io.BytesIO()
    torch.save(WEIGHTS, file, **options)
    return file.getvalue()


def scripted(path: Path) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated
        module = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))  # type: ignore[no-untyped-call]  # as torch has it
        torch.jit.save(module, str(path))
    return path.read_bytes()


def test_names_in_a_file_of_torch_save_are_those_of_a_zip_reader() -> None:
    content = saved()
    names = names_in_zip(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert names == archive.namelist()
    assert names is not None
    assert checkpoint_folder(names) == "archive/"


def test_the_end_of_a_file_is_enough() -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("m/data.pkl", b"x" * 10_000)
        archive.writestr("m/version", b"3")
    assert names_in_zip(content.getvalue()[-300:]) == ["m/data.pkl", "m/version"]


def test_a_directory_that_is_not_whole_tells_nothing() -> None:
    content = saved()
    directory = content[content.index(b"PK\x01\x02") :]
    assert names_in_zip(directory) is not None
    assert [names_in_zip(directory[cut:]) for cut in range(1, len(directory))] == [None] * (
        len(directory) - 1
    )
    assert names_in_zip(directory[:-1]) is None


def test_a_program_is_told_by_the_names(tmp_path: Path) -> None:
    names = names_in_zip(scripted(tmp_path / "m.pt"))
    assert names is not None
    with pytest.raises(UnreadableCheckpoint, match="TorchScript"):
        checkpoint_folder(names)


@pytest.mark.parametrize("legacy", [False, True])
def test_what_torch_saves_is_not_foreign(legacy: bool) -> None:
    content = saved(_use_new_zipfile_serialization=not legacy)
    assert content.startswith(LEGACY_START) is legacy
    assert foreign_kind(content[:300]) is None


def test_safetensors_whose_length_begins_like_onnx_are_not_foreign() -> None:
    assert foreign_kind((8).to_bytes(8, "little") + b'{"a":{}}') is None
