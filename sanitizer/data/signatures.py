"""What files begin with. Torch-free: the service tells the same of an upload as a run would."""

ZIP = (b"PK\x03\x04", b"PK\x05\x06")
PARQUET = b"PAR1"


def describe(start: bytes) -> str:
    """What a file that is no data set is, by its first eight bytes, for people."""
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
    ):
        if start.startswith(magic):
            return f"it is {kind}"
    return f"it starts with the bytes {start.hex(' ')}"
