"""The store that the settings name."""

from pathlib import Path

from service.storage.contract import ObjectStore
from service.storage.obstore_store import ObstoreStore


class UnknownStore(ValueError):
    """`storage_url` names a kind of store that there is not."""

    def __init__(self, url: str) -> None:
        scheme = url.partition(":")[0]
        super().__init__(f"expected a storage_url file:FOLDER, got one of kind {scheme!r}")


def make_store(url: str) -> ObjectStore:
    """The store at a URL: `file:FOLDER`, relative or absolute, or `file:///FOLDER`.

    Raises:
        UnknownStore: Another scheme.
    """
    scheme, _, rest = url.partition(":")
    if scheme != "file" or not rest:
        raise UnknownStore(url)
    return ObstoreStore.local(Path("/" + rest.lstrip("/") if rest.startswith("//") else rest))
