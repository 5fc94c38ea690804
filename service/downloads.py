"""Files out of the store: ranges, validators, names."""

import re
from collections.abc import Mapping
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from service.errors import FileGone, RangeNotSatisfiable
from service.storage import ObjectMissing, ObjectStore

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)


async def file_response(
    request: Request,
    store: ObjectStore,
    *,
    key: str,
    sha256: str,
    filename: str,
    media_type: str = "application/octet-stream",
) -> Response:
    """A file as an answer: 200, 206 for one range, 304; or 307 to where the store itself gives it.

    Several ranges at once are answered with the whole file, as RFC 9110 allows. A request with
    `If-Range` is never redirected: the store knows the file by another `ETag`.

    Raises:
        FileGone: The store does not have it.
        RangeNotSatisfiable: The range lies outside the file.
    """
    size = await _size(store, key, filename)
    etag = f'"{sha256}"'
    disposition = content_disposition(filename)
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": disposition,
        "Cache-Control": "private, no-cache",
        "X-Content-Type-Options": "nosniff",
    }
    if _names(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    condition = request.headers.get("if-range")
    wanted = None
    if condition is None or condition == etag:
        wanted = parse_range(request.headers.get("range", ""), size)
    if condition is None:
        address = await store.presigned(key, disposition=disposition, media_type=media_type)
        if address is not None:
            # Whoever has the address has the file: nobody is to keep it.
            return Response(
                status_code=307, headers={"Location": address, "Cache-Control": "no-store"}
            )
    start, end = wanted or (0, size)
    headers["Content-Length"] = str(end - start)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return StreamingResponse(
        store.open(key, start, end),
        status_code=200 if wanted is None else 206,
        headers=headers,
        media_type=media_type,
    )


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """The half-open range of bytes that a `Range` header asks for; none: the whole file.

    Raises:
        RangeNotSatisfiable: It lies outside a file of `size` bytes.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return None  # not a range at all: RFC 9110 has it ignored
    if start >= size or start >= end:
        raise RangeNotSatisfiable(size)
    return start, end


def content_disposition(filename: str) -> str:
    """`attachment`, with the name in ASCII (RFC 6266) and, if that differs, whole (RFC 8187)."""
    plain = "".join(
        c if c.isascii() and c.isprintable() and c not in '"\\' else "_" for c in filename
    )
    header = f'attachment; filename="{plain}"'
    return header if plain == filename else f"{header}; filename*=UTF-8''{quote(filename, safe='')}"


def _names(header: str, etag: str) -> bool:
    listed = [part.strip().removeprefix("W/") for part in header.split(",")]
    return "*" in listed or etag in listed


async def whole_file(
    store: ObjectStore, *, key: str, filename: str, media_type: str, headers: Mapping[str, str]
) -> Response:
    """A file as an answer that is shown and not kept: 200, never in parts or from elsewhere.

    Raises:
        FileGone: The store does not have it.
    """
    size = await _size(store, key, filename)
    return StreamingResponse(
        store.open(key, 0, size),
        headers={**headers, "Content-Length": str(size)},
        media_type=media_type,
    )


async def _size(store: ObjectStore, key: str, filename: str) -> int:
    try:
        return await store.size(key)
    except ObjectMissing as error:
        raise FileGone(f"The file {filename} is no longer in the store.") from error
