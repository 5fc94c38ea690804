"""How a run goes, for people: a bar on a terminal, lines where the output goes into a file."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from service.cli.terminal import duration, plain, share, stderr
from service.cli.uploading import OnBytes

_SHARES = ("accuracy", "train_accuracy", "retuned_accuracy")
_RATES = (
    "asr.",
    "ra.",
    "retuned_asr.",
    "poisoned_asr.",
    "control_asr.",
    "accuracy.",
    "residual.",
    "rate.",
)


class Pace:
    """How long the rest of a run takes, from how long its part so far took.

    Times are those of the run's own events, so a stream that is replayed gives the same estimate.
    """

    def __init__(self) -> None:
        self._first: tuple[float, datetime] | None = None
        self._last: tuple[float, datetime] | None = None
        self._last_seen = 0.0

    def note(self, fraction: float, at: datetime, now: float) -> None:
        """At time `at` this share was done; `now` is this machine's monotonic clock."""
        if self._last is None or fraction < self._last[0]:  # the first, or another attempt
            self._first = (fraction, at)
        self._last = (fraction, at)
        self._last_seen = now

    def remaining(self, now: float) -> float | None:
        """Seconds until the end, if that can be told."""
        if self._first is None or self._last is None:
            return None
        share_done = self._last[0] - self._first[0]
        seconds = (self._last[1] - self._first[1]).total_seconds()
        if share_done <= 0 or seconds <= 0:
            return None
        rest = (1 - self._last[0]) * seconds / share_done
        return max(0.0, rest - (now - self._last_seen))


class RunView:
    """What is known of a run, fed with its events.

    On a terminal it is drawn again and again; elsewhere a line is written for each stage and epoch.
    """

    def __init__(
        self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console or stderr()
        self._clock = clock
        self._pace = Pace()
        self._live: Live | None = None
        self._started = clock()
        self._waiting: str | None = None
        self._waiting_since = clock()
        self._spinner = Spinner("dots")  # a new one would stand still
        self.stage = ""
        self.message = ""
        self.fraction = 0.0
        self.epochs = ""
        self.figures: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(
                console=self._console,
                get_renderable=self._draw,
                refresh_per_second=8,
                transient=True,
                redirect_stdout=False,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def wait(self, reason: str) -> None:
        """The run has not begun, for this reason."""
        if reason != self._waiting:
            self._waiting = reason
            self._waiting_since = self._clock()
            self._line(f"Waiting: {reason}")

    def feed(self, kind: str, data: Mapping[str, Any], at: datetime) -> None:
        """One event: its type, its fields and its time."""
        match kind:
            case "stage":
                self._on_stage(str(data["stage"]), str(data["message"]))
            case "progress":
                self._on_progress(data, at)
            case "metric":
                self._on_metric(data)
            case "warning":
                self._console.print(
                    Text(f"Warning: {plain(data['message'])}", style="yellow"), soft_wrap=True
                )
        if kind in ("stage", "progress", "metric"):
            self._waiting = None

    def _on_stage(self, stage: str, message: str) -> None:
        self.stage, self.message, self.epochs = stage, message, ""
        self._line(f"{stage}: {message}")

    def _on_progress(self, data: Mapping[str, Any], at: datetime) -> None:
        self.stage = str(data["stage"])
        self.fraction = float(data["fraction"])
        self._pace.note(self.fraction, at, self._clock())
        if data.get("epoch") and data.get("epochs"):
            self.epochs = f"epoch {data['epoch']}/{data['epochs']}"

    def _on_metric(self, data: Mapping[str, Any]) -> None:
        self.figures = {str(name): float(value) for name, value in data["values"].items()}
        where = f"{data['stage']} epoch {data['epoch']}" if data.get("epoch") else data["stage"]
        if figures := self._figures():  # not all that is measured is for people
            self._line(f"{where}: {figures}")

    def _line(self, text: str) -> None:
        if self._live is None:
            self._console.print(Text(plain(text)), soft_wrap=True)

    def _figures(self) -> str:
        shown = [
            f"{name} {share(value)}"
            for name, value in self.figures.items()
            if name in _SHARES or name.startswith(_RATES)
        ]
        estimated = {n: v for n, v in self.figures.items() if n.startswith("estimated_asr.")}
        if estimated:
            name = max(estimated, key=lambda each: estimated[each])
            shown.append(f"{name} {share(estimated[name])}, the highest")
        if "anomaly" in self.figures:
            shown.append(f"anomaly {self.figures['anomaly']:.1f}")
        if "loss" in self.figures:
            shown.insert(0, f"loss {self.figures['loss']:.4g}")
        return "  ".join(shown)

    def _draw(self) -> RenderableType:
        now = self._clock()
        if self._waiting is not None:
            waited = duration(now - self._waiting_since)
            row = Table.grid(padding=(0, 1))
            row.add_row(self._spinner, Text(f"Waiting ({waited}): {plain(self._waiting)}"))
            return row
        remaining = self._pace.remaining(now)
        tail = f"{duration(remaining)} left" if remaining is not None else ""
        row = Table.grid(padding=(0, 2))
        row.add_row(
            Text(self.stage or "starting", style="bold"),
            ProgressBar(total=1.0, completed=self.fraction, width=36),
            Text(f"{self.fraction:4.0%}"),
            Text(self.epochs),
            Text(tail, style="cyan"),
        )
        below = Text(plain(self._figures() or self.message), style="dim", overflow="ellipsis")
        return Group(row, below)


@contextmanager
def bytes_bar(label: str, total: int) -> Iterator[OnBytes]:
    """A bar for bytes: amount, speed, time left. Yields what is to be told of each piece."""
    console = stderr()
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:
        task = bars.add_task(plain(label), total=total)
        yield lambda count: bars.advance(task, count)


@contextmanager
def count_bar(label: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar for things that are counted."""
    console = stderr()
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:
        task = bars.add_task(plain(label), total=total)
        yield lambda: bars.advance(task)
