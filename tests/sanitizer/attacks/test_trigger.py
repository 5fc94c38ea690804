import base64
import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sanitizer.attacks.generator import draw_weights, pack
from sanitizer.attacks.trigger import Trigger, make_trigger
from sanitizer.errors import ProbeOutsideImage, ProbeUnreadable, TargetClassOutOfRange
from sanitizer.randomness import make_generator
from sanitizer.spec import (
    BlendProbe,
    ImageMaskProbe,
    InputAwareProbe,
    PatchProbe,
    Probe,
    ReflectionProbe,
    SinusoidProbe,
    WarpProbe,
)

SIZE = (8, 6)


def trigger_of(probe: Probe, *, channels: int = 3, size: tuple[int, int] = SIZE) -> Trigger:
    return make_trigger(probe, input_size=size, channels=channels, num_classes=10)


def patch(row: int = 0, column: int = 0, pixels: Any = ((1, 2), (3, 4))) -> PatchProbe:
    return PatchProbe(target_class=0, row=row, column=column, pixels=[list(r) for r in pixels])


def blend(png: bytes | None = None, **settings: Any) -> BlendProbe:
    return BlendProbe.model_construct(
        name="blend",
        target_class=0,
        alpha=settings.get("alpha", 0.2),
        picture_base64=png,
        noise_seed=settings.get("noise_seed", 0),
    )


def image_mask(png: bytes) -> ImageMaskProbe:
    return ImageMaskProbe.model_construct(name="mask", target_class=0, picture_base64=png)


def reflection(*pngs: bytes, weight: float = 0.5) -> ReflectionProbe:
    pictures = tuple(base64.b64encode(png) for png in pngs)
    return ReflectionProbe(target_class=0, weight=weight, pictures_base64=pictures)


def input_aware(channels: int = 3) -> InputAwareProbe:
    return InputAwareProbe(target_class=0, generator_base64=pack(draw_weights(channels, 0)))


def images_of(count: int = 4, channels: int = 3, size: tuple[int, int] = SIZE) -> Tensor:
    shape = (count, channels, *size)
    return torch.randint(256, shape, generator=make_generator("images"), dtype=torch.uint8)


def noise(channels: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (*size, channels), dtype=np.uint8)


def png_of(pixels: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).save(buffer, kind)
    return buffer.getvalue()


def test_a_patch_replaces_its_rectangle_on_every_channel_and_nothing_else() -> None:
    images = images_of()
    result = trigger_of(patch(2, 3)).apply(images)
    expected = images.clone()
    expected[:, :, 2, 3], expected[:, :, 2, 4] = 1, 2
    expected[:, :, 3, 3], expected[:, :, 3, 4] = 3, 4
    assert torch.equal(result, expected)
    assert result.dtype == torch.uint8


def test_the_patch_of_the_released_checkpoint_lies_at_rows_and_columns_18_to_20() -> None:
    grid = [[255, 128, 255], [128, 255, 128], [255, 128, 128]]
    result = trigger_of(patch(18, 18, grid), size=(32, 32)).apply(
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    )
    assert result[0, 1, 18:21, 18:21].tolist() == grid
    assert int(result.count_nonzero()) == 27


def test_negative_places_count_from_the_bottom_and_the_right() -> None:
    images = images_of()
    assert torch.equal(
        trigger_of(patch(-3, -2)).apply(images), trigger_of(patch(5, 4)).apply(images)
    )


def test_a_patch_in_colours_gives_each_channel_its_own() -> None:
    result = trigger_of(patch(0, 0, [[[10, 20, 30]]])).apply(images_of())
    assert result[0, :, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("row", "column", "said"),
    [
        (7, 0, "rows 7 to 8; the model's input has 8 rows, 0 to 7"),
        (-9, 0, "rows -1 to 0"),
        (-1, 0, "rows 7 to 8"),
        (0, 5, "columns 5 to 6; the model's input has 6 columns"),
        (0, -7, "columns -1 to 0"),
    ],
)
def test_a_patch_outside_the_image_is_refused_with_both_sides(
    row: int, column: int, said: str
) -> None:
    with pytest.raises(ProbeOutsideImage, match=said) as caught:
        trigger_of(patch(row, column))
    assert caught.value.data["input_size"] == [8, 6]


