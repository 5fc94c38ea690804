"""Installs the worker's locked dependencies: `install_worker.py UV FOLDER [TORCH_BACKEND]`.

With a backend, torch and torchvision come in that build, and what only the other build needs
(CUDA's libraries, Triton) is left out. The lock has no hashes of those two files: their versions
are the locked ones, and the index is PyTorch's own, over https.
"""

import re
import subprocess
import sys
from pathlib import Path

LOCK = Path("requirements/worker.txt")
OF_ANOTHER_BUILD = re.compile(r"(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==")


def main(uv: str, folder: str, backend: str) -> None:
    """Installs into the virtual environment at `folder`."""
    install = [uv, "pip", "install", "--quiet", "--python", folder, "--compile-bytecode"]
    if not backend:
        subprocess.run([*install, "--require-hashes", "-r", LOCK], check=True)
        return
    entries = re.split(r"(?m)^(?=[A-Za-z0-9])", LOCK.read_text(encoding="utf-8"))
    rest = Path("rest.txt")
    rest.write_text(
        "".join(entry for entry in entries if not OF_ANOTHER_BUILD.match(entry)), encoding="utf-8"
    )
    subprocess.run([*install, "--require-hashes", "--no-deps", "-r", rest], check=True)
    torch = [
        found.group()
        for entry in entries
        if (found := re.match(r"(torch|torchvision)==[0-9.]+", entry))
    ]
    # Not `--no-deps`: a CUDA build brings the libraries that it needs.
    subprocess.run([*install, f"--torch-backend={backend}", *torch], check=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "")
