"""Reads weight files that nobody can vouch for, and writes the result in the form they came in.

Nothing in a file is executed: safetensors holds no code, and PyTorch files go through
`torch.load(weights_only=True)` without any fallback.
"""

import json
import os
import pickle
import struct
import sys
import uuid
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sanitizer.errors import TrainingDiverged, UnreadableCheckpoint, UnsafeCheckpoint, some
from sanitizer.networks.pickle_scan import ITEM_BYTES, DamagedPickle, PickleScan, scan_pickle
from sanitizer.networks.signatures import (
    EXPECTED,
    LEGACY_MAGIC,
    LEGACY_START,
    SAVE_PLAINLY,
    ZIP_START,
    checkpoint_folder,
    foreign_kind,
    is_safetensors,
)

MAX_EXPANSION = 4
"""Unpacked bytes per byte of the file. PyTorch does not compress, and weights hardly can be."""
MAX_PICKLE_BYTES = 64 << 20
"""Of the structure alone, without the weights: a few hundred bytes a tensor."""
MAX_ARCHIVE_ENTRIES = 200_000

_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
    NotImplementedError,
    ValueError,
    EOFError,
    OSError,
)
_ZIP_TAIL = 56 + 20 + 22
"""Bytes of the three records that end a zip archive, two of them in zip64 alone."""
_LEGACY_PROTOCOL = 1001

_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "student",
)
"""Names under which people keep the weights in a larger file, likeliest first."""
_NEVER_WEIGHTS = ("ema", "optim", "sched", "scaler", "swa")
"""Parts of names of entries that hold tensors but not the model, or not the current one."""
_MAX_DEPTH = 4

_LEGACY_STORAGES: Mapping[torch.dtype, type] = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}
_DTYPES = frozenset(
    {*_LEGACY_STORAGES, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32}
)


@dataclass(frozen=True)
class Layout:
    """How the weights lay in the upload: what is needed to write others in their place."""

    serialization: Literal["safetensors", "zip", "legacy"]
    wrapper: tuple[str, ...] = ()
    """Keys from the top of the file to the weights."""
    prefix: str = ""
    """What every name began with, such as `module.`."""
    ordered: bool = False
    """Whether the weights were an OrderedDict."""
    versions: tuple[tuple[str, int | None], ...] | None = None
    """Version of every module, as `state_dict()` notes them in `_metadata`."""
    metadata: tuple[tuple[str, str], ...] | None = None
    """The `__metadata__` of safetensors."""
    data_order: tuple[str, ...] = ()
    """Stripped names in the order of their bytes in safetensors: the header may have another."""


@dataclass(frozen=True)
class Checkpoint:
    """The weights of an uploaded file."""

    format: Literal["safetensors", "pytorch"]
    state: dict[str, Tensor]
    """By name without prefix, in the order and the dtypes of the file, on the CPU."""
    layout: Layout
    dropped_entries: list[str]
    """Entries of the file beside the weights, such as `epoch` or `optimizer`."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads the weights of a safetensors or PyTorch file, told apart by their first bytes.

    Raises:
        UnsafeCheckpoint: A pickle names anything but tensors and plain containers.
        UnreadableCheckpoint: No checkpoint, a damaged one, or one without usable weights.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(512)
    if head.startswith(ZIP_START):
        return _read_zip(path, size)
    if head.startswith(LEGACY_START):
        return _read_legacy(path, size)
    if is_safetensors(head):
        return _read_safetensors(path, size)
    _refuse_foreign(path, size, head)


# --- safetensors ---------------------------------------------------------------------------------


def _read_safetensors(path: Path, size: int) -> Checkpoint:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = _safetensors_header(path)
            metadata = header.pop("__metadata__", None)
            tensors = {name: file.get_tensor(name).clone() for name in header}
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UnreadableCheckpoint(
            f"The file begins like safetensors but is damaged or cut short at {size} bytes "
            f"({_first_line(error)}). Upload it again from the original."
        ) from None
    state, prefix = _strip(_checked(tensors, size))
    by_offset = sorted(header, key=lambda name: header[name]["data_offsets"])
    layout = Layout(
        "safetensors",
        prefix=prefix,
        metadata=None if metadata is None else tuple(metadata.items()),
        data_order=tuple(name.removeprefix(prefix) for name in by_offset),
    )
    return Checkpoint("safetensors", state, layout, [])


def _safetensors_header(path: Path) -> dict[str, Any]:
    """The header in file order, which `safe_open` does not keep; it was validated there."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length), object_pairs_hook=_without_twins)
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    return header


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name occurs twice in the header")
    return dict(pairs)


