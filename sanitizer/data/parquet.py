"""A parquet file in the layout of the Hugging Face hub: embedded images and their labels.

Labels are read whole; images one batch at a time, from the row groups that hold a wanted one.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sanitizer.data.class_folders import file_digest
from sanitizer.data.source import (
    ClassOrder,
    ImageSource,
    Limits,
    MadeNames,
    Payload,
    check_any,
    listed,
    order_classes,
    order_numbered,
)
from sanitizer.errors import CorruptImage, DataUnreadable, UnsafeArchive

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels")

_BATCH_ROWS = 256
_BUFFER_BYTES = 1 << 20
_DAMAGE = (pa.ArrowException, OSError)
"""What pyarrow raises on a damaged file; its OSErrors are mostly about the content."""


class ParquetSource(ImageSource):
    """A table with one image column (a struct with `bytes`, or binary) and one label column."""

    layout = "parquet"

    def __init__(self, path: Path, class_names: Sequence[str] | None, limits: Limits) -> None:
        self._path = path
        try:
            with pq.ParquetFile(path) as file:
                _check_limits(file.metadata, limits)
                schema = file.schema_arrow
                image = _pick(schema, IMAGE_COLUMNS, "images")
                label = _pick(schema, LABEL_COLUMNS, "labels")
                self._leaf, path_leaf = _image_leaves(schema.field(image))
                self._group_rows = [
                    file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)
                ]
                raw = file.read(columns=[label]).column(0)
                names = _names(file, path_leaf, len(raw))
        except _DAMAGE as error:
            raise _damaged(error) from error
        check_any(len(raw), self.layout)
        classes, labels = _labels(raw, label, _hub_class_names(schema, label), class_names)
        super().__init__(labels=labels, classes=classes, names=names, limits=limits)

    def read(self, indices: NDArray[np.int64]) -> Iterator[tuple[int, Payload]]:
        order = np.argsort(indices, kind="stable")
        wanted = indices[order]
        starts = np.cumsum([0, *self._group_rows])
        groups = [
            group
            for group in range(len(self._group_rows))
            if np.searchsorted(wanted, starts[group]) < np.searchsorted(wanted, starts[group + 1])
        ]
        try:
            # With a buffer a group is read piece by piece: some writers make one group of it all.
            with pq.ParquetFile(self._path, buffer_size=_BUFFER_BYTES) as file:
                for group in groups:
                    row = int(starts[group])
                    at = int(np.searchsorted(wanted, row))
                    for batch in file.iter_batches(
                        batch_size=_BATCH_ROWS, row_groups=[group], columns=[self._leaf]
                    ):
                        column = _flat(batch.column(0))
                        while at < len(wanted) and wanted[at] < row + len(column):
                            index = int(wanted[at])
                            yield int(order[at]), self._image(column[index - row].as_py(), index)
                            at += 1
                        row += len(column)
        except _DAMAGE as error:
            raise _damaged(error) from error

    def digest(self) -> str:
        return file_digest(self._path)

    def _image(self, value: bytes | None, index: int) -> bytes:
        if value is None:
            raise CorruptImage(
                self.names[index], f"row {index} has no embedded bytes, only a path at most"
            )
        return value


def _check_limits(metadata: Any, limits: Limits) -> None:
    if metadata.num_rows > limits.files:
        raise UnsafeArchive(
            f"The table has {metadata.num_rows:,} rows, at most {limits.files:,} are accepted.",
            rows=metadata.num_rows,
            limit=limits.files,
        )
    total = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if total > limits.total_bytes:
        raise UnsafeArchive(
            f"The table unpacks to {total:,} bytes, at most {limits.total_bytes:,} are accepted.",
            unpacked_bytes=total,
            limit=limits.total_bytes,
        )


def _pick(schema: Any, names: Sequence[str], what: str) -> str:
    matching = [name for name in schema.names if name in names]
    if len(matching) != 1:
        problem = "no column" if not matching else "more than one column"
        raise DataUnreadable(
            f"The parquet file has {problem} of {what}: it has {listed(schema.names)}. Call "
            f"exactly one of them {' or '.join(names)}.",
            columns=list(schema.names),
            accepted=list(names),
        )
    found: str = matching[0]
    return found


def _image_leaves(field: Any) -> tuple[str, str | None]:
    """The columns of the encoded bytes, and of the paths if there are any."""
    if _is_binary(field.type):
        return field.name, None
    if pa.types.is_struct(field.type):
        inner = {field.type.field(i).name: field.type.field(i) for i in range(len(field.type))}
        if "bytes" in inner and _is_binary(inner["bytes"].type):
            has_path = "path" in inner and _is_text(inner["path"].type)
            return f"{field.name}.bytes", f"{field.name}.path" if has_path else None
    raise DataUnreadable(
        f"The column {field.name} is {field.type}; binary, or a struct with binary 'bytes', was "
        "expected: the encoded image files.",
        column=field.name,
        type=str(field.type),
    )


def _names(file: Any, path_leaf: str | None, count: int) -> MadeNames:
    if path_leaf is None or not count:
        return MadeNames(count, lambda i: f"row {i}")
    # Left in Arrow's columns: strings of Python's would take four times as much.
    column = file.read(columns=[path_leaf]).column(0)
    paths = pa.chunked_array([_flat(chunk) for chunk in column.chunks])

    def make(index: int) -> str:
        path = paths[index].as_py()
        return f"row {index} ({path})" if path else f"row {index}"

    return MadeNames(count, make)


def _flat(column: Any) -> Any:
    """A struct's only field, null where the struct is; anything else as it is."""
    return column.flatten()[0] if pa.types.is_struct(column.type) else column


def _labels(
    column: Any, name: str, own_names: Sequence[str] | None, given: Sequence[str] | None
) -> tuple[ClassOrder, NDArray[np.int64]]:
    if column.null_count:
        row = next(i for i, valid in enumerate(column.is_valid().to_pylist()) if not valid)
        raise DataUnreadable(
            f"The column {name} is empty in {column.null_count} rows, the first is row {row}. "
            "Every image needs its class.",
            rows=column.null_count,
            first_row=row,
        )
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_integer(kind):
        # Safe: a value beyond int64 raises pa.ArrowInvalid.
        try:
            values = column.cast(pa.int64()).to_numpy()
        except pa.ArrowException as error:
            raise _damaged(error) from error
        return order_numbered(np.array(values, dtype=np.int64), own_names, given)
    if _is_text(kind):
        words = column.cast(pa.large_string()).to_pylist()
        order = order_classes(sorted(set(words)), given)
        return order, np.array([order.index[word] for word in words], dtype=np.int64)
    raise DataUnreadable(
        f"The column {name} is {column.type}; integers or strings were expected.",
        column=name,
        type=str(column.type),
    )


def _hub_class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """The names that the hub's metadata gives to the numbers, if there are any."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])
        names = described["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _damaged(error: Exception) -> DataUnreadable:
    if isinstance(error, MemoryError):  # pa.ArrowMemoryError: the machine's fault, not the file's.
        raise error
    return DataUnreadable(
        f"The parquet file cannot be read: {error}. It may be cut short; upload it again."
    )
