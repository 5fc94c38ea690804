"""`python -m worker` is `celery -A worker.app worker`, but imports nothing from the current folder.

Celery by itself looks for the app there first; one that is imported already it does not look for.
"""

import sys

from celery.__main__ import main

from worker import app

if __name__ == "__main__":
    sys.argv[1:] = ["-A", app.__name__, "worker", *sys.argv[1:]]
    main()