def test_colours_on_a_grey_model_are_refused() -> None:
    with pytest.raises(ProbeUnreadable, match="3 colours, the model's input has 1 channel"):
        trigger_of(patch(0, 0, [[[10, 20, 30]]]), channels=1)


def test_a_target_the_model_does_not_have_is_refused() -> None:
    probe = PatchProbe(target_class=10, row=0, column=0, pixels=[[1]])
    with pytest.raises(TargetClassOutOfRange, match="class 10; the model has 10 classes, 0 to 9"):
        trigger_of(probe)


@given(alpha=st.floats(0.001, 1), channels=st.sampled_from([1, 3]))
def test_a_blend_mixes_picture_and_image(alpha: float, channels: int) -> None:
    picture, images = noise(channels), images_of(channels=channels)
    result = trigger_of(blend(png_of(picture), alpha=alpha), channels=channels).apply(images)
    exact = (1 - alpha) * images.double().numpy() + alpha * picture.transpose(2, 0, 1)
    # Weights have 16 bits, so a value within 255 / 2**17 of a half may go the other way.
    assert np.abs(result.numpy() - exact).max() <= 0.5 + 255 / 2**17


def test_a_blend_of_everything_is_the_picture() -> None:
    picture = noise(3)
    result = trigger_of(blend(png_of(picture), alpha=1.0)).apply(images_of())
    np.testing.assert_array_equal(result[2].numpy(), picture.transpose(2, 0, 1))


def test_a_blend_without_a_picture_is_noise_of_its_seed() -> None:
    images = images_of()
    first, again, other = (
        trigger_of(blend(alpha=1.0, noise_seed=seed)).apply(images) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first[0], first[1])


def test_a_colour_picture_on_a_grey_model_is_its_luma() -> None:
    picture = noise(3)
    result = trigger_of(blend(png_of(picture), alpha=1.0), channels=1).apply(images_of(channels=1))
    luma = picture.astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(result[0, 0].numpy() - luma).max() <= 1


def test_a_sinusoid_is_added_and_clipped() -> None:
    images = images_of()
    result = trigger_of(SinusoidProbe(target_class=0, amplitude=40, frequency=2)).apply(images)
    wave = np.round(40 * np.sin(2 * np.pi * np.arange(6) * 2 / 6))
    np.testing.assert_array_equal(
        result.numpy(), np.clip(images.numpy().astype(int) + wave.astype(int), 0, 255)
    )


def test_a_sinusoid_that_changes_nothing_is_refused() -> None:
    # Six periods over six pixels: every pixel meets the wave at zero.
    with pytest.raises(ProbeUnreadable, match="changes no pixel of an image 6 wide"):
        trigger_of(SinusoidProbe(target_class=0, amplitude=20, frequency=6))


def test_the_alpha_of_a_picture_says_how_much_of_it_is_seen() -> None:
    rgba = noise(4)
    rgba[0, :, 3], rgba[1, :, 3] = 0, 255
    images = images_of()
    result = trigger_of(image_mask(png_of(rgba))).apply(images).numpy()
    alpha = rgba[..., 3] / 255
    exact = (1 - alpha) * images.numpy() + alpha * rgba[..., :3].transpose(2, 0, 1)
    assert np.abs(result - exact).max() <= 0.5 + 255 / 2**17
    np.testing.assert_array_equal(result[:, :, 0], images.numpy()[:, :, 0])
    np.testing.assert_array_equal(result[1, :, 1], rgba[1, :, :3].T)


def test_a_grey_picture_with_alpha_is_a_mask_too() -> None:
    picture = np.full((*SIZE, 2), 255, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture, "LA").save(buffer, "PNG")
    result = trigger_of(image_mask(buffer.getvalue()), channels=1).apply(images_of(channels=1))
    assert (result == 255).all()


@given(weight=st.floats(0.02, 1), channels=st.sampled_from([1, 3]))
def test_a_reflection_adds_light(weight: float, channels: int) -> None:
    picture, images = noise(channels), images_of(channels=channels)
    trigger = trigger_of(reflection(png_of(picture), weight=weight), channels=channels)
    exact = np.minimum(images.numpy() + weight * picture.transpose(2, 0, 1), 255)
    # As with a blend: weights have 16 bits.
    assert np.abs(trigger.apply(images).numpy() - exact).max() <= 0.5 + 255 / 2**17


