"""Runs of whole methods, with and without kills."""

import io
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sanitizer.data.image_set import ImageSet
from sanitizer.data.loader import Batches
from sanitizer.methods.loop import LoopHooks, LoopState, train
from sanitizer.methods.plan import Bench, ChangingStage, TrainingStage, plan
from sanitizer.methods.random_triggers import pictures_of
from sanitizer.methods.trigger_search import FoundTriggers, find_triggers
from sanitizer.networks.taps import find_taps
from sanitizer.spec import METHOD_ADAPTER, ArgdConfig
from tests.sanitizer.methods.networks import digit_set

CPU = torch.device("cpu")
SEED = 5
PLAIN = {"crop_padding": 0, "horizontal_flip": False, "cutout_size": 0}


def clean_images() -> ImageSet:
    """Digits that `networks.trained` was not trained on, nor `share_right` measures on."""
    return digit_set(800, 960)


class Killed(Exception):
    pass


class _Dying(LoopHooks):
    """Saves after each step as a file would, and dies after some of them; after 0 it never does."""

    def __init__(self, die_after: int) -> None:
        self.left = die_after
        self.saved = b""
        self.figures: list[dict[str, float]] = []

    def wants_checkpoint(self) -> bool:
        return True

    def on_epoch(self, epoch: int, values: dict[str, float]) -> None:  # noqa: ARG002
        self.figures.append({name: v for name, v in values.items() if name != "seconds"})

    def save(self, state: LoopState) -> None:
        buffer = io.BytesIO()
        torch.save(vars(state), buffer)
        self.saved = buffer.getvalue()
        self.left -= 1
        if self.left == 0:
            raise Killed


def run(
    method: dict[str, Any],
    suspect: nn.Module,
    *,
    die_after: int = 0,
    images: ImageSet | None = None,
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """All stages of a method.

    Args:
        suspect: Left as it is.
        die_after: Every stage is killed after so many steps, and goes on in new objects, made as a
            new process makes them, until it is through. 0: none is.

    Returns:
        The student's weights, and the figures of the epochs.
    """
    image_set = images or clean_images()
    finished: dict[str, dict[str, Tensor]] = {}
    figures: list[dict[str, float]] = []
    config = METHOD_ADAPTER.validate_python(method)
    searches = isinstance(config, ArgdConfig) and config.searches
    bench = _bench(suspect, finished, image_set, searches=searches)
    for stage in plan(config):
        if isinstance(stage, ChangingStage):
            stage.change(bench, image_set, lambda _images: None)
            finished[stage.changes] = deepcopy(getattr(bench, stage.changes).state_dict())
            continue
        state = None
        while True:
            hooks = _Dying(die_after)
            try:
                _train(stage, bench, image_set, hooks, state)
            except Killed:
                state = LoopState(**torch.load(io.BytesIO(hooks.saved), weights_only=True))
                bench = _bench(suspect, finished, image_set, searches=searches)
                continue
            finally:
                figures += hooks.figures
            break
        finished[stage.trains] = deepcopy(getattr(bench, stage.trains).state_dict())
        if die_after:
            bench = _bench(suspect, finished, image_set, searches=searches)
    return finished["student"], figures


def _bench(
    suspect: nn.Module, finished: dict[str, dict[str, Tensor]], images: ImageSet, *, searches: bool
) -> Bench:
    taps = find_taps(deepcopy(suspect), "wrn-10-1", (8, 8), 1)
    bench = Bench(
        deepcopy(suspect),
        deepcopy(suspect),
        taps,
        SEED,
        clean=images,
        found=_found(suspect, images) if searches else None,
        suspect=deepcopy(suspect),
    )
    for role, weights in finished.items():
        getattr(bench, role).load_state_dict(weights)
    return bench


def _found(suspect: nn.Module, images: ImageSet) -> FoundTriggers:
    return find_triggers(
        suspect, images, pictures_of(images, SEED), seed=SEED, precision=torch.float32, device=CPU
    )


def _train(
    stage: TrainingStage, bench: Bench, images: ImageSet, hooks: LoopHooks, state: LoopState | None
) -> None:
    seed = (SEED, stage.stage.value)
    step = stage.make_step(bench)
    batches = Batches(images, stage.training, stage.training.batch_size, CPU, seed)
    train(step, batches, stage.training, (*seed, "network"), state=state, hooks=hooks)
    stage.finish(bench, step)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two networks have the same weights, to the bit."""
    return first.keys() == second.keys() and all(
        np.array_equal(value.numpy(), second[name].numpy()) for name, value in first.items()
    )
