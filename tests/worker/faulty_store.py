"""A store that can be cut off."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.storage import ObjectStore, StorageError, StoredObject


class FaultyStore:
    """A real store, which does not answer for a while.

    Attributes:
        refused: The keys that were asked for meanwhile.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._cut: Callable[[str], bool] = lambda _: False
        self.refused: list[str] = []

    def cut(self, part: str = "") -> None:
        """From now on it does not answer to keys with this in them."""
        self._cut = lambda key: part in key

    def cut_for(self, tries: int) -> None:
        """It answers to no key before so many tries."""
        self._cut = lambda key: self.refused.count(key) < tries

    def put_file(self, key: str, path: Path, **more: Any) -> StoredObject:
        """See the contract."""
        self._meet(key)
        return self._store.put_file(key, path, **more)

    def fetch(self, key: str, path: Path, **more: Any) -> StoredObject:
        """See the contract."""
        self._meet(key)
        return self._store.fetch(key, path, **more)

    async def size(self, key: str) -> int:
        """See the contract."""
        self._meet(key)
        return await self._store.size(key)

    def delete(self, key: str) -> None:
        """See the contract."""
        self._meet(key)
        self._store.delete(key)

    def _meet(self, key: str) -> None:
        if self._cut(key):
            self.refused.append(key)
            raise StorageError(f"the store failed on {key}: connection refused")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)
