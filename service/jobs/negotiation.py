"""Which representation of a resource a client wants (RFC 9110, section 12.5.1)."""

from service.errors import NotAcceptable

JSON = "application/json"
HTML = "text/html"
EVENT_STREAM = "text/event-stream"


def preferred(accept: str, *offered: str) -> str:
    """The media type that the `Accept` header likes best; the first where it has no wish.

    Raises:
        NotAcceptable: It likes none of them.
    """
    if not accept.strip():
        return offered[0]
    ranges = [_range(part) for part in accept.split(",") if part.strip()]
    ranked = [(_quality(ranges, media_type), -index) for index, media_type in enumerate(offered)]
    quality, index = max(ranked)
    if quality <= 0:
        raise NotAcceptable(f"Accept is {accept!r}; there is only {', '.join(offered)}.")
    return offered[-index]


def _range(part: str) -> tuple[str, float]:
    media_type, *parameters = [piece.strip() for piece in part.split(";")]
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                quality = float(value)
            except ValueError:
                quality = 0.0
    return media_type.lower(), quality


def _quality(ranges: list[tuple[str, float]], media_type: str) -> float:
    family = media_type.split("/")[0]
    for pattern in (media_type, f"{family}/*", "*/*"):  # the most specific range decides
        matching = [quality for range_, quality in ranges if range_ == pattern]
        if matching:
            return max(matching)
    return 0.0
