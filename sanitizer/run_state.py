"""The checkpoint of a run: all a killed run needs to end in the same bytes as one that was not."""

import os
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanitizer.choice import Tried
from sanitizer.evaluation.augmentation import Borne
from sanitizer.methods.loop import LoopState
from sanitizer.report.model import (
    EpochRecord,
    Evaluation,
    Inspection,
    Proportion,
    Retuned,
    StageRecord,
    WarningRecord,
)

FILE_NAME = "checkpoint.pt"


class CheckpointDamaged(Exception):
    """The checkpoint cannot be read: a fault of the disk, or another version of the software."""


@dataclass
class RunState:
    """How far a run is.

    Attributes:
        fingerprint: Of everything that decides the outcome: another one means another run.
        resumed: How often the run was taken up again.
        seconds: Spent before this process began.
        curve_seconds: Spent on the figures after each epoch.
        choice_seconds: Spent on comparing what methods made.
        screened: What became of the screening, once done: a `Screened`, as JSON.
        before: Figures of the suspect model, once measured.
        doubts: Why it may expect other images, once looked at.
        expectation_seconds: Spent on looking at that.
        borne: Which augmentation it bears, once looked at.
        sought: Triggers that it falls for, once sought; see `FoundTriggers.state`.
        misled: Kind and place of the strongest of these, and how many images each misled.
        searches: What searches found, by stage; see `Found.state`.
        inspected: What finished inspections say, by stage.
        retuned: Figures of finished retunings, by name.
        example_predictions: What the suspect model says of the example pictures.
        finished: Records of the finished stages.
        epochs: Records of the finished epochs of the stage under way.
        networks: Weights of finished training stages, by role, of the method under way.
        tried: What became of the methods that are through, where several are tried.
        kept: Weights that the best of them made.
        loop: Where the stage under way stands.
        backed_off: How often a training of the method under way was begun again more gently.
        lost_seconds: That the lost tries of the stage under way took.
    """

    fingerprint: str
    resumed: int = 0
    seconds: float = 0.0
    curve_seconds: float = 0.0
    choice_seconds: float = 0.0
    screened: str | None = None
    before: Evaluation | None = None
    doubts: list[WarningRecord] | None = None
    expectation_seconds: float = 0.0
    borne: Borne | None = None
    sought: dict[int, list[Tensor]] = field(default_factory=dict)
    misled: list[tuple[tuple[int, int], Proportion]] = field(default_factory=list)
    searches: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    inspected: dict[str, Inspection] = field(default_factory=dict)
    retuned: dict[str, Retuned] = field(default_factory=dict)
    example_predictions: list[int] = field(default_factory=list)
    finished: list[StageRecord] = field(default_factory=list)
    epochs: list[EpochRecord] = field(default_factory=list)
    networks: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    tried: list[Tried] = field(default_factory=list)
    kept: dict[str, Tensor] = field(default_factory=dict)
    loop: LoopState | None = None
    backed_off: int = 0
    lost_seconds: float = 0.0

    def save(self, folder: Path) -> None:
        """Writes the state; a kill at any moment leaves the old file or the new one."""
        content: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "resumed": self.resumed,
            "seconds": self.seconds,
            "curve_seconds": self.curve_seconds,
            "choice_seconds": self.choice_seconds,
            "screened": self.screened,
            "before": self.before and self.before.model_dump_json(),
            "doubts": None
            if self.doubts is None
            else [each.model_dump_json() for each in self.doubts],
            "expectation_seconds": self.expectation_seconds,
            "borne": self.borne and asdict(self.borne),
            "sought": self.sought,
            "misled": [(which, rate.model_dump_json()) for which, rate in self.misled],
            "searches": self.searches,
            "inspected": {stage: each.model_dump_json() for stage, each in self.inspected.items()},
            "retuned": {name: each.model_dump_json() for name, each in self.retuned.items()},
            "example_predictions": self.example_predictions,
            "finished": [record.model_dump_json() for record in self.finished],
            "epochs": [record.model_dump_json() for record in self.epochs],
            "networks": self.networks,
            "tried": [asdict(each) for each in self.tried],
            "kept": self.kept,
            "loop": self.loop and _shallow(self.loop),
            "backed_off": self.backed_off,
            "lost_seconds": self.lost_seconds,
        }
        path = folder / FILE_NAME
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    @classmethod
    def load(cls, folder: Path, fingerprint: str) -> "RunState | None":
        """The saved state of the same run; none if there is none or it is another run's.

        Raises:
            CheckpointDamaged: The file is there and cannot be read.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            return None
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            if content["fingerprint"] != fingerprint:
                return None
            return cls._from_content(content)
        except (RuntimeError, EOFError, pickle.UnpicklingError, LookupError, TypeError) as error:
            raise CheckpointDamaged(f"The checkpoint {path.name} cannot be read.") from error
        except ValueError as error:  # a record that another version wrote
            raise CheckpointDamaged(f"The checkpoint {path.name} is of another version.") from error

    @classmethod
    def _from_content(cls, content: dict[str, Any]) -> "RunState":
        before = content["before"]
        loop = content["loop"]
        return cls(
            fingerprint=content["fingerprint"],
            resumed=content["resumed"],
            seconds=content["seconds"],
            curve_seconds=content.get("curve_seconds", 0.0),
            choice_seconds=content.get("choice_seconds", 0.0),
            screened=content.get("screened"),
            before=Evaluation.model_validate_json(before) if before else None,
            doubts=None
            if content.get("doubts") is None
            else [WarningRecord.model_validate_json(line) for line in content["doubts"]],
            expectation_seconds=content.get("expectation_seconds", 0.0),
            borne=Borne(**content["borne"]) if content.get("borne") else None,
            sought=content.get("sought", {}),
            misled=[
                ((kind, place), Proportion.model_validate_json(rate))
                for (kind, place), rate in content.get("misled", [])
            ],
            searches=content.get("searches", {}),
            inspected={
                stage: Inspection.model_validate_json(line)
                for stage, line in content.get("inspected", {}).items()
            },
            retuned={
                name: Retuned.model_validate_json(line)
                for name, line in content.get("retuned", {}).items()
            },
            example_predictions=content["example_predictions"],
            finished=[StageRecord.model_validate_json(line) for line in content["finished"]],
            epochs=[EpochRecord.model_validate_json(line) for line in content["epochs"]],
            networks=content["networks"],
            tried=[Tried(**each) for each in content.get("tried", [])],
            kept=content.get("kept", {}),
            loop=LoopState(**loop) if loop else None,
            backed_off=content.get("backed_off", 0),
            lost_seconds=content.get("lost_seconds", 0.0),
        )


def _shallow(loop: LoopState) -> dict[str, Any]:
    # `asdict` would copy every tensor once more.
    return {name: getattr(loop, name) for name in asdict(LoopState())}
