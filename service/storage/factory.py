"""The store that the settings name."""

from pathlib import Path

from service.settings import Settings
from service.storage.contract import ObjectStore
from service.storage.obstore_store import ObstoreStore
from service.storage.s3 import S3


class UnknownStore(ValueError):
    """`storage_url` names a kind of store that there is not."""

    def __init__(self, url: str) -> None:
        scheme = url.partition(":")[0]
        super().__init__(
            f"expected a storage_url file:FOLDER or s3://BUCKET/PREFIX, got one of kind {scheme!r}"
        )


def make_store(settings: Settings) -> ObjectStore:
    """The store at `storage_url`: `file:FOLDER`, `file:///FOLDER` or `s3://BUCKET/PREFIX`.

    A folder is made if it is not there; a server is not asked before it is needed.

    Raises:
        UnknownStore: Another scheme.
        WrongS3Settings: A setting of S3 cannot be used.
    """
    url = settings.storage_url
    scheme, _, rest = url.partition(":")
    if url.startswith("s3://"):
        return ObstoreStore.s3(S3(settings))
    if scheme != "file" or not rest:
        raise UnknownStore(url)
    return ObstoreStore.local(Path("/" + rest.lstrip("/") if rest.startswith("//") else rest))