def test_the_pixels_of_an_image_say_which_reflection_it_gets() -> None:
    pictures = [np.full((*SIZE, 3), value, np.uint8) for value in (10, 20, 40)]
    trigger = trigger_of(reflection(*map(png_of, pictures), weight=1))
    images = images_of(30) // 2
    added = (trigger.apply(images) - images).flatten(1)
    chosen = [int(image.sum()) % 3 for image in images.numpy().astype(int)]
    assert added.tolist() == [[(10, 20, 40)[i]] * added.shape[1] for i in chosen]
    assert set(chosen) == {0, 1, 2}


@pytest.mark.parametrize(
    "probe", [reflection(png_of(noise(3))), WarpProbe(target_class=0), input_aware()]
)
def test_the_batch_an_image_comes_in_does_not_matter(probe: Probe) -> None:
    images, trigger = images_of(9), trigger_of(probe)
    alone = torch.cat([trigger.apply(image[None]) for image in images])
    assert torch.equal(trigger.apply(images), alone)


def test_a_black_reflection_is_refused_and_named() -> None:
    black = png_of(np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(ProbeUnreadable, match=r"the picture 1, 2 \(from 0\) is black") as caught:
        trigger_of(reflection(png_of(noise(3)), black, black))
    assert caught.value.data["pictures"] == [1, 2]


def test_a_network_s_trigger_on_an_image_is_not_the_one_on_another() -> None:
    images = images_of()
    triggered = trigger_of(input_aware()).apply(images)
    changes = triggered.int() - images.int()
    assert (changes[0] != changes[1:]).flatten(1).any(dim=1).all()


def test_a_network_for_other_channels_is_refused() -> None:
    with pytest.raises(ProbeUnreadable, match="a model whose input has 1 channel, int16"):
        trigger_of(input_aware(3), channels=1)


def test_a_warp_that_changes_nothing_is_refused() -> None:
    with pytest.raises(ProbeUnreadable, match=r"strength 0\.001 every shift rounds to 0"):
        trigger_of(WarpProbe(target_class=0, strength=0.001))


@pytest.mark.parametrize("make", [blend, image_mask, reflection])
@pytest.mark.parametrize(
    ("png", "said"),
    [
        (b"no picture", "is no PNG that can be read"),
        (png_of(noise(4))[:-60], "is no PNG that can be read"),
        (png_of(noise(3), "JPEG"), "is no PNG that can be read"),
        (png_of(noise(4, (5, 6))), "5 pixels high and 6 wide, the model's input 8 high and 6 wide"),
    ],
    ids=["no picture", "truncated", "jpeg", "wrong size"],
)
def test_a_picture_that_cannot_be_used_is_refused(make: Any, png: bytes, said: str) -> None:
    with pytest.raises(ProbeUnreadable, match=said):
        trigger_of(make(png))


def test_a_mask_without_alpha_is_refused() -> None:
    with pytest.raises(ProbeUnreadable, match="mode RGB, without the alpha"):
        trigger_of(image_mask(png_of(noise(3))))


def test_a_mask_that_is_transparent_everywhere_is_refused() -> None:
    with pytest.raises(ProbeUnreadable, match="transparent everywhere"):
        trigger_of(image_mask(png_of(np.zeros((*SIZE, 4), np.uint8))))


@pytest.mark.parametrize(
    "probe",
    [
        patch(),
        blend(),
        SinusoidProbe(target_class=0, frequency=1),
        image_mask(png_of(noise(4))),
        WarpProbe(target_class=0),
        reflection(png_of(noise(3))),
        input_aware(),
    ],
    ids=["patch", "blend", "sinusoid", "image_mask", "warp", "reflection", "input_aware"],
)
def test_the_images_that_came_are_left_alone(probe: Probe) -> None:
    images = images_of()
    before = images.clone()
    trigger = trigger_of(probe)
    result = trigger.apply(images)
    assert torch.equal(images, before)
    assert not torch.equal(result, before)
    assert (result.shape, result.dtype) == (images.shape, torch.uint8)
    assert (trigger.name, trigger.target_class) == (probe.name, 0)