# --- PyTorch -------------------------------------------------------------------------------------


def _read_zip(path: Path, size: int) -> Checkpoint:
    scan = _scan_zip(path, size)
    return _load_pytorch(path, size, scan, "zip")


def _scan_zip(path: Path, size: int) -> PickleScan:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            members = {_stored_name(entry): entry for entry in entries}
            unpacked = sum(entry.file_size for entry in entries)
            if len(entries) > MAX_ARCHIVE_ENTRIES or unpacked > MAX_EXPANSION * size:
                raise UnreadableCheckpoint(
                    f"The archive of {size} bytes unpacks to {unpacked} bytes in {len(entries)} "
                    f"entries; at most {MAX_EXPANSION} times its size in {MAX_ARCHIVE_ENTRIES} "
                    f"entries is read. {SAVE_PLAINLY}"
                )
            # torch looks names up without regard to the case of ASCII letters.
            if len({name.encode().lower() for name in members}) < len(entries):
                raise UnreadableCheckpoint(
                    "Two entries of the archive have one name, or names that differ by upper and "
                    "lower case alone, so readers may disagree on what it holds. "
                    f"{SAVE_PLAINLY}"
                )
            root = checkpoint_folder(list(members))
            if not _is_plain_zip(path, size, entries) or not next(iter(members)).startswith(root):
                raise UnreadableCheckpoint(
                    "The archive is not laid out as torch.save does it (bytes before or after it, "
                    "a comment, or a directory that is not where the end says), so readers may "
                    f"disagree on what it holds. {SAVE_PLAINLY}"
                )
            main = members[f"{root}data.pkl"]
            if main.file_size > MAX_PICKLE_BYTES:
                raise UnreadableCheckpoint(
                    f"The structure of the checkpoint takes {main.file_size} bytes, at most "
                    f"{MAX_PICKLE_BYTES} are read: it holds more than weights. {SAVE_PLAINLY}"
                )
            with archive.open(main) as stream:
                scan = _scan(BytesIO(stream.read()), main.file_size)
            sizes = {name: entry.file_size for name, entry in members.items()}
    except _ZIP_ERRORS as error:
        raise UnreadableCheckpoint(
            f"The file begins like a PyTorch zip archive but is damaged or cut short at {size} "
            f"bytes ({_first_line(error)}). Upload it again from the original."
        ) from None
    for storage in scan.storages:
        _check_storage(
            f"storage {storage.key!r}",
            declared=storage.nbytes,
            present=sizes.get(f"{root}data/{storage.key}", 0),
        )
    return scan


def _stored_name(entry: zipfile.ZipInfo) -> str:
    """A name by its bytes, as torch compares it: zipfile reads it by a flag that torch ignores."""
    name = entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437").decode()
    if "\0" in name:
        raise ValueError("a name with a zero byte, at which torch ends it")
    return name


def _is_plain_zip(path: Path, size: int, entries: Sequence[zipfile.ZipInfo]) -> bool:
    """Whether torch's reader of zip archives finds the directory that Python's has read.

    Python takes the directory that lies right before its end record and moves all offsets to fit;
    torch goes where the record points. So the archive has to fill the file, and every offset has
    to be what it says.
    """
    with path.open("rb") as stream:
        stream.seek(max(0, size - _ZIP_TAIL))
        tail = stream.read().rjust(_ZIP_TAIL, b"\0")
    end = size - 22
    sign, _, _, _, count, length, start, comment = struct.unpack("<4s4H2LH", tail[-22:])
    if sign != b"PK\5\6" or comment:
        return False
    if tail[-42:-38] == b"PK\6\7":
        end -= 20 + 56
        (place,) = struct.unpack_from("<Q", tail, _ZIP_TAIL - 42 + 8)
        count, length, start = struct.unpack_from("<3Q", tail, 32)
        if place != end or tail[:4] != b"PK\6\6":
            return False
    return (
        start + length == end
        and count == len(entries)
        and min(entry.header_offset for entry in entries) == 0
        and all(_has_one_size(entry.extra) for entry in entries)
    )


