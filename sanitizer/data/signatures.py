"""What files begin with. Torch-free: the service tells the same of an upload as a run would."""

ZIP = (b"PK\x03\x04", b"PK\x05\x06")
PARQUET = b"PAR1"


DESCRIBED_BYTES = 262
"""So many of the first bytes tell a kind: the last five of them that of a tar archive."""

_IDX = (
    "an IDX file, as of MNIST: numpy.savez('data.npz', images=numpy.fromfile(IMAGES, 'u1', "
    "offset=16).reshape(-1, 28, 28), labels=numpy.fromfile(LABELS, 'u1', offset=8))"
)
_PICKLE = (
    "a pickle, such as one of CIFAR's batches. Loading it runs its code; if it comes from CIFAR's "
    "authors: batch = numpy.load(FILE, allow_pickle=True, encoding='latin1'); "
    "numpy.savez('data.npz', images=batch['data'].reshape(-1, 3, 32, 32), labels=batch['labels'])"
)
_TAR = (
    "a tar archive, pack a zip instead: mkdir data && tar -xf FILE -C data && cd data && "
    "zip -qr ../data.zip ."
)


def describe(start: bytes) -> str:
    """What a file that is no data set is, by its first `DESCRIBED_BYTES`, for people."""
    if not start:
        return "it is empty"
    for magic, kind in (
        (b"\x1f\x8b", "a gzip file, pack a zip instead"),
        (b"BZh", "a bzip2 file, pack a zip instead"),
        (b"\xfd7zXZ", "an xz file, pack a zip instead"),
        (b"7z\xbc\xaf", "a 7z archive, pack a zip instead"),
        (b"Rar!", "a RAR archive, pack a zip instead"),
        (b"\x93NUMPY", "one numpy array, save images and labels together with numpy.savez"),
        (b"\x89PNG", "a single image"),
        (b"\xff\xd8\xff", "a single image"),
        (b"\0\0\x08\x03", _IDX),
        (b"\0\0\x08\x01", _IDX),
        *((bytes([0x80, protocol]), _PICKLE) for protocol in range(2, 6)),
    ):
        if start.startswith(magic):
            return f"it is {kind}"
    if start[257:DESCRIBED_BYTES] == b"ustar":
        return f"it is {_TAR}"
    return f"it starts with the bytes {start[:8].hex(' ')}"
