"""A real server that speaks S3: rclone over a folder."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from service.db.base import new_id
from service.storage.signing import SigningKey, presign_get

ACCESS_KEY_ID = "AKIATESTTESTTESTTEST"
SECRET = "not-a-secret-it-is-for-a-server-on-loopback"
REGION = "eu-central-1"
BUCKET = "sanitizer"


class S3Server:
    """A server with one bucket.

    Attributes:
        endpoint: Its address.
        folder: Where its buckets are folders; what it has not finished lies there too.
        pid: Of its process.
    """

    def __init__(self, folder: Path, pid: int, port: int) -> None:
        self.folder = folder
        self.pid = pid
        self.endpoint = f"http://127.0.0.1:{port}"

    def settings(self, prefix: str | None = None) -> dict[str, Any]:
        """Settings of a store on this server: in a folder of its own unless one is given."""
        return {
            "storage_url": f"s3://{BUCKET}/{prefix or new_id('test')}",
            "s3_endpoint": self.endpoint,
            "s3_region": REGION,
            "s3_access_key_id": ACCESS_KEY_ID,
            "s3_secret_access_key": SecretStr(SECRET),
        }

    def remains(self, prefix: str) -> list[str]:
        """All there is under a prefix: objects, unfinished ones, uploads that are still open."""
        files = [str(path) for path in (self.folder / BUCKET / prefix).rglob("*") if path.is_file()]
        return files + [key for key in self._open_uploads() if key.startswith(f"{prefix}/")]

    def _open_uploads(self) -> list[str]:
        key = SigningKey(ACCESS_KEY_ID, SECRET.encode(), REGION)
        address = presign_get(
            self.endpoint, f"/{BUCKET}", {"uploads": ""}, key=key, at=datetime.now(UTC), seconds=60
        )
        answer = httpx.get(address, timeout=10, trust_env=False)
        answer.raise_for_status()
        return re.findall(r"<Upload>\s*<Key>([^<]+)</Key>", answer.text)


@contextmanager
def serve_s3(folder: Path) -> Iterator[S3Server]:
    """Runs a server over a folder, with an empty bucket."""
    (folder / BUCKET).mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        [
            str(Path(sys.executable).with_name("rclone")),
            *("serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}", "--config", os.devnull),
        ],
        env={**os.environ, "RCLONE_AUTH_KEY": f'"{ACCESS_KEY_ID},{SECRET}"'},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_it_listens(process, port)
        yield S3Server(folder, process.pid, port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("rclone did not start to serve S3") from error
            time.sleep(0.02)
        else:
            return
