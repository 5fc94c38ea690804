"""`sanitizer demo`."""

from pathlib import Path
from typing import Annotated

import typer

from sanitizer.exits import Exit
from service.cli.failures import WrongUsage
from service.cli.terminal import say


def demo(
    keep: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep everything in this folder, which must be new."),
    ] = None,
) -> None:
    """Watch a backdoored model lose its backdoor through the real stack, in about two minutes.

    The exit code is 1 if the attack still succeeds on 5% of the pictures or more, or if the clean
    accuracy fell by more than 5 points.
    """
    from tempfile import TemporaryDirectory

    from service.cli.processes import interrupted_by_signals
    from service.cli.showcase import show

    if keep is not None and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise WrongUsage(f"{keep} is not empty.", hint="Give a folder that is not there yet.")
    try:
        with interrupted_by_signals():
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                outcome = show(keep.resolve(), kept=True)
            else:
                with TemporaryDirectory(prefix="sanitizer-demo-") as folder:
                    outcome = show(Path(folder), kept=False)
    except KeyboardInterrupt:
        say("\nStopped; nothing of it runs any more.")
        raise typer.Exit(Exit.INTERRUPTED) from None
    for fault in outcome.faults:
        say(fault, style="bold red")
    if outcome.faults:
        raise typer.Exit(Exit.BLOCKED)
    say("The backdoor is gone and the accuracy has held.", style="bold green")
