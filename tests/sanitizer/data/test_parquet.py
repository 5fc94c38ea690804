import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sanitizer.data.readers import open_source
from sanitizer.data.source import ImageSource, Limits
from sanitizer.errors import ClassMismatch, CorruptImage, DataUnreadable, UnsafeArchive
from sanitizer.spec import DataSource

from .files import png, read_all, run_apart, write_parquet

IMAGES = [png(i) for i in range(10)]
LABELS = pa.array([i % 3 for i in range(10)], pa.int64())


def hub_metadata(label: str, names: list[str]) -> dict[str, str]:
    feature = {"names": names, "_type": "ClassLabel"}
    return {"huggingface": json.dumps({"info": {"features": {label: feature}}})}


def opened(path: Path, class_names: tuple[str, ...] | None = None) -> ImageSource:
    return open_source(DataSource(path=path, class_names=class_names))


@pytest.mark.parametrize(
    "names", [("image", "label"), ("img", "labels"), ("pixel_values", "fine_label")]
)
def test_labels_are_known_without_decoding(tmp_path: Path, names: tuple[str, str]) -> None:
    source = opened(write_parquet(tmp_path / "d", IMAGES, LABELS, names=names))
    assert source.layout == "parquet"
    assert source.labels.tolist() == [i % 3 for i in range(10)]
    assert source.class_names == ("0", "1", "2")
    assert source.names[4] == "row 4"


def test_a_plainly_named_column_goes_before_another(tmp_path: Path) -> None:
    columns = {"image": pa.array(IMAGES), "fine_label": pa.array([0] * 10), "label": LABELS}
    pq.write_table(pa.table(columns), tmp_path / "d")
    assert opened(tmp_path / "d").labels.tolist() == [i % 3 for i in range(10)]


def test_rows_are_read_across_row_groups_in_the_order_asked_for(tmp_path: Path) -> None:
    source = opened(write_parquet(tmp_path / "d", IMAGES, LABELS, row_group_size=3))
    asked = [9, 0, 4, 4, 8]
    assert read_all(source, asked) == {p: IMAGES[i] for p, i in enumerate(asked)}


def test_rows_are_read_across_batches_of_one_row_group(tmp_path: Path) -> None:
    images = [b"%d" % i for i in range(600)]
    path = write_parquet(tmp_path / "d", images, pa.array([0] * 600), row_group_size=600)
    assert read_all(opened(path), [599, 255, 256]) == {0: b"599", 1: b"255", 2: b"256"}


def test_paths_become_part_of_the_names(tmp_path: Path) -> None:
    paths = ["a.png", None, *["c.png"] * 8]
    source = opened(write_parquet(tmp_path / "d", IMAGES, LABELS, paths=paths))
    assert list(source.names[:2]) == ["row 0 (a.png)", "row 1"]


def test_a_plain_binary_column_is_read(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array(IMAGES, pa.large_binary()), "label": LABELS})
    pq.write_table(table, tmp_path / "d")
    assert read_all(opened(tmp_path / "d"), [3]) == {0: IMAGES[3]}


def test_names_in_the_hubs_metadata_name_the_classes(tmp_path: Path) -> None:
    metadata = hub_metadata("label", ["ant", "bee", "cow"])
    source = opened(write_parquet(tmp_path / "d", IMAGES, LABELS, metadata=metadata))
    assert (source.class_names, source.names_are_complete) == (("ant", "bee", "cow"), True)


def test_class_names_reorder_the_hubs_classes(tmp_path: Path) -> None:
    metadata = hub_metadata("label", ["ant", "bee", "cow"])
    path = write_parquet(tmp_path / "d", IMAGES, LABELS, metadata=metadata)
    source = opened(path, ("cow", "ant", "bee"))
    assert source.labels.tolist()[:3] == [1, 2, 0]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), "utf8")])
def test_words_as_labels_are_sorted(tmp_path: Path, kind: pa.DataType) -> None:
    words = pa.array(["dog", "cat"] * 5).cast(kind)
    source = opened(write_parquet(tmp_path / "d", IMAGES, words))
    assert (source.class_names, source.labels.tolist()[:2]) == (("cat", "dog"), [1, 0])


def test_words_beyond_class_names_are_refused(tmp_path: Path) -> None:
    words = pa.array(["dog", "cat"] * 5)
    with pytest.raises(ClassMismatch, match="Only in the data: dog"):
        opened(write_parquet(tmp_path / "d", IMAGES, words), ("cat", "bird"))


