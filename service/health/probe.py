"""Asks the API on this machine whether it lives, for container runtimes: exit code 0 if so."""

import sys
import urllib.error
import urllib.request

ANSWER_SECONDS = 3.0


def main(url: str = "http://127.0.0.1:8000/healthz") -> int:
    """Exit code 0: the address answers with success."""
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS):
            return 0
    except (urllib.error.URLError, OSError) as error:
        print(f"{url}: {error}", file=sys.stderr)  # noqa: T201  # for whoever asked
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
