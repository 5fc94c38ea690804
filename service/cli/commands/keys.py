"""`sanitizer keys`."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from service.cli.connecting import connected
from service.cli.failures import WrongUsage
from service.cli.options import Json, given
from service.cli.terminal import emit, result, say, table

group = typer.Typer(no_args_is_help=True, help="Keys of your tenant; needs an admin key.")


@group.command()
def create(
    name: Annotated[str, typer.Option(help="What the key is for.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="read, write or admin; may be repeated.")
    ] = None,
    expires_at: Annotated[
        datetime | None, typer.Option(help="When it stops working, in UTC; never if left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key; prints its secret, which is shown this once."""
    until = expires_at.replace(tzinfo=UTC).isoformat() if expires_at else None
    with connected() as remote:
        key = remote.create_key(given(name=name, scopes=scope or None, expires_at=until))
    if as_json:
        emit(key.document)
        return
    result(key.secret)
    say(f"{key.id}, {', '.join(key.scopes)}. Keep the secret: it is not shown again.")


@group.command("list")
def list_keys(as_json: Json = False) -> None:
    """List the keys, without their secrets."""
    from service.cli.answers import KeyAnswer

    with connected() as remote:
        page = remote.keys()
    if as_json:
        emit(page.document)
        return
    from service.cli.tables import keys_table

    table(keys_table([KeyAnswer.read(item) for item in page.data]))


@group.command()
def revoke(key: Annotated[str, typer.Argument(metavar="KEY", help="Id of the key.")]) -> None:
    """End a key at once."""
    with connected() as remote:
        remote.revoke_key(key)
    say(f"The key {key} works no longer.")


@group.command()
def bootstrap(
    tenant: Annotated[str, typer.Option(help="Made if there is none of this name.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "bootstrap",
) -> None:
    """For operators: make an admin key directly in the database of SANITIZER_DATABASE_URL."""
    from service.cli.founding import make_admin_key
    from service.settings import Settings

    if not 0 < len(tenant) <= 100 or not 0 < len(name) <= 100:
        raise WrongUsage("The names of a tenant and of a key have 1 to 100 characters.")
    result(make_admin_key(Settings(), tenant, name))
    say(f"An admin key of the tenant {tenant}. Keep it: it is not shown again.")
