"""The one entry point of the library: a specification in, a sanitized model and its report out."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sanitizer.choice import Tried, best_of, records_of, worst_of
from sanitizer.compute import choose_device, choose_precision, device_name, prepare
from sanitizer.cost.measured import measure_cost
from sanitizer.cost.workload import (
    RATED_IMAGES,
    RETUNED_IMAGES,
    RETUNING_RATE,
    SEARCH_FAMILIES,
    inspection_passes,
)
from sanitizer.data.image_set import ImageSet
from sanitizer.data.loader import Batches
from sanitizer.data.splits import draw
from sanitizer.errors import InvalidSpec, TrainingDiverged
from sanitizer.evaluation.durability import Delivered, measure_durability, retuning_of
from sanitizer.evaluation.evaluate import evaluate
from sanitizer.evaluation.inspection import SEARCHED_IMAGES, classes_of, inspect, looks_of
from sanitizer.evaluation.inversion import Found, Subject, restore
from sanitizer.evaluation.metrics import defense_effectiveness
from sanitizer.evaluation.predict import predict
from sanitizer.events import (
    MetricEvent,
    ResultEvent,
    Stage,
)
from sanitizer.inputs import Inputs, load_inputs
from sanitizer.journal import Journal, keep_quiet
from sanitizer.machine import peak_resident_bytes, processor_name
from sanitizer.methods.heldout import hold_out_clean
from sanitizer.methods.loop import LoopHooks, LoopState, train
from sanitizer.methods.plan import (
    Bench,
    ChangingStage,
    MethodStage,
    TrainingStage,
    check_applies,
    plan,
    tries_of,
)
from sanitizer.networks.checkpoints import read_checkpoint, write_checkpoint
from sanitizer.parallel.group import ALONE, Group
from sanitizer.planned import PlannedWork
from sanitizer.progress import Emit, Preparation, Progress
from sanitizer.randomness import derive_seed
from sanitizer.report.artifacts import (
    model_artifact,
    result_name,
    sha256_of,
    write_report,
)
from sanitizer.report.model import (
    ChangeFamily,
    Cost,
    Durability,
    EpochRecord,
    Evaluation,
    Inspections,
    ModelFile,
    Report,
    StageRecord,
)
from sanitizer.report.verdict import decide
from sanitizer.run_state import CheckpointDamaged, RunState
from sanitizer.screened import Screened, screen
from sanitizer.spec import AutoConfig, SanitizeSpec, SingleMethodConfig

Digests = NDArray[np.uint8]
"""Of each image of a set, [N, 16]."""

EXAMPLE_PICTURES = 8
MAX_NAME_BYTES = 150


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
    heard = emit if group.is_leader else keep_quiet
    return _Run(spec, out, work, heard, group, start_seconds).execute()


class _Run:
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
        self.journal = Journal(emit)
        self.device = choose_device(spec.device, group.rank, group.size)
        self.precision = choose_precision(spec.precision, self.device)
        self.tries = tries_of(spec.method)
        self.chooses = isinstance(spec.method, AutoConfig)
        self.begun = monotonic()
        self.start_seconds = start_seconds

    def execute(self) -> Report:
        prepare(self.spec.threads, self.group.size)
        self.journal.begin(Stage.LOAD, "Reading the model and the images.")
        self.inputs = load_inputs(self.spec, self.work, self.journal, self.group)
        fingerprint = self.group.from_leader(
            lambda: _fingerprint(self.spec, self.inputs, self.device, self.precision)
        )
        saved = self._load_state(fingerprint)
        self.group.wait()  # until all have read it, none is written
        self.state = saved or RunState(fingerprint)
        if saved:
            self.state.resumed += 1
            self.journal.warn(
                "resumed", "The run was interrupted and goes on from its last checkpoint."
            )
        self.network = self.inputs.suspect.network.to(self.device)
        # Convolutions are a quarter faster with channels last, on CPUs as well as on GPUs.
        self.network.to(memory_format=torch.channels_last)
        self._record(Stage.LOAD, monotonic() - self.begun)
        self.screened = self._screen() if self.spec.screen else None
        clean, _ = self._clean_images
        searches = 2 if self.spec.inspect else int(self.chooses)
        self.work_planned = PlannedWork(self.spec, self.inputs, len(clean), self.tries, searches)
        self.progress = Progress(
            self.journal.emit, self.work_planned.whole, self.work_planned.done(self.state)
        )
        if self.state.before is None:
            self._measure_suspect()
        self.found_before: list[Found] = []
        if self.spec.inspect or self.chooses:
            self.found_before = self._search(
                Stage.INSPECT, "Searching the model as it came for triggers."
            )
        self._train()
        model_path = self._deliver()
        after = self._measure(Stage.EVALUATE, "Measuring the sanitized model.")
        durability = self._retune()
        self.found_after: list[Found] = []
        if self.spec.inspect:
            self.found_after = self._search(
                Stage.REINSPECT, "Searching the sanitized model for triggers."
            )
        return self._write(model_path, after, durability)

    def _load_state(self, fingerprint: str) -> RunState | None:
        try:
            return RunState.load(self.work, fingerprint)
        except CheckpointDamaged as error:
            self.journal.warn("checkpoint_damaged", f"{error} The run starts over.")
            return None

    # --- Screen ------------------------------------------------------------------------------

    def _screen(self) -> Screened:
        """Leaves out what carries a trigger, before anything is measured or trained."""
        screened = Screened.model_validate_json(self.group.from_leader(self._screened))
        self.loaded = self.inputs
        self.inputs = screened.applied(self.inputs, self.spec)
        if warning := screened.warning(self.inputs.clean.class_names):
            self.journal.warn("triggered_images", warning)
        return screened

    def _screened(self) -> str:
        if self.state.screened is not None:
            return self.state.screened
        self.journal.begin(Stage.SCREEN, "Looking for images that carry a trigger.")
        telling = Preparation(self.journal.emit, Stage.SCREEN)
        images = len(self.inputs.clean)
        done = 0

        def on_images(count: int) -> None:
            nonlocal done
            done += count
            telling(min(done, images), images)

        screened = screen(self.inputs, self.spec.seed, self.device, on_images)
        values = {
            f"left_out.{each.target_class}": each.left_out for each in screened.record.classes
        }
        self.journal.emit(
            MetricEvent(stage=Stage.SCREEN, values={"left_out": screened.record.left_out, **values})
        )
        self._record(Stage.SCREEN, screened.record.seconds)
        self.state.screened = screened.model_dump_json()
        self._save(None)
        return self.state.screened

    # --- Measure -----------------------------------------------------------------------------

    def _measure_suspect(self) -> None:
        examples = self._with_first_trigger(self.inputs.examples)
        if len(examples):
            self.network.eval()
            answers = predict(self.network, examples, self.device)
            self.state.example_predictions = answers.tolist()
        self.state.before = self._measure(Stage.BASELINE, "Measuring the model as it came.")
        self._save(None)

    def _measure(self, stage: Stage, message: str) -> Evaluation:
        self.journal.begin(stage, message)
        begun = monotonic()
        evaluation = evaluate(
            self.network,
            self.inputs.evaluation,
            self.inputs.triggers,
            num_classes=self.inputs.suspect.num_classes,
            device=self.device,
            draft=self.precision,
            on_images=lambda images: self.progress.add(stage, images),
            group=self.group,
        )
        self.journal.emit(MetricEvent(stage=stage, values=_figures(evaluation)))
        self._record(stage, monotonic() - begun)
        return evaluation

    def _with_first_trigger(self, images: Tensor) -> Tensor:
        return self.inputs.triggers[0].apply(images) if self.inputs.triggers else images[:0]

    # --- Search ------------------------------------------------------------------------------

    def _search(self, stage: Stage, message: str) -> list[Found]:
        """Searches the network as it stands.

        The leader alone does: one search after the other leaves nothing to share.
        """
        if not self.group.is_leader:
            return []
        subject = self._subject()
        kept = self.state.searches.setdefault(stage.value, [])
        found = [restore(subject, each) for each in kept]
        if stage.value in self.state.inspected:
            return found
        self.journal.begin(stage, message)
        begun = saved_at = monotonic()

        def on_search() -> None:
            nonlocal saved_at
            new = found[len(kept) :]
            kept.extend(each.state() for each in new)
            self.progress.add(stage, len(new) * inspection_passes(1) / SEARCH_FAMILIES)
            if monotonic() - saved_at >= self.spec.checkpoint_seconds:
                self._save(None)
                saved_at = monotonic()

        inspection = inspect(subject, found, on_search)
        self.state.inspected[stage.value] = inspection
        values = {
            f"estimated_asr.{each.target_class}": each.estimated_asr for each in inspection.classes
        }
        values["anomaly"] = inspection.anomaly
        self.journal.emit(MetricEvent(stage=stage, values=values))
        self._record(stage, monotonic() - begun)
        self._save(None)
        return found

    def _subject(self) -> Subject:
        """The network with the images that it is searched with, the same before and after."""
        evaluation = self.inputs.evaluation
        clean, _ = self._clean_images
        seed = derive_seed(self.spec.seed, "inspection")
        return Subject(
            network=self.network.eval(),
            point=self.inputs.suspect.taps[-1],
            num_classes=self.inputs.suspect.num_classes,
            searched=clean.subset(draw(clean.labels, min(SEARCHED_IMAGES, len(clean)), seed)),
            measured=evaluation.subset(
                draw(evaluation.labels, min(RATED_IMAGES, len(evaluation)), seed)
            ),
            device=self.device,
            seed=self.spec.seed,
        )

    def _inspections(self) -> Inspections | None:
        """What both searches say, and what the changes that were found before do now."""
        if not self.spec.inspect or not self.group.is_leader:
            return None
        return Inspections(
            before=self.state.inspected[Stage.INSPECT],
            after=self.state.inspected[Stage.REINSPECT],
            carried=classes_of(self._subject(), self._carried(), {}),
        )

    def _carried(self) -> list[Found]:
        """What was found in the suspect model and can be tried on another."""
        return [
            each for each in self.found_before if each.change.family is not ChangeFamily.FEATURES
        ]

    # --- Retune ------------------------------------------------------------------------------

    def _retune(self) -> Durability | None:
        """Trains copies of the sanitized network further, where that was asked for.

        A kill loses the retuning under way, which is brief; those before it are kept. All of a
        group share each of them.
        """
        if not self.spec.durability:
            return None
        is_new = Stage.RETUNE not in {record.stage for record in self.state.finished}
        if is_new:
            self.journal.begin(
                Stage.RETUNE,
                "Training copies of the sanitized model further, to see what comes back.",
            )
        evaluation = self.inputs.evaluation
        seed = derive_seed(self.spec.seed, "durability")
        delivered = Delivered(
            network=self.network,
            num_classes=self.inputs.suspect.num_classes,
            clean=self.inputs.clean,
            measured=evaluation.subset(
                draw(evaluation.labels, min(RETUNED_IMAGES, len(evaluation)), seed)
            ),
            probes=self.spec.probes,
            training=retuning_of(self.spec.method),
            seed=self.spec.seed,
            device=self.device,
            precision=self.precision,
            group=self.group,
        )
        try:
            durability = measure_durability(
                delivered,
                self.state.retuned,
                lambda passes: self.progress.add(Stage.RETUNE, passes),
                lambda: self._save(None),
            )
        except TrainingDiverged:
            # The model is sanitized and measured by now: it is not lost to what came on top.
            self.journal.warn(
                "retuning_diverged",
                "Durability cannot be told: at a learning rate of "
                f"{RETUNING_RATE:g} a copy of the sanitized model diverged.",
            )
            return None
        if is_new:
            self.journal.emit(MetricEvent(stage=Stage.RETUNE, values=_retuned_figures(durability)))
            self._record(Stage.RETUNE, durability.seconds)
            self._save(None)
        return durability

    # --- Train -------------------------------------------------------------------------------

    @cached_property
    def _clean_images(self) -> tuple[ImageSet, ImageSet]:
        """Those that are trained on, and, where a method is to be chosen, those to choose by."""
        clean = self.inputs.clean
        if self.chooses:
            return hold_out_clean(clean, self.spec.seed)
        return clean, clean.subset(np.empty(0, dtype=np.int64))

    def _train(self) -> None:
        if not self.chooses:
            (method,) = self.tries
            self._run_method(method)
            return
        suspect = {name: value.clone() for name, value in self.network.state_dict().items()}
        for method in self.tries[len(self.state.tried) :]:
            self.network.load_state_dict(suspect)
            why = self._why_left_out(method)
            if why:
                tried = Tried(method.name, left_out=why)
                for stage in plan(method):
                    self.progress.add(stage.stage, self.work_planned.of_stage(stage))
            else:
                tried = self._try(method)
            self.state.tried.append(tried)
            if not tried.left_out and best_of(self.state.tried) is tried:
                self.state.kept = {
                    name: value.clone() for name, value in self.network.state_dict().items()
                }
            self.state.networks = {}
            self._save(None)
        self._choose()

    def _try(self, method: SingleMethodConfig) -> Tried:
        """Runs one of several methods; one that diverges is not the end of the run.

        Raises:
            TrainingDiverged: It is the last, and none before it is through.
        """
        try:
            self._run_method(method)
        except TrainingDiverged as error:
            if method is self.tries[-1] and all(each.left_out for each in self.state.tried):
                raise
            self.state.epochs = []
            return Tried(method.name, left_out=str(error))
        return self._judge(method)

    def _run_method(self, method: SingleMethodConfig) -> None:
        """Does to the network what the method does, from where the state stands."""
        bench = Bench(
            self.network,
            deepcopy(self.network),
            self.inputs.suspect.taps,
            self.spec.seed,
            self.precision,
            self.group,
        )
        for role, weights in self.state.networks.items():
            getattr(bench, role).load_state_dict(weights)
        done = {record.stage for record in self.state.finished}
        for stage in plan(method):
            if stage.stage not in done:
                match stage:
                    case TrainingStage():
                        self._train_stage(stage, bench)
                    case ChangingStage():
                        self._change_stage(stage, bench)

    # --- Choose ------------------------------------------------------------------------------

    def _why_left_out(self, method: SingleMethodConfig) -> str:
        """Why a method is not tried; empty: it is. The same answer for all of a group."""
        suspect = self.inputs.suspect
        try:
            check_applies(method, suspect.network, (suspect.channels, *suspect.input_size))
        except InvalidSpec as error:
            return str(error)
        limit = self.spec.method.seconds if isinstance(self.spec.method, AutoConfig) else None
        begun = any(stage.stage in self._seconds_by_stage() for stage in plan(method))
        if limit is None or begun or all(each.left_out for each in self.state.tried):
            return ""
        return self.group.from_leader(lambda: self._why_too_long(method, limit))

    def _why_too_long(self, method: SingleMethodConfig, limit: float) -> str:
        seconds = self._seconds_by_stage()
        through = {each.method for each in self.state.tried if not each.left_out}
        stages = [s for each in self.tries if each.name in through for s in plan(each)]
        spent = sum(seconds[stage.stage] for stage in stages)
        expected = spent * _passes(plan(method)) / _passes(stages)
        left = limit - self._seconds()
        if expected <= left:
            return ""
        return (
            f"It would have taken about {expected:.0f} s more; of {limit:.0f} s "
            f"{max(0.0, left):.0f} were left."
        )

    def _judge(self, method: SingleMethodConfig) -> Tried:
        """What the choice needs to know of the network as the method left it."""
        seconds = self._seconds_by_stage()
        spent = sum(seconds[stage.stage] for stage in plan(method))
        told = self.group.from_leader(lambda: json.dumps(asdict(self._judged(method.name, spent))))
        return Tried(**json.loads(told))

    def _judged(self, name: str, seconds: float) -> Tried:
        begun = monotonic()
        _, held = self._clean_images
        self.network.eval()
        pixels = torch.from_numpy(held.read(np.arange(len(held))))
        answers = predict(self.network, pixels, self.device)
        subject = replace(self._subject(), measured=held)
        residual, target, images = worst_of(classes_of(subject, self._carried(), {}))
        self.state.choice_seconds += monotonic() - begun
        return Tried(
            name,
            right=(answers.numpy() == held.labels).tolist(),
            residual=residual,
            images=images,
            target=target,
            seconds=seconds,
        )

    def _choose(self) -> None:
        """Goes on with what the best of the methods made."""
        if all(each.left_out for each in self.state.tried):
            raise InvalidSpec(" ".join(each.left_out for each in self.state.tried))
        best = best_of(self.state.tried)
        self.journal.begin(Stage.CHOOSE, f"Keeping what {best.method} made of the model.")
        self.network.load_state_dict(self.state.kept)
        values = {}
        for each in self.state.tried:
            if not each.left_out:
                values[f"accuracy.{each.method}"] = each.accuracy.value
                values[f"residual.{each.method}"] = each.residual
        self.journal.emit(MetricEvent(stage=Stage.CHOOSE, values=values))
        self._record(Stage.CHOOSE, self.state.choice_seconds, values=values)

    def _seconds_by_stage(self) -> dict[str, float]:
        """Of the stages that are through."""
        return {record.stage: record.seconds for record in self.state.finished}

    # --- Stages of a method --------------------------------------------------------------------

    def _train_stage(self, stage: TrainingStage, bench: Bench) -> None:
        clean, _ = self._clean_images
        images, seen = len(clean), self.work_planned.epoch_images(stage)
        self.journal.begin(
            stage.stage,
            f"Training the {stage.subject or stage.trains} on {images} clean images for "
            f"{stage.training.epochs} epochs"
            + (f" of {seen} images each." if seen > images else "."),
        )
        step = stage.make_step(bench)
        batches = Batches(
            clean,
            stage.training,
            stage.training.batch_size,
            self.device,
            (self.spec.seed, stage.stage.value),
            group=self.group,
        )
        train(
            step,
            batches,
            stage.training,
            (self.spec.seed, stage.stage.value, "network"),
            state=self.state.loop,
            hooks=_StageHooks(self, stage, step.network),
        )
        stage.finish(bench, step)
        self.state.networks[stage.trains] = getattr(bench, stage.trains).state_dict()
        seconds = sum(record.values["seconds"] for record in self.state.epochs)
        self._record(stage.stage, seconds, self.state.epochs)
        self.state.epochs = []
        self._save(None)

    def _change_stage(self, stage: ChangingStage, bench: Bench) -> None:
        self.journal.begin(stage.stage, stage.message)
        begun = monotonic()
        clean, _ = self._clean_images
        figures = stage.change(bench, clean, lambda images: self.progress.add(stage.stage, images))
        self.journal.emit(MetricEvent(stage=stage.stage, values=dict(figures)))
        self.state.networks[stage.changes] = getattr(bench, stage.changes).state_dict()
        self._record(stage.stage, monotonic() - begun, values=figures)
        self._save(None)

    def measure_curve(self, network: torch.nn.Module, stage: Stage) -> dict[str, float]:
        """Figures on the curve's images, for people to look at; nothing is chosen by them."""
        if self.inputs.curve is None:
            return {}
        begun = monotonic()
        evaluation = evaluate(
            network,
            self.inputs.curve,
            self.inputs.triggers,
            num_classes=self.inputs.suspect.num_classes,
            device=self.device,
            draft=self.precision,
            on_images=lambda images: self.progress.add(stage, images),
            group=self.group,
        )
        self.state.curve_seconds += monotonic() - begun
        return _figures(evaluation)

    def save_loop(self, loop: LoopState) -> None:
        """Keeps a checkpoint from the middle of a training stage."""
        self._save(loop)

    # --- Write -------------------------------------------------------------------------------

    def _deliver(self) -> Path:
        """Writes the model, and goes on with the weights as the file has them.

        A half-precision upload gets a half-precision result: what is measured must be that.
        """
        suspect, checkpoint = self.inputs.suspect, self.inputs.checkpoint
        path = self.out / result_name(self.inputs.input_file.filename)
        if self.group.is_leader:
            write_checkpoint(path, suspect.state_for(checkpoint), like=checkpoint)
        self.group.wait()
        # Counters that old files lack are not in it.
        suspect.network.network.load_state_dict(read_checkpoint(path).state, strict=False)
        return path

    def _write(self, model_path: Path, after: Evaluation, durability: Durability | None) -> Report:
        self.journal.begin(Stage.WRITE, "Writing the model and the report.")
        begun = monotonic()
        inputs = self.inputs
        before = self.state.before
        if before is None:
            raise RuntimeError("the suspect model is measured before anything is written")
        inspections = self._inspections()
        report = Report(
            model=inputs.model_record(),
            input=inputs.input_file,
            output=ModelFile(
                filename=model_path.name,
                format=inputs.checkpoint.format,
                sha256=sha256_of(model_path),
                bytes=model_path.stat().st_size,
            ),
            clean_data=inputs.clean_record,
            evaluation_data=inputs.evaluation_record,
            method=self.spec.method.model_dump(mode="json"),
            seed=self.spec.seed,
            device=device_name(self.device),
            devices=self.group.size,
            precision=str(self.precision).removeprefix("torch."),
            versions=_versions(),
            before=before,
            after=after,
            der={
                old.name: defense_effectiveness(
                    before.accuracy.value, after.accuracy.value, old.asr.value, new.asr.value
                )
                for old, new in zip(before.probes, after.probes, strict=True)
            },
            decision=decide(
                self.spec.policy,
                before,
                after,
                inspections,
                durability,
                self.screened.record if self.screened else None,
            ),
            screening=self.screened.record if self.screened else None,
            inspections=inspections,
            durability=durability,
            tries=records_of(self.state.tried) if self.chooses else None,
            stages=self.state.finished,
            warnings=self.journal.warnings,
            seconds=self._seconds(),
            resumed=self.state.resumed,
        )
        if not self.group.is_leader:
            return report
        pictures = self._draw(report)
        # What all of it took is known once the pictures are drawn, which takes longest here.
        self._record(Stage.WRITE, monotonic() - begun)
        report = report.model_copy(
            update={"stages": self.state.finished, "seconds": self._seconds()}
        )
        report = report.model_copy(update={"cost": self._cost(report)})
        artifacts = [model_artifact(model_path)]
        artifacts += write_report(report, pictures, self.out)
        self.journal.emit(ResultEvent(artifacts=artifacts))
        return report

    def _draw(self, report: Report) -> dict[str, bytes]:
        # Matplotlib takes most of a second to import, and a run that fails never needs it.
        from sanitizer.report.plots import (
            plot_before_after,
            plot_curves,
            plot_durability,
            plot_examples,
            plot_inspection,
            plot_screening,
        )

        pictures = {
            "curves.png": plot_curves(report),
            "before_after.png": plot_before_after(report),
        }
        if (inspections := report.inspections) is not None:
            pictures["inspection.png"] = plot_inspection(
                inspections,
                [
                    looks_of(inspections.before, self.found_before),
                    looks_of(inspections.after, self.found_after),
                ],
                self.inputs.evaluation.class_names,
            )
        if report.durability is not None and report.durability.probes:
            pictures["durability.png"] = plot_durability(report.durability)
        if self.screened is not None and self.screened.record.left_out:
            pictures["screening.png"] = plot_screening(
                self.screened.pictured(self.loaded.clean),
                self.inputs.evaluation.class_names,
            )
        examples = self._with_first_trigger(self.inputs.examples)
        if len(examples):
            pictures["examples.png"] = plot_examples(
                self.inputs.examples.numpy(),
                examples.numpy(),
                self.inputs.example_labels.tolist(),
                self.state.example_predictions,
                predict(self.network, examples, self.device).tolist(),
                self.inputs.evaluation.class_names,
            )
        return pictures

    def _cost(self, report: Report) -> Cost:
        cuda = self.device.type == "cuda"
        curve = self.inputs.curve
        return measure_cost(
            report,
            device="cuda" if cuda else "cpu",
            processor=device_name(self.device) if cuda else processor_name(),
            threads=torch.get_num_threads(),
            start_seconds=self.start_seconds,
            curve_images=0 if curve is None else len(curve.labels),
            curve_seconds=self.state.curve_seconds,
            peak_host_bytes=peak_resident_bytes(),
            peak_device_bytes=torch.cuda.max_memory_reserved(self.device) if cuda else None,
        )

    # --- Events and state --------------------------------------------------------------------

    def _record(
        self,
        stage: Stage,
        seconds: float,
        epochs: Sequence[EpochRecord] = (),
        values: Mapping[str, float] | None = None,
    ) -> None:
        record = StageRecord(
            stage=stage, seconds=round(seconds, 3), epochs=list(epochs), values=dict(values or {})
        )
        # A resumed run loads and measures again; its records keep their places.
        by_stage = {other.stage: other for other in self.state.finished} | {record.stage: record}
        self.state.finished = list(by_stage.values())

    def _save(self, loop: LoopState | None) -> None:
        self.state.loop = loop
        seconds = self.state.seconds
        self.state.seconds = self._seconds()
        if self.group.is_leader:  # the others' would be the same
            self.state.save(self.work)
        self.state.seconds = seconds

    def _seconds(self) -> float:
        return round(self.state.seconds + monotonic() - self.begun, 3)


