"""What a command can fail with: a sentence for a person and an exit code for a script."""

from collections.abc import Mapping
from typing import Any, ClassVar

from sanitizer.exits import Exit

UNSUPPORTED_INPUT = frozenset(
    {"unknown_data_format", "unknown_model_format", "empty_file", "unsupported_media_type"}
)
WRONG_REQUEST = frozenset({"invalid_request", "bad_request"})


class CommandFailed(Exception):
    """Base of all errors that end a command without a traceback.

    Attributes:
        message: What came, what was expected.
        hint: What to do, if that is known.
    """

    exit_code: ClassVar[Exit] = Exit.ERROR

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def exit(self) -> Exit:
        """The exit code of this very failure."""
        return self.exit_code


class WrongUsage(CommandFailed):
    """The command line, or a file it names, is wrong."""

    exit_code = Exit.USAGE


class UnsupportedInput(CommandFailed):
    """The input cannot be worked on."""

    exit_code = Exit.UNSUPPORTED


class Unreachable(CommandFailed):
    """No server answers."""


class NoAnswer(CommandFailed):
    """The connection broke, or the answer was not one of this API."""


class Refused(CommandFailed):
    """The server answered with a problem document (RFC 9457).

    Attributes:
        status: HTTP status.
        code: Stable name of the kind of problem.
        problem: The document as it came.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        title = str(problem.get("title") or f"HTTP {status}")
        super().__init__(title, hint=None)
        self.status = status
        self.code = str(problem.get("code") or "")
        self.problem = dict(problem)

    @property
    def exit(self) -> Exit:
        """By the kind of problem."""
        if self.code in UNSUPPORTED_INPUT:
            return Exit.UNSUPPORTED
        return Exit.USAGE if self.code in WRONG_REQUEST else Exit.ERROR

    @property
    def lines(self) -> list[str]:
        """Detail, the places at fault, and the request's id; nothing twice."""
        detail = str(self.problem.get("detail") or "")
        places = [
            f"{error.get('pointer', '')}: {error.get('detail', '')}"
            for error in self.problem.get("errors") or []
        ]
        summed_up = bool(places) and detail.startswith(places[0])
        lines = [detail] if detail and not summed_up else []
        lines += [f"  {place}" for place in places]
        if self.problem.get("request_id"):
            lines.append(f"Request id: {self.problem['request_id']}")
        return lines
