import io
from dataclasses import dataclass

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from sanitizer.report.model import ChangeFamily, Report, StageRecord
from sanitizer.report.plots import (
    draw_losses,
    draw_shares,
    in_lines,
    plot_before_after,
    plot_curves,
    plot_durability,
    plot_examples,
    plot_inspection,
    plot_screening,
)

from .builders import build_durability, build_images, build_inspections, build_report


def picture(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    assert image.format == "PNG"
    return image.convert("RGB")


def has_color(png: bytes, hexadecimal: str) -> bool:
    color = tuple(int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5))
    return bool((np.asarray(picture(png)) == color).all(axis=2).any())


@pytest.mark.parametrize("probes", [(), ("grid",), ("grid", "blend", "sig", "mask")])
def test_curves_show_a_line_of_each_figure(probes: tuple[str, ...]) -> None:
    png = plot_curves(build_report(probes))
    assert has_color(png, "#0072B2")
    assert has_color(png, "#D55E00") == bool(probes)
    assert has_color(png, "#009E73") == bool(probes)


def with_stages(report: Report, stages: list[StageRecord]) -> Report:
    return report.model_copy(update={"stages": stages})


def test_curves_of_a_run_without_training_say_so() -> None:
    assert picture(plot_curves(with_stages(build_report(), []))).size[0] > 600


def test_curves_without_an_evaluation_an_epoch_show_the_loss() -> None:
    report = build_report()
    stages = [
        StageRecord(
            stage="finetune",
            seconds=1,
            epochs=[
                epoch.model_copy(update={"values": {"loss": epoch.values["loss"]}})
                for epoch in report.stages[2].epochs
            ],
        )
    ]
    png = plot_curves(with_stages(report, stages))
    assert not has_color(png, "#0072B2")


def test_a_loss_of_zero_is_drawn() -> None:
    report = build_report()
    (first, *_) = report.stages[3].epochs
    zero = first.model_copy(update={"values": {"loss": 1.0, "edge": 0.0}})
    stages = [StageRecord(stage="distil", seconds=1, epochs=[zero])]
    assert picture(plot_curves(with_stages(report, stages))).size[0] > 600


def test_bars_show_every_probe() -> None:
    widths = [picture(plot_before_after(build_report(p))).size[0] for p in ((), ("a",), ("a", "b"))]
    assert widths == sorted(widths)
    assert not has_color(plot_before_after(build_report(())), "#D55E00")
    assert has_color(plot_before_after(build_report(("a",))), "#D55E00")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("grid", ["grid"]),
        ("warp_trigger-of-the-paper", ["warp_trigger-", "of-the-paper"]),
        ("a_very-long-name", ["a_very-long-", "name"]),
        ("-_-", ["-_-"]),
        ("w" * 40, ["w" * 14, "w" * 14, "w" * 12]),
    ],
)
def test_long_names_are_broken_under_their_bars(name: str, lines: list[str]) -> None:
    assert in_lines(name) == "\n".join(lines)
    # The picture is no larger for it: the bars give way.
    assert picture(plot_before_after(build_report((name,)))).size == (
        picture(plot_before_after(build_report(("a",)))).size
    )


def test_no_two_probes_of_eight_have_the_same_line_and_marker() -> None:
    report = build_report(tuple(f"probe-{number}" for number in range(8)))
    figure = Figure()
    axes = figure.subplots()
    draw_shares(axes, [("distil", epoch.values) for epoch in report.stages[3].epochs])
    lines = [line for line in axes.get_lines() if str(line.get_label()).startswith("ASR")]
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 8


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 8])
def test_examples_show_each_image_twice(channels: int, count: int) -> None:
    images = build_images(count, channels)
    labels = [i % 3 for i in range(count)]
    png = plot_examples(images, 255 - images, labels, [0] * count, labels, ["cat", "dog", "cow"])
    assert picture(png).size == pytest.approx((150 * (1.25 + 1.3 * count), 150 * 3.55), abs=2)


def test_strange_class_names_are_drawn_without_a_warning() -> None:
    images = build_images(4)
    names = ["$x^2$ and a name far too long to fit", "犬", "", "ok"]
    assert plot_examples(images, images, [0, 1, 2, 3], [7, 1, 2, 3], [0, 1, 2, 3], names)


def test_examples_that_do_not_fit_each_other_are_refused() -> None:
    images = build_images(2)
    with pytest.raises(ValueError, match="got 2, 2, 1, 2 and 2"):
        plot_examples(images, images, [0], [0, 0], [0, 0], ["cat"])


def test_the_same_report_gives_the_same_bytes() -> None:
    assert plot_before_after(build_report()) == plot_before_after(build_report())


@pytest.mark.parametrize("channels", [1, 3])
def test_an_inspection_shows_what_was_found_before_and_after(channels: int) -> None:
    looks = dict(zip(ChangeFamily, build_images(2, channels), strict=False))
    names = [f"class {number}" for number in range(10)]
    both = plot_inspection(build_inspections(before=(3,)), [looks, looks], names)
    assert has_color(both, "#D55E00")
    none = plot_inspection(build_inspections(), [looks, looks], names)
    assert not has_color(none, "#D55E00")
    # The pictures of one search alone are drawn too.
    assert both != plot_inspection(build_inspections(before=(3,)), [looks, {}], names)


@pytest.mark.parametrize("probes", [1, 2, 3, 8])
def test_what_came_back_is_drawn_probe_by_probe(probes: int) -> None:
    names = tuple(f"probe-{number}" for number in range(probes))
    drawn = plot_durability(build_durability(probes=names))
    assert has_color(drawn, "#D55E00")
    assert drawn != plot_durability(build_durability(clean=900, probes=names))


@pytest.mark.parametrize(("last", "scale"), [(1.3, "linear"), (0.01, "log")], ids=["near", "far"])
def test_losses_have_numbers_however_close_they_lie(last: float, scale: str) -> None:
    figure = Figure()
    axes = figure.subplots()
    draw_losses(axes, [("finetune", {"loss": 2.07}), ("finetune", {"loss": last})])
    assert axes.get_yscale() == scale
    figure.draw_without_rendering()
    low, high = axes.get_ylim()
    shown = [
        label
        for place, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
        if low <= place <= high
    ]
    assert len([label for label in shown if label.get_text()]) >= 2


@dataclass(frozen=True)
class Pictured:
    target: int
    left_out: NDArray[np.uint8]
    kept: NDArray[np.uint8]
    trace: NDArray[np.float64]


def test_bars_of_many_probes_stand_in_rows_of_the_width_of_a_page() -> None:
    sizes = [
        picture(plot_before_after(build_report(tuple(f"probe-{n}" for n in range(count))))).size
        for count in (3, 4, 8)
    ]
    assert len({width for width, _ in sizes}) == 1
    assert sizes[0][1] < sizes[1][1] < sizes[2][1]


def test_a_long_class_name_stands_over_the_line_that_says_left_out() -> None:
    shown = [Pictured(0, build_images(4), build_images(4), np.zeros((3, 16, 16)))]
    one, other = (
        np.asarray(picture(plot_screening(shown, [name])))
        for name in ("stop sign road", "road sign stop")  # as wide as each other
    )
    differ = np.flatnonzero((one != other).any(axis=(1, 2)))
    left_out = np.flatnonzero((one[:, one.shape[1] // 5 :] < 128).any(axis=(1, 2)))
    assert differ.max() < left_out.min()
