"""Uploads as `multipart/form-data`, streamed to the store in constant memory.

Starlette's form parser spools a whole upload to a temporary file, from where it would be copied
again. Here the file goes to the store as it arrives; the fields around it may come in any order.
"""

import re
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import structlog
from fastapi import Request
from pydantic import BaseModel, ValidationError
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool

from service import errors, problems
from service.errors import FieldError
from service.lists import from_text
from service.storage import ObjectStore, StoredObject, TooLarge

MAX_FIELD_BYTES = 1 << 20
"""Of all fields beside the file together: ten thousand class names fit."""
MAX_PARTS = 20_000
MAX_FILENAME_BYTES = 150
"""In UTF-8. File systems take 255; clients put something before or behind it."""

Fields = TypeVar("Fields", bound=BaseModel)
Look = Callable[[bytes, str], object]
TAIL_BYTES = 1 << 20
"""Enough for the directory of a zip with ten thousand members."""

log = structlog.get_logger(__name__)


@dataclass
class Upload:
    """A file that is in the store, and the fields that came with it."""

    key: str
    filename: str
    stored: StoredObject
    head: bytes
    """The first bytes of the file."""
    tail: bytes
    """Its last bytes."""
    fields: dict[str, Any]
    kept: bool = False
    """Whether the file stays in the store when the request fails: a row may name it."""

    def identity(self) -> dict[str, Any]:
        """What makes an upload the same as another (JSON)."""
        return {"fields": self.fields, "filename": self.filename, "sha256": self.stored.sha256}

    def validated(self, model: type[Fields]) -> Fields:
        """The fields as a model.

        Raises:
            InvalidRequest: They do not validate.
        """
        return self.check(self.fields, model)

    @staticmethod
    def check(values: dict[str, Any], model: type[Fields]) -> Fields:
        """Fields as a model, or those that have come so far.

        Raises:
            InvalidRequest: They do not validate.
        """
        try:
            return model.model_validate(values)
        except ValidationError as error:
            raise problems.from_validation(error, values) from error


async def _nothing() -> None:
    """Where nobody waits for bytes."""


def look_away(head: bytes, filename: str) -> None:
    """Where any file will do."""


@asynccontextmanager
async def receive(
    request: Request,
    store: ObjectStore,
    key: str,
    *,
    limit: int,
    fields: type[BaseModel],
    on_arrival: Callable[[], Awaitable[None]] = _nothing,
    look: Look = look_away,
) -> AsyncIterator[Upload]:
    """The upload in a request's body; it leaves the store again unless the block marks it as kept.

    Args:
        request: Its body is read to the end.
        store: Where the file goes.
        key: The key it gets there.
        limit: Bytes that the file may have.
        fields: Names and types of the fields beside `file`.
        on_arrival: Called whenever bytes have come.
        look: Called with the first bytes of the file and its name, before the rest has come; may
            refuse the upload by raising an error. What it returns is of no interest.

    Raises:
        BadRequest: The body is no multipart, or breaks off.
        ContentTooLarge: The file or its fields are larger than the limit.
        EmptyFile: The file has no content.
        InvalidRequest: There is no file, or more than one; a field is unknown, or came before the
            file and does not validate.
        UnsupportedMediaType: The body is of another type.
    """
    parts = _parts(request, limit, on_arrival)
    stored = False
    upload: Upload | None = None
    try:
        async with aclosing(parts):
            collected: dict[str, list[str]] = {}
            budget = MAX_FIELD_BYTES
            file: tuple[str, StoredObject, _Content] | None = None
            async for part in parts:
                if not isinstance(part, _Begin):
                    continue  # data after the end of a part: the preamble's
                if part.name == "file":
                    if file is not None:
                        raise _wrong_file("came more than once")
                    # Before gigabytes have come: whatever came before them can be told by now.
                    Upload.check(_values(fields, collected), fields)
                    name = sanitize_filename(part.filename)
                    content = _Content(parts, look, name)
                    try:
                        received = await store.put(key, content.chunks(), limit=limit)
                    except TooLarge as error:
                        raise errors.ContentTooLarge(limit, None) from error
                    stored = True
                    file = (name, received, content)
                else:
                    if part.name not in fields.model_fields:
                        Upload.check({part.name: ""}, fields)  # refuses it by its name
                    budget -= len(part.name)  # or parts without content could go on and on
                    if budget < 0:
                        raise errors.ContentTooLarge(MAX_FIELD_BYTES, None)
                    value = bytearray()
                    async for chunk in _Content(parts).chunks():
                        value += chunk
                        budget -= len(chunk)
                        if budget < 0:
                            raise errors.ContentTooLarge(MAX_FIELD_BYTES, None)
                    collected.setdefault(part.name, []).append(_text(part.name, value))
        if file is None:
            raise _wrong_file("is missing: send the file in a part with this name")
        filename, received, content = file
        if received.bytes == 0:
            raise errors.EmptyFile(f"The file {filename} has no content.")
        values = _values(fields, collected)
        expected = values.get("sha256")
        if isinstance(expected, str) and expected.lower() != received.sha256:
            raise errors.ChecksumMismatch(expected.lower(), received.sha256)
        head, tail = bytes(content.head), bytes(content.tail[-TAIL_BYTES:])
        upload = Upload(key, filename, received, head, tail, values)
        yield upload
    finally:
        if stored and not (upload and upload.kept):
            with anyio.CancelScope(shield=True):
                await _discard(store, key)


