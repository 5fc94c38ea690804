import pytest
import torch
from torch import Tensor, nn

from sanitizer.evaluation.changes import FeatureShift, Patch, Pattern, logits_of
from sanitizer.networks.taps import TapLayout, TapPoint
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


def test_a_patch_replaces_pixels_by_the_share_of_its_mask() -> None:
    patch = Patch((3, 4, 5), make_generator(0))
    images = torch.rand(2, 3, 4, 5, generator=make_generator(1))
    changed = patch.changed(images)
    mask, picture = patch.mask.expand(2, 3, 4, 5), patch.picture.expand(2, 3, 4, 5)
    torch.testing.assert_close(changed, (1 - mask) * images + mask * picture)
    assert patch.size() == patch.mask.mean()


def test_an_image_with_a_pattern_stays_an_image() -> None:
    pattern = Pattern((1, 1, 3), make_generator(0))
    with torch.no_grad():
        pattern.values.copy_(torch.tensor([-0.5, 0.25, 0.5]))
    changed = pattern.changed(torch.full((2, 1, 1, 3), 0.75))
    assert changed[:, 0, 0].tolist() == [[0.25, 1, 1]] * 2
    assert pattern.size().item() == pytest.approx((0.5625 / 3) ** 0.5)


def test_a_change_looks_as_on_a_grey_image_and_a_pattern_as_strong_as_it_bears() -> None:
    patch, pattern = Patch((1, 1, 2), make_generator(0)), Pattern((1, 1, 3), make_generator(0))
    with torch.no_grad():
        patch.mask_logits.copy_(torch.tensor([40.0, -40.0]))
        patch.picture_logits.fill_(40)
        pattern.values.copy_(torch.tensor([-0.02, 0.01, 0.0]))
    assert patch.look()[0, 0].tolist() == pytest.approx([1, 0.5])
    assert pattern.look()[0, 0].tolist() == pytest.approx([0, 0.75, 0.5])


class Means(nn.Module):
    """Answers with the mean of each channel of a feature map, whatever its layout."""

    def __init__(self, layout: TapLayout) -> None:
        super().__init__()
        self.features = nn.Identity()
        self.layout = layout

    def forward(self, images: Tensor) -> Tensor:
        if self.layout == "nchw":
            means: Tensor = self.features(images).mean(dim=(2, 3))
        elif self.layout == "nhwc":
            means = self.features(images.permute(0, 2, 3, 1)).mean(dim=(1, 2))
        else:
            means = self.features(images.flatten(2).transpose(1, 2)).mean(dim=1)
        return means


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "tokens"])
def test_features_of_each_image_are_shifted_by_its_own_change_in_deviations(
    layout: TapLayout,
) -> None:
    point = TapPoint("features", layout, (5, 4), 3)
    deviations = torch.tensor([1.0, 2.0, 4.0])
    changes = [FeatureShift(point, deviations, make_generator(seed)) for seed in (0, 1)]
    images = [torch.rand(count, 3, 5, 4, generator=make_generator(count)) for count in (2, 3)]
    network = Means(layout)

    logits = logits_of(network, changes, images)

    expected = [
        some.mean(dim=(2, 3)) + change.values * deviations
        for change, some in zip(changes, images, strict=True)
    ]
    torch.testing.assert_close(logits, torch.cat(expected))
    torch.testing.assert_close(network(images[0]), images[0].mean(dim=(2, 3)))  # no longer
    assert changes[0].look() is None


def test_a_shift_is_cut_down_by_a_factor() -> None:
    point = TapPoint("features", "nchw", (5, 4), 3)
    shift = FeatureShift(point, torch.ones(3), make_generator(0))
    with torch.no_grad():
        shift.values.copy_(torch.tensor([1.0, -2.0, 2.0]))
    shift.cut()
    assert shift.size().item() == pytest.approx(FeatureShift.budget)
    assert (shift.values / shift.values[0]).tolist() == pytest.approx([1, -2, 2])
