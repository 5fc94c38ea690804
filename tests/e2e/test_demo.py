"""`make demo`, as a stranger types it."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_demo_ends_with_a_model_without_its_backdoor(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from service.cli import main; main()", "demo"]
    done = subprocess.run(
        [*command, "--keep", str(tmp_path / "kept")], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The backdoor is gone and the accuracy has held." in done.stdout + done.stderr
    kept = tmp_path / "kept" / "results"
    assert (kept / "report.html").is_file()
    assert (kept / "sanitized-victim.pth").is_file()