async def _discard(store: ObjectStore, key: str) -> None:
    try:
        await run_in_threadpool(store.delete, key)
    except Exception:
        log.exception("a refused upload could not be removed from the store", key=key)


def sanitize_filename(given: str) -> str:
    """A name for people: no folders, no character that cannot be seen but a space, not too long."""
    kinds = ((c, unicodedata.category(c)[0]) for c in given)
    seen = "".join(" " if kind == "Z" else c for c, kind in kinds if kind != "C")
    name = re.split(r"[/\\]", unicodedata.normalize("NFC", seen))[-1]
    name = re.sub(" +", " ", name).strip(" .")
    if len(name.encode()) > MAX_FILENAME_BYTES:
        suffixes = re.search(r"(\.[0-9A-Za-z_]{1,16}){0,2}\Z", name)  # such as `.pth.tar`
        kept = suffixes[0] if suffixes else ""
        stem = name.removesuffix(kept).encode()[: MAX_FILENAME_BYTES - len(kept)]
        name = stem.decode(errors="ignore").rstrip(" .") + kept
    return name or "file"


# --- The parser, turned from push to pull --------------------------------------------------------


@dataclass(frozen=True)
class _Begin:
    """A part begins."""

    name: str
    filename: str


@dataclass(frozen=True)
class _Data:
    """Bytes of the part."""

    data: bytes


class _End:
    """The part ends."""


_Event = _Begin | _Data | _End


