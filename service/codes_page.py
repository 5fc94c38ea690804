"""`python -m service.codes_page` prints docs/codes.md, made from where the codes are."""

import sys
from collections.abc import Iterable, Sequence

from sanitizer.warning_codes import WarningCode
from service import errors
from service.jobs.codes import error_kinds

HEAD = """\
# Codes

What a program can branch on, beside HTTP statuses and a job's `status` and `verdict`. A code keeps
its meaning; **later versions add some**, so treat one that you do not know by the status or the
`message` beside it. Made by `python -m service.codes_page`; a test holds it against the code.
"""
ERRORS = """
## Why a job failed

`error.code` of a job, and `data.code` of its event `error`, whose `data.fault` says who has to act:
whoever gave the `input` (the same job would fail again), or whoever runs the `machine` (`POST
/v1/jobs/{job_id}/retry` may succeed). `message` says what to do. What a machine fails is tried
again by itself first; the event of such a try is a `warning` with the same code.
"""
WARNINGS = """
## What a job warns of

`summary.warnings[].code` of a job, `warnings[].code` of its report, and `data.code` of its events
`warning`.
"""
PROBLEMS = """
## Why a request was refused

`code` of a problem document (RFC 9457). `GET /problems` has them with explanations, and the `type`
of a problem is the path of its own.
"""


def codes_page() -> str:
    """The page, in Markdown."""
    failures = [
        (f"`{kind.code}`", " or ".join(kind.faults), kind.meaning) for kind in error_kinds()
    ]
    warnings = [(f"`{code}`", code.meaning) for code in WarningCode]
    problems = [
        (str(int(kind.status)), f"`{code}`", kind.title)
        for code, kind in sorted(
            errors.kinds().items(), key=lambda item: (int(item[1].status), item[0])
        )
    ]
    return (
        HEAD
        + ERRORS
        + _table(("code", "fault", "what happened"), failures)
        + WARNINGS
        + _table(("code", "what was seen"), warnings)
        + PROBLEMS
        + _table(("status", "code", "what it means"), problems)
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(codes_page())
