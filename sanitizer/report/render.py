"""A report as one HTML page that needs nothing else: styles and pictures are in it."""

import base64
import re
import struct
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from sanitizer.report.model import SUSPICIOUS_ANOMALY, Proportion, Report, TryOutcome
from sanitizer.warning_codes import WarningCode

_PICTURES = {
    # By the start of a picture's name: heading, and what somebody is told who does not see it.
    "before_after": (
        "Before and after",
        "Bar chart of clean accuracy, attack success rate and robust accuracy before and after, "
        "with 95% intervals. The table of figures has the same values.",
    ),
    "curves": (
        "During training",
        "Line charts of the loss, and of clean accuracy, attack success rate and robust accuracy, "
        "by epoch of each training stage.",
    ),
    "inspection": (
        "Search for triggers",
        "Bar charts of the estimated attack success rate of each class before and after, and the "
        "patch and the pattern that were found for the class that stands out most. The table of "
        "the search has the same values.",
    ),
    "screening": (
        "Images with a trigger",
        "Of each class with such images, some that were left out of the clean ones, what they have "
        "in common, and some that were kept.",
    ),
    "durability": (
        "Trained further",
        "Bar chart of how often each trigger leads to its target in the sanitized model and in "
        "retuned copies of it, and to another class as a control. The table of durability has the "
        "same values.",
    ),
    "examples": (
        "Examples",
        "Evaluation images without and with the trigger, with the class that the model names for "
        "the triggered ones, before and after.",
    ),
}
_BACKTICKS = re.compile("`([^`]+)`")
UNEXPECTED_CODES = (WarningCode.PREPARATION_SUSPECTED, WarningCode.CLASS_ORDER_SUSPECTED)
"""Warnings with which images are not screened; a test holds them against
`sanitizer.stages.expect`."""


def render_page(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        pictures: PNGs by name, in the order they are shown. A name that starts with `before_after`,
            `curves`, `screening`, `inspection`, `durability` or `examples` gets that heading and
            description, any other its own name.

    Returns:
        HTML5, UTF-8. Loads nothing, runs no script. Everything that came from outside is escaped.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        percent=_percent,
        points=_points,
        size=_size,
        duration=_duration,
        speed=_speed,
        giga=_giga,
        figure=_setting,
        rounded=_rounded,
        anomaly=_anomaly,
        code=_code,
    )
    source = (files("sanitizer.report") / "page.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(source)
    return page.render(
        report=report,
        rows=_rows(report),
        kept=next((e.method for e in report.tries or () if e.outcome is TryOutcome.KEPT), None),
        settings=list(_flattened(report.method).items()),
        searches=_searches(report),
        suspicious_anomaly=SUSPICIOUS_ANOMALY,
        unexpected_codes=UNEXPECTED_CODES,
        stages=[stage for stage in report.stages if stage.stage not in ("load", "write")],
        speeds={speed.stage: speed for speed in (report.cost.speeds if report.cost else ())},
        pictures=[_picture(name, png) for name, png in pictures.items()],
    )


def _rows(report: Report) -> list[dict[str, Any]]:
    """The table of figures: each before, after, and the change; `good` where the change is one."""
    rows = [
        _row("ACC", "Clean accuracy", report.before.accuracy, report.after.accuracy, higher=True)
    ]
    for before, after in zip(report.before.probes, report.after.probes, strict=True):
        asr = _row("ASR", f"Attack success rate, probe {before.name}", before.asr, after.asr)
        ra = _row("RA", f"Robust accuracy, probe {before.name}", before.ra, after.ra, higher=True)
        rows += [{**row, "target": before.target_class} for row in (asr, ra)]
    return rows


def _searches(report: Report) -> list[dict[str, Any]]:
    """The table of the search: a row for each class, before, after, and what was carried over."""
    inspections = report.inspections
    if inspections is None:
        return []
    before = {each.target_class: each for each in inspections.before.classes}
    after = {each.target_class: each for each in inspections.after.classes}
    carried = {each.target_class: each for each in inspections.carried}
    return [
        {
            "target": target,
            "before": before.get(target),
            "after": after.get(target),
            "carried": carried.get(target),
            "found_before": target in inspections.before.suspicious,
            "found_after": target in inspections.after.suspicious,
        }
        for target in sorted(before.keys() | after.keys())
    ]


def _row(
    short: str, label: str, before: Proportion, after: Proportion, *, higher: bool = False
) -> dict[str, Any]:
    change = after.value - before.value
    return {
        "short": short,
        "label": label,
        "before": before,
        "target": None,
        "after": after,
        "change": change,
        "good": None if change == 0 else (change > 0) == higher,
    }


def _picture(name: str, png: bytes) -> dict[str, Any]:
    # A PNG's header has width and height at bytes 16 to 24. Pictures are drawn at 150 dots an inch,
    # a page has 96.
    width, height = (round(side * 96 / 150) for side in struct.unpack(">II", png[16:24]))
    stem = name.rsplit(".", 1)[0]
    known = next((known for known in _PICTURES if stem.startswith(known)), None)
    heading, description = _PICTURES[known] if known else (stem, stem)
    return {
        "id": stem,
        "heading": heading,
        "description": description,
        "width": width,
        "height": height,
        "source": "data:image/png;base64," + base64.b64encode(png).decode("ascii"),
    }


def _flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as one list of dotted names and values."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(_flattened(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = _setting(value)
    return flat


def _setting(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_setting(v)}" for key, v in value.items())
    if isinstance(value, list | tuple):
        separator = "; " if any(isinstance(v, Mapping) for v in value) else ", "
        return separator.join(_setting(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _code(text: str) -> Markup:
    """What stands between backticks as code."""
    return Markup(_BACKTICKS.sub(r"<code>\1</code>", str(escape(text))))


def _rounded(value: float) -> str:
    """A figure of a stage: counts as they are, all else to three digits."""
    whole = value.is_integer() or abs(value) >= 999.5
    return f"{value:,.0f}" if whole else f"{value:.3g}"


def _anomaly(deviations: float) -> str:
    """With a real minus sign, and none before a zero."""
    return f"{round(deviations, 1) + 0.0:.1f}".replace("-", "\N{MINUS SIGN}")


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _points(change: float) -> str:
    """A difference of shares in percentage points, with a real minus sign."""
    return f"{100 * change:+.2f}".replace("-", "\N{MINUS SIGN}")


def _size(count: int) -> str:
    amount = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{amount:,.0f} {unit}" if unit == "bytes" else f"{amount:,.1f} {unit}"
        amount /= 1024
    raise AssertionError("unreachable: the last unit always returns")


def _speed(per_second: float | None) -> str:
    return "" if per_second is None else f"{per_second:,.{0 if per_second >= 10 else 1}f}"


def _giga(per_second: float | None) -> str:
    return "" if per_second is None else f"{per_second / 1e9:,.3g} G"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
