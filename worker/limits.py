"""Sets the limits of a process and becomes the program that shall run under them.

Started by its path, `python -I -S limits.py LIMITS COMMAND...`: nothing runs between fork and exec,
where this program's parent has threads.
"""

import json
import os
import resource
import sys


def main() -> None:
    """`LIMITS`: a JSON object with bytes for `data` (null: unlimited) and `file`."""
    limits = json.loads(sys.argv[1])
    command = sys.argv[2:]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file"], limits["file"]))
    if limits["data"] is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limits["data"], limits["data"]))
    try:
        # Where memory runs out, the kernel ends the run and not the worker.
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr)  # noqa: T201
        sys.exit(127)


if __name__ == "__main__":
    main()
