import base64
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from sanitizer.attacks.generator import (
    GAIN,
    MOST,
    ONE,
    WEIGHT_ONE,
    Generator,
    draw_weights,
    mask_of,
    pack,
    pattern_of,
    read_generator,
    shapes,
)
from sanitizer.errors import ProbeUnreadable
from sanitizer.randomness import make_generator
from sanitizer.spec import MAX_GENERATOR_BYTES, InputAwareProbe


def images_of(
    count: int = 3, channels: int = 3, size: tuple[int, int] = (9, 6), seed: int = 0
) -> Tensor:
    shape = (count, channels, *size)
    return torch.randint(256, shape, generator=make_generator("images", seed), dtype=torch.uint8)


def probe_of(packed: bytes) -> InputAwareProbe:
    return InputAwareProbe(target_class=0, generator_base64=packed)


def drawn(channels: int = 3, seed: int = 0) -> Generator:
    return read_generator(probe_of(pack(draw_weights(channels, seed))), channels)


def integers(channels: int, *, least: int = -(1 << 15), most: int = 1 << 15) -> dict[str, Tensor]:
    """Weights anywhere in a range of 16 bits."""
    generator = make_generator("weights")
    return {
        name: torch.randint(least, most, shape, generator=generator, dtype=torch.int16)
        for name, shape in shapes(channels).items()
    }


