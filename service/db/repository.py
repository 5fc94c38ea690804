"""What all repositories have: the session of the transaction that they work in."""

from datetime import datetime
from typing import Self

from sqlalchemy import func, select
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError
from sqlalchemy.orm import Session

from service.db.base import utc_now

DATABASE_AWAY = (OperationalError, InterfaceError, TimeoutError)
"""What SQLAlchemy raises while the database does not answer: to be tried again later."""


class Repository:
    """Queries on the rows of one noun, within the transaction of its caller."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @classmethod
    def from_session(cls, session: Session) -> Self:
        """The repository of a transaction."""
        return cls(session)

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._session.get_bind().dialect.name

    def now(self) -> datetime:
        """The database's clock: one for all workers, whose own clocks may differ.

        SQLite has none of its own, but all that use its file are on one machine.
        """
        if self.dialect == "postgresql":
            now: datetime = self._session.scalars(select(func.clock_timestamp())).one()
            return now
        return utc_now()
