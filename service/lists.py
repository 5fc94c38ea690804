"""Lists that come as text: fields of a form, options of the command line."""

import json
from typing import Any


def from_text(text: str, *, is_list: bool = True) -> Any:
    """What a text means: JSON where it begins so; a list, if it is one, with commas between.

    Raises:
        RecursionError: It is JSON, and nested too deeply.
        ValueError: It begins like JSON and is none.
    """
    if text.lstrip().startswith(("[", "{")):
        return json.loads(text)
    return [item.strip() for item in text.split(",")] if is_list else text
