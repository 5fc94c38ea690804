"""How much work a run has before it, and how much of it is done: for the progress bar.

Work is counted in images times forward passes.
"""

from collections.abc import Sequence

from sanitizer.cost.workload import (
    FINETUNING_PASSES,
    RETUNING_EPOCHS,
    SEARCH_FAMILIES,
    fitted_images,
    inspection_passes,
    retuned_evaluated,
    retunings,
    sought_images,
)
from sanitizer.inputs import Inputs
from sanitizer.methods.plan import MethodStage, TrainingStage, plan
from sanitizer.run_state import RunState
from sanitizer.spec import SanitizeSpec, SingleMethodConfig, looks_first


class PlannedWork:
    """The work of a run.

    Args:
        spec: Of the run.
        inputs: What it works on.
        clean_images: That each method is trained on.
        tries: The methods that are run.
        searches: How often a model is searched for triggers.
    """

    def __init__(
        self,
        spec: SanitizeSpec,
        inputs: Inputs,
        clean_images: int,
        tries: Sequence[SingleMethodConfig],
        searches: int,
    ) -> None:
        self._spec = spec
        self._inputs = inputs
        self._clean_images = clean_images
        self._tries = tries
        self._searches = searches

    @property
    def whole(self) -> float:
        """All that is planned."""
        measured = 2 * self._of_evaluation(len(self._inputs.evaluation))
        measured += self._of_fitting + sought_images(self._spec.method)
        measured += self._searches * inspection_passes(self._inputs.suspect.num_classes)
        stages = (stage for each in self._tries for stage in plan(each))
        return measured + self._of_retuning() + sum(map(self.of_stage, stages))

    def done(self, state: RunState) -> float:
        """What a run that is taken up again has behind it."""
        done = 0.0
        if state.before is not None:
            done += self._of_evaluation(len(self._inputs.evaluation))
        if state.borne is not None:
            done += self._of_fitting
        if state.sought:
            done += sought_images(self._spec.method)
        searches = sum(map(len, state.searches.values()))
        done += searches * inspection_passes(1) / SEARCH_FAMILIES
        # One more than are trained: the sanitized model is measured too.
        copies = 1 + retunings(len(self._spec.probes))
        done += self._of_retuning() * len(state.retuned) / copies
        finished = {record.stage for record in state.finished}
        left_out = {each.method for each in state.tried if each.left_out}
        for method, stage in ((each, stage) for each in self._tries for stage in plan(each)):
            if stage.stage in finished or method.name in left_out:
                done += self.of_stage(stage)
            elif state.loop is not None and isinstance(stage, TrainingStage):
                done += self.of_stage(stage) * state.loop.epoch / stage.training.epochs
                break
        return done

    def of_stage(self, stage: MethodStage) -> float:
        """A stage of a method, with the curves after its epochs."""
        work = stage.work(self._clean_images)
        if isinstance(stage, TrainingStage) and self._inputs.curve is not None:
            work += stage.training.epochs * self._of_evaluation(len(self._inputs.curve))
        return work

    def epoch_images(self, stage: TrainingStage) -> int:
        """How many images an epoch of a stage has."""
        return stage.training.epoch_images(self._clean_images)

    @property
    def _of_fitting(self) -> float:
        return fitted_images(self._clean_images) if looks_first(self._spec.method) else 0

    def _of_evaluation(self, images: int) -> float:
        return images * (1 + len(self._inputs.triggers))

    def _of_retuning(self) -> float:
        if not self._spec.durability:
            return 0
        probes = len(self._spec.probes)
        images = len(self._inputs.clean) * RETUNING_EPOCHS * retunings(probes)
        measured = retuned_evaluated(len(self._inputs.evaluation), probes)
        return images * FINETUNING_PASSES + measured
