"""A parquet file in the layout of the Hugging Face hub: embedded images and their labels.

Labels are read whole; images one batch at a time, from the row groups that hold a wanted one.

A value that many rows have is stored once, and a few hundred bytes may stand for gigabytes. So what
is text is left in its dictionary, and of what is read row by row only so many rows at a time as fit
if each had the largest value. How large that may be is the footer's word: of one that is forged the
limit on the memory of the process remains. Reading one row at a time would need no such word, and
takes ten times as long.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
OTHER_IMAGE_COLUMNS = ("pixel_values",)
"""Looked for where there is none of the above."""
OTHER_LABEL_COLUMNS = ("fine_label",)

_BATCH_ROWS = 256
_BATCH_BYTES = 256 << 20
"""Of values that are read together, at most; or one value."""
_NAME_CHARACTERS = 200
"""Of a path, and of a class."""
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
                _check_limits(file.metadata, limits, path.stat().st_size)
                schema = file.schema_arrow
                image = _pick(schema, IMAGE_COLUMNS, OTHER_IMAGE_COLUMNS, "images")
                label = _pick(schema, LABEL_COLUMNS, OTHER_LABEL_COLUMNS, "labels")
                self._leaf, path_leaf = _image_leaves(schema.field(image))
                groups = range(file.metadata.num_row_groups)
                self._group_rows = [file.metadata.row_group(i).num_rows for i in groups]
                self._rows_at_once = _rows_at_once(file.metadata, self._leaf, limits)
                names = _names(file, path_leaf, limits)
            text = [label] if _is_text(_value_type(schema.field(label).type)) else None
            with pq.ParquetFile(path, read_dictionary=text) as file:
                raw = file.read(columns=[label]).column(0)
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
                        batch_size=self._rows_at_once, row_groups=[group], columns=[self._leaf]
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
        if len(value) > self.limits.image_bytes:
            raise UnsafeArchive(
                f"The image of {self.names[index]} has {len(value):,} bytes, at most "
                f"{self.limits.image_bytes:,} are accepted.",
                image_bytes=len(value),
                limit=self.limits.image_bytes,
            )
        return value


def _check_limits(metadata: Any, limits: Limits, file_bytes: int) -> None:
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
    if total > max(limits.ratio_free_bytes, limits.ratio * file_bytes):
        raise UnsafeArchive(
            f"The table unpacks to {total:,} bytes, more than {limits.ratio} times the size of the "
            f"file, which is {file_bytes:,}. Images do not pack that well.",
            unpacked_bytes=total,
            file_bytes=file_bytes,
            limit=limits.ratio,
        )


def _rows_at_once(metadata: Any, leaf: str, limits: Limits) -> int:
    """How many rows of a column may be read together, if each had the largest value there can be.

    What an honest row group says of its size is what it holds, however many rows share it: no value
    is larger.
    """
    held = [
        column.total_uncompressed_size
        for i in range(metadata.num_row_groups)
        for group in [metadata.row_group(i)]
        for column in map(group.column, range(group.num_columns))
        if column.path_in_schema == leaf
    ]
    largest = min(max(held, default=1), limits.image_bytes)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, largest)))


def _pick(schema: Any, names: Sequence[str], others: Sequence[str], what: str) -> str:
    matching = [name for name in schema.names if name in names] or [
        name for name in schema.names if name in others
    ]
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


def _names(file: Any, path_leaf: str | None, limits: Limits) -> MadeNames:
    count = file.metadata.num_rows
    if path_leaf is None or not count:
        return MadeNames(count, lambda i: f"row {i}")
    # Left in Arrow's columns: strings of Python's would take four times as much.
    batches = file.iter_batches(
        batch_size=_rows_at_once(file.metadata, path_leaf, limits), columns=[path_leaf]
    )
    paths = pa.chunked_array(
        [pc.utf8_slice_codeunits(_flat(batch.column(0)), 0, _NAME_CHARACTERS) for batch in batches]
    )

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
    kind = _value_type(column.type)
    if pa.types.is_integer(kind):
        # Safe: a value beyond int64 raises pa.ArrowInvalid.
        try:
            values = column.cast(pa.int64()).to_numpy()
        except pa.ArrowException as error:
            raise _damaged(error) from error
        return order_numbered(np.array(values, dtype=np.int64), own_names, given)
    if _is_text(kind):
        chunks = column.chunks
        if not pa.types.is_dictionary(column.type):
            chunks = [chunk.dictionary_encode() for chunk in chunks]
        if any(_longest(chunk.dictionary) > 4 * _NAME_CHARACTERS for chunk in chunks):
            raise DataUnreadable(
                f"A label in the column {name} has more than {_NAME_CHARACTERS} characters: "
                "that is no name of a class.",
                column=name,
            )
        # Not all words of a dictionary need have a row.
        used = [np.unique(chunk.indices.to_numpy()) for chunk in chunks]
        words = [chunk.dictionary.to_pylist() for chunk in chunks]
        order = order_classes(
            sorted({each[i] for each, places in zip(words, used, strict=True) for i in places}),
            given,
        )
        labels = [np.empty(0, dtype=np.int64)]
        for chunk, each, places in zip(chunks, words, used, strict=True):
            numbers = np.zeros(len(each), dtype=np.int64)
            numbers[places] = [order.index[each[i]] for i in places]
            labels.append(numbers[chunk.indices.to_numpy()])
        return order, np.concatenate(labels)
    raise DataUnreadable(
        f"The column {name} is {column.type}; integers or strings were expected.",
        column=name,
        type=str(column.type),
    )


def _value_type(kind: Any) -> Any:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _longest(words: Any) -> int:
    """Bytes of the longest of some words."""
    return pc.max(pc.binary_length(words)).as_py() or 0


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
