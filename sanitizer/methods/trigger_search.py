"""Searches for triggers that a suspect model falls for, among the kinds that there are.

A trigger drawn at random is seldom near to a backdoor's own: of gratings of any direction and
frequency one in a hundred is. But the nearer it is, the more images of all classes the model sends
the same way, so that a search finds it: the best of many random triggers, for each class, are
changed a little, again and again, and what leads more images to the class stays (an evolution
strategy, on the numbers that triggers are made from; a trigger is one for all images here). Nothing
but the model's answers on clean images is needed, no gradient of an image, and what is found is
what a trigger of its kind looks like: a grating is a grating.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sanitizer.cost.workload import (
    SEEK_CHILDREN,
    SEEK_FIRST,
    SEEK_GENERATIONS,
    SEEK_IMAGES,
    SEEK_PARENTS,
    SEEK_TARGETS,
)
from sanitizer.data.image_set import ImageSet
from sanitizer.methods.panel import Panel
from sanitizer.methods.random_triggers import (
    GRATING,
    PATCH,
    VEIL,
    WARP,
    Numbers,
    draw_numbers,
    smooth,
)
from sanitizer.randomness import make_generator

SOUGHT = GRATING, PATCH, WARP, VEIL
"""Kinds that small moves lead along, veils of smooth noise among them. What other veils and
reflections are like is their picture, and a picture has no neighbours: near to one that was found
there is but that one."""
SPREAD = 0.2, 0.6
"""How far a number is moved at most, at first, and what that is multiplied with each time."""
MOVED = 0.5
"""Share of a trigger's numbers that a child has changed."""
NEARNESS = 0.05
"""How far numbers are moved where a random trigger is to be near to one that was found."""


@dataclass(frozen=True)
class TriggersOfKind:
    """The best triggers of a kind for each class, m in all.

    Attributes:
        numbers: That they are made from.
        targets: int64 [m], the class each leads to.
        rates: [m], the mean probability that the model gives that class, over images of others.
    """

    numbers: Numbers
    targets: Tensor
    rates: Tensor


@dataclass(frozen=True)
class FoundTriggers:
    """What a search found.

    Attributes:
        kinds: By kind, of those that are sought.
        share: Of random triggers, that are to be near to one of these.
    """

    kinds: Mapping[int, TriggersOfKind]
    share: float = 0.0

    def strongest(self, targets: int) -> list[tuple[int, int]]:
        """Kind and place of the best triggers, for so many classes of each kind at most."""
        chosen = []
        for kind, of_kind in self.kinds.items():
            seen: list[int] = []
            for place in of_kind.rates.argsort(descending=True, stable=True).tolist():
                target = int(of_kind.targets[place])
                if target not in seen and len(seen) < targets:
                    seen.append(target)
                    chosen.append((kind, place))
        return chosen

    def for_share(self, share: float) -> "FoundTriggers":
        """The same, for another share."""
        return FoundTriggers(self.kinds, share)

    def replaced(
        self, kind: int, numbers: Numbers, wanted: Tensor, generator: torch.Generator
    ) -> Numbers:
        """The numbers of some of these random triggers, a share moved near to what was found.

        To one that misleads twice as much, four times as many. Of kinds that are not sought they
        stay as they are. Draws the same for any numbers, whichever are wanted.

        Args:
            wanted: Their places, int64.
        """
        if kind not in self.kinds:
            return tuple(each[wanted] for each in numbers)
        found, size = self.kinds[kind], len(numbers[0])
        moved = torch.rand(size, generator=generator)[wanted] < self.share
        weights = found.rates.square().clamp(min=1e-9)
        places = torch.multinomial(weights, size, replacement=True, generator=generator)[wanted]
        parents = tuple(each[places] for each in found.numbers)
        near = _changed(parents, NEARNESS, generator, (size, wanted))
        if kind == VEIL:
            # What a veil is made of has borders: a little beyond one it is another.
            share, _, *rest = near
            near = (share, parents[1], *rest)
        return tuple(
            torch.where(moved.view(-1, *[1] * (new.dim() - 1)), new, old[wanted])
            for new, old in zip(near, numbers, strict=True)
        )

    def state(self) -> dict[int, list[Tensor]]:
        """For a checkpoint."""
        return {
            kind: [each.targets, each.rates, *each.numbers] for kind, each in self.kinds.items()
        }

    @classmethod
    def of_state(cls, state: Mapping[int, Sequence[Tensor]]) -> "FoundTriggers":
        """What `state` gave."""
        return cls(
            {
                kind: TriggersOfKind(tuple(numbers), targets, rates)
                for kind, (targets, rates, *numbers) in state.items()
            }
        )


