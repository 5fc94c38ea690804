"""Writes `.env` for docker-compose.yml, with new secrets: `make env`. One that is there stays."""

import os
import secrets
import sys
from pathlib import Path

SECRETS = (
    "POSTGRES_PASSWORD",
    "REDIS_PASSWORD",
    "SANITIZER_S3_SECRET_ACCESS_KEY",
    "GRAFANA_PASSWORD",
)
CHOICES = """
# What may be chosen; these are the defaults (docs/operations.md, docs/settings.md).
#SANITIZER_PORT=8000
#WORKERS=1
#WORKER_CPUS=2
#WORKER_THREADS=2
#WORKER_MEMORY=8g
# torch's build for the workers; cpu makes their image several GB smaller.
#TORCH_BACKEND=
# The profile s3; or an S3 of your own with SANITIZER_S3_ENDPOINT=https://..., which workers reach
# with COMPOSE_FILE=docker-compose.yml:docker/way-out.yml.
#COMPOSE_PROFILES=s3
#SANITIZER_STORAGE_URL=s3://sanitizer/files
"""


def write(path: Path) -> None:
    """Writes the file, for its owner's eyes alone.

    Raises:
        FileExistsError: It is there.
    """
    lines = [f"{name}={secrets.token_hex(24)}" for name in SECRETS]
    lines.append(f"SANITIZER_S3_ACCESS_KEY_ID={secrets.token_hex(10)}")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("# Secrets of this installation: keep them, a new database password would\n")
        file.write("# lock you out of the old database.\n")
        file.write("\n".join(lines) + "\n" + CHOICES)


def main(path: str = ".env") -> int:
    """Exit code 0 also if the file was there."""
    try:
        write(Path(path))
    except FileExistsError:
        print(f"{path} is there and stays as it is.", file=sys.stderr)  # noqa: T201
    else:
        print(f"Wrote {path}.", file=sys.stderr)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
