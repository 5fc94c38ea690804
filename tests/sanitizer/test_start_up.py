"""What a run does not import: start-up is part of what a small job takes."""

import subprocess
import sys
from pathlib import Path

from tests.sanitizer.builders import write_spec

PROGRAM = """
import json, sys
from sanitizer.__main__ import main
main(["run", sys.argv[1], "--out", sys.argv[2]])
heavy = ("torch._dynamo", "torch._inductor", "torch.distributed.run", "sympy", "torchvision")
print("IMPORTED", json.dumps([name for name in heavy if name in sys.modules]), file=sys.stderr)
"""


def test_a_run_imports_neither_torchs_compiler_nor_what_it_does_not_use(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(spec), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    said = [line for line in ran.stderr.splitlines() if line.startswith("IMPORTED")]
    assert said == ["IMPORTED []"]
