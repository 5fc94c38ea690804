"""The one entry point of the library: a specification in, a sanitized model and its report out."""

import hashlib
import json
from pathlib import Path
from time import monotonic

import torch

from sanitizer.compute import prepare
from sanitizer.evaluation.inversion import Found
from sanitizer.events import Stage
from sanitizer.inputs import Inputs, load_inputs
from sanitizer.parallel.group import ALONE, Group
from sanitizer.planned import PlannedWork
from sanitizer.progress import Emit, Progress
from sanitizer.randomness import DRAWS
from sanitizer.report.model import Report
from sanitizer.run_state import CheckpointDamaged, RunState
from sanitizer.spec import SanitizeSpec
from sanitizer.stages.choose import records_of_kept, train_and_choose
from sanitizer.stages.expect import look_at_expectation, warn_of_chance
from sanitizer.stages.fit import fit_augmentation
from sanitizer.stages.measure import measure, measure_suspect
from sanitizer.stages.retune import retune
from sanitizer.stages.run import Run
from sanitizer.stages.screen import screen_images
from sanitizer.stages.search import search
from sanitizer.stages.train import scale_warning
from sanitizer.stages.write import Results, deliver, write
from sanitizer.warning_codes import WarningCode


def sanitize(
    spec: SanitizeSpec,
    out: Path,
    work: Path,
    emit: Emit,
    group: Group = ALONE,
    *,
    start_seconds: float = 0.0,
) -> Report:
    """Runs a whole job: load, measure, train, measure again, write.

    A run that was killed goes on where its last checkpoint in `work` stands, and ends in the same
    model, byte for byte, as one that was not.

    Args:
        spec: What to do.
        out: Folder for the model, the report and its pictures; made if it is not there.
        work: Folder for decoded images and the checkpoint; can go once the run succeeded.
        emit: Gets every event, the `ResultEvent` last; nothing where this is not the leader.
        group: The processes that share the run, each of which calls this with the same arguments.
        start_seconds: What the process needed until it came here; for the report alone.

    Returns:
        The report, as it was written to `report.json`.

    Raises:
        SanitizerError: Something is wrong; see `sanitizer.errors`.
    """
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    return _executed(Run(spec, out, work, emit, group, start_seconds))


def _begun(run: Run) -> None:
    """Reads all inputs and the checkpoint, if there is one."""
    prepare(run.spec.threads, run.group.size)
    run.journal.begin(Stage.LOAD, "Reading the model and the images.")
    run.inputs = load_inputs(run.spec, run.work, run.journal, run.group)
    fingerprint = run.group.from_leader(
        lambda: _fingerprint(run.spec, run.inputs, run.device, run.precision)
    )
    saved = _saved(run, fingerprint)
    run.group.wait()  # until all have read it, none is written
    run.state = saved or RunState(fingerprint)
    if saved:
        run.state.resumed += 1
        run.journal.warn(
            WarningCode.RESUMED, "The run was interrupted and goes on from its last checkpoint."
        )
    run.network = run.inputs.suspect.network.to(run.device)
    # Convolutions are a quarter faster with channels last, on CPUs as well as on GPUs.
    run.network.to(memory_format=torch.channels_last)
    run.record(Stage.LOAD, monotonic() - run.begun)


def _executed(run: Run) -> Report:
    _begun(run)
    loaded = run.inputs.clean
    look_at_expectation(run)
    # A checkpoint of a version that doubted later may have screened already.
    screens = run.spec.screen and (run.state.screened is not None or not run.state.doubts)
    screened = screen_images(run) if screens else None
    searches = 2 if run.spec.inspect else int(run.chooses)
    run.planned = PlannedWork(run.spec, run.inputs, len(run.trained_on), run.tries, searches)
    run.progress = Progress(run.journal.emit, run.planned.whole, run.planned.done(run.state))
    if run.state.before is None:
        measure_suspect(run)
    warn_of_chance(run)
    fit_augmentation(run)
    found_before: list[Found] = []
    if run.spec.inspect or run.chooses:
        found_before = search(run, Stage.INSPECT, "Searching the model as it came for triggers.")
    train_and_choose(run, found_before)
    if warning := scale_warning(records_of_kept(run)):
        run.journal.warn(WarningCode.BACKED_OFF, warning)
    model_path = deliver(run)
    after = measure(run, Stage.EVALUATE, "Measuring the sanitized model.")
    durability = retune(run)
    found_after: list[Found] = []
    if run.spec.inspect:
        found_after = search(run, Stage.REINSPECT, "Searching the sanitized model for triggers.")
    return write(
        run, Results(model_path, after, durability, loaded, screened, found_before, found_after)
    )


def _saved(run: Run, fingerprint: str) -> RunState | None:
    try:
        return RunState.load(run.work, fingerprint)
    except CheckpointDamaged as error:
        run.journal.warn(WarningCode.CHECKPOINT_DAMAGED, f"{error} The run starts over.")
        return None


def _fingerprint(
    spec: SanitizeSpec, inputs: Inputs, device: torch.device, precision: torch.dtype
) -> str:
    """Of everything that decides the outcome, rounding included; not of paths or the policy."""
    content = {
        "spec": spec.model_dump(
            mode="json",
            exclude={
                "model": {"path", "filename"},
                "clean_data": {"path"},
                "evaluation_data": {"path"},
                "device": True,
                "precision": True,
                "threads": True,
                "policy": True,
                "checkpoint_seconds": True,
            },
        ),
        "draws": DRAWS,
        "device": device.type,
        "precision": str(precision),
        "threads": torch.get_num_threads(),
        "model": inputs.input_file.sha256,
        "clean": inputs.clean_sha256,
        "evaluation": inputs.evaluation_sha256,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
