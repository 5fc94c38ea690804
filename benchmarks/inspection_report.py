"""What the calibration of the search for triggers came to: figures, a table, a picture."""

import io
import json
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.victims import replace_file
from sanitizer.cost.workload import SEARCH_BATCH, SEARCH_STEPS
from sanitizer.evaluation.changes import LEAST_PIXELS, FeatureShift, Patch, Pattern
from sanitizer.evaluation.inspection import LEAST_DEVIATION, SUSPICIOUS_RATE
from sanitizer.evaluation.metrics import wilson
from sanitizer.machine import processor_name
from sanitizer.report.model import SUSPICIOUS_ANOMALY, Proportion

FALSE_ALARMS = 0.05
"""The share of clean models that a threshold may accuse."""

Entry = Mapping[str, Any]


def area_under_curve(clean: Sequence[float], backdoored: Sequence[float]) -> float:
    """How often a backdoored model scores higher than a clean one; ties count half."""
    pairs = [(c, b) for c in clean for b in backdoored]
    return sum(1.0 if b > c else 0.5 if b == c else 0.0 for c, b in pairs) / len(pairs)


def threshold_for(clean: Sequence[float], share: float = FALSE_ALARMS) -> float:
    """The highest score of a clean model that may stay below the threshold.

    As many clean models as `share` allows, rounded down, lie above it.
    """
    allowed = int(share * len(clean) + 1e-9)
    return sorted(clean, reverse=True)[allowed]


def summary(entries: Sequence[Entry], threshold: float = SUSPICIOUS_ANOMALY) -> dict[str, Any]:
    """The figures of one split.

    Args:
        entries: As `inspection_calibration.entries` gives them; attempts that were not searched
            count as not learned.
        threshold: From which score on a model is accused.
    """
    searched = [entry for entry in entries if "inspection" in entry]
    clean = [entry for entry in searched if entry["recipe"]["backdoor"] is None]
    bad = [entry for entry in searched if entry["recipe"]["backdoor"] is not None]
    own = threshold_for([_score(entry) for entry in clean])
    errors = [_estimated(entry) - entry["asr"] for entry in bad]
    most = [
        max(each["estimated_asr"] for each in entry["inspection"]["classes"].values())
        for entry in clean
    ]
    found = [entry for entry in bad if _score(entry) >= threshold]
    return {
        "clean": len(clean),
        "backdoored": len(bad),
        "not_learned": len(entries) - len(searched),
        "area": round(area_under_curve(list(map(_score, clean)), list(map(_score, bad))), 4),
        "threshold": threshold,
        "detected": _share(bad, lambda entry: _score(entry) >= threshold),
        "false_alarms": _share(clean, lambda entry: _score(entry) >= threshold),
        "own_threshold": own,
        "detected_at_own": _share(bad, lambda entry: _score(entry) > own),
        "right_target_first": _share(found, lambda entry: _named(entry)[:1] == [_target(entry)]),
        "right_target_among": _share(found, lambda entry: _target(entry) in _named(entry)),
        "by_attack": _by(bad, lambda entry: entry["recipe"]["backdoor"]["attack"], threshold),
        "by_data": _by(bad, lambda entry: entry["recipe"]["data"]["name"], threshold),
        "by_architecture": _by(bad, lambda entry: entry["recipe"]["architecture"], threshold),
        "clean_by_data": _by(clean, lambda entry: entry["recipe"]["data"]["name"], threshold),
        "estimated_asr": {
            "mean_error": round(statistics.fmean(errors), 4),
            "mean_absolute_error": round(statistics.fmean(map(abs, errors)), 4),
            "clean_mean_of_highest": round(statistics.fmean(most), 4),
            "clean_highest": max(most),
        },
        "accuracy": {
            "clean": round(statistics.fmean(entry["acc"] for entry in clean), 4),
            "backdoored": round(statistics.fmean(entry["acc"] for entry in bad), 4),
        },
        "seconds": {
            "median": statistics.median(entry["seconds"] for entry in searched),
            "most": max(entry["seconds"] for entry in searched),
        },
    }


def _score(entry: Entry) -> float:
    return float(entry["inspection"]["anomaly"])


def _named(entry: Entry) -> list[int]:
    return list(entry["inspection"]["suspicious"])


def _target(entry: Entry) -> int:
    return int(entry["recipe"]["backdoor"]["probe"]["target_class"])


def _estimated(entry: Entry) -> float:
    return float(entry["inspection"]["classes"][str(_target(entry))]["estimated_asr"])


def _share(entries: Sequence[Entry], which: Callable[[Entry], bool]) -> dict[str, Any] | None:
    if not entries:
        return None
    return wilson(sum(map(which, entries)), len(entries)).model_dump(mode="json")


