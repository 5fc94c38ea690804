"""Matplotlib's list of the machine's fonts, made once for all runs.

It looks the fonts up when it is first imported and keeps the list below its user's home. A run's
home is new, so each would look anew: up to five seconds before its pictures.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import structlog

FOLDER = "matplotlib"
"""Below a run's home; MPLCONFIGDIR names it."""
MAX_BYTES = 16 << 20

log = structlog.get_logger(__name__)


class FontList:
    """The files that matplotlib keeps, held by this worker and copied to each run.

    A run gets a copy of its own: whatever it does to that, the next one does not see it.
    """

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._thread: threading.Thread | None = None

    def begin(self) -> threading.Thread | None:
        """Begins to make the list, in another Python; none: there is no matplotlib here."""
        if importlib.util.find_spec("matplotlib") is None:
            return None
        self._thread = threading.Thread(target=self._make, name="fonts", daemon=True)
        self._thread.start()
        return self._thread

    def place(self, home: Path) -> Path | None:
        """Copies the list to a run's home; gives the folder, none while there is no list yet."""
        if not self._files:
            return None
        folder = home / FOLDER
        # What an earlier attempt may have left there, a link perhaps, is not followed.
        if folder.is_symlink() or folder.is_file():
            folder.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        for name, content in self._files.items():
            (folder / name).write_bytes(content)
        return folder

    def _make(self) -> None:
        with tempfile.TemporaryDirectory() as home:
            kept = {
                name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ
            }
            ran = subprocess.run(
                [sys.executable, "-P", "-c", "import matplotlib.font_manager"],
                env={**kept, "HOME": home, "MPLCONFIGDIR": home},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
            )
            if ran.returncode:
                reason = ran.stderr.decode("utf-8", "replace")[-2000:]
                log.warning("the list of fonts could not be made", stderr=reason)
                return
            self._files = {
                path.name: path.read_bytes()
                for path in Path(home).glob("fontlist-*.json")
                if path.stat().st_size <= MAX_BYTES
            }
