import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import breadth
from benchmarks.breadth import CELLS, DATA, Cell, Data, backdoor_of, main
from benchmarks.breadth_report import summary
from benchmarks.pictures import SIGNS, house_numbers, signs
from sanitizer.attacks.trigger import make_trigger

BACKGROUNDS = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One pair of small networks, hardly trained, and a method that takes a moment."""
    tiny = Data(8, 1, 10, flip=False, trained=200, clean=60, measured=80, epochs=1)
    monkeypatch.setitem(DATA, "digits", tiny)
    cells: dict[str, tuple[Cell, ...]] = {
        "development": (Cell("digits", "wrn-10-1", "patch", 1),),
        "final": (Cell("digits", "wrn-10-1", "stripes", 2),),
    }
    monkeypatch.setattr(breadth, "CELLS", cells)
    monkeypatch.setattr(breadth, "MIN_ASR", 0)
    quick = {"phases": [{"epochs": 1, "learning_rate": 0.01}], "crop_padding": 0}
    monkeypatch.setitem(breadth.VARIANTS, "finetune", {"name": "finetune", "training": quick})
    # It sets up the whole process, and so the tests after this one.
    monkeypatch.setattr(breadth, "prepare_process", lambda: None)
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    return [*places, "--variants", "finetune"]


def test_pairs_are_trained_and_sanitized_once_and_make_a_page(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("development", "final"):
        main([*command, "--split", split])
    path = tmp_path / "out" / "breadth.json"
    first = json.loads(path.read_bytes())
    models = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.safetensors")}
    main([*command, "--split", "final"])

    assert json.loads(path.read_bytes()) == first
    assert models == {path: path.stat().st_mtime_ns for path in models}
    assert list(first["splits"]) == ["development", "final"]
    (row,) = first["splits"]["final"]
    assert row["attack"] == "stripes"
    assert {"before", "after", "twin_before", "twin"} < set(row)
    page = (tmp_path / "out" / "breadth.md").read_text()
    # So little trained a model has learned nothing: its row is told, and in no mean.
    assert "| digits | wrn-10-1 | stripes | finetune |" in page
    assert "1 backdoored models had learned less than" in page
    assert "| finetune | 1 |" not in page
    assert page.index("## Development") < page.index("## Final")
    assert "| digits | wrn-10-1 | stripes | finetune |" in capsys.readouterr().out


def test_means_are_of_models_that_had_something_to_lose() -> None:
    figures = {"acc": 90.0, "asr": 95.0, "ra": 5.0}
    learned = {
        "variant": "default",
        "before": figures,
        "after": {"acc": 89.0, "asr": 2.0, "ra": 80.0},
        "twin_before": {"acc": 91.0, "asr": 1.0, "ra": 85.0},
        "twin": {"acc": 90.5},
    }
    no_backdoor = learned | {"before": figures | {"asr": 20.0}, "after": learned["twin_before"]}
    no_task = learned | {"before": figures | {"acc": 12.0}}
    line = summary([learned, no_backdoor, no_task]).splitlines()[-1]
    assert line == "| default | 1 | 1.00 | 0.50 | 1.00, 1.0 | 94%, 94% | 1 |"


def test_some_cells_alone_are_not_published_and_what_is_missing_is_told_of(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="Nothing is there yet"):
        main([*command, "--cached"])
    assert not (tmp_path / "work").exists()

    cells = (*breadth.CELLS["development"], Cell("digits", "wrn-10-1", "warp", 1))
    monkeypatch.setattr(breadth, "CELLS", {"development": cells})
    main([*command, "--only", "patch"])
    assert not (tmp_path / "out").exists()
    runs = list((tmp_path / "work" / "runs").iterdir())
    assert len(runs) == 2

    main([*command, "--cached"])
    page = (tmp_path / "out" / "breadth.md").read_text()
    assert "**1 pairs are still missing**" in page
    assert "| digits | wrn-10-1 | patch | finetune |" in page
    assert list((tmp_path / "work" / "runs").iterdir()) == runs


@pytest.mark.parametrize("cell", [cell for cells in CELLS.values() for cell in cells])
def test_every_trigger_suits_its_images_and_is_the_same_each_time(cell: Cell) -> None:
    data = DATA[cell.data]
    first, stronger = backdoor_of(cell, 0), backdoor_of(cell, 1)

    assert first == backdoor_of(cell, 0)
    assert first != stronger
    trigger = make_trigger(
        first.probe,
        input_size=(data.side, data.side),
        channels=data.channels,
        num_classes=data.classes,
    )
    assert 0 <= trigger.target_class < data.classes


def test_splits_share_no_seed_and_a_pair_no_name() -> None:
    seeds = [{cell.seed for cell in cells} for cells in CELLS.values()]
    assert not set.intersection(*seeds)
    names = [cell.name for cells in CELLS.values() for cell in cells]
    assert len(set(names)) == len(names)


def test_signs_and_numbers_are_drawn_by_their_seed_alone_as_many_of_each_class() -> None:
    for draw, classes in ((signs, len(SIGNS)), (house_numbers, 10)):
        images, labels = draw(2 * classes, 20, 3, BACKGROUNDS)
        assert images.shape == (2 * classes, 3, 20, 20)
        assert np.bincount(labels).tolist() == [2] * classes
        again, _ = draw(2 * classes, 20, 3, BACKGROUNDS)
        other, _ = draw(2 * classes, 20, 4, BACKGROUNDS)
        assert np.array_equal(images, again)
        assert not np.array_equal(images, other)


def test_a_left_turn_is_no_right_turn() -> None:
    """What signs are there for: mirrored images are of another class."""
    boards = {symbol for board, symbol in SIGNS if board == "order"}
    assert {"left", "right"} < boards
    images, labels = signs(240, 20, 0, np.zeros((1, 3, 32, 32), np.uint8))
    left, right = (
        images[labels == SIGNS.index(("order", way))].astype(float).mean(axis=0)
        for way in ("left", "right")
    )
    mirrored = left[:, :, ::-1]
    assert np.abs(mirrored - right).mean() < np.abs(left - right).mean()
