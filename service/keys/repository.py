"""Queries on keys and tenants."""

from datetime import datetime

from sqlalchemy import or_, select, update

from service.db.repository import Repository
from service.db.tables import ApiKey, Tenant


class KeyRepository(Repository):
    """Keys and tenants."""

    def tenant_by_name(self, name: str) -> Tenant | None:
        """The tenant of this name."""
        return self._session.scalar(select(Tenant).where(Tenant.name == name))

    def lock_tenant(self, tenant_id: str) -> None:
        """Lets the tenant's other transactions that ask for this wait until this one ends."""
        self._session.execute(
            select(Tenant.id).where(Tenant.id == tenant_id).with_for_update(key_share=True)
        )

    def add(self, row: ApiKey | Tenant) -> None:
        """Inserts a row."""
        self._session.add(row)
        self._session.flush()

    def by_secret(self, secret_sha256: str) -> ApiKey | None:
        """The key whose secret has this hash."""
        return self._session.scalar(select(ApiKey).where(ApiKey.secret_sha256 == secret_sha256))

    def get(self, tenant_id: str, key_id: str) -> ApiKey | None:
        """A key of the tenant."""
        return self._session.scalar(
            select(ApiKey).where(ApiKey.tenant_id == tenant_id, ApiKey.id == key_id)
        )

    def page(self, tenant_id: str, *, after: str | None, limit: int) -> list[ApiKey]:
        """Keys of the tenant, newest first, from below the id `after`."""
        query = select(ApiKey).where(ApiKey.tenant_id == tenant_id)
        if after is not None:
            query = query.where(ApiKey.id < after)
        return list(self._session.scalars(query.order_by(ApiKey.id.desc()).limit(limit)))

    def touch(self, key_id: str, *, now: datetime, unless_since: datetime) -> None:
        """Notes a use of the key, unless one was noted since `unless_since`."""
        self._session.execute(
            update(ApiKey)
            .where(
                ApiKey.id == key_id,
                or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < unless_since),
            )
            .values(last_used_at=now)
        )
