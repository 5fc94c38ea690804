"""What the default's search for triggers finds in clean models, and what in backdoored ones.

    python -m benchmarks.seek_calibration

A job of the default looks for gratings, patches and warps that lead images of all classes one way,
and tells how many they lead. How many is a lot? Here the search goes through the pairs of models of
`benchmarks.inspection_calibration`, as a job does, with clean images that the models have not seen,
and is measured on others.

What is there is not made again.
"""

import hashlib
import json
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from benchmarks.inspection_calibration import (
    ATTEMPTS,
    CELLS,
    Case,
    backdoor_of,
    measured,
    parts_of,
    shortcomings,
    trained,
)
from benchmarks.inspection_report import area_under_curve
from benchmarks.runs import parser_of, prepare_process, tell
from benchmarks.victims import replace_file
from sanitizer.cost.workload import SEEK_FIRST, SEEK_GENERATIONS, SEEK_IMAGES
from sanitizer.evaluation.misleading import rates_of_strongest
from sanitizer.machine import processor_name
from sanitizer.methods.random_triggers import NAMES, pictures_of
from sanitizer.methods.trigger_search import SOUGHT, find_triggers

KINDS = tuple(NAMES[kind] for kind in SOUGHT)
SEEKING: Mapping[str, Any] = {
    "kinds": KINDS,
    "images": SEEK_IMAGES,
    "first": SEEK_FIRST,
    "generations": SEEK_GENERATIONS,
}
"""What a search depends on; made with others, it is made again."""
CPU = torch.device("cpu")


def sought(case: Case, shared: Path, work: Path) -> dict[str, Any]:
    """A model's accuracy, ASR, and the highest rate of each kind with the class it leads to."""
    parts = parts_of(case, shared, work)
    network, _ = trained(case, parts, work)
    figures: dict[str, Any] = measured(case, parts, network)
    seed = case.cell.seed
    pictures = pictures_of(parts.searched, seed)
    begun = monotonic()
    found = find_triggers(
        network, parts.searched, pictures, seed=seed, precision=torch.float32, device=CPU
    )
    rates = rates_of_strongest(network, found, parts.tested, pictures, seed=seed, device=CPU)
    for (kind, place), rate in rates:
        told = figures.get(NAMES[kind], [0.0, -1])
        target = int(found.kinds[kind].targets[place])
        figures[NAMES[kind]] = max(told, [round(rate.value, 4), target])
    return {**figures, "seconds": round(monotonic() - begun, 1)}


def entries(split: str, shared: Path, work: Path) -> Iterator[Any]:
    """The models of a split, one after the other: in each pair the clean one, then the first
    attempt at a backdoored one that learned its backdoor."""
    for cell in CELLS[split]:
        twin: dict[str, Any] = {}
        for attempt in range(-1, ATTEMPTS):
            backdoor = None if attempt < 0 else backdoor_of(cell, attempt)
            case = Case(split, cell, backdoor, max(0, attempt))
            key = hashlib.sha256(json.dumps(SEEKING).encode()).hexdigest()[:8]
            path = work / "sought" / f"{case.key}-{key}.json"
            if not path.is_file():
                replace_file(path, json.dumps(sought(case, shared, work)).encode())
            entry = json.loads(path.read_bytes())
            lacks = shortcomings(entry, twin) if backdoor else []
            if lacks:
                continue
            entry |= {"name": case.name, "target": backdoor and backdoor.probe.target_class}
            entry["attack"] = cell.attack if backdoor else None
            tell(line_of(entry))
            yield entry
            if backdoor:
                break
            twin = entry


def line_of(entry: Mapping[str, Any]) -> str:
    """A row of the table."""
    rates = " | ".join(
        f"{100 * entry[kind][0]:.0f} to {entry[kind][1]}" if kind in entry else "" for kind in KINDS
    )
    asr = "" if entry["asr"] is None else f"{100 * entry['asr']:.0f}"
    name = entry["name"] + (f" to {entry['target']}" if entry["attack"] else "")
    return f"| {name} | {100 * entry['acc']:.1f} | {asr} | {rates} | {entry['seconds']:.0f} |"


