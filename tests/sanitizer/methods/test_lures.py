"""Which of several random triggers a suspect model falls for."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sanitizer.methods.finetune import FinetuneStep
from sanitizer.methods.hardening import HardenedStep
from sanitizer.methods.lures import Lures
from sanitizer.methods.plan import Bench, TrainingStage, plan
from sanitizer.methods.random_triggers import KINDS, REFLECTION, pictures_of, with_random_triggers
from sanitizer.networks.taps import find_taps
from sanitizer.randomness import make_generator
from sanitizer.spec import METHOD_ADAPTER, Hardening
from tests.sanitizer.methods.networks import digit_set, trained

CPU = torch.device("cpu")
IMAGES = digit_set(800, 960)
CLASS = 7


class FallsForLight(nn.Module):
    """A model of digits that calls each image a 7 that is brighter than digits are."""

    def __init__(self) -> None:
        super().__init__()
        self.network = trained()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        excess = 60 * (images.mean(dim=(1, 2, 3)) - 0.42)
        return logits.index_add(
            1, torch.tensor([CLASS]), excess.clamp(min=0)[:, None].to(logits.dtype)
        )


def lures(suspect: nn.Module) -> Lures:
    return Lures(suspect, IMAGES, seed=0, precision=torch.float32, device=CPU)


def drawn(count: int, seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Of the first images `count` copies each, their kinds, and the labels."""
    images = torch.from_numpy(IMAGES.read(np.arange(40))).float() / 255
    generator, everybody = make_generator(seed), torch.ones(40, dtype=torch.bool)
    pictures = pictures_of(IMAGES, 0)
    copies = [with_random_triggers(images, generator, everybody, pictures) for _ in range(count)]
    changed, kinds = (torch.stack(parts) for parts in zip(*copies, strict=True))
    return changed, kinds, torch.from_numpy(IMAGES.labels[:40].copy())


def test_shares_say_where_each_kind_leads() -> None:
    shares, of_a_clean_model = (lures(net).shares for net in (FallsForLight(), trained()))

    assert shares.shape == (KINDS, 10)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(KINDS))
    assert shares[REFLECTION].argmax() == CLASS
    assert shares[REFLECTION, CLASS] > of_a_clean_model[REFLECTION, CLASS] + 0.2


def test_of_several_copies_the_one_that_misleads_is_chosen() -> None:
    suspect = FallsForLight()
    changed, kinds, labels = drawn(6)

    chosen = lures(suspect).choose(changed, kinds, labels)

    reflected = (kinds[0] == REFLECTION) & (labels != CLASS)
    assert reflected.sum() > 4
    with torch.no_grad():
        into, among = (
            suspect(images).softmax(dim=-1)[..., CLASS] for images in (chosen, changed[0])
        )
    assert into[reflected].mean() > among[reflected].mean() + 0.1
    for place, image in enumerate(chosen):
        assert any(torch.equal(image, copy) for copy in changed[:, place])


def test_the_right_class_leads_nowhere() -> None:
    """Of images of the class itself a copy is chosen by the other classes."""
    suspect = FallsForLight()
    found = lures(suspect)
    found.shares = torch.zeros(KINDS, 10)
    found.shares[:, CLASS] = 1.0
    changed, kinds, labels = drawn(4)

    chosen = found.choose(changed, kinds, labels)

    own = labels == CLASS
    assert own.any()
    assert torch.equal(chosen[own], changed[0][own])  # nothing tells them apart


def test_the_suspect_stays_as_it_is() -> None:
    suspect = trained().train()
    before = deepcopy(suspect.state_dict())
    found = lures(suspect)
    found.choose(*drawn(3))

    assert all(torch.equal(value, before[name]) for name, value in suspect.state_dict().items())


def test_a_step_trains_on_the_chosen_ones_in_both_of_its_passes() -> None:
    settings = {"random_triggers": True, "trigger_candidates": 4, "perturbed_share": 1.0, "rho": 1}
    hardening = Hardening.model_validate(settings)
    found = lures(FallsForLight())
    seen: list[Tensor] = []

    class Noting(FinetuneStep):
        def classify(self, images: Tensor) -> Tensor:
            seen.append(images)
            return super().classify(images)

    step = HardenedStep(
        Noting(trained().train()),
        hardening,
        (0, "test"),
        pictures_of(IMAGES, 0),
        lures=found,
    )
    images, labels = torch.from_numpy(IMAGES.read(np.arange(20))).float() / 255, IMAGES.labels[:20]
    step.begin_step(0, 0)
    step.backward(images, torch.from_numpy(labels.copy()))

    whole, first, _, second = seen
    assert torch.equal(whole, images)
    assert torch.equal(first, second)
    assert not torch.equal(first, images)


def test_without_anybody_to_choose_it_is_an_error() -> None:
    hardening = Hardening(random_triggers=True, trigger_candidates=2)
    step = HardenedStep(FinetuneStep(trained()), hardening, (0, "test"), pictures_of(IMAGES, 0))
    images = torch.from_numpy(IMAGES.read(np.arange(8))).float() / 255

    with pytest.raises(RuntimeError, match="choose"):
        step(images, torch.from_numpy(IMAGES.labels[:8].copy()))


def test_the_student_is_trained_against_what_the_suspect_falls_for_not_the_teacher() -> None:
    """By then the student's own weights are the teacher's."""
    suspect = FallsForLight()
    student = suspect.network
    bench = Bench(
        student,
        trained(),
        find_taps(deepcopy(student), "wrn-10-1", (8, 8), 1),
        seed=0,
        clean=IMAGES,
        suspect=suspect,
    )
    method = {"name": "argd", "student_hardening": {"trigger_candidates": 4, "found_share": 0}}
    stage = plan(METHOD_ADAPTER.validate_python(method))[1]
    assert isinstance(stage, TrainingStage)
    step = stage.make_step(bench)

    assert isinstance(step, HardenedStep)
    assert step._lures is not None
    assert torch.equal(step._lures.shares, lures(suspect).shares)
