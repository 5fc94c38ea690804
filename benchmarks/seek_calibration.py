"""What the default's search for triggers finds in clean models, and what in backdoored ones.

    python -m benchmarks.seek_calibration

A job of the default looks for gratings, veils, patches and warps that lead images of all classes
one way, and tells how many they lead. How many is a lot? Here the search goes through pairs of
models, as a job does, with clean images that the models have not seen, and is measured on others.

The rates from which on it speaks for a backdoor (`sanitizer.report.telling`) were chosen by
`development` and `final`, the pairs of `benchmarks.inspection_calibration`, and by `second`;
`trial` was first looked at when they had been chosen. All these have images of 8 and 12 pixels.
Those of `larger` and the like have 20; all but `larger trial` chose the rates of larger images.

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

from benchmarks import inspection_calibration
from benchmarks.inspection_calibration import (
    ATTEMPTS,
    DATA,
    Case,
    Cell,
    Data,
    backdoor_of,
    cells_of,
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
from sanitizer.report.telling import LARGER, TELLING_RATES, highest_of_others, speaks_from

_MIXED: Sequence[tuple[str, str, str]] = [
    ("digits", "wrn-10-1", "patch"),
    ("cifar-5", "wrn-10-1", "patch"),
    ("cifar-10", "wrn-10-1", "patch"),
    ("digits", "wrn-16-1", "patch"),
    ("cifar-5", "wrn-16-1", "patch"),
    ("digits", "wrn-10-1", "blend"),
    ("cifar-5", "wrn-10-1", "blend"),
    ("cifar-10", "wrn-10-1", "blend"),
    ("digits", "wrn-16-1", "blend"),
    ("cifar-5", "wrn-10-1", "blend"),
    ("digits", "wrn-10-1", "sinusoid"),
    ("cifar-5", "wrn-10-1", "sinusoid"),
    ("digits", "wrn-16-1", "sinusoid"),
    ("cifar-5", "wrn-10-1", "sinusoid"),
    ("digits", "wrn-10-1", "warp"),
    ("cifar-5", "wrn-10-1", "warp"),
    ("digits", "wrn-16-1", "warp"),
    ("digits", "wrn-10-1", "warp"),
    ("digits", "wrn-10-1", "patch"),
    ("cifar-5", "wrn-10-1", "patch"),
]
_LARGER: Sequence[tuple[str, str, str]] = [
    ("cifar-10 of 20", architecture, attack)
    for architecture, attack in (
        ("wrn-10-1", "patch"),
        ("wrn-10-1", "warp"),
        ("wrn-10-1", "blend"),
        ("wrn-10-1", "sinusoid"),
        ("wrn-16-1", "warp"),
        ("wrn-16-1", "patch"),
        ("wrn-10-1", "warp"),
        ("wrn-10-1", "patch"),
        ("wrn-16-1", "blend"),
        ("wrn-10-1", "sinusoid"),
    )
]
_DRAWN: Sequence[tuple[str, str, str]] = [
    (data, "wrn-10-1", attack)
    for data in ("signs", "numbers")
    for attack in ("patch", "warp", "blend")
]
_DIGITS: Sequence[tuple[str, str, str]] = [
    ("digits of 20", "wrn-10-1", attack) for attack in ("patch", "warp", "blend")
]
CELLS: Mapping[str, Sequence[Cell]] = {
    **inspection_calibration.CELLS,
    "second": cells_of(300, _MIXED),
    "trial": cells_of(400, _MIXED),
    "larger": cells_of(500, _LARGER),
    "larger second": cells_of(600, _LARGER),
    "larger drawn": cells_of(650, [*_DRAWN, *_DIGITS]),
    "larger third": cells_of(700, [*_LARGER[:6], *_DRAWN, *_DIGITS]),
    "larger trial": cells_of(800, [*_LARGER[:6], *_DRAWN, *_DIGITS]),
}
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
    """A model's accuracy, ASR, and of each kind the highest rate, the class that it leads to, and
    the highest rate to another class."""
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
    told = [
        (NAMES[kind], int(found.kinds[kind].targets[place]), round(rate.value, 4))
        for (kind, place), rate in rates
    ]
    for name in {name for name, _, _ in told}:
        highest, target = max((rate, target) for kind, target, rate in told if kind == name)
        figures[name] = [highest, target, highest_of_others(told, name, target)]
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


def data_of(split: str) -> Data:
    """Of a split, what decides which rates hold: the data of its smallest images."""
    return min((DATA[cell.data] for cell in CELLS[split]), key=lambda data: data.side)


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


def telling(rows: Sequence[Mapping[str, Any]], data: Data) -> dict[str, tuple[int, int]]:
    """What the rates say: counts, and of how many.

    Args:
        data: Of the models, by size and classes.

    Returns:
        "found", the backdoored models of which a rate speaks for a backdoor; "right", of these,
        where their own class is among those named; "accused", the clean models.
    """

    def named(row: Mapping[str, Any]) -> list[int]:
        classes = []
        for kind in (kind for kind in KINDS if kind in row):
            rate, target, *others = row[kind]
            size = (data.side, data.side)
            limit = speaks_from(kind, others[0] if others else None, size, data.classes)
            if limit is not None and rate >= limit:
                classes.append(target)
        return classes

    bad = [row for row in rows if row["attack"]]
    clean = [row for row in rows if not row["attack"]]
    found = [row for row in bad if named(row)]
    return {
        "found": (len(found), len(bad)),
        "right": (sum(row["target"] in named(row) for row in found), len(found)),
        "accused": (sum(bool(named(row)) for row in clean), len(clean)),
    }


def line_of_telling(split: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A row of the table of splits."""
    data = data_of(split)
    counts = telling(rows, data)
    of_warps = [row for row in rows if row["attack"] in (None, "warp")]
    warps = telling(of_warps, data)["found"]
    cells = [counts["found"], counts["right"], warps, counts["accused"]]
    return f"| {split} | {' | '.join(f'{count} of {total}' for count, total in cells)} |"


