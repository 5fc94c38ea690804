"""Memory of large uploads, measured on a process of its own."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio, resource, sys
from pathlib import Path
from service.storage.obstore_store import ObstoreStore

store = ObstoreStore.local(Path(sys.argv[1]))

async def chunks(mebibytes):
    for _ in range(mebibytes):
        yield bytes(1 << 20)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

asyncio.run(store.put("a/small", chunks(32)))
before = peak()
asyncio.run(store.put("a/large", chunks(192)))
store.fetch("a/large", Path(sys.argv[1]) / "fetched")
print(peak() - before)
"""


def test_large_upload_needs_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(ran.stdout) < 48
