"""Goes back from a trained model towards what it was, as far as no backdoor comes back.

Trained on a few images a network loses some of what it knew of others. On the line in the space of
weights from what it was to what it became, accuracy is often higher than at the end (WiSE-FT,
Wortsman et al., CVPR 2022, arXiv 2109.01903). A backdoor comes back on the way, too, but later: the
triggers that the suspect model was found to fall for tell when.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sanitizer.cost.workload import TRIED_IMAGES
from sanitizer.data.image_set import ImageSet
from sanitizer.methods.heldout import Tell
from sanitizer.methods.random_triggers import pictures_of
from sanitizer.methods.trigger_search import FoundTriggers, Panel
from sanitizer.randomness import make_generator

SHARES = 1.0, 2 / 3, 1 / 3
"""Of the way that may be gone at most; tried in turn."""
TRIED_TARGETS = 3
"""Classes of each kind of trigger, the strongest for each."""


def go_back(
    network: nn.Module,
    towards: nn.Module,
    most: float,
    most_regained: float,
    found: FoundTriggers | None,
    clean: ImageSet,
    *,
    seed: int,
    precision: torch.dtype,
    tell: Tell = lambda _images: None,
) -> Mapping[str, float]:
    """Moves a network's weights, and the statistics of its batch norms, towards another's.

    It goes the longest of a few ways on which no trigger that was found leads to its class with a
    mean probability that is more than `most_regained` over what it was before. Where none was
    searched for it goes as far as it may.

    Args:
        network: What became of the other by training; is put into eval mode.
        towards: What it was. Stays as it is.
        most: Share of the way that is gone at most, in [0, 1].
        most_regained: In [0, 1].
        found: Triggers that the other network falls for.
        clean: Images with their labels, of which a few are used.
        seed: Of their choice.
        precision: What the network computes in.
        tell: Called with how many images went through the network since the last call.

    Returns:
        `suspect_share`, of the way that was gone; and `regained`, the most that a found trigger
        gained by it (0 where none was searched for).
    """
    network.eval()
    here, there = _weights(network), _weights(towards)
    if found is None:
        _lay(network, here, there, most)
        return {"suspect_share": most, "regained": 0.0}
    generator = make_generator(seed, "going back")
    device = next(network.parameters()).device
    pictures = pictures_of(clean, seed)
    panel = Panel.of(clean, TRIED_IMAGES, generator, pictures, network, precision, device)
    before = _rates(network, panel, found, tell)
    for share in SHARES:
        _lay(network, here, there, most * share)
        regained = float((_rates(network, panel, found, tell) - before).max())
        if regained <= most_regained:
            return {"suspect_share": most * share, "regained": max(0.0, regained)}
    _lay(network, here, there, 0.0)
    return {"suspect_share": 0.0, "regained": 0.0}


def _rates(network: nn.Module, panel: Panel, found: FoundTriggers, tell: Tell) -> Tensor:
    """[m], of the strongest triggers: the mean probability of the class that each leads to."""
    rates = []
    for kind, place in found.strongest(TRIED_TARGETS):
        of_kind = found.kinds[kind]
        numbers = tuple(each[[place]] for each in of_kind.numbers)
        rates.append(panel.rates(network, kind, numbers, tell)[0, of_kind.targets[place]])
    return torch.stack(rates)


def _weights(network: nn.Module) -> list[Tensor]:
    """What moves; counters and the like stay."""
    values = [*network.parameters(), *network.buffers()]
    return [value.detach().clone() for value in values if value.is_floating_point()]


@torch.no_grad()
def _lay(network: nn.Module, here: Sequence[Tensor], there: Sequence[Tensor], share: float) -> None:
    values = [*network.parameters(), *network.buffers()]
    moving = [value for value in values if value.is_floating_point()]
    for value, start, end in zip(moving, here, there, strict=True):
        value.copy_(start.lerp(end, share))
