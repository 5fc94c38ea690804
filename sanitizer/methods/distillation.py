"""What every step that aligns a student's feature maps with a teacher's has in common."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from sanitizer.methods.attention import attention_map
from sanitizer.methods.step import Step, StepOutput
from sanitizer.methods.teacher import FrozenTeacher
from sanitizer.networks.taps import TapPoint, Taps, tapped
from sanitizer.parallel.group import ALONE, Group


class DistillationStep(Step):
    """Cross-entropy of the student plus losses between attention maps of student and teacher.

    Args:
        student: The network that is trained.
        teacher: Of the same architecture; frozen here.
        points: Where both are tapped.
        precision: What both compute in.
        group: Who shares each batch.
        label_smoothing: Share of each label that is spread over all classes, in [0, 1).
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        points: Sequence[TapPoint],
        precision: torch.dtype = torch.float32,
        group: Group = ALONE,
        *,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(student, precision, group)
        self.label_smoothing = label_smoothing
        self.student = student
        self.teacher = FrozenTeacher(teacher, precision)
        self.points = tuple(points)
        self._student_taps: Taps | None = None
        self._teacher_taps: Taps | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Taps both networks; no hook outlives the block."""
        with (
            tapped(self.student, self.points) as self._student_taps,
            tapped(self.teacher.network, self.points) as self._teacher_taps,
        ):
            try:
                yield
            finally:
                self._student_taps = self._teacher_taps = None

    @abstractmethod
    def align(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Mapping[str, Tensor]:
        """Weighted losses between attention maps, one [B, 1, H, W] per tap."""

    def __call__(self, images: Tensor, labels: Tensor) -> StepOutput:
        if self._student_taps is None or self._teacher_taps is None:
            raise RuntimeError("a distillation step works inside `with step.attached()`")
        logits = self.classify(images)
        self.teacher(images)
        student = [attention_map(features) for features in self._student_taps.take()]
        teacher = [attention_map(features) for features in self._teacher_taps.take()]
        # Edges and embedding are made of the whole batch: its maximum, its mean and variance. Maps
        # are small, a number a pixel of a tap.
        logits, *maps = self.group.gather([logits, *student, *teacher], len(labels))
        student, teacher = maps[: len(student)], maps[len(student) :]
        return StepOutput(
            logits,
            {
                "cross_entropy": functional.cross_entropy(
                    logits, labels, label_smoothing=self.label_smoothing
                ),
                **self.align(student, teacher),
            },
        )