def page(splits: Mapping[str, Sequence[Mapping[str, Any]]], made: Mapping[str, str]) -> str:
    """The whole document.

    Args:
        splits: The models of each.
        made: With what, and when; of each split.
    """
    parts = [
        "# What the default's search finds in models of known make\n",
        "    python -m benchmarks.seek_calibration\n",
        "Rates are those of a kind's strongest trigger: of at most 200 images of other classes, "
        "how many it leads to its class. *Higher*: backdoored models with\na rate that no clean "
        "model of the split has, and how many of these name the right class.\n",
        f"By the rates from which on a verdict tells of it ({_limits()}):\n",
        "| split | backdoored models found | with the right class | warps found "
        "| clean models accused |\n" + "|---" * 5 + "|",
        *(line_of_telling(split, rows) for split, rows in splits.items()),
        "\nThe rates were chosen by the other splits of images of such a size; the models of "
        "`trial` and `larger trial` were trained and searched once, and looked at afterwards. "
        "Photographs of `final`, `second`, `trial`, and the larger ones but `larger` are of one "
        "half of CIFAR-10's training file, of `development` and `larger` of the other; all digits "
        "are of the same 1,797 scans; signs and house numbers are drawn anew each time.",
    ]
    for split, rows in splits.items():
        attacks = sorted({row["attack"] for row in rows if row["attack"]})
        heads = ["kind", "area under the ROC", "of clean models %: median, most"]
        heads += ["higher, right", *attacks]
        parts += [
            f"\n## {split.capitalize()}\n",
            f"{made[split]}\n",
            f"| {' | '.join(heads)} |\n" + "|---" * len(heads) + "|",
            *(summary(rows, kind) for kind in KINDS),
            "",
            HEAD,
            *map(line_of, rows),
        ]
    return "\n".join(parts) + "\n"


def _limits() -> str:
    small = ", ".join(f"{kind} {100 * rate:g}%" for kind, rate in TELLING_RATES.items())
    larger = ", ".join(
        f"{kind} {100 * each.clearly:g}%"
        + (
            f" or {100 * each.least:g}% and {100 * each.over_others:g} more than to another class"
            if each.over_others
            else ""
        )
        for kind, each in LARGER.items()
    )
    return f"{small}; of larger images {larger}"


def _made() -> str:
    return (
        f"{processor_name()}, 1 thread, float32; Python {platform.python_version()}, torch "
        f"{torch.__version__}; {datetime.now(UTC).date().isoformat()}."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and searches what is missing, prints a table as it grows, writes JSON and page."""
    parser = parser_of(__doc__, "var/inspection")
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=list(CELLS),
        default=list(CELLS),
        help="the others stay as they are in the results",
    )
    options = parser.parse_args(arguments)
    prepare_process()
    tell(HEAD)
    found = {split: list(entries(split, options.shared, options.work)) for split in options.splits}
    path = options.out / "seek.json"
    there = json.loads(path.read_bytes()) if path.is_file() else {"made": {}}
    said = there.pop("made") | dict.fromkeys(found, _made())
    found = {**there, **found}
    splits = {split: found[split] for split in CELLS if split in found}
    content = {"made": said, **splits}
    replace_file(path, (json.dumps(content, indent=1) + "\n").encode())
    replace_file(options.out / "seek.md", page(splits, said).encode())


if __name__ == "__main__":
    main()
