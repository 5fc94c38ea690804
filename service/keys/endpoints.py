"""Keys over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse

from service import errors, problems
from service.db.tables import ApiKey, Scope
from service.dependencies import Admin, KeyedRoute, Paging, ReadSession, WriteSession
from service.fields import no_nul_in_id
from service.idempotency import Answer, OnceDep, StoredAnswer, fingerprint
from service.keys import service as keys
from service.keys.repository import KeyRepository
from service.keys.schemas import KeyCreate, KeyCreated, KeyList, KeyOut
from service.openapi import CREATE_ERRORS
from service.pagination import cut

router = APIRouter(prefix="/v1/keys", tags=["keys"], route_class=KeyedRoute)

KeyId = Annotated[str, no_nul_in_id, Path(description="Id of a key, `key_...`.")]


@router.post(
    "",
    operation_id="create_key",
    summary="Make a key",
    status_code=201,
    response_model=KeyCreated,
    responses=problems.responses(*CREATE_ERRORS, errors.SecretNotRepeated),
)
def create(
    body: KeyCreate, request: Request, caller: Admin, once: OnceDep, session: WriteSession
) -> JSONResponse:
    """Makes a key for your tenant. The answer shows its secret, this once: a hash is stored.

    For that reason a repeated `Idempotency-Key` gets a 409 that names the key, not the first
    answer.
    """

    def work() -> Answer:
        row, secret = keys.grant(session, caller, body.name, body.scopes, body.expires_at)
        out = _to_out(row)
        created = KeyCreated(**out.model_dump(), secret=secret)
        return Answer(201, created, stored_body=out)

    def repeat(earlier: StoredAnswer) -> JSONResponse:
        raise errors.SecretNotRepeated(earlier.body["id"])

    return once.run(
        session, fingerprint(request, body.model_dump(mode="json")), work, repeat=repeat
    )


@router.get("", operation_id="list_keys", summary="List keys")
def list_page(caller: Admin, session: ReadSession, paging: Paging) -> KeyList:
    """The keys of your tenant, revoked ones too, newest first."""
    rows = KeyRepository.from_session(session).page(
        caller.tenant_id, after=paging.after, limit=paging.limit + 1
    )
    page, more, cursor = cut(rows, paging.limit)
    return KeyList(
        object="list", data=[_to_out(k) for k in page], has_more=more, next_cursor=cursor
    )


@router.delete(
    "/{key_id}",
    operation_id="delete_key",
    summary="Revoke a key",
    status_code=204,
    responses=problems.responses(errors.KeyNotFound),
)
def delete(key_id: KeyId, caller: Admin, session: WriteSession) -> None:
    """Ends a key at once. It stays in the list, as revoked; doing it again changes nothing."""
    keys.revoke(session, caller, key_id)


def _to_out(row: ApiKey) -> KeyOut:
    return KeyOut(
        object="api_key",
        id=row.id,
        name=row.name,
        prefix=row.prefix,
        scopes=[Scope(scope) for scope in row.scopes],
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
    )