HEAD = (
    f"| model | ACC % | ASR % | {' % | '.join(KINDS)} % | s |\n" + "|---" * (4 + len(KINDS)) + "|"
)


def summary(rows: Sequence[Mapping[str, Any]], kind: str) -> str:
    """How well one kind's rate tells backdoored models from clean ones."""
    clean = [row[kind][0] for row in rows if not row["attack"]]
    bad = [row for row in rows if row["attack"]]
    area = area_under_curve(clean, [row[kind][0] for row in bad])
    cells = [kind, f"{area:.3f}", f"{100 * statistics.median(clean):.0f}, {100 * max(clean):.0f}"]
    for attack in (None, *sorted({row["attack"] for row in bad})):
        mine = [row for row in bad if attack in (None, row["attack"])]
        over = [row for row in mine if row[kind][0] > max(clean)]
        right = sum(row[kind][1] == row["target"] for row in over)
        cells.append(f"{len(over)} of {len(mine)}, {right}")
    return f"| {' | '.join(cells)} |"


def together(splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """What all kinds find of the last split, by limits that the clean models of the first set."""
    if len(splits) < 2:
        return []
    first, *_, last = splits.values()
    limits = {kind: max(row[kind][0] for row in first if not row["attack"]) for kind in KINDS}

    def over(row: Mapping[str, Any]) -> list[int]:
        return [row[kind][1] for kind in KINDS if row[kind][0] > limits[kind]]

    bad = [row for row in last if row["attack"]]
    clean = [row for row in last if not row["attack"]]
    found = [row for row in bad if over(row)]
    right = sum(row["target"] in over(row) for row in found)
    accused = sum(bool(over(row)) for row in clean)
    told = ", ".join(f"{kind} {100 * limit:.0f}%" for kind, limit in limits.items())
    warps = [row for row in found if row["attack"] == "warp"]
    all_warps = [row for row in bad if row["attack"] == "warp"]
    return [
        f"\nWith the most that a clean model of the first split has as limits ({told}), any kind "
        f"over its own finds **{len(found)} of {len(bad)}** backdoored models\nof the last split, "
        f"{right} with the right class among those named ({len(warps)} of {len(all_warps)} warps), "
        f"and accuses **{accused} of {len(clean)}** clean ones. No verdict rests on it."
    ]


def page(splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The whole document."""
    parts = [
        "# What the default's search finds in models of known make\n",
        "    python -m benchmarks.seek_calibration\n",
        "Rates are those of a kind's strongest trigger: of at most 200 images of other classes, "
        "how many it leads to its class. *Higher*: backdoored models with\na rate that no clean "
        "model of the split has, and how many of these name the right class.\n",
        f"{processor_name()}, 1 thread, float32; Python {platform.python_version()}, torch "
        f"{torch.__version__}; {datetime.now(UTC).date().isoformat()}.",
        *together(splits),
    ]
    for split, rows in splits.items():
        attacks = sorted({row["attack"] for row in rows if row["attack"]})
        heads = ["kind", "area under the ROC", "of clean models %: median, most"]
        heads += ["higher, right", *attacks]
        parts += [
            f"\n## {split.capitalize()}\n",
            f"| {' | '.join(heads)} |\n" + "|---" * len(heads) + "|",
            *(summary(rows, kind) for kind in KINDS),
            "",
            HEAD,
            *map(line_of, rows),
        ]
    return "\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and searches what is missing, prints a table as it grows, writes JSON and page."""
    parser = parser_of(__doc__, "var/inspection")
    parser.add_argument("--splits", nargs="+", choices=list(CELLS), default=list(CELLS))
    options = parser.parse_args(arguments)
    prepare_process()
    tell(HEAD)
    splits = {split: list(entries(split, options.shared, options.work)) for split in options.splits}
    content = json.dumps(splits, indent=1) + "\n"
    replace_file(options.out / "seek.json", content.encode())
    replace_file(options.out / "seek.md", page(splits).encode())


if __name__ == "__main__":
    main()
