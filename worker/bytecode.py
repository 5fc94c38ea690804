"""Compiles ahead what runs import, where it was installed without that.

A run that is shut in (`worker.isolation`) cannot write into the installation, so it would compile
two thousand modules of torch and others each time anew.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import structlog

IMPORTS = (
    "import sanitizer.pipeline, sanitizer.report.plots, sanitizer.report.render, torch._dynamo"
)
"""The last is what torch's optimizers import once they are used: half of all modules."""

log = structlog.get_logger(__name__)


def compile_ahead() -> None:
    """Begins with it if torch is there and has not been compiled; does not wait for the end."""
    torch = importlib.util.find_spec("torch")
    if torch is not None and torch.origin is not None:
        compile_by_import(Path(torch.origin).parent / "_dynamo" / "__init__.py", IMPORTS)


def compile_by_import(source: Path, statement: str) -> threading.Thread | None:
    """Begins to import in another Python, which keeps what it compiles.

    None: there is no need, since one of the modules has been compiled, or no place to keep it.

    Args:
        source: The file of that module.
        statement: What imports it.
    """
    is_compiled = Path(importlib.util.cache_from_source(source)).exists()
    if is_compiled or not os.access(source.parent, os.W_OK):
        return None
    log.info("compiling ahead what runs import; they start slowly until that is done")
    thread = threading.Thread(target=_import, args=(statement,), name="compile", daemon=True)
    thread.start()
    return thread


def _import(statement: str) -> None:
    with tempfile.TemporaryDirectory() as home:
        kept = {
            name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ
        }
        ran = subprocess.run(
            [sys.executable, "-P", "-c", statement],
            env={**kept, "HOME": home, "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
    if ran.returncode:
        log.warning("compiling ahead failed", stderr=ran.stderr.decode("utf-8", "replace")[-2000:])
