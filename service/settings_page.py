"""`python -m service.settings_page` prints docs/settings.md, made from the settings class."""

import sys
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from service.settings import Settings

HEAD = """\
# Settings

Read from the environment or a `.env` file, by the service and the worker alike; what is empty
there is as if it were not: an empty variable does not take back what `.env` says. Made by
`python -m service.settings_page`; a test holds it against the class.

| variable | default | what |
|---|---|---|
"""


def settings_page() -> str:
    """The page, in Markdown."""
    rows = [_row(name, field) for name, field in Settings.model_fields.items()]
    return HEAD + "".join(rows)


def _row(name: str, field: FieldInfo) -> str:
    default = _shown(field.get_default(call_default_factory=True))
    what = " ".join((field.description or "").split()).replace("|", "\\|")
    return f"| `SANITIZER_{name.upper()}` | {default} | {what} |\n"


def _shown(value: Any) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value in ((), []):
        return "unset"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1 << 20:
        return f"{value // (1 << 20)} MiB" if value % (1 << 20) == 0 else str(value)
    return f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(settings_page())
