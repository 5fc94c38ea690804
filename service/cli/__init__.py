"""The command `sanitizer`."""


def main() -> None:
    """Runs the command line; exits the process with the code that `exits.Exit` explains."""
    from service.cli.app import app

    app()
