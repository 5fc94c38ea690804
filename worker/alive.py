"""Tells a container runtime that the main loop of a process turns: `python -m worker.alive FILE`.

The loop of a worker, or of the reconciler, touches the file of the setting `alive_file`; the
command fails once that was too long ago. A process whose broker or database is away is alive: to
start it anew would not bring them back. While a worker looks for its broker its loop stands still;
a thread touches the file meanwhile.

It is asked every few seconds, so it imports nothing that takes time.
"""

import sys
import time
from pathlib import Path

STALE_SECONDS = 60.0
USAGE = "usage: python -m worker.alive FILE [SECONDS]\n"


def check(path: Path, stale_seconds: float = STALE_SECONDS) -> str | None:
    """What is wrong with the process that touches the file; none: it is alive."""
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return f"{path} is not there: the process has not started, or has stopped"
    if age > stale_seconds:
        return f"{path} was touched {age:.0f} s ago: the main loop stands still"
    return None


def main(arguments: list[str]) -> int:
    """Exit code 0: alive; 1: not; 2: wrong usage."""
    try:
        path, stale, *_ = [*arguments, str(STALE_SECONDS)]
        wrong = check(Path(path), float(stale))
    except ValueError:
        sys.stderr.write(USAGE)
        return 2
    if wrong is not None:
        sys.stderr.write(f"{wrong}\n")
    return 0 if wrong is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