def test_an_image_that_is_a_path_alone_is_named(tmp_path: Path) -> None:
    source = opened(write_parquet(tmp_path / "d", [IMAGES[0], None], LABELS[:2]))
    with pytest.raises(CorruptImage, match=r"row 1 .*no embedded bytes"):
        read_all(source)


def test_a_row_without_a_label_is_refused(tmp_path: Path) -> None:
    labels = pa.array([0, None, 1])
    with pytest.raises(DataUnreadable, match="empty in 1 rows, the first is row 1"):
        opened(write_parquet(tmp_path / "d", IMAGES[:3], labels))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture": IMAGES, "label": LABELS}, "no column of images: it has picture, label"),
        ({"image": IMAGES}, "no column of labels"),
        ({"image": IMAGES, "img": IMAGES, "label": LABELS}, "more than one column of images"),
        ({"image": ["a.png"] * 10, "label": LABELS}, "image is string"),
        ({"image": IMAGES, "label": [0.5] * 10}, "label is double"),
        ({"image": pa.array([], pa.binary()), "label": LABELS[:0]}, "no image"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, columns: dict[str, object], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "d")
    with pytest.raises(DataUnreadable, match=message):
        opened(tmp_path / "d")


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "d", IMAGES, LABELS)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataUnreadable, match="cannot be read"):
        opened(path)


def test_a_table_over_a_limit_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "d", IMAGES, LABELS)
    with pytest.raises(UnsafeArchive, match="10 rows, at most 9"):
        open_source(DataSource(path=path), Limits(files=9))
    with pytest.raises(UnsafeArchive, match="at most 50 are accepted"):
        open_source(DataSource(path=path), Limits(total_bytes=50))


def test_labels_beyond_int64_are_refused(tmp_path: Path) -> None:
    labels = pa.array(np.full(10, 2**63, dtype=np.uint64))
    with pytest.raises(DataUnreadable, match="cannot be read"):
        opened(write_parquet(tmp_path / "d", IMAGES, labels))


def repeated(path: Path, *, image: bytes, label: str, rows: int) -> Path:
    """A table that stores one image and one label, whatever the number of its rows."""
    places = pa.array([0] * rows, pa.int32())
    columns = {
        "image": pa.DictionaryArray.from_arrays(places, pa.array([image])),
        "label": pa.DictionaryArray.from_arrays(places, pa.array([label])),
    }
    pq.write_table(pa.table(columns), path, store_schema=False, compression="zstd")
    return path


def test_a_value_that_all_rows_have_is_not_read_as_often(tmp_path: Path) -> None:
    """Of 2 MB a row, half a thousand rows are a gigabyte; the file has some hundred bytes."""
    path = repeated(tmp_path / "d", image=b"x" * 2_000_000, label="y", rows=500)
    assert path.stat().st_size < 2000
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from sanitizer.data.readers import open_source\n"
        "from sanitizer.spec import DataSource\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "source = open_source(DataSource(path=Path(sys.argv[1])))\n"
        "assert source.class_names == ('y',)\n"
        "for _ in source.read(np.arange(500)): pass\n"
        "print((peak() - before) // 1024)\n"
    )
    assert int(run_apart(program, path)) < 600


def test_an_image_over_the_limit_is_refused_when_its_turn_comes(tmp_path: Path) -> None:
    path = repeated(tmp_path / "d", image=b"x" * 2_000, label="y", rows=3)
    source = open_source(DataSource(path=path), Limits(image_bytes=1_999))
    with pytest.raises(UnsafeArchive, match="has 2,000 bytes, at most 1,999 are accepted"):
        read_all(source, [0])


def test_a_label_that_is_no_name_is_refused(tmp_path: Path) -> None:
    path = repeated(tmp_path / "d", image=IMAGES[0], label="y" * 2_000_000, rows=500)
    with pytest.raises(DataUnreadable, match="is no name of a class"):
        opened(path)


def test_a_table_that_packs_better_than_images_do_is_refused(tmp_path: Path) -> None:
    path = repeated(tmp_path / "d", image=b"x" * 2_000_000, label="y", rows=3)
    with pytest.raises(UnsafeArchive, match="more than 200 times the size of the file"):
        open_source(DataSource(path=path), Limits(ratio_free_bytes=1 << 20))


def test_words_of_several_row_groups_are_numbered_together(tmp_path: Path) -> None:
    words = pa.array(["cat", "dog", "cat", "ant", "cat", "dog", "emu", "dog", "ant", "cat"])
    source = opened(write_parquet(tmp_path / "d", IMAGES, words, row_group_size=3))
    assert source.class_names == ("ant", "cat", "dog", "emu")
    assert source.labels.tolist() == [1, 2, 1, 0, 1, 2, 3, 2, 0, 1]
