"""`python -m worker` is `celery -A worker.app worker`, but imports nothing from the current folder.

Celery by itself looks for the app there first; one that is imported already it does not look for.
"""

import sys

from celery.__main__ import main

from worker import app

if __name__ == "__main__":
    # Workers know of each other by the database: what Celery would tell them is noise.
    quiet = ("--without-gossip", "--without-mingle")
    sys.argv[1:] = ["--quiet", "-A", app.__name__, "worker", *quiet, *sys.argv[1:]]
    main()
