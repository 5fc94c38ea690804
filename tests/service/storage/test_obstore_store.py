"""Memory of large uploads, measured on a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.s3 import S3Server

PROGRAM = """
import asyncio, json, resource, sys
from pathlib import Path
from service.settings import Settings
from service.storage import make_store

settings, target, large = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
store = make_store(Settings(_env_file=None, **settings))

async def chunks(mebibytes):
    for _ in range(mebibytes):
        yield bytes(1 << 20)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

asyncio.run(store.put("a/small", chunks(24)))
store.fetch("a/small", target)
before = peak()
asyncio.run(store.put("a/large", chunks(large)))
store.fetch("a/large", target)
store.put_file("a/again", target)
print(peak() - before)
"""


def _settings(kind: str, server: S3Server, folder: Path) -> dict[str, Any]:
    if kind == "folder":
        return {"storage_url": f"file:{folder / 'store'}"}
    plain = server.settings()
    return {k: v.get_secret_value() if isinstance(v, SecretStr) else v for k, v in plain.items()}


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_large_file_needs_no_more_memory_than_a_small_one(
    kind: str, s3_server: S3Server, tmp_path: Path
) -> None:
    settings = json.dumps(_settings(kind, s3_server, tmp_path))
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, settings, str(tmp_path / "fetched"), "80"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(ran.stdout) < 32
