"""What the stages of one run share."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from time import monotonic

import numpy as np

from sanitizer.compute import choose_device, choose_precision
from sanitizer.data.image_set import ImageSet
from sanitizer.events import Stage
from sanitizer.inputs import Inputs
from sanitizer.journal import Journal, keep_quiet
from sanitizer.methods.heldout import hold_out_clean
from sanitizer.methods.loop import LoopState
from sanitizer.methods.plan import tries_of
from sanitizer.networks.normalized import NormalizedNetwork
from sanitizer.parallel.group import Group
from sanitizer.planned import PlannedWork
from sanitizer.progress import Emit, Progress
from sanitizer.report.model import EpochRecord, StageRecord
from sanitizer.run_state import RunState
from sanitizer.spec import AutoConfig, SanitizeSpec


class Run:
    """One run: what was asked for, what was read, and how far it has come.

    Attributes:
        inputs: What is worked with: without the images that the screening leaves out.
        state: What a checkpoint keeps.
        network: The suspect model at first, the sanitized one in the end.
        planned: Work of all stages.
        progress: Tells how much of it is done.
        tries: Methods, in their order.
        chooses: Whether one of several is kept.
        start_seconds: What the process needed before the run began.
    """

    inputs: Inputs
    state: RunState
    network: NormalizedNetwork
    planned: PlannedWork
    progress: Progress

    def __init__(
        self,
        spec: SanitizeSpec,
        out: Path,
        work: Path,
        emit: Emit,
        group: Group,
        start_seconds: float,
    ) -> None:
        self.spec = spec
        self.group = group
        self.out = out
        self.work = work
        self.journal = Journal(emit if group.is_leader else keep_quiet)
        self.device = choose_device(spec.device, group.rank, group.size)
        self.precision = choose_precision(spec.precision, self.device)
        self.tries = tries_of(spec.method)
        self.chooses = isinstance(spec.method, AutoConfig)
        self.begun = monotonic()
        self.start_seconds = start_seconds

    @property
    def trained_on(self) -> ImageSet:
        """The clean images that methods train on; known once they are screened."""
        return self._clean[0]

    @property
    def chosen_by(self) -> ImageSet:
        """Those that are held out to choose a method by; none where there is one."""
        return self._clean[1]

    @cached_property
    def _clean(self) -> tuple[ImageSet, ImageSet]:
        clean = self.inputs.clean
        if self.chooses:
            return hold_out_clean(clean, self.spec.seed)
        return clean, clean.subset(np.empty(0, dtype=np.int64))

    def record(
        self,
        stage: Stage,
        seconds: float,
        epochs: Sequence[EpochRecord] = (),
        values: Mapping[str, float] | None = None,
    ) -> None:
        """Keeps what a stage took, and its figures, for the report."""
        record = StageRecord(
            stage=stage, seconds=round(seconds, 3), epochs=list(epochs), values=dict(values or {})
        )
        # A resumed run loads and measures again; its records keep their places.
        by_stage = {other.stage: other for other in self.state.finished} | {record.stage: record}
        self.state.finished = list(by_stage.values())

    def save(self, loop: LoopState | None = None) -> None:
        """Writes a checkpoint, from the middle of a training where `loop` is given."""
        self.state.loop = loop
        seconds = self.state.seconds
        self.state.seconds = self.seconds()
        if self.group.is_leader:  # the others' would be the same
            self.state.save(self.work)
        self.state.seconds = seconds

    def seconds(self) -> float:
        """Of the whole run so far, interrupted tries included."""
        return round(self.state.seconds + monotonic() - self.begun, 3)

    def seconds_by_stage(self) -> dict[str, float]:
        """Of the stages that are through."""
        return {record.stage: record.seconds for record in self.state.finished}
