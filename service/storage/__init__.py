"""Where files lie: one contract, several kinds of store behind it."""

from service.storage.contract import (
    ContentDiffers,
    InvalidKey,
    ObjectMissing,
    ObjectStore,
    StorageError,
    StoredObject,
    TooLarge,
)
from service.storage.factory import make_store

__all__ = [
    "ContentDiffers",
    "InvalidKey",
    "ObjectMissing",
    "ObjectStore",
    "StorageError",
    "StoredObject",
    "TooLarge",
    "make_store",
]