def find_triggers(
    network: nn.Module,
    clean: ImageSet,
    pictures: Tensor,
    *,
    seed: int,
    precision: torch.dtype,
    device: torch.device,
    on_images: Callable[[int], None] = lambda _images: None,
) -> FoundTriggers:
    """Searches each of the kinds that are sought.

    Args:
        network: The suspect model; is put into eval mode.
        clean: Images with their labels, of which a few are used.
        pictures: What triggers are made of, as of `with_random_triggers`.
        seed: Of all that is drawn.
        precision: What the network computes in.
        device: Where it is.
        on_images: Called with how many images went through the network since the last call.
    """
    network.eval()
    generator = make_generator(seed, "trigger search", "images")
    panel = Panel.of(clean, SEEK_IMAGES, generator, pictures, network, precision, device)

    def rates_of(kind: int, numbers: Numbers) -> Tensor:
        return panel.rates(network, kind, numbers, on_images)

    return FoundTriggers(
        {
            kind: _search(kind, clean.shape, make_generator(seed, "trigger search", kind), rates_of)
            for kind in SOUGHT
        }
    )


def _search(
    kind: int,
    shape: tuple[int, ...],
    generator: torch.Generator,
    rates_of: Callable[[int, Numbers], Tensor],
) -> TriggersOfKind:
    pool = draw_numbers(kind, SEEK_FIRST, shape, generator)
    rates = rates_of(kind, smooth(kind, pool))
    targets = rates.amax(dim=0).topk(min(SEEK_TARGETS, rates.shape[1])).indices
    for generation in range(SEEK_GENERATIONS):
        best = _best(rates, targets)
        parents = tuple(each[best] for each in pool)
        spread = SPREAD[0] * SPREAD[1] ** generation
        families = tuple(each.repeat_interleave(SEEK_CHILDREN, dim=0) for each in parents)
        children = _changed(families, spread, generator)
        pool = tuple(torch.cat(pair) for pair in zip(parents, children, strict=True))
        rates = torch.cat([rates[best], rates_of(kind, smooth(kind, children))])
    best = _best(rates, targets)
    led_to = targets.repeat_interleave(min(SEEK_PARENTS, len(rates)))
    found = smooth(kind, tuple(each[best] for each in pool))
    return TriggersOfKind(found, led_to, rates[best, led_to])


def _best(rates: Tensor, targets: Tensor) -> Tensor:
    """Places of the best triggers for each target, one target after the other."""
    return rates[:, targets].topk(min(SEEK_PARENTS, len(rates)), dim=0).indices.T.flatten()


def _changed(
    numbers: Numbers,
    spread: float,
    generator: torch.Generator,
    among: tuple[int, Tensor] | None = None,
) -> Numbers:
    """Numbers near to these: some of them moved, within [0, 1].

    Args:
        among: Draws for so many triggers, among which these are at those places.
    """
    size, places = among or (len(numbers[0]), slice(None))
    changed = []
    for each in numbers:
        ones = [1] * (each.dim() - 1)
        moved = torch.rand(size, *ones, generator=generator)[places] < MOVED
        there = torch.rand(size, *each.shape[1:], generator=generator)[places]
        there = each + torch.where(moved, spread * (2 * there - 1), 0)
        # What would lie outside is reflected: angles and phases lose nothing by it.
        changed.append(1 - (1 - there.abs()).abs())
    return tuple(changed)
