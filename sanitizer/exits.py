"""Exit codes of `python -m sanitizer` and of `sanitizer`, as model scanners have them."""

from enum import IntEnum


class Exit(IntEnum):
    """What a script can tell from the exit code."""

    ALLOWED = 0
    """The policy does not block the model: it is allowed, or undecided, as where no trigger was
    given to measure, or where something speaks for a backdoor that is left. With `--strict` of the
    command line only what is allowed passes."""
    BLOCKED = 1
    """The run succeeded, and the policy blocks its model."""
    ERROR = 2
    """The run or the call failed, or the job was cancelled."""
    UNSUPPORTED = 3
    """The input is nothing this software can work on."""
    USAGE = 4
    """The command line, or the request made of it, is wrong."""
    INTERRUPTED = 130
    """Ctrl-C, as shells have it: 128 + SIGINT."""


EXPLAINED = (
    "Exit codes: 0 done, and the model is allowed or undecided (--strict: allowed); 1 the policy "
    "blocks it; 2 the run or the call failed, or the job was cancelled; 3 the input cannot be "
    "worked on (unsafe file, unknown architecture, unreadable data); 4 the command line is wrong; "
    "130 interrupted."
)