def _has_one_size(extra: bytes) -> bool:
    """Whether there is one zip64 field at most: Python heeds them all, torch the first."""
    found = 0
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        found += kind == 1
        extra = extra[4 + length :]
    return found <= 1


def _read_legacy(path: Path, size: int) -> Checkpoint:
    """Five pickles (magic, protocol, system, object, storage keys), then the raw storages."""
    with path.open("rb") as stream:
        scans = [_scan(stream, min(size, stream.tell() + MAX_PICKLE_BYTES)) for _ in range(5)]
        present = size - stream.tell()
    structure, keys = scans[3], scans[4].strings or ()
    storages = {storage.key: storage for storage in structure.storages}
    if set(keys) != set(storages):
        raise UnreadableCheckpoint(
            f"The checkpoint refers to {len(storages)} blocks of memory and stores {len(keys)}. "
            f"{SAVE_PLAINLY}"
        )
    # torch allocates what the pickle declares before it looks at what is there.
    declared = sum(8 + storage.nbytes for storage in storages.values())
    _check_storage("its weights", declared=declared, present=present)
    return _load_pytorch(path, size, structure, "legacy")


def _scan(stream: BinaryIO, end: int) -> PickleScan:
    try:
        scan = scan_pickle(stream, end)
    except DamagedPickle as error:
        if error.scan is not None:
            _refuse_blocked(error.scan)
        raise UnreadableCheckpoint(
            f"The structure of the checkpoint is damaged or cut short ({_first_line(error)}; the "
            f"file has {end} bytes). Upload it again from the original."
        ) from None
    _refuse_blocked(scan)
    if scan.other_references:
        raise UnreadableCheckpoint(
            f"The checkpoint refers to {scan.other_references} things that are no tensors. "
            f"{SAVE_PLAINLY}"
        )
    unknown = {storage.type_name for storage in scan.storages} - ITEM_BYTES.keys()
    if unknown:
        raise UnreadableCheckpoint(
            f"The checkpoint keeps its weights in memory of an unknown kind, "
            f"{some(sorted(unknown))}. {SAVE_PLAINLY}"
        )
    return scan


def _refuse_blocked(scan: PickleScan) -> None:
    if scan.blocked:
        raise UnsafeCheckpoint(scan.blocked)


def _check_storage(what: str, *, declared: int, present: int) -> None:
    if declared > present:
        raise UnreadableCheckpoint(
            f"The checkpoint declares {declared} bytes for {what} and holds {present}: it is "
            "damaged, cut short, or made to mislead. Upload it again from the original."
        )


