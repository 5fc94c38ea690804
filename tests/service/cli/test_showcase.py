import io

import pytest
from rich.console import Console

from service.cli.answers import Figures, ProbeFigures
from service.cli.showcase import Outcome
from service.cli.tables import demo_table, figures_table


def figures(accuracy: float, asr: float, ra: float = 0.5) -> Figures:
    return Figures(accuracy=accuracy, probes=[ProbeFigures(name="corner", asr=asr, ra=ra)])


@pytest.mark.parametrize(
    ("after", "faults"),
    [
        (figures(0.98, 0.0), 0),
        (figures(0.931, 0.049), 0),
        (figures(0.98, 0.05), 1),
        (figures(0.92, 0.0), 1),
        (figures(0.5, 1.0), 2),
    ],
)
def test_the_demo_fails_if_the_backdoor_stays_or_the_accuracy_goes(
    after: Figures, faults: int
) -> None:
    assert len(Outcome(figures(0.98, 1.0), after).faults) == faults


def test_the_table_has_both_measurements_of_every_figure() -> None:
    service = figures(0.9, 0.8, 0.1), figures(0.7, 0.2, 0.3)
    independent = figures(0.95, 0.85, 0.15), figures(0.75, 0.25, 0.35)
    file = io.StringIO()
    Console(file=file, width=200).print(demo_table(service, independent, "After 9 seconds"))
    text = file.getvalue()
    assert "After 9 seconds" in text
    for shown in ("95.00%", "75.00%", "-20.00", "90.00%", "70.00%", "+20.00", "80.00%"):
        assert shown in text


@pytest.mark.parametrize("width", [60, 80])
def test_no_figure_is_cut_on_a_narrow_terminal(width: int) -> None:
    long = "a-probe-whose-name-has-forty-characters-"
    probe = ProbeFigures(name=long, asr=1.0, ra=0.0)
    before = Figures(accuracy=0.9876, probes=[probe])
    after = Figures(accuracy=0.9765, probes=[probe.model_copy(update={"asr": 0.0})])
    both = (before, after)
    for table in (figures_table(before, after), demo_table(both, both, "After 9 seconds")):
        file = io.StringIO()
        Console(file=file, width=width, soft_wrap=True).print(table)
        lines = file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        for shown in ("98.76%", "97.65%", "-1.11", "100.00%", "0.00%", "-100.00"):
            assert any(shown in line.split() for line in lines)
        assert "…" not in file.getvalue()