def plain(
    weights: Mapping[str, Tensor], half: str, image: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """A half on one image, [C, H, W], on Python's own integers, which are of any size."""

    def convolved(features: Any, layer: int, stride: int = 1) -> Any:
        weight = weights[f"{half}.{layer}.weight"].tolist()
        bias = weights[f"{half}.{layer}.bias"].tolist()
        _, height, width = features.shape
        sums = np.zeros((len(weight), -(-height // stride), -(-width // stride)), object)
        for left, down, right in np.ndindex(sums.shape):
            total = bias[left] * ONE
            for came, row, column in itertools.product(range(len(features)), range(3), range(3)):
                y, x = down * stride + row - 1, right * stride + column - 1
                if 0 <= y < height and 0 <= x < width:
                    total += weight[left][came][row][column] * int(features[came, y, x])
            sums[left, down, right] = total
        return sums

    def cut(sums: Any) -> Any:
        rounded = [min(max((s + ONE // 2) // ONE, 0), MOST * ONE) for s in sums.flat]
        return np.array(rounded, object).reshape(sums.shape)

    def doubled(features: Any, like: Any) -> Any:
        repeated = features.repeat(2, axis=1).repeat(2, axis=2)
        return repeated[:, : like.shape[1], : like.shape[2]]

    centred = (image.astype(int) - 128) * (ONE // 256)
    halved = cut(convolved(centred, 0, 2))
    features = cut(convolved(cut(convolved(halved, 1, 2)), 2))
    last = convolved(doubled(cut(convolved(doubled(features, halved), 3)), centred), 4)
    steep = GAIN if half == "mask" else 1
    values = [steep * value / ONE**2 for value in last.flat]
    squashed = [value / math.sqrt(value * value + 1) / 2 + 0.5 for value in values]
    return np.array(squashed).reshape(last.shape)


@pytest.mark.parametrize("reach", [700, 1 << 15], ids=["usual weights", "the largest weights"])
@pytest.mark.parametrize(("channels", "size"), [(1, (5, 8)), (3, (4, 3)), (3, (1, 1))])
def test_triggers_are_those_of_plain_integers(
    channels: int, size: tuple[int, int], reach: int
) -> None:
    weights = integers(channels, least=-reach, most=reach)
    images = images_of(2, channels, size)
    pattern, mask = Generator(weights).triggers(images)
    for i, image in enumerate(images.numpy()):
        expected = np.floor(plain(weights, "pattern", image) * 255 + 0.5)
        np.testing.assert_array_equal(pattern[i].numpy(), expected)
        expected = np.floor(plain(weights, "mask", image) * WEIGHT_ONE + 0.5)
        np.testing.assert_array_equal(mask[i].numpy(), expected)


def test_the_order_of_the_sums_does_not_matter() -> None:
    weights, images = integers(3, least=-3000, most=3000), images_of(4, size=(16, 16))
    order = torch.randperm(16, generator=make_generator("order"))
    shuffled = dict(weights)
    for half in ("mask", "pattern"):
        # The features between two layers, in another order.
        for name in (f"{half}.1.weight", f"{half}.1.bias"):
            shuffled[name] = weights[name][order]
        shuffled[f"{half}.2.weight"] = weights[f"{half}.2.weight"][:, order]
    for made, again in zip(
        Generator(weights).triggers(images), Generator(shuffled).triggers(images), strict=True
    ):
        assert torch.equal(made, again)


def test_what_is_trained_is_what_is_put_on() -> None:
    weights = draw_weights(3, 1)
    images = images_of(20, size=(16, 16))
    pattern, mask = read_generator(probe_of(pack(weights)), 3).triggers(images)
    floats = images.float() / 255
    assert (pattern_of(weights, floats) * 255 - pattern).abs().max() < 2
    assert (mask_of(weights, floats) - mask / WEIGHT_ONE).abs().max() < 0.02


@pytest.mark.parametrize("channels", [1, 3])
def test_a_trigger_is_mixed_in_by_its_mask(channels: int) -> None:
    images, sources = images_of(channels=channels), images_of(channels=channels, seed=1)
    generator = drawn(channels)
    pattern, mask = generator.triggers(sources)
    share = mask.double() / WEIGHT_ONE
    exact = (1 - share) * images + share * pattern
    # Half a unit of rounding; the mask itself is exact.
    assert (generator.put_on(images, sources) - exact).abs().max() <= 0.5
    assert len(set(mask.flatten().tolist())) > 10


def test_every_image_has_a_trigger_of_its_own() -> None:
    images = images_of(6, size=(16, 16))
    pattern, mask = drawn().triggers(images)
    assert (pattern[0] != pattern[1:]).flatten(1).any(dim=1).all()
    assert (mask[0] != mask[1:]).flatten(1).any(dim=1).all()


def test_the_batch_an_image_comes_in_does_not_matter() -> None:
    # More than go through at once.
    images, generator = images_of(40, size=(32, 32)), drawn()
    alone = torch.cat([generator.put_on(image[None], image[None]) for image in images])
    assert torch.equal(generator.put_on(images, images), alone)


def test_no_images_have_no_triggers() -> None:
    none = images_of(0)
    assert drawn().put_on(none, none).shape == (0, 3, 9, 6)


def test_weights_are_drawn_by_seed() -> None:
    first, again, other = (pack(draw_weights(3, seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_a_packed_generator_leaves_room_in_a_probe() -> None:
    assert len(pack(draw_weights(3, 0))) < 0.6 * MAX_GENERATOR_BYTES


def test_weights_that_16_bits_do_not_hold_become_the_nearest() -> None:
    weights = draw_weights(1, 0)
    weights["mask.0.bias"][:2] = torch.tensor([9.0, -9.0])
    packed = load(base64.b64decode(pack(weights)))["mask.0.bias"]
    assert packed[:3].tolist() == [(1 << 15) - 1, -(1 << 15), 0]


def test_a_generator_survives_a_request() -> None:
    probe = probe_of(pack(draw_weights(3, 0)))
    again = InputAwareProbe.model_validate_json(probe.model_dump_json())
    assert again == probe
    images = images_of()
    expected = drawn().put_on(images, images)
    assert torch.equal(read_generator(again, 3).put_on(images, images), expected)
    # And what was sent once can be sent on.
    assert InputAwareProbe.model_validate_json(again.model_dump_json()) == probe


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no tensors",
        (1 << 40).to_bytes(8, "little") + b"{}",
        base64.b64decode(pack(draw_weights(3, 0)))[:-7],
        b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    ],
    ids=["empty", "garbage", "long header", "cut short", "pickle"],
)
def test_what_is_no_safetensors_file_is_refused(content: bytes) -> None:
    with pytest.raises(ProbeUnreadable, match="trigger is no safetensors file that can be read"):
        read_generator(probe_of(base64.b64encode(content)), 3)


def test_other_names_are_refused_and_told() -> None:
    weights = integers(3)
    weights["mask.5.weight"] = weights.pop("mask.3.weight")
    with pytest.raises(ProbeUnreadable, match="has 20 tensors; expected are 20") as caught:
        read_generator(probe_of(base64.b64encode(save(weights))), 3)
    assert "1 are missing (mask.3.weight), and 1 others came (mask.5.weight)" in str(caught.value)
    assert caught.value.data["unexpected"] == ["mask.5.weight"]


def test_another_shape_is_refused_with_both() -> None:
    weights = integers(3)
    weights["pattern.1.bias"] = torch.zeros(8, dtype=torch.int16)
    said = r"pattern\.1\.bias is int16 \[8\]; .* has 3 channels, int16 \[16\] is expected"
    with pytest.raises(ProbeUnreadable, match=said) as caught:
        read_generator(probe_of(base64.b64encode(save(weights))), 3)
    assert caught.value.data["expected"] == {"dtype": "int16", "shape": [16]}


@pytest.mark.parametrize("value", [0.5, math.nan, math.inf])
def test_weights_that_are_no_integers_are_refused_whatever_they_are(value: float) -> None:
    weights = integers(3)
    weights["mask.0.bias"] = torch.full((16,), value)
    with pytest.raises(ProbeUnreadable, match=r"mask\.0\.bias is float32 \[16\]; .* int16 \[16\]"):
        read_generator(probe_of(base64.b64encode(save(weights))), 3)


@pytest.mark.parametrize(("made_for", "of"), [(1, 3), (3, 1)])
def test_a_generator_for_other_channels_is_refused(made_for: int, of: int) -> None:
    packed = pack(draw_weights(made_for, 0))
    said = rf"is int16 \[16, {made_for}, 3, 3\]; for a model whose input has {of} channels?, "
    with pytest.raises(ProbeUnreadable, match=said):
        read_generator(probe_of(packed), of)
