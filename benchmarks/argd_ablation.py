"""Why ARGD does what it does: its parts alone and left out, on the victims of the table.

    python -m benchmarks.argd_ablation

Every variant is the preset `paper` but for what its name says. Nothing is chosen by the figures:
all variants are in the table, and the preset stays what was published. Writes JSON, the table in
Markdown, and curves of ACC and ASR by epoch as a picture. `benchmarks.grid` says how runs are made,
kept and taken up again.
"""

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.grid import (
    IMAGES,
    TWIN,
    Cell,
    Grid,
    add_options,
    command_of,
    missing_note,
    origin,
    table,
)

PAPER_NODES = (2000.0, 5000.0, 2000.0)
CURVES = ("paper", "cross-entropy alone", "lr 0.01", "lr 0.01, cross-entropy alone")
"""Variants that are measured after each epoch, and drawn; that takes as long as the training."""


def phases(*rates: tuple[int, float]) -> dict[str, Any]:
    """Epochs and learning rates of a training."""
    return {"phases": [{"epochs": epochs, "learning_rate": rate} for epochs, rate in rates]}


def nodes(factor: float) -> list[float]:
    """The published weights of the node loss, times a factor."""
    return [weight * factor for weight in PAPER_NODES]


FINETUNED_AT_001 = phases((3, 0.01), (3, 0.001), (4, 0.0001))

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    # Terms.
    "cross-entropy alone": {"node_weights": nodes(0), "edge_weight": 0, "embedding_weight": 0},
    "node alone": {"edge_weight": 0, "embedding_weight": 0},
    "edge alone": {"node_weights": nodes(0), "embedding_weight": 0},
    "embedding alone": {"node_weights": nodes(0), "edge_weight": 0},
    "no node": {"node_weights": nodes(0)},
    "no edge": {"edge_weight": 0},
    "no embedding": {"embedding_weight": 0},
    # Weights.
    "node / 10": {"node_weights": nodes(0.1)},
    "node / 4 (NAD's strength)": {"node_weights": [500.0, 1000.0, 1000.0]},
    "node x 4": {"node_weights": nodes(4)},
    "edge x 100": {"edge_weight": 100},
    "embedding x 100": {"embedding_weight": 100},
    # Learning rate of the student, of the teacher, of both.
    "student lr 0.03": {"student": phases((3, 0.03), (3, 0.003), (4, 0.0003))},
    "student lr 0.01": {"student": FINETUNED_AT_001},
    "teacher lr 0.01": {"teacher": FINETUNED_AT_001},
    "lr 0.01": {"teacher": FINETUNED_AT_001, "student": FINETUNED_AT_001},
    # What attention does where the learning rate does not remove the backdoor.
    "lr 0.01, cross-entropy alone": {
        "teacher": FINETUNED_AT_001,
        "student": FINETUNED_AT_001,
        "node_weights": nodes(0),
        "edge_weight": 0,
        "embedding_weight": 0,
    },
    "lr 0.01, no node": {
        "teacher": FINETUNED_AT_001,
        "student": FINETUNED_AT_001,
        "node_weights": nodes(0),
    },
    "lr 0.01, node / 4": {
        "teacher": FINETUNED_AT_001,
        "student": FINETUNED_AT_001,
        "node_weights": [500.0, 1000.0, 1000.0],
    },
    # Taps.
    "last tap": {"taps": [2], "node_weights": [2000.0]},
    "first tap": {"taps": [0], "node_weights": [2000.0]},
    "last two taps": {"taps": [1, 2], "node_weights": [5000.0, 2000.0]},
    # How good the teacher is.
    "teacher of 1 epoch": {"teacher": phases((1, 0.1))},
    "teacher of 5 epochs": {"teacher": phases((3, 0.1), (2, 0.01))},
    "teacher of 20 epochs": {"teacher": phases((6, 0.1), (6, 0.01), (8, 0.001))},
    # Projections, and where the student begins.
    "trained projections": {"projections": "trained"},
    "student from the teacher": {"student_from": "teacher"},
}


def cells(victims: Sequence[str], options: argparse.Namespace) -> Iterator[Cell]:
    """All runs, those of the first seed first."""
    for seed in range(options.seeds):
        for victim in victims:
            for name in options.variants:
                request = {"name": "argd", "preset": "paper", **VARIANTS[name]}
                yield Cell(victim, name, request, IMAGES, seed, curve=name in CURVES)


def page(results: Sequence[Mapping[str, Any]], command: str, missing: int, curves: str) -> str:
    """The figures of `docs/results/argd.md`, which says what they mean."""
    picture = f"![ACC and ASR by epoch]({curves})\n\n" if curves else ""
    return (
        "# ARGD, part by part\n\n"
        f"    {command}\n\n"
        "Each variant is the preset `paper` but for what its name says; 2,500 clean images. Means "
        "over seeds with 95%\nintervals (Student's t). [argd.md](argd.md) says what they mean.\n\n"
        f"{origin(results)}\n{missing_note(missing)}\n{picture}{table(results)}"
    )


def draw(results: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Curves of ACC and ASR over the epochs of the student, a panel per victim; PNG.

    Returns:
        Whether there was anything to draw.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    drawn = [result for result in results if result["variant"] in CURVES and result["curve"]]
    victims = [name for name in dict.fromkeys(r["victim"] for r in drawn) if name != TWIN]
    if not victims:
        return False
    figure, panels = plt.subplots(
        2, len(victims), figsize=(3 * len(victims) + 1, 5), sharex=True, sharey="row", squeeze=False
    )
    for column, victim in enumerate(victims):
        for variant in CURVES:
            runs = [r for r in drawn if (r["victim"], r["variant"]) == (victim, variant)]
            for row, name in enumerate(("accuracy", "asr.")):
                epochs = by_epoch(runs, name)
                panels[row][column].plot(list(epochs), list(epochs.values()), label=variant)
        panels[0][column].set_title(victim, fontsize=10)
        panels[1][column].set_xlabel("epoch of the student")
    panels[0][0].set_ylabel("ACC %")
    panels[1][0].set_ylabel("ASR %")
    panels[0][-1].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def by_epoch(runs: Sequence[Mapping[str, Any]], name: str) -> dict[int, float]:
    """Means over runs of a figure in per cent, by epoch of the student."""
    found: dict[int, list[float]] = {}
    for result in runs:
        for point in result["curve"]:
            if point["stage"] == "distil":
                values = [100 * v for k, v in point.items() if k == name or k.startswith(name)]
                found.setdefault(point["epoch"], []).append(statistics.mean(values))
    return {epoch: statistics.mean(values) for epoch, values in sorted(found.items())}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing, prints the table and writes JSON, Markdown and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add_options(parser, "var/argd_ablation")
    parser.set_defaults(curve_images=1000)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args(arguments)
    grid = Grid(options, "argd_ablation")
    wanted = list(cells(grid.chosen, options))
    command = command_of("benchmarks.argd_ablation", arguments)
    curves = options.results / "argd_curves.png"

    def drawn_page(results: Sequence[Mapping[str, Any]], missing: int) -> str:
        return page(results, command, missing, curves.name if draw(results, curves) else "")

    grid.publish(wanted, drawn_page)


if __name__ == "__main__":
    main()