def _load_pytorch(
    path: Path, size: int, scan: PickleScan, serialization: Literal["zip", "legacy"]
) -> Checkpoint:
    try:
        with warnings.catch_warnings():
            # torch warns of its own deprecated storage classes when a file names them.
            warnings.simplefilter("ignore")
            # A stream, since torch would read a path that ends in .safetensors as such.
            with path.open("rb") as stream:
                loaded = torch.load(stream, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # hostile bytes lead torch to any exception there is
        if scan.protocol > 2:
            raise UnreadableCheckpoint(
                f"The checkpoint uses pickle protocol {scan.protocol}; weights alone are read from "
                f"protocol 2, the default of torch.save. {SAVE_PLAINLY}"
            ) from None
        raise UnreadableCheckpoint(
            f"torch.load(weights_only=True) refuses the checkpoint of {size} bytes: "
            f"{_first_line(error)}. Upload it again from the original. {SAVE_PLAINLY}"
        ) from None
    found = _locate(loaded)
    if found is None:
        raise UnreadableCheckpoint(
            f"The file holds no weights by name: {_describe(loaded)} was found. {SAVE_PLAINLY}"
        )
    weights = {name: value for name, value in found.node.items() if isinstance(value, Tensor)}
    extras = [name for name, value in found.node.items() if not isinstance(value, Tensor)]
    dropped = [*found.dropped, *(".".join((*found.path, name)) for name in extras)]
    state, prefix = _strip(_checked(weights, size))
    layout = Layout(
        serialization,
        wrapper=found.path,
        prefix=prefix,
        ordered=isinstance(found.node, OrderedDict),
        versions=_versions(found.node),
    )
    return Checkpoint("pytorch", state, layout, dropped)


@dataclass(frozen=True)
class _Found:
    path: tuple[str, ...]
    node: Mapping[str, Any]
    dropped: tuple[str, ...]


def _locate(node: object, path: tuple[str, ...] = ()) -> _Found | None:
    """The weights within a loaded file, the wrappers on the way, and what lies beside them."""
    if not isinstance(node, Mapping) or len(path) > _MAX_DEPTH:
        return None
    inner = {
        key: found
        for key, value in node.items()
        if isinstance(key, str)
        and not any(part in key.lower() for part in _NEVER_WEIGHTS)
        and (found := _locate(value, (*path, key))) is not None
    }
    named = [key for key in _WRAPPERS if key in inner]
    if not named and _is_state(node):
        return _Found(path, node, ())
    if not named and len(inner) > 1:
        raise UnreadableCheckpoint(
            f"The file holds several sets of weights, {some(sorted(inner))}, and none is called "
            f"{_WRAPPERS[0]!r} or {_WRAPPERS[3]!r}: save the one to be sanitized alone."
        )
    if not inner:
        return None
    key = named[0] if named else next(iter(inner))
    beside = (".".join((*path, str(other))) for other in node if other != key)
    return _Found(inner[key].path, inner[key].node, (*beside, *inner[key].dropped))


def _is_state(node: Mapping[Any, Any]) -> bool:
    tensors = [value for value in node.values() if isinstance(value, Tensor)]
    return (
        all(isinstance(name, str) for name in node)
        and 2 * len(tensors) > len(node)
        and any(tensor.is_floating_point() and tensor.dim() > 0 for tensor in tensors)
    )


def _versions(node: Mapping[str, Any]) -> tuple[tuple[str, int | None], ...] | None:
    """The module versions of a state dict; anything else that hangs on it is left behind."""
    noted = getattr(node, "_metadata", None)
    if not isinstance(noted, Mapping):
        return None
    return tuple(
        (name, version if type(version) is int else None)
        for name, value in noted.items()
        if isinstance(name, str) and isinstance(value, Mapping)
        for version in [value.get("version")]
    )


# --- Checks of both formats ----------------------------------------------------------------------


def _checked(tensors: Mapping[str, Any], size: int) -> dict[str, Tensor]:
    """Contiguous copies, once it is sure that all are plain, as large as they claim, and finite."""
    if not tensors:
        raise UnreadableCheckpoint(f"The file of {size} bytes holds no tensor. {SAVE_PLAINLY}")
    if any(isinstance(tensor, Tensor) and tensor.is_quantized for tensor in tensors.values()):
        raise UnreadableCheckpoint(
            "The weights are quantized, which cannot be trained. Upload the model in floats that "
            "they were made from."
        )
    odd = [f"{name}: {what}" for name, tensor in tensors.items() if (what := _oddity(tensor))]
    if odd:
        raise UnreadableCheckpoint(
            f"Only dense tensors of floats, integers or booleans can be read; {some(odd)}. "
            f"{SAVE_PLAINLY}",
            keys=[name.partition(": ")[0] for name in odd],
        )
    unpacked = sum(tensor.nbytes for tensor in tensors.values())
    if unpacked > MAX_EXPANSION * size:
        raise UnreadableCheckpoint(
            f"The tensors take {unpacked} bytes but the file has only {size}: its tensors share "
            f"memory far more than weights do. {SAVE_PLAINLY}"
        )
    plain = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    broken = [name for name, tensor in plain.items() if not _is_finite(tensor)]
    if broken:
        raise UnreadableCheckpoint(
            f"{len(broken)} of the {len(plain)} tensors hold values that are infinite or not a "
            f"number: {some(broken)}. Such a model cannot classify; export it again.",
            keys=broken,
        )
    return plain


def _oddity(tensor: Any) -> str | None:
    """What keeps a value from being a plain tensor; None if nothing does."""
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.layout is not torch.strided:
        return str(tensor.layout)
    if tensor.dtype not in _DTYPES:
        return str(tensor.dtype)
    if tensor.device.type != "cpu":
        return f"on {tensor.device}, without data"
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        return f"shape {list(tensor.shape)} over {tensor.untyped_storage().nbytes()} bytes"
    return None


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    # isfinite knows no 8-bit floats.
    wide = tensor.float() if tensor.itemsize == 1 else tensor
    return bool(torch.isfinite(wide).all())


def _strip(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The weights without the prefix that all names share (`module.`, `model.`), and the prefix.

    A shared first component is one module around the whole network. It stays where nothing but
    a single layer would be left (`fc.weight`, `fc.bias`).
    """
    prefix = ""
    names = list(tensors)
    while True:
        first, dot, _ = names[0].partition(".")
        stem = first + dot
        if not dot or not all(name.startswith(stem) for name in names):
            break
        rest = [name.removeprefix(stem) for name in names]
        if not any("." in name for name in rest) or not all(rest):
            break
        names, prefix = rest, prefix + stem
    return dict(zip(names, tensors.values(), strict=True)), prefix


# --- Writing -------------------------------------------------------------------------------------


def write_checkpoint(path: Path, state: Mapping[str, Tensor], like: Checkpoint) -> None:
    """Writes weights as those of `like` lay in its file: format, wrapper, prefix, order, dtypes.

    Nothing else of the upload is written. The same tensors give the same bytes. The file appears
    whole or not at all.

    Args:
        path: The file to write or replace.
        state: By stripped name, exactly those of `like.state`, in the same shapes.
        like: The upload.

    Raises:
        ValueError: Names or shapes differ from the upload's.
        TrainingDiverged: A value is not finite, or not in the upload's dtype.
    """
    if set(state) != set(like.state):
        raise ValueError(
            f"the weights to write are not those of the upload: missing "
            f"{some(sorted(set(like.state) - set(state)))}, unexpected "
            f"{some(sorted(set(state) - set(like.state)))}"
        )
    tensors = {name: _as_uploaded(name, state[name], old) for name, old in like.state.items()}
    broken = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if broken:
        raise TrainingDiverged(
            f"The weights cannot be written: {some(broken)} hold values that are infinite, not a "
            "number, or too large for the number format of the upload. Lower the learning rate, or "
            "upload the model in float32.",
            keys=broken,
        )
    write = _WRITERS[like.layout.serialization]
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as stream:
            write(stream, tensors, like.layout)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _as_uploaded(name: str, tensor: Tensor, old: Tensor) -> Tensor:
    if tensor.shape != old.shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, the upload {list(old.shape)}")
    moved = tensor.detach().to("cpu", old.dtype)
    return moved.clone(memory_format=torch.contiguous_format)


def _write_safetensors(stream: BinaryIO, tensors: Mapping[str, Tensor], layout: Layout) -> None:
    # safetensors' own writer keeps neither the upload's order nor that of its metadata.
    offsets: dict[str, tuple[int, int]] = {}
    end = 0
    for name in layout.data_order:
        offsets[name] = (end, end + tensors[name].nbytes)
        end = offsets[name][1]
    header: dict[str, Any] = {}
    if layout.metadata is not None:
        header["__metadata__"] = dict(layout.metadata)
    for name, tensor in tensors.items():
        header[layout.prefix + name] = {
            "dtype": _SAFETENSORS_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": list(offsets[name]),
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)) + text)
    for name in layout.data_order:
        stream.write(_raw(tensors[name]))


def _write_zip(stream: BinaryIO, tensors: Mapping[str, Tensor], layout: Layout) -> None:
    torch.save(_wrapped(tensors, layout), stream)


def _write_legacy(stream: BinaryIO, tensors: Mapping[str, Tensor], layout: Layout) -> None:
    # torch's own writer names storages by their address, which differs from run to run.
    system = {
        "protocol_version": _LEGACY_PROTOCOL,
        "little_endian": sys.byteorder == "little",
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    for value in (LEGACY_MAGIC, _LEGACY_PROTOCOL, system):
        pickle.dump(value, stream, protocol=2)
    pickler = _LegacyPickler(stream, protocol=2)
    pickler.dump(_wrapped(tensors, layout))
    pickle.dump([str(i) for i in range(len(pickler.tensors))], stream, protocol=2)
    for tensor in pickler.tensors:
        stream.write(struct.pack("<q", tensor.numel()))
        stream.write(_raw(tensor))


class _LegacyPickler(pickle.Pickler):
    """Numbers the storages in the order it meets their tensors."""

    def __init__(self, stream: BinaryIO, protocol: int) -> None:
        super().__init__(stream, protocol)
        self.tensors: list[Tensor] = []

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        key = str(len(self.tensors))
        self.tensors.append(obj)
        storage = _Storage(("storage", _LEGACY_STORAGES[obj.dtype], key, "cpu", obj.numel(), None))
        shape, stride = tuple(obj.shape), tuple(obj.stride())
        rebuild = torch._utils._rebuild_tensor_v2  # what every file of torch.save names
        return rebuild, (storage, 0, shape, stride, False, OrderedDict())

    def persistent_id(self, obj: Any) -> Any:
        return obj.identity if isinstance(obj, _Storage) else None


@dataclass(frozen=True)
class _Storage:
    identity: tuple[Any, ...]


def _wrapped(tensors: Mapping[str, Tensor], layout: Layout) -> Any:
    """The object to pickle; interned, since pickle tells repeated strings by identity."""
    names = {sys.intern(layout.prefix + name): tensor for name, tensor in tensors.items()}
    node: Any = OrderedDict(names) if layout.ordered else names
    if layout.ordered and layout.versions is not None:
        node._metadata = OrderedDict(
            (sys.intern(name), {} if version is None else {"version": version})
            for name, version in layout.versions
        )
    for key in reversed(layout.wrapper):
        node = {sys.intern(key): node}
    return node


def _raw(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy."""
    data: Any = tensor.flatten().view(torch.uint8).numpy()
    return memoryview(data)


_WRITERS: Mapping[str, Callable[[BinaryIO, Mapping[str, Tensor], Layout], None]] = {
    "safetensors": _write_safetensors,
    "zip": _write_zip,
    "legacy": _write_legacy,
}
_SAFETENSORS_DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.bool: "BOOL",
}


# --- Files that are something else ---------------------------------------------------------------


def _refuse_foreign(path: Path, size: int, head: bytes) -> NoReturn:
    """Names what came instead of a checkpoint; a bare pickle with code in it is refused as such."""
    if size == 0:
        raise UnreadableCheckpoint("The file is empty. Upload it again.")
    if head.startswith(b"\x80") or head[:1] in b"c(]})":
        _refuse_plain_pickle(path, size, certain=head.startswith(b"\x80"))
    if head[:8] in LEGACY_START or head.startswith(b"PK"):
        raise UnreadableCheckpoint(
            f"The checkpoint is cut short after {size} bytes. Upload it again from the original."
        )
    what = foreign_kind(head)
    raise UnreadableCheckpoint(
        f"The file is no checkpoint: it has {size} bytes and "
        f"{f'looks like {what}' if what else f'begins with {head[:16]!r}'}. {EXPECTED}"
    )


def _refuse_plain_pickle(path: Path, size: int, *, certain: bool) -> None:
    """A pickle that torch.save did not write; text that begins like one must parse to its end."""
    with path.open("rb") as stream:
        try:
            scan: PickleScan | None = scan_pickle(stream, min(size, MAX_PICKLE_BYTES))
        except DamagedPickle as error:
            scan = error.scan if certain else None
    if scan is None:
        return
    _refuse_blocked(scan)
    raise UnreadableCheckpoint(
        f"The file of {size} bytes is a bare pickle, or the beginning of a checkpoint that was cut "
        f"short. {SAVE_PLAINLY}"
    )


# --- Wording -------------------------------------------------------------------------------------


def _describe(loaded: object) -> str:
    if isinstance(loaded, Mapping):
        return f"a dict with the entries {some([str(key) for key in loaded])}" if loaded else "{}"
    return f"a {type(loaded).__name__}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
