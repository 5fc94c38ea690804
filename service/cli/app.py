"""The command `sanitizer`: its groups, its help, its exit codes.

Whoever types `--help` should not wait: modules of commands load nothing heavy before they run.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from sanitizer.exits import EXPLAINED, Exit
from service.cli.commands import (
    cancel,
    data,
    demo,
    download,
    jobs,
    keys,
    login,
    migrate,
    models,
    run,
    submit,
    up,
    upload,
    watch,
)
from service.cli.failures import CommandFailed
from service.cli.terminal import explain, say


class CommandLine(TyperGroup):
    """The outermost group: the one place where failures become messages and exit codes."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Runs the command line and exits the process.

        Only what nobody foresaw has a traceback. It must not end as Python ends it, with 1: that
        says that the policy blocks a model.
        """
        options["standalone_mode"] = False
        try:
            code = super().main(args, *rest, **options)
        except CommandFailed as failure:
            explain(failure)
            code = failure.exit
        except typer.Abort:
            say("Stopped.")
            code = Exit.INTERRUPTED
        except TyperException as error:  # the parser's own: unknown options and the like
            from typer.rich_utils import rich_format_error

            rich_format_error(error)  # type: ignore[arg-type]  # all of them are ClickExceptions
            code = Exit.USAGE
        except SystemExit:  # rich's, with 1, where nobody reads the output any more
            code = Exit.ERROR
        except OSError as error:  # a folder that may not be written, a full disk
            place = f"{os.fsdecode(error.filename)}: " if _is_path(error.filename) else ""
            say(f"Error: {place}{error.strerror or error}", style="bold red")
            code = Exit.ERROR
        except Exception:
            import traceback

            traceback.print_exc()
            code = Exit.ERROR
        sys.exit(int(code or 0))


def _is_path(filename: object) -> bool:
    return isinstance(filename, str | bytes)


app = typer.Typer(
    name="sanitizer",
    cls=CommandLine,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXPLAINED,
    help="Give back an image classifier without its backdoor: locally (run), or by a service.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from service.cli.terminal import result

        result(f"sanitizer {version('backdoor-sanitizer')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[  # its callback does the work
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version."),
    ] = False,
) -> None:
    """What stands before the name of a command."""


LOCAL, SERVER, OPERATOR = "On this machine", "With a server", "For operators"

app.command(rich_help_panel=LOCAL)(up.up)
app.command(rich_help_panel=LOCAL)(demo.demo)
app.command(rich_help_panel=LOCAL)(run.run)
app.command(rich_help_panel=SERVER)(login.login)
app.command(rich_help_panel=SERVER)(upload.upload)
app.add_typer(models.group, name="models", rich_help_panel=SERVER)
app.add_typer(data.group, name="data", rich_help_panel=SERVER)
app.command(rich_help_panel=SERVER)(submit.submit)
app.add_typer(jobs.group, name="jobs", rich_help_panel=SERVER)
app.command(rich_help_panel=SERVER)(watch.watch)
app.command(rich_help_panel=SERVER)(cancel.cancel)
app.command(rich_help_panel=SERVER)(download.download)
app.add_typer(keys.group, name="keys", rich_help_panel=SERVER)
app.command(rich_help_panel=OPERATOR)(migrate.migrate)
