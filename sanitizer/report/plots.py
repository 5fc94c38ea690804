"""The figures of a report as PNG pictures.

Drawn with matplotlib's objects, never through pyplot: that one keeps every figure in a global list.
"""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Protocol

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter
from matplotlib.typing import RcKeyType
from numpy.typing import NDArray

from sanitizer.report.model import (
    ChangeFamily,
    Durability,
    Evaluation,
    Inspections,
    Proportion,
    Report,
)

# Okabe and Ito's palette, told apart with any kind of colour vision; markers say it a second time.
_ACC = "#0072B2"
_ASR = "#D55E00"
_RA = "#009E73"
_INK = "#1f2430"
_FAINT = "#6b7280"
_GRID = "#e3e6ea"
_LOSSES = {
    "loss": (_INK, "total"),
    "cross_entropy": ("#56B4E9", "cross-entropy"),
    "node": ("#CC79A7", "node"),
    "edge": ("#E69F00", "edge"),
    "embedding": ("#7f7f00", "embedding"),
    "perturbed": ("#8c564b", "perturbed"),
}
_FONT = "DejaVu Sans"
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Of ASR and RA; the next where more probes come than there are lines.
_ASR_MARKERS, _RA_MARKERS = ("s", "D"), ("^", "v")
_STYLE: dict[RcKeyType, Any] = {
    "font.family": _FONT,
    "font.size": 10,
    "text.color": _INK,
    "text.parse_math": False,  # A class called `a$b$` is a name, not a formula.
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "grid.color": _GRID,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
_STAGES = {
    "teacher": "teacher",
    "finetune": "model",
    "distil": "student",
    "mask": "masks",
    "unlearn": "model",
    "shift": "model",
    "curve": "curve",
}
_DPI = 150
LEAST_FOLD = 100.0
"""How far losses must lie apart for logarithms."""
_MAX_NAME = 14

_Point = tuple[str, Mapping[str, float]]
"""The stage and the figures of one epoch."""


class Shown(Protocol):
    """Images of a class that carry a trigger, and others; see `sanitizer.screened.Pictured`."""

    @property
    def target(self) -> int: ...
    @property
    def left_out(self) -> NDArray[np.uint8]: ...
    @property
    def kept(self) -> NDArray[np.uint8]: ...
    @property
    def trace(self) -> NDArray[np.float64]: ...


def plot_curves(report: Report) -> bytes:
    """Loss, and ACC, ASR and RA, by epoch over the training stages; PNG.

    Epochs of the stages follow each other, a line between them.
    """
    points = [
        (stage.stage, epoch.values)
        for stage in report.stages
        if stage.stage in _STAGES
        for epoch in stage.epochs
    ]
    names = [probe.name for probe in report.after.probes]
    # Room for the key: two lines for each probe, named where there are several.
    wider = 0.08 * max(0, max(map(len, names)) - 8) if len(names) > 1 else 0
    with _figure(8.4 + wider, 5.6 + 0.6 * max(0, len(names) - 4)) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.25))
        draw_losses(top, points)
        draw_shares(bottom, points)
        _mark_stages((top, bottom), [stage for stage, _ in points])
        bottom.set_xlabel("epoch")
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        return _png(figure)


def plot_before_after(report: Report) -> bytes:
    """ACC, and ASR and RA of each probe, before and after, with 95% intervals; PNG."""
    bars = list(zip(_bars(report.before), _bars(report.after), strict=True))
    # In rows, since a page shows a picture no wider than itself: ACC, and three probes in each.
    rows = [bars[:7], *(bars[start : start + 6] for start in range(7, len(bars), 6))]
    count = len(rows[0])
    with _figure(max(5.2, 2.2 + 1.3 * count), 0.6 + 3.0 * len(rows)) as figure:
        panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
        width = 0.38
        for axes, row in zip(panels, rows, strict=True):
            for place, pair in enumerate(row):
                for offset, (_, color, share), filled in zip(
                    (-0.5, 0.5), pair, (False, True), strict=True
                ):
                    x = place + offset * (width + 0.02)
                    _draw_bar(axes, x, width, share, color, filled=filled)
            axes.set_xticks(range(len(row)), [label for (label, _, _), _ in row], color=_INK)
            axes.tick_params(axis="x", length=0)
            _percent_axis(axes)
            axes.set_ylim(0, 1.12)
            axes.set_xlim(-0.6, count - 0.4)
        panels[0].set_title("Before and after, with 95% intervals")
        key = [
            panels[0].bar(0, 0, color="white", edgecolor=_INK, hatch="////", label="before"),
            panels[0].bar(0, 0, color=_INK, edgecolor=_INK, label="after"),
        ]
        figure.legend(handles=key, loc="outside upper right", ncols=2)
        return _png(figure)


