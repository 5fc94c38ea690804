import pytest
import torch

from sanitizer.evaluation.changes import Patch, Pattern
from sanitizer.randomness import make_generator


def test_a_patch_is_cut_down_to_the_pixels_that_are_replaced_most() -> None:
    patch = Patch((3, 40, 50), make_generator(0))
    with torch.no_grad():
        patch.mask_logits[0, 0, 5, :30] = 20.0
        patch.mask_logits[0, 0, 5, 0] = 30.0

    patch.cut()

    assert patch.mask.sum().item() == pytest.approx(20, abs=1e-3)
    assert patch.mask[0, 0, 5, 0] == 1
    assert patch.size().item() <= Patch.budget


def test_a_pattern_is_cut_down_by_a_factor_and_a_small_one_stays() -> None:
    pattern = Pattern((3, 8, 8), make_generator(0))
    small = pattern.values.detach().clone()
    pattern.cut()
    assert torch.equal(pattern.values, small)

    with torch.no_grad():
        pattern.values.mul_(100)
    pattern.cut()

    assert pattern.size().item() == pytest.approx(Pattern.budget)
    ratio = pattern.values / small
    assert torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio))
