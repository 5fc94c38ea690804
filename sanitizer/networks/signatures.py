"""What files begin and end with that are taken for weights. Torch-free: the service tells the same
of an upload as a run would."""

import pickle
import struct
from collections.abc import Sequence

from sanitizer.errors import UnreadableCheckpoint, some

ZIP_START = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = pickle.dumps(LEGACY_MAGIC, protocol=2)
"""What `torch.save` wrote before it wrote zip archives."""

SAVE_PLAINLY = "Save the weights with torch.save(model.state_dict(), path), or as safetensors."
EXPECTED = f"Expected were safetensors or a file of torch.save. {SAVE_PLAINLY}"

_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"<!doctype html", "a web page, such as a sign-in or error page saved in place of the file"),
    (b"<html", "a web page, such as a sign-in or error page saved in place of the file"),
    (b"<?xml", "XML, such as a store's error message"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to"),
    (b"\x1f\x8b", "gzip: unpack it first"),
    (b"\x89hdf", "HDF5, such as Keras weights"),
    (b"\x93numpy", "a NumPy array"),
    (b"gguf", "GGUF"),
    (b"rar!", "a RAR archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"{", "JSON"),
    (b"\x08", "ONNX or another protobuf"),
)


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins as safetensors do: a length of eight bytes, then JSON."""
    return head[8:9] == b"{"


def foreign_kind(head: bytes) -> str | None:
    """What a file is that is surely no checkpoint, by its first 262 bytes, for people."""
    if head.startswith((ZIP_START, LEGACY_START)) or is_safetensors(head):
        return None
    start = head.lstrip().lower()
    looks = next((what for magic, what in _FOREIGN if start.startswith(magic)), None)
    return looks or ("a tar archive" if head[257:262] == b"ustar" else None)


def checkpoint_folder(names: Sequence[str]) -> str:
    """The folder of an archive, with a slash at its end, where `torch.save` put what it wrote.

    Raises:
        UnreadableCheckpoint: There is none, or a program lies beside the weights.
    """
    if any(name.count("/") == 1 and name.endswith("/archive_format") for name in names):
        raise UnreadableCheckpoint(
            "The file is an archive of torch.export: it holds a program, which is not run here. "
            "Save the weights of the module itself: torch.save(model.state_dict(), path), or "
            "safetensors."
        )
    roots = [name.removesuffix("data.pkl") for name in names if _is_main_pickle(name)]
    if len(roots) != 1:
        raise UnreadableCheckpoint(
            "The file is a zip archive but no PyTorch checkpoint: it has no data.pkl, but "
            f"{some(names)}. Upload the weight file itself."
        )
    root = roots[0]
    if any(name.startswith(f"{root}code/") for name in names) or f"{root}constants.pkl" in names:
        raise UnreadableCheckpoint(
            "The file is a TorchScript archive: it holds a program, which is not run here. Ask the "
            "sender for its weights alone: torch.save(dict(model.state_dict()), path), or "
            "safetensors. Convert it only in a throw-away container without network."
        )
    return root


def _is_main_pickle(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return file == "data.pkl" and bool(folder) and "/" not in folder


def names_in_zip(tail: bytes) -> list[str] | None:
    """The names of a zip's members, by the directory at its end.

    Args:
        tail: The last bytes of the file.

    Returns:
        None: The directory is not whole in these bytes, or is none.
    """
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        return None
    (size,) = struct.unpack_from("<I", tail, end + 12)
    if tail[end - 20 : end].startswith(b"PK\x06\x07"):  # zip64: its two records lie between
        end -= 20 + 56
    place = end - size
    if place < 0:
        return None
    names = []
    while place < end:
        if not tail.startswith(b"PK\x01\x02", place) or place + 46 > end:
            return None
        lengths = struct.unpack_from("<HHH", tail, place + 28)  # of name, extra field, comment
        names.append(tail[place + 46 : place + 46 + lengths[0]].decode("utf-8", "replace"))
        place += 46 + sum(lengths)
    return names