def plot_examples(
    clean: NDArray[np.uint8],
    triggered: NDArray[np.uint8],
    labels: Sequence[int],
    predicted_before: Sequence[int],
    predicted_after: Sequence[int],
    class_names: Sequence[str],
) -> bytes:
    """Images without and with the trigger, and what the model says to the latter; PNG.

    Args:
        clean: [n, C, H, W], n at least 1.
        triggered: The same images with the trigger on.
        labels: True classes, [n].
        predicted_before: What the suspect model calls the triggered images, [n].
        predicted_after: What the sanitized model calls them, [n].
        class_names: By class number.
    """
    count = len(clean)
    if not count or not (
        len(triggered) == len(labels) == len(predicted_before) == len(predicted_after) == count
    ):
        raise ValueError(
            "one or more images came, as many of each, was expected; got "
            f"{count}, {len(triggered)}, {len(labels)}, {len(predicted_before)} and "
            f"{len(predicted_after)}"
        )

    name = _namer(class_names)
    with _figure(1.25 + 1.3 * count, 3.55) as figure:
        grid = figure.subplots(2, count, squeeze=False)
        for column in range(count):
            top, bottom = grid[0][column], grid[1][column]
            for axes, image in ((top, clean[column]), (bottom, triggered[column])):
                _show(axes, image)
            truth = labels[column]
            top.set_title(name(truth), fontsize=9, fontweight="normal", loc="center")
            for line, (when, said) in enumerate(
                (("before", predicted_before[column]), ("after", predicted_after[column]))
            ):
                right = said == truth
                bottom.annotate(
                    f"{'✓' if right else '✗'} {name(said)}",
                    (0.5, -0.08 - 0.17 * line),
                    xycoords="axes fraction",
                    ha="center",
                    va="top",
                    fontsize=9,
                    color=_RA if right else _ASR,
                    annotation_clip=False,
                )
                if column == 0:
                    bottom.annotate(
                        when,
                        (-0.12, -0.08 - 0.17 * line),
                        xycoords="axes fraction",
                        ha="right",
                        va="top",
                        fontsize=9,
                        color=_FAINT,
                        annotation_clip=False,
                    )
        for axes, label in ((grid[0][0], "clean"), (grid[1][0], "with trigger")):
            axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
        return _png(figure)


def plot_inspection(
    inspections: Inspections,
    pictures: Sequence[Mapping[ChangeFamily, NDArray[np.uint8]]],
    class_names: Sequence[str],
) -> bytes:
    """Estimated ASR by class before and after, and the changes found for the strongest class; PNG.

    Args:
        pictures: Before and after: what was found for the class that stands out most, by family,
            [C, H, W].
        class_names: By class number.
    """
    name = _namer(class_names)
    families = [family for family in ChangeFamily if any(family in each for each in pictures)]
    with _figure(8.4, 4.8) as figure:
        ratios = (3.2, *[1] * len(families))
        grid = figure.subplots(2, 1 + len(families), squeeze=False, width_ratios=ratios)
        rows = zip(
            ("model as it came", "sanitized model"),
            (inspections.before, inspections.after),
            pictures,
            grid,
            strict=True,
        )
        for title, inspection, found, (bars, *places) in rows:
            shares = [each.estimated_asr for each in inspection.classes]
            targets = [each.target_class for each in inspection.classes]
            colors = [_ASR if target in inspection.suspicious else _FAINT for target in targets]
            bars.bar(range(len(shares)), shares, color=colors)
            labels = [name(target) for target in targets]
            bars.set_xticks(range(len(shares)), labels, rotation=60, ha="right", fontsize=8)
            _percent_axis(bars)
            bars.set_ylim(0, 1.02)
            bars.set_title(f"{title}: estimated ASR, anomaly {inspection.anomaly:.1f}")
            for family, axes in zip(families, places, strict=True):
                if family in found:
                    _show(axes, found[family])
                    target = name(inspection.strongest.target_class)
                    axes.set_title(f"{family.value} for {target}", fontsize=9, fontweight="normal")
                else:
                    axes.axis("off")
        return _png(figure)


