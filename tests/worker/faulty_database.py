"""A way to a real database that can be cut, and that can lose the answer to a commit."""

from collections.abc import Callable

from sqlalchemy import event
from sqlalchemy.exc import DataError, OperationalError
from sqlalchemy.orm import Session

from service.db.session import SessionFactory, for_writing


class FaultyDatabase:
    """Sessions of the same database as others, by a way of their own.

    Attributes:
        sessions: Their transactions raise while it is cut; those of other factories do not.
        refused: How many transactions could not begin, or were refused.
        error: What those raise that cannot begin.
    """

    def __init__(self, sessions: SessionFactory) -> None:
        self.sessions = for_writing(sessions)
        self.refused = 0
        self.error: Exception = OperationalError("BEGIN", {}, Exception("connection refused"))
        self._cut: Callable[[], bool] = lambda: False
        self._loses: type | None = None
        self._refuses: type | None = None
        event.listen(self.sessions, "after_begin", self._on_begin)
        event.listen(self.sessions, "before_flush", self._on_flush)
        event.listen(self.sessions, "after_commit", self._on_committed)

    def cut(self, while_: Callable[[], bool] = lambda: True) -> None:
        """From now on no transaction begins while that holds."""
        self._cut = while_

    def mend(self) -> None:
        """All is well again."""
        self._cut = lambda: False

    def lose_the_answer(self, kind: type) -> None:
        """The next commit that adds a row of this kind is done, but seems to have failed."""
        self._loses = kind

    def refuse(self, kind: type) -> None:
        """From now on no row of this kind is taken."""
        self._refuses = kind

    def _on_begin(self, *_: object) -> None:
        if self._cut():
            self.refused += 1
            raise self.error

    def _on_flush(self, session: Session, *_: object) -> None:
        if self._loses is not None and any(isinstance(row, self._loses) for row in session.new):
            session.info["lose"] = True
        if self._refuses is not None and any(isinstance(row, self._refuses) for row in session.new):
            self.refused += 1
            raise DataError("INSERT", {}, Exception("value out of range"))

    def _on_committed(self, session: Session) -> None:
        if session.info.pop("lose", False):
            self._loses = None
            raise OperationalError("COMMIT", {}, Exception("the server closed the connection"))
