"""What pydantic says of a value, for people who never heard of pydantic."""

import re

from pydantic_core import ErrorDetails

_MEMBER = re.compile(r"<\w+\.\w+: ('[^']*')>")
_TAG = re.compile(
    r"Input tag '(?P<tag>.*)' found using '(?P<field>\w+)' does not match any of the expected "
    r"tags: (?P<expected>.*)",
    re.DOTALL,
)
_MOST_SHOWN = 60
"""Characters of a stranger's text."""


def in_words(fault: ErrorDetails) -> str:
    """The message of one of `ValidationError.errors()`."""
    said = _MEMBER.sub(r"\1", fault["msg"].removeprefix("Value error, "))
    if (match := _TAG.fullmatch(said)) is not None:
        tag = match["tag"]
        if len(tag) > _MOST_SHOWN:
            tag = f"{tag[:_MOST_SHOWN]}..."
        return f"there is no {match['field']} '{tag}'; there are {match['expected']}"
    return said
