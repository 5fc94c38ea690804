"""Goes back from a trained model towards what it was, as far as no backdoor comes back.

Trained on a few images a network loses some of what it knew of others. On the line in the space of
weights from what it was to what it became, accuracy is often higher than at the end (WiSE-FT,
Wortsman et al., CVPR 2022, arXiv 2109.01903). A backdoor comes back on the way, too, but later: the
triggers that the suspect model was found to fall for tell when.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sanitizer.cost.workload import TRIED_IMAGES, TRIED_SHARES, TRIED_TARGETS
from sanitizer.data.image_set import ImageSet
from sanitizer.methods.heldout import Tell
from sanitizer.methods.panel import Panel
from sanitizer.methods.random_triggers import pictures_of
from sanitizer.methods.trigger_search import FoundTriggers
from sanitizer.randomness import make_generator

MOST_LOST = 0.05
"""Of the clean images that triggers are tried on, how many fewer may be right than at the end. On
the way a network knows as much as at both ends, or it is no way: there is a barrier."""


def go_back(
    network: nn.Module,
    towards: nn.Module,
    most: float,
    most_regained: float,
    found: FoundTriggers,
    clean: ImageSet,
    *,
    seed: int,
    precision: torch.dtype,
    tell: Tell = lambda _images: None,
) -> Mapping[str, float]:
    """Moves a network's weights, and the statistics of its batch norms, towards another's.

    It goes the longest of a few ways on which no trigger that was found leads to its class with a
    mean probability that is more than `most_regained` over what it was before, and on which the
    network keeps its accuracy.

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
        `gone`, the share of the way; and `regained`, the most that a found trigger gained by it.
        Where nothing is gone, by the shortest way: it was too much, or too many images were lost.
    """
    network.eval()
    here = [value.detach().clone() for value in _moving(network)]
    there = [value.detach() for value in _moving(towards)]
    generator = make_generator(seed, "going back")
    device = next(network.parameters()).device
    pictures = pictures_of(clean, seed)
    panel = Panel.of(clean, TRIED_IMAGES, generator, pictures, network, precision, device)
    right, rates = _right(network, panel, tell), _rates(network, panel, found, tell)
    regained = 0.0
    for share in TRIED_SHARES:
        _lay(network, here, there, most * share)
        kept = _right(network, panel, tell) >= right - MOST_LOST
        gained = _rates(network, panel, found, tell) - rates
        if not gained.isfinite().all():
            continue
        regained = max(0.0, float(gained.max())) if len(gained) else 0.0
        if kept and regained <= most_regained:
            return {"gone": round(most * share, 4), "regained": round(regained, 4)}
    _lay(network, here, there, 0.0)
    return {"gone": 0.0, "regained": round(regained, 4)}


@torch.no_grad()
def _right(network: nn.Module, panel: Panel, tell: Tell) -> float:
    """Share of the panel's images that are classified right as they are."""
    answers = panel.logits(network, panel.images).argmax(dim=1)
    tell(len(panel.labels))
    return float((answers == panel.labels).float().mean())


def _rates(network: nn.Module, panel: Panel, found: FoundTriggers, tell: Tell) -> Tensor:
    """[m], of the strongest triggers: the mean probability of the class that each leads to."""
    rates = []
    for kind, place in found.strongest(TRIED_TARGETS):
        of_kind = found.kinds[kind]
        numbers = tuple(each[[place]] for each in of_kind.numbers)
        rates.append(panel.rates(network, kind, numbers, tell)[0, of_kind.targets[place]])
    return torch.stack(rates) if rates else torch.zeros(0)


def _moving(network: nn.Module) -> list[Tensor]:
    """What moves; counters and the like stay."""
    values = [*network.parameters(), *network.buffers()]
    return [value for value in values if value.is_floating_point()]


@torch.no_grad()
def _lay(network: nn.Module, here: Sequence[Tensor], there: Sequence[Tensor], share: float) -> None:
    for value, start, end in zip(_moving(network), here, there, strict=True):
        # Of an end that is no number nothing is none, too.
        value.copy_(start.lerp(end, share) if share else start)