class _StageHooks(LoopHooks):
    """Turns what the loop tells into events, records and checkpoints."""

    def __init__(self, run: _Run, stage: TrainingStage, network: torch.nn.Module) -> None:
        self.run = run
        self.stage = stage
        self.network = network
        self.saved = monotonic()

    def on_step(self, epoch: int, step: int, steps: int) -> None:
        self.run.progress.add(
            self.stage.stage,
            self.run.work_planned.epoch_images(self.stage) * self.stage.relative_cost / steps,
            epoch=epoch + 1,
            epochs=self.stage.training.epochs,
            step=step,
            steps=steps,
        )

    def on_epoch(self, epoch: int, values: dict[str, float]) -> None:
        figures = {**values, **self.run.measure_curve(self.network, self.stage.stage)}
        self.run.state.epochs.append(EpochRecord(epoch=epoch, values=figures))
        self.run.journal.emit(MetricEvent(stage=self.stage.stage, epoch=epoch, values=figures))

    def wants_checkpoint(self) -> bool:
        due = monotonic() - self.saved >= self.run.spec.checkpoint_seconds
        return due and self.run.group.is_leader

    def save(self, state: LoopState) -> None:
        self.run.save_loop(state)
        self.saved = monotonic()


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
        "device": device.type,
        "precision": str(precision),
        "threads": torch.get_num_threads(),
        "model": inputs.input_file.sha256,
        "clean": inputs.clean_sha256,
        "evaluation": inputs.evaluation_sha256,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _figures(evaluation: Evaluation) -> dict[str, float]:
    values = {"accuracy": evaluation.accuracy.value}
    for probe in evaluation.probes:
        values[f"asr.{probe.name}"] = probe.asr.value
        values[f"ra.{probe.name}"] = probe.ra.value
    return values


def _passes(stages: Sequence[MethodStage]) -> float:
    return sum(stage.passes for stage in stages)


def _retuned_figures(durability: Durability) -> dict[str, float]:
    values = {"retuned_accuracy": durability.clean_accuracy.value}
    for probe in durability.probes:
        values[f"retuned_asr.{probe.name}"] = probe.clean.value
        values[f"poisoned_asr.{probe.name}"] = probe.poisoned.value
        values[f"control_asr.{probe.name}"] = probe.control.value
    return values


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
