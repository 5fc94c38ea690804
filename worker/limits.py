"""Sets the limits of a process and becomes the program that shall run under them.

Started by its path, `python -I -S limits.py LIMITS COMMAND...`: nothing runs between fork and exec,
where this program's parent has threads.
"""

import json
import os
import resource
import sys


def main() -> None:
    """`LIMITS`: a JSON object.

    It has bytes for `data` (null: unlimited) and `file`, and in `allowed` what
    `worker.landlock.restrict` takes: paths, and whether `tcp` stays (null: all stays allowed).
    """
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
    # Isolated Python finds its own library and nothing else.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from worker import descendants

    descendants.adopt_orphans()  # so that its worker finds all that it starts
    if limits["allowed"] is not None:
        from worker import landlock

        try:
            tcp = limits["allowed"].pop("tcp")
            landlock.restrict(limits["allowed"], tcp=tcp)
        except OSError as error:
            _refuse(126, f"The run cannot be shut into its folder: {error}")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        _refuse(127, f"{command[0]} cannot be started: {error.strerror}")


def _refuse(code: int, message: str) -> None:
    print(message, file=sys.stderr)  # noqa: T201  # the worker reads it
    sys.exit(code)


if __name__ == "__main__":
    main()
