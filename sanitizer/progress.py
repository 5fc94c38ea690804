"""How far a run is: work that is done against work that was planned, told a few times a second."""

from collections.abc import Callable
from time import monotonic

from sanitizer.events import Event, ProgressEvent, Stage

Emit = Callable[[Event], None]

MIN_SECONDS = 0.25
"""Between two progress events of one stage."""


class Progress:
    """Adds up work, measured in images times forward passes.

    Args:
        emit: Where events go.
        planned: All work of the run.
        done: What was done before this process began.
    """

    def __init__(self, emit: Emit, planned: float, done: float = 0.0) -> None:
        self._emit = emit
        self._planned = planned
        self._done = done
        self._last: tuple[Stage | None, float] = (None, 0.0)
        self._told = 0.0

    @property
    def done(self) -> float:
        """Work, so far."""
        return self._done

    def go_back_to(self, done: float) -> None:
        """What was done since counts no longer, and is to be done again."""
        self._done = done

    def add(
        self,
        stage: Stage,
        work: float,
        *,
        epoch: int | None = None,
        epochs: int | None = None,
        step: int | None = None,
        steps: int | None = None,
    ) -> None:
        """Some work of a stage was done; tells it unless the last telling was just now."""
        self._done += work
        last_stage, last_time = self._last
        now = monotonic()
        if stage is last_stage and now - last_time < MIN_SECONDS:
            return
        self._last = (stage, now)
        # 1 is for the result: rounding and skipped work must not reach it before.
        fraction = min(self._done / self._planned, 0.999) if self._planned else 0.0
        # What is lost is made up for, but nobody wants to see a bar go back.
        self._told = max(self._told, fraction)
        self._emit(
            ProgressEvent(
                stage=stage,
                fraction=round(self._told, 4),
                epoch=epoch,
                epochs=epochs,
                step=step,
                steps=steps,
            )
        )


class Preparation:
    """Tells how many images are prepared, a few times a second, while no work is planned yet.

    Args:
        emit: Where events go.
        stage: That prepares.
    """

    def __init__(self, emit: Emit, stage: Stage) -> None:
        self._emit = emit
        self._stage = stage
        self._told = monotonic()

    def __call__(self, done: int, total: int) -> None:
        """So many images of all are through."""
        if monotonic() - self._told >= MIN_SECONDS:
            self._told = monotonic()
            self._emit(ProgressEvent(stage=self._stage, fraction=0, step=done, steps=total))