def plot_durability(durability: Durability) -> bytes:
    """How often each trigger leads to its target, and to the control's class; PNG.

    Delivered and retuned, with 95% intervals.

    Args:
        durability: With a probe at least.
    """
    bars: list[tuple[str, str, Proportion, bool]] = []
    for probe in durability.probes:
        bars += [
            ("delivered", _ASR, probe.delivered, False),
            ("retuned,\nclean", _ASR, probe.clean, True),
            ("retuned,\npoisoned", _ASR, probe.poisoned, True),
            (f"class {probe.control_class},\ndelivered", _FAINT, probe.control_delivered, False),
            (f"class {probe.control_class},\npoisoned", _FAINT, probe.control, True),
        ]
    each, columns = len(bars) // len(durability.probes), min(2, len(durability.probes))
    rows = -(-len(durability.probes) // columns)
    with _figure(0.6 + 4.6 * columns, 0.3 + 2.9 * rows) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for place, axes in enumerate(panels):
            shown = bars[place * each : (place + 1) * each]
            if not shown:
                axes.axis("off")
                continue
            probe = durability.probes[place]
            for x, (_, color, share, filled) in enumerate(shown):
                _draw_bar(axes, x, 0.7, share, color, filled=filled)
            axes.set_xticks(range(each), [label for label, *_ in shown], color=_INK, fontsize=8.5)
            axes.tick_params(axis="x", length=0)
            _percent_axis(axes)
            axes.set_ylim(0, 1.15)
            axes.set_ylabel("images led to the class")
            axes.set_title(probe.name, fontsize=10)
        return _png(figure)


def plot_screening(classes: Sequence[Shown], class_names: Sequence[str]) -> bytes:
    """Images that carry a trigger, what they have in common, and others of their classes; PNG.

    Args:
        classes: At least one.
        class_names: By class number.
    """
    name = _namer(class_names)
    columns = 1 + max(max(len(each.left_out), len(each.kept)) for each in classes)
    with _figure(0.4 + 0.95 * columns, 0.2 + 2.3 * len(classes)) as figure:
        panels = figure.subplots(2 * len(classes), columns, squeeze=False)
        for axes in panels.flatten():
            axes.axis("off")
        for number, each in enumerate(classes):
            target = name(each.target)
            rows = panels[2 * number : 2 * number + 2]
            for axes, images in zip(rows, (each.left_out, each.kept), strict=True):
                for place, image in zip(axes[1:], images, strict=False):
                    place.axis("on")
                    _show(place, image)
            rows[0][0].axis("on")
            _show(rows[0][0], _on_grey(each.trace))
            rows[0][0].set_title(f"{target}\nin common", fontsize=7.5)
            rows[0][1].set_title("left out", fontsize=8.5, fontweight="normal")
            rows[1][1].set_title("kept", fontsize=8.5, fontweight="normal")
        return _png(figure)


def _on_grey(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Differences of pixel values, [C, H, W], as large as the image bears."""
    largest = max(float(np.abs(values).max()), 1.0)
    return np.round(127.5 + 127.5 * values / largest).astype(np.uint8)


def _namer(class_names: Sequence[str]) -> Callable[[int], str]:
    """What a picture calls a class."""
    font = get_font(findfont(_FONT))

    def name(label: int) -> str:
        full = class_names[label] if 0 <= label < len(class_names) else ""
        if not full or not all(font.get_char_index(ord(character)) for character in full):
            # The font comes with matplotlib and lacks many scripts: a number beats empty boxes.
            return str(label)
        return full if len(full) <= _MAX_NAME else full[: _MAX_NAME - 1] + "…"

    return name


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """A figure in the house style, inches."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without the version of matplotlib in it, the same figures give the same bytes.
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def draw_losses(axes: Axes, points: Sequence[_Point]) -> None:
    """Loss and its terms, by epoch."""
    for number, (key, (color, label)) in enumerate(_LOSSES.items()):
        _draw_line(axes, points, key, color, label, _MARKERS[number], "-" if not number else "--")
    # The terms of a distillation loss lie orders of magnitude apart. Where all lie close together
    # such an axis has no number.
    drawn = [values[key] for _, values in points for key in _LOSSES if key in values]
    if drawn and 0 < LEAST_FOLD * min(drawn) < max(drawn):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    # Above the names of the stages.
    axes.set_title("Loss", pad=18)
    axes.grid(axis="y")
    _legend(axes)


def draw_shares(axes: Axes, points: Sequence[_Point]) -> None:
    """ACC, and ASR and RA of each probe, by epoch; of eight probes no two look the same."""
    _draw_line(axes, points, "train_accuracy", _FAINT, "training accuracy", "", ":")
    _draw_line(axes, points, "accuracy", _ACC, "ACC", "o", "-")
    keys = {key for _, values in points for key in values}
    names = sorted(key.removeprefix("asr.") for key in keys if key.startswith("asr."))
    for number, name in enumerate(names):
        again, which = divmod(number, len(_LINES))
        line = _LINES[which]
        asr, ra = (marks[again % len(marks)] for marks in (_ASR_MARKERS, _RA_MARKERS))
        suffix = f" {name}" if len(names) > 1 else ""
        _draw_line(axes, points, f"asr.{name}", _ASR, f"ASR{suffix}", asr, line)
        _draw_line(axes, points, f"ra.{name}", _RA, f"RA{suffix}", ra, line)
    _percent_axis(axes)
    axes.set_ylim(-0.02, 1.02)
    axes.set_title("Clean accuracy, attack success rate, robust accuracy")
    _legend(axes)


def _draw_line(
    axes: Axes,
    points: Sequence[_Point],
    key: str,
    color: str,
    label: str,
    marker: str,
    line: str,
) -> None:
    """One series over all epochs; the line breaks between stages, and where an epoch lacks it."""
    epochs: list[float] = []
    series: list[float] = []
    for number, (stage, values) in enumerate(points):
        if number and stage != points[number - 1][0]:
            epochs.append(number + 0.5)
            series.append(float("nan"))
        epochs.append(number + 1)
        series.append(values.get(key, float("nan")))
    if all(np.isnan(series)):
        return
    axes.plot(
        epochs, series, color=color, label=label, marker=marker, markersize=3.5, linestyle=line
    )


def _mark_stages(panels: Sequence[Axes], stages: Sequence[str]) -> None:
    if not stages:
        for axes in panels:
            axes.text(0.5, 0.5, "no training", transform=axes.transAxes, ha="center", color=_FAINT)
        return
    borders = [i + 1.5 for i, (a, b) in enumerate(pairwise(stages)) if a != b]
    for axes in panels:
        axes.set_xlim(0.5, len(stages) + 0.5)
        for border in borders:
            axes.axvline(border, color=_FAINT, linewidth=0.8)
    for start, end in pairwise([0.5, *borders, len(stages) + 0.5]):
        stage = stages[int(start)]
        panels[0].annotate(
            _STAGES[stage],
            ((start + end) / 2, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=_FAINT,
        )


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _bars(evaluation: Evaluation) -> list[tuple[str, str, Proportion]]:
    bars = [("ACC\nclean images", _ACC, evaluation.accuracy)]
    for probe in evaluation.probes:
        name = in_lines(probe.name)
        bars += [(f"ASR\n{name}", _ASR, probe.asr), (f"RA\n{name}", _RA, probe.ra)]
    return bars


def in_lines(name: str) -> str:
    """A name in lines that fit under a bar; they end after - and _ where they may."""
    lines = [""]
    for part in re.findall(r"[^-_]*[-_]|[^-_]+", name):
        if lines[-1] and len(lines[-1]) + len(part) > _MAX_NAME:
            lines.append("")
        lines[-1] += part
        while len(lines[-1]) > _MAX_NAME:
            lines[-1:] = [lines[-1][:_MAX_NAME], lines[-1][_MAX_NAME:]]
    return "\n".join(lines)


def _draw_bar(
    axes: Axes, x: float, width: float, share: Proportion, color: str, *, filled: bool
) -> None:
    axes.bar(
        x,
        share.value,
        width,
        color=color if filled else "white",
        edgecolor=color,
        hatch=None if filled else "////",
    )
    axes.errorbar(
        x,
        share.value,
        yerr=[[share.value - share.low], [share.high - share.value]],
        color=_INK,
        linewidth=1,
        capsize=2.5,
    )
    axes.annotate(
        f"{share.value:.1%}",
        (x, share.high),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=8.5,
    )


def _percent_axis(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="y")


def _show(axes: Axes, image: NDArray[np.uint8]) -> None:
    shown = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
