"""`sanitizer migrate`."""

from service.cli.terminal import say


def migrate() -> None:
    """Bring the database of SANITIZER_DATABASE_URL up to date."""
    from service.cli.founding import upgrade
    from service.settings import Settings

    upgrade(Settings())
    say("The database is up to date.")
