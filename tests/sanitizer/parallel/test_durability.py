"""Copies of a sanitized model that several processes retune together."""

import torch

from sanitizer.data.image_set import ImageSet
from sanitizer.evaluation.durability import Delivered, measure_durability, retuning_of
from sanitizer.networks.registry import build_network
from sanitizer.parallel.group import ALONE, Group
from sanitizer.randomness import make_generator
from sanitizer.report.model import Durability
from sanitizer.spec import FinetuneConfig, PatchProbe
from tests.sanitizer.builders import digits
from tests.sanitizer.parallel.conftest import Processes
from tests.sanitizer.precise import Precise

PROBE = PatchProbe(target_class=3, row=0, column=0, pixels=[[255, 0], [0, 255]])


def images(start: int, end: int) -> ImageSet:
    return ImageSet.from_arrays(*digits(start, end))


def durability(group: Group) -> Durability:
    return measure_durability(
        Delivered(
            network=Precise(build_network("wrn-10-1", 10, 1, make_generator(0))),
            num_classes=10,
            clean=images(0, 100),
            measured=images(100, 161),
            probes=[PROBE],
            training=retuning_of(FinetuneConfig()),
            seed=0,
            device=torch.device("cpu"),
            precision=torch.float32,
            group=group,
        ),
        {},
    )


def test_the_figures_are_those_of_one_process_and_everybodys(processes: Processes) -> None:
    expected = durability(ALONE)
    assert expected.clean_accuracy != expected.accuracy
    for found in processes.together(2, durability):
        assert found.model_copy(update={"seconds": expected.seconds}) == expected
