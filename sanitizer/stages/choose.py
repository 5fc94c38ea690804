"""Trains by one method or by several, of which the best is kept."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from time import monotonic

import numpy as np
import torch

from sanitizer.choice import Tried, best_of, worst_of
from sanitizer.errors import InvalidSpec, TrainingDiverged
from sanitizer.evaluation.inspection import classes_of
from sanitizer.evaluation.inversion import Found
from sanitizer.evaluation.predict import predict
from sanitizer.events import MetricEvent, Stage
from sanitizer.methods.heldout import places_in_batches
from sanitizer.methods.plan import MethodStage, check_applies, plan
from sanitizer.networks.weights import put_weights
from sanitizer.report.model import StageRecord
from sanitizer.spec import AutoConfig, SingleMethodConfig
from sanitizer.stages.run import Run
from sanitizer.stages.search import carried, subject_of
from sanitizer.stages.train import run_method


def train_and_choose(run: Run, found: list[Found]) -> None:
    """Runs the method; of several each on the suspect model, and goes on with the best.

    Args:
        found: In the suspect model; what methods are chosen by, beside accuracy.

    Raises:
        InvalidSpec: None of several can be used for this network.
        TrainingDiverged: The only one did, or the last, and none before it is through.
    """
    if not run.chooses:
        (method,) = run.tries
        run_method(run, method)
        return
    suspect = {name: value.clone() for name, value in run.network.state_dict().items()}
    for method in run.tries[len(run.state.tried) :]:
        put_weights(run.network, suspect)
        why = _why_left_out(run, method)
        if why:
            tried = Tried(method.name, left_out=why)
            for stage in plan(method):
                run.progress.add(stage.stage, run.planned.of_stage(stage))
        else:
            tried = _try(run, method, found)
        run.state.tried.append(tried)
        if not tried.left_out and best_of(run.state.tried) is tried:
            run.state.kept = {
                name: value.clone() for name, value in run.network.state_dict().items()
            }
        run.state.networks = {}
        run.state.epochs = []
        run.state.backed_off, run.state.lost_seconds = 0, 0.0
        run.save()
    _choose(run)


def records_of_kept(run: Run) -> list[StageRecord]:
    """Of the stages of the method whose result is kept."""
    kept = best_of(run.state.tried).method if run.chooses else run.tries[0].name
    stages = {stage.stage for each in run.tries if each.name == kept for stage in plan(each)}
    return [record for record in run.state.finished if record.stage in stages]


def _try(run: Run, method: SingleMethodConfig, found: list[Found]) -> Tried:
    """Runs one of several methods; one that diverges is not the end of the run.

    Raises:
        TrainingDiverged: It is the last, and none before it is through.
    """
    try:
        run_method(run, method)
    except TrainingDiverged as error:
        if method is run.tries[-1] and all(each.left_out for each in run.state.tried):
            raise
        return Tried(method.name, left_out=str(error))
    return _judge(run, method, found)


def _why_left_out(run: Run, method: SingleMethodConfig) -> str:
    """Why a method is not tried; empty: it is. The same answer for all of a group."""
    suspect = run.inputs.suspect
    try:
        check_applies(method, suspect.network, (suspect.channels, *suspect.input_size))
    except InvalidSpec as error:
        return str(error)
    limit = run.spec.method.seconds if isinstance(run.spec.method, AutoConfig) else None
    # One that a killed run was in the middle of is not weighed again.
    begun = any(stage.stage in run.seconds_by_stage() for stage in plan(method))
    begun |= bool(run.state.loop or run.state.epochs or run.state.backed_off)
    if limit is None or begun or all(each.left_out for each in run.state.tried):
        return ""
    return run.group.from_leader(lambda: _why_too_long(run, method, limit))


def _why_too_long(run: Run, method: SingleMethodConfig, limit: float) -> str:
    seconds = run.seconds_by_stage()
    through = {each.method for each in run.state.tried if not each.left_out}
    stages = [s for each in run.tries if each.name in through for s in plan(each)]
    spent = sum(seconds[stage.stage] for stage in stages)
    images = len(run.trained_on)
    expected = spent * _work(plan(method), images) / _work(stages, images)
    left = limit - run.seconds()
    if expected <= left:
        return ""
    return (
        f"It would have taken about {expected:.0f} s more; of {limit:.0f} s "
        f"{max(0.0, left):.0f} were left."
    )


def _judge(run: Run, method: SingleMethodConfig, found: list[Found]) -> Tried:
    """What the choice needs to know of the network as the method left it."""
    seconds = run.seconds_by_stage()
    spent = sum(seconds[stage.stage] for stage in plan(method))
    told = run.group.from_leader(
        lambda: json.dumps(asdict(_judged(run, method.name, spent, found)))
    )
    return Tried(**json.loads(told))


def _judged(run: Run, name: str, seconds: float, found: list[Found]) -> Tried:
    begun = monotonic()
    held = run.chosen_by
    run.network.eval()
    answers = torch.cat(
        [
            predict(run.network, torch.from_numpy(held.read(places)), run.device)
            for places in places_in_batches(held)
        ]
    )
    subject = replace(subject_of(run), measured=held)
    # Of few held-out images all may be of the class that a change leads to.
    measurable = [each for each in carried(found) if np.any(held.labels != each.target)]
    residual, target, images = worst_of(classes_of(subject, measurable, {}))
    run.state.choice_seconds += monotonic() - begun
    return Tried(
        name,
        right=(answers.numpy() == held.labels).tolist(),
        residual=residual,
        images=images,
        target=target,
        seconds=seconds,
    )


def _choose(run: Run) -> None:
    """Goes on with what the best of the methods made."""
    if all(each.left_out for each in run.state.tried):
        raise InvalidSpec(" ".join(each.left_out for each in run.state.tried))
    best = best_of(run.state.tried)
    run.journal.begin(Stage.CHOOSE, f"Keeping what {best.method} made of the model.")
    put_weights(run.network, run.state.kept)
    values = {}
    for each in run.state.tried:
        if not each.left_out:
            values[f"accuracy.{each.method}"] = each.accuracy.value
            values[f"residual.{each.method}"] = each.residual
    run.journal.emit(MetricEvent(stage=Stage.CHOOSE, values=values))
    run.record(Stage.CHOOSE, run.state.choice_seconds, values=values)


def _work(stages: Sequence[MethodStage], images: int) -> float:
    return sum(stage.work(images) for stage in stages)
