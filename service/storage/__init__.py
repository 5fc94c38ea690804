"""Where files lie: one contract, several kinds of store behind it."""

from service.storage.contract import (
    AccessRefused,
    BucketMissing,
    ContentDiffers,
    CredentialsMissing,
    InvalidKey,
    ListedObject,
    ObjectMissing,
    ObjectStore,
    StorageError,
    StoredObject,
    TooLarge,
)
from service.storage.factory import make_store

__all__ = [
    "AccessRefused",
    "BucketMissing",
    "ContentDiffers",
    "CredentialsMissing",
    "InvalidKey",
    "ListedObject",
    "ObjectMissing",
    "ObjectStore",
    "StorageError",
    "StoredObject",
    "TooLarge",
    "make_store",
]