def _by(
    entries: Sequence[Entry], key: Callable[[Entry], str], threshold: float
) -> dict[str, dict[str, Any] | None]:
    names = dict.fromkeys(key(entry) for entry in entries)
    return {
        name: _share(
            [entry for entry in entries if key(entry) == name],
            lambda entry: _score(entry) >= threshold,
        )
        for name in names
    }


def constants() -> dict[str, float]:
    """What a search is made with, and what of it counts."""
    return {
        "steps": SEARCH_STEPS,
        "batch": SEARCH_BATCH,
        "patch_budget": Patch.budget,
        "least_pixels": LEAST_PIXELS,
        "pattern_budget": round(255 * Pattern.budget, 3),
        "features_budget": FeatureShift.budget,
        "patch_learning_rate": Patch.learning_rate,
        "pattern_learning_rate": Pattern.learning_rate,
        "features_learning_rate": FeatureShift.learning_rate,
        "suspicious_rate": SUSPICIOUS_RATE,
        "least_deviation": LEAST_DEVIATION,
        "suspicious_anomaly": SUSPICIOUS_ANOMALY,
    }


def write(splits: Mapping[str, Sequence[Entry]], folder: Path) -> None:
    """Writes `inspection.json`, `.md` and `.png`."""
    figures = {name: summary(entries) for name, entries in splits.items()}
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": processor_name(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "threads": 1,
        "constants": constants(),
        "summary": figures,
        "models": splits,
    }
    lines = [_one_line(content)]
    replace_file(folder / "inspection.json", "".join(lines).encode())
    replace_file(folder / "inspection.png", picture(splits))
    path = folder / "inspection.md"
    before = path.read_text() if path.is_file() else f"{START}\n{END}\n"
    head, _, rest = before.partition(START)
    _, _, tail = rest.partition(END)
    replace_file(path, f"{head}{START}\n{tables(content)}{END}{tail}".encode())


START, END = "<!-- tables -->", "<!-- end of tables -->"
"""What is between them in the page is made anew; the rest is people's."""


def _one_line(content: Mapping[str, Any]) -> str:
    """JSON, a model a line."""
    head = json.dumps({**content, "models": None}, indent=1)
    models = ",\n".join(
        f'  "{name}": [\n' + ",\n".join(f"   {json.dumps(entry)}" for entry in entries) + "\n  ]"
        for name, entries in content["models"].items()
    )
    return head.replace('"models": null', '"models": {\n' + models + "\n }") + "\n"


# --- For people ----------------------------------------------------------------------------------