class _Content:
    """The data of one part."""

    HEAD_BYTES = 300

    def __init__(
        self, parts: AsyncIterator[_Event], look: Look = look_away, filename: str = ""
    ) -> None:
        self._parts = parts
        self._look = look
        self._filename = filename
        self.head = bytearray()
        self.tail = bytearray()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The data until the part ends."""
        async for event in self._parts:
            if isinstance(event, _End):
                if 0 < len(self.head) < self.HEAD_BYTES:
                    self._look(bytes(self.head), self._filename)
                return
            if isinstance(event, _Data):
                if len(self.head) < self.HEAD_BYTES:
                    self.head += event.data[: self.HEAD_BYTES - len(self.head)]
                    if len(self.head) == self.HEAD_BYTES:
                        self._look(bytes(self.head), self._filename)
                self.tail += event.data
                if len(self.tail) > 2 * TAIL_BYTES:
                    del self.tail[:-TAIL_BYTES]
                yield event.data


class _Collector:
    """Callbacks of the parser; what they saw since the last `take`."""

    def __init__(self) -> None:
        self.ended = False
        self._events: list[_Event] = []
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._parts = 0

    def take(self) -> Iterator[_Event]:
        """The events that have come."""
        events, self._events = self._events, []
        yield from events

    def on_part_begin(self) -> None:
        self._disposition = b""
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise errors.BadRequest(f"The body has more than {MAX_PARTS} parts.")

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise errors.BadRequest("A part of the body has no name in its Content-Disposition.")
        self._events.append(
            _Begin(_lenient(options[b"name"]), _lenient(options.get(b"filename", b"")))
        )

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(_Data(data[start:end]))

    def on_part_end(self) -> None:
        self._events.append(_End())

    def on_end(self) -> None:
        self.ended = True


async def _parts(
    request: Request, limit: int, on_arrival: Callable[[], Awaitable[None]]
) -> AsyncGenerator[_Event]:
    media_type, options = parse_options_header(request.headers.get("content-type"))
    if media_type != b"multipart/form-data":
        raise errors.UnsupportedMediaType(
            "The body must be multipart/form-data, not "
            f"{media_type.decode('latin-1') or 'untyped'}."
        )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit + MAX_FIELD_BYTES:
        raise errors.ContentTooLarge(limit, int(announced))
    collector = _Collector()
    try:
        parser = MultipartParser(
            options.get(b"boundary", b""),
            {
                "on_part_begin": collector.on_part_begin,
                "on_part_data": collector.on_part_data,
                "on_part_end": collector.on_part_end,
                "on_header_field": collector.on_header_field,
                "on_header_value": collector.on_header_value,
                "on_header_end": collector.on_header_end,
                "on_headers_finished": collector.on_headers_finished,
                "on_end": collector.on_end,
            },
        )
        if b"boundary" not in options:
            raise errors.BadRequest("The Content-Type of the body names no boundary.")
        async for chunk in request.stream():
            await on_arrival()
            parser.write(chunk)
            for event in collector.take():
                yield event
    except FormParserError as error:
        raise errors.BadRequest(f"The body is no valid multipart/form-data: {error}.") from error
    if not collector.ended:
        raise errors.BadRequest("The body breaks off before the closing boundary.")


# --- Fields --------------------------------------------------------------------------------------


def _wrong_file(what: str) -> errors.InvalidRequest:
    return errors.InvalidRequest(f"The part file {what}.", errors=[FieldError("/file", what)])


def _lenient(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _text(name: str, raw: bytearray) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise errors.InvalidRequest(
            f"The field {name} is not UTF-8.", errors=[FieldError(f"/{name}", "is not UTF-8")]
        ) from error


def _values(model: type[BaseModel], collected: Mapping[str, list[str]]) -> dict[str, Any]:
    return {name: _value(model, name, texts) for name, texts in collected.items()}


def _value(model: type[BaseModel], name: str, texts: list[str]) -> Any:
    """What the texts of a field mean.

    A list comes as repeated parts, as JSON, or with commas between; a mapping as JSON; anything
    else as it is.
    """
    field = model.model_fields.get(name)
    shape = str(field.annotation) if field else ""
    is_list, is_mapping = "tuple[" in shape or "list[" in shape, "dict[" in shape
    if len(texts) > 1:
        if not is_list:
            raise errors.InvalidRequest(
                f"The field {name} came {len(texts)} times.",
                errors=[FieldError(f"/{name}", "came more than once")],
            )
        return texts
    text = texts[0]
    if not (is_list or is_mapping):
        return text
    try:
        return from_text(text, is_list=is_list)
    except (ValueError, RecursionError) as error:
        raise errors.InvalidRequest(
            f"The field {name} is no valid JSON.",
            errors=[FieldError(f"/{name}", f"is no valid JSON: {error}")],
        ) from error


# --- In the OpenAPI document ---------------------------------------------------------------------


def request_body(fields: type[BaseModel], file: str) -> dict[str, Any]:
    """The `requestBody` of an upload: `file` and the fields of a model.

    In a form a field is left out rather than null, so null is taken out of the types.
    """
    schema = fields.model_json_schema(ref_template="#/components/schemas/{model}")
    properties: dict[str, Any] = {
        "file": {"type": "string", "format": "binary", "description": file}
    }
    for name, value in schema["properties"].items():
        options = [o for o in value.get("anyOf", [value]) if o.get("type") != "null"]
        merged = {**options[0], **{k: v for k, v in value.items() if k not in ("anyOf", "title")}}
        if merged.get("default") is None:
            merged.pop("default", None)
        if "prefixItems" in merged:  # generators know lists with a length better than tuples
            merged["items"] = merged.pop("prefixItems")[0]
        properties[name] = merged
    return {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "title": f"{fields.__name__.removesuffix('Fields')}Upload",
                    "required": ["file"],
                    "properties": properties,
                    "additionalProperties": False,
                }
            }
        },
    }
