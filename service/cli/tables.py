"""Tables and verdicts for people."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from sanitizer.report.model import Verdict
from service.cli.answers import DatasetAnswer, Figures, JobAnswer, KeyAnswer, ModelAnswer
from service.cli.terminal import amount, plain, share

if TYPE_CHECKING:
    from rich.table import Table

VERDICT_STYLES = {
    Verdict.ALLOWED: "bold green",
    Verdict.BLOCKED: "bold red",
    Verdict.UNDECIDED: "bold yellow",
}


def figure_rows(before: Figures, after: Figures) -> list[tuple[str, float, float]]:
    """What is measured, before and after. Shares in [0, 1]."""
    rows = [("ACC  clean accuracy", before.accuracy, after.accuracy)]
    later = {probe.name: probe for probe in after.probes}
    for probe in before.probes:
        if probe.name in later:
            rows.append((f"ASR  {probe.name}", probe.asr, later[probe.name].asr))
            rows.append((f"RA   {probe.name}", probe.ra, later[probe.name].ra))
    return rows


def figures_table(before: Figures, after: Figures, title: str | None = None) -> "Table":
    """ACC, and ASR and RA of each probe, before and after."""
    table = _table(title, [""], ["before", "after", "change"], figures=True)
    for name, earlier, later in figure_rows(before, after):
        points = 100 * (later - earlier)
        table.add_row(escape(plain(name)), share(earlier), share(later), f"{points:+.2f}")
    return table


def demo_table(
    service: tuple[Figures, Figures], independent: tuple[Figures, Figures], title: str
) -> "Table":
    """The independent check's figures, and the service's own beside them."""
    table = _table(
        title,
        [""],
        ["before", "after", "change", "before, by the service", "after, by the service"],
        figures=True,
    )
    rows = zip(figure_rows(*independent), figure_rows(*service), strict=True)
    for (name, earlier, later), (_, own_earlier, own_later) in rows:
        table.add_row(
            escape(plain(name)),
            share(earlier),
            share(later),
            f"{100 * (later - earlier):+.2f}",
            share(own_earlier),
            share(own_later),
        )
    return table


def jobs_table(jobs: Sequence[JobAnswer]) -> "Table":
    """Jobs, newest first."""
    left = ["job", "name", "status", "verdict", "method", "created, UTC"]
    table = _table(None, left, ["done", "ACC", "worst ASR"])
    for job in jobs:
        after = job.summary.after if job.summary else None
        asr = max((probe.asr for probe in after.probes), default=None) if after else None
        table.add_row(
            job.id,
            escape(plain(job.name or "")),
            job.status,
            f"[{VERDICT_STYLES[job.verdict]}]{job.verdict}[/]" if job.verdict else "",
            job.method,
            _minute(job.created_at),
            f"{job.progress:.0%}",
            share(after.accuracy) if after else "",
            share(asr) if asr is not None else "",
        )
    return table


def models_table(models: Sequence[ModelAnswer]) -> "Table":
    """Models, newest first."""
    table = _table(None, ["model", "name", "architecture", "came out of", "created, UTC"], ["size"])
    for model in models:
        table.add_row(
            model.id,
            escape(plain(model.name)),
            model.architecture,
            model.source_job_id or "",
            _minute(model.created_at),
            amount(model.bytes),
        )
    return table


def datasets_table(datasets: Sequence[DatasetAnswer]) -> "Table":
    """Data sets, newest first."""
    table = _table(None, ["data set", "name", "format", "lies", "created, UTC"], ["size"])
    for dataset in datasets:
        table.add_row(
            dataset.id,
            escape(plain(dataset.name)),
            dataset.format,
            escape(plain(dataset.reference or "in the store")),
            _minute(dataset.created_at),
            "" if dataset.bytes is None else amount(dataset.bytes),
        )
    return table


def keys_table(keys: Sequence[KeyAnswer]) -> "Table":
    """Keys, newest first."""
    left = ["key", "begins with", "name", "scopes", "created, UTC", "last used", "state"]
    table = _table(None, left, [])
    for key in keys:
        state = f"expires {_minute(key.expires_at)}" if key.expires_at else "valid"
        if key.revoked_at:
            state = f"revoked {_minute(key.revoked_at)}"
        table.add_row(
            key.id,
            key.prefix,
            escape(plain(key.name)),
            ", ".join(key.scopes),
            _minute(key.created_at),
            _minute(key.last_used_at) if key.last_used_at else "never",
            state,
        )
    return table


def _minute(time: str) -> str:
    """An RFC 3339 time to the minute."""
    return time[:16].replace("T", " ")


def _table(
    title: str | None, left: Sequence[str], right: Sequence[str], *, figures: bool = False
) -> "Table":
    """Columns of text, then of numbers.

    Args:
        figures: Whether the numbers matter most and must stay whole; else the first column, of ids.
    """
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=not figures)
    for number, name in enumerate(left):
        # What does not fit is wrapped, but for ids.
        table.add_column(name, no_wrap=not figures and number == 0, overflow="fold")
    for name in right:
        # A column's name may wrap where its numbers may not: 100.00% has 7 characters.
        table.add_column(name, justify="right", min_width=7 if figures else None)
    return table