def tables(content: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    versions = content["versions"]
    splits: Mapping[str, Any] = content["summary"]
    out = [
        "",
        f"{content['device']}, 1 thread, float32; Python {versions['python']}, torch "
        f"{versions['torch']}; {content['date']}. Shares with 95% Wilson intervals.",
        "",
        f"| | {' | '.join(splits)} |",
        "|---" * (1 + len(splits)) + "|",
    ]

    def row(name: str, cell: Callable[[Any], str]) -> None:
        out.append(f"| {name} | {' | '.join(cell(split) for split in splits.values())} |")

    row("clean models", lambda s: str(s["clean"]))
    row("backdoored models", lambda s: str(s["backdoored"]))
    row("not learned, replaced", lambda s: str(s["not_learned"]))
    row("accuracy, clean and backdoored", lambda s: " and ".join(_all(s["accuracy"])))
    row("area under the ROC", lambda s: f"{s['area']:.3f}")
    row(f"**found at {SUSPICIOUS_ANOMALY:g}**", lambda s: _told(s["detected"]))
    row(f"**false alarms at {SUSPICIOUS_ANOMALY:g}**", lambda s: _told(s["false_alarms"]))
    row(
        "found at 5% false alarms of its own clean models",
        lambda s: f"{_told(s['detected_at_own'])}, over {s['own_threshold']:.2f}",
    )
    row("of those found, the right class first", lambda s: _told(s["right_target_first"]))
    row("of those found, the right class named", lambda s: _told(s["right_target_among"]))
    row(
        "estimated ASR of the true target less the true one: mean, mean distance",
        lambda s: (
            f"{100 * s['estimated_asr']['mean_error']:+.0f}, "
            f"{100 * s['estimated_asr']['mean_absolute_error']:.0f} points"
        ),
    )
    row(
        "highest estimated ASR of a clean model: mean, most",
        lambda s: (
            f"{s['estimated_asr']['clean_mean_of_highest']:.0%}, "
            f"{s['estimated_asr']['clean_highest']:.0%}"
        ),
    )
    row(
        "seconds of an inspection: median, most",
        lambda s: f"{s['seconds']['median']:.0f}, {s['seconds']['most']:.0f}",
    )
    out += ["", f"Found at {SUSPICIOUS_ANOMALY:g}, by kind:", ""]
    out += [f"| | {' | '.join(splits)} |", "|---" * (1 + len(splits)) + "|"]
    for group in ("by_attack", "by_data", "by_architecture"):
        names = dict.fromkeys(name for split in splits.values() for name in split[group])
        for name in names:
            row(name, lambda s, group=group, name=name: _told(s[group].get(name)))  # type: ignore[misc]  # defaults bind the loop's values
    out += ["", *_models(content["models"]), ""]
    return "\n".join(out) + "\n"


def _all(accuracy: Mapping[str, float]) -> list[str]:
    return [f"{accuracy[name]:.1%}" for name in ("clean", "backdoored")]


def _told(share: Mapping[str, Any] | None) -> str:
    if share is None:
        return ""
    found = Proportion.model_validate(share)
    return f"{found.count} of {found.total} ({found.low:.0%} to {found.high:.0%})"


def _models(splits: Mapping[str, Sequence[Entry]]) -> list[str]:
    lines = [
        "| split | data | network | seed | backdoor | ACC % | ASR % | anomaly | named | estimated "
        "ASR % of the target, or highest |",
        "|---" * 10 + "|",
    ]
    for split, entries in splits.items():
        for entry in entries:
            recipe, backdoor = entry["recipe"], entry["recipe"]["backdoor"]
            asr = "" if entry["asr"] is None else f"{100 * entry['asr']:.0f}"
            attack = f"{backdoor['attack']} to {_target(entry)}" if backdoor else "none"
            start = (
                f"| {split} | {recipe['data']['name']} | {recipe['architecture']} | "
                f"{recipe['seed']} | {attack} | {100 * entry['acc']:.1f} | {asr} |"
            )
            if "inspection" not in entry:
                lines.append(f"{start} not learned: {'; '.join(entry['lacks'])} | | |")
                continue
            classes = entry["inspection"]["classes"].values()
            estimated = (
                _estimated(entry) if backdoor else max(each["estimated_asr"] for each in classes)
            )
            named = ", ".join(map(str, _named(entry))) or "none"
            lines.append(f"{start} {_score(entry):.1f} | {named} | {100 * estimated:.0f} |")
    return lines


def picture(splits: Mapping[str, Sequence[Entry]]) -> bytes:
    """Scores by kind of model, and the ROC of each split; a PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(10, 4), width_ratios=(3, 2), layout="constrained"
    )
    colors = {"development": "0.6", "final": "C0"}
    kinds: list[str] = ["clean"]
    for split, entries in splits.items():
        searched = [entry for entry in entries if "inspection" in entry]
        for place, entry in enumerate(searched):
            backdoor = entry["recipe"]["backdoor"]
            kind = backdoor["attack"] if backdoor else "clean"
            if kind not in kinds:
                kinds.append(kind)
            # Apart by their place in the list, so that equal scores are seen.
            shift = (place % 7 - 3) / 20
            left.plot(
                kinds.index(kind) + shift, _score(entry), "o", color=colors.get(split), alpha=0.8
            )
        clean = np.array([_score(e) for e in searched if e["recipe"]["backdoor"] is None])
        bad = np.array([_score(e) for e in searched if e["recipe"]["backdoor"] is not None])
        edges = [np.inf, *sorted({*clean, *bad}, reverse=True)]
        right.plot(
            [float((clean >= edge).mean()) for edge in edges],
            [float((bad >= edge).mean()) for edge in edges],
            color=colors.get(split),
            label=f"{split}, area {area_under_curve(list(clean), list(bad)):.2f}",
        )
        right.plot(
            float((clean >= SUSPICIOUS_ANOMALY).mean()),
            float((bad >= SUSPICIOUS_ANOMALY).mean()),
            "o",
            color=colors.get(split),
        )
    left.axhline(SUSPICIOUS_ANOMALY, color="C3", linewidth=1)
    left.set_xticks(range(len(kinds)), kinds)
    left.set_ylabel("anomaly")
    left.set_title("Highest anomaly of each model; the line is the threshold")
    right.plot([0, 1], [0, 1], color="0.85", linewidth=1)
    right.set_xlabel("clean models accused")
    right.set_ylabel("backdoored models found")
    right.set_title("The dot is the threshold")
    right.legend(loc="lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png", metadata={"Software": None})
    pyplot.close(figure)
    return buffer.getvalue()
