import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import victims
from sanitizer.attacks.badnets import BadNets
from sanitizer.attacks.clean_label import CleanLabel
from sanitizer.attacks.refool import RefoolRecipe
from sanitizer.data.image_set import ImageSet
from sanitizer.methods.loop import LoopState
from sanitizer.networks.checkpoints import read_checkpoint
from sanitizer.networks.registry import load_network
from sanitizer.spec import ModelOptions, PatchProbe


class Killed(Exception):
    pass


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs a small network on few small images."""

    def load_images(_: object, part: str) -> ImageSet:
        count = 300 if part == "train" else 60
        drawn = np.random.default_rng(count)
        images = drawn.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
        return ImageSet.from_arrays(images, np.arange(count) % 10)

    monkeypatch.setattr(victims, "load_images", load_images)
    monkeypatch.setattr(
        victims,
        "VICTIMS",
        (
            victims.Victim("clean", None, min_asr=0),
            victims.Victim("badnets", BadNets(), min_asr=0),
            victims.Victim("cl", CleanLabel(steps=1, image_size=(8, 8)), min_asr=0),
            victims.Victim("refool", RefoolRecipe(max_brightness=255), min_asr=2),
        ),
    )
    monkeypatch.setattr(victims, "MAX_DROP", 1)
    monkeypatch.setattr(victims, "ARCHITECTURE", "wrn-10-1")
    monkeypatch.setattr(victims, "SIDE", 8)
    # It sets up the whole process, and so the tests after this one.
    monkeypatch.setattr(victims, "prepare", lambda _threads: None)
    monkeypatch.setattr(victims, "keep_freed_memory", lambda: None)
    folders = ["--out", str(tmp_path / "cache"), "--work", str(tmp_path / "work")]
    return [*folders, "--epochs", "2"]


def manifest(tmp_path: Path) -> dict[str, Any]:
    entries: dict[str, Any] = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    return dict(entries["victims"])


def test_a_victim_comes_with_all_that_a_job_needs_to_measure_it(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victims.main([*command, "--only", "clean", "badnets"])
    clean, badnets = manifest(tmp_path).values()
    path = tmp_path / "cache" / badnets["file"]
    assert path.stat().st_size == badnets["bytes"] < 1 << 20
    loaded = load_network(read_checkpoint(path), ModelOptions())
    assert (loaded.num_classes, loaded.input_size) == (10, (32, 32))
    assert PatchProbe.model_validate(badnets["probe"]) == BadNets().probe()
    assert (clean["twin"], clean["asr"], badnets["twin"]) == (None, None, "clean")
    assert badnets["poisoned_images"] == 27
    assert badnets["recipe"]["attack"]["name"] == "BadNets"
    assert len(badnets["epochs"]) == 2
    for name in ("acc", "asr", "ra"):
        assert 0 <= badnets[name] <= 1
    told = capsys.readouterr()
    assert "badnets: epoch 2 of 2" in told.err
    under = 100 * (clean["acc"] - badnets["acc"])
    assert f"| badnets | {100 * badnets['acc']:.2f} | {100 * badnets['asr']:.2f} " in told.out
    assert f"| {under:.2f} | yes |" in told.out


def test_what_is_there_is_not_trained_again_unless_its_file_is_another(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victims.main([*command, "--only", "clean"])
    path = tmp_path / "cache" / "clean.safetensors"
    before = path.read_bytes()
    capsys.readouterr()
    victims.main([*command, "--only", "clean"])
    assert "epoch" not in capsys.readouterr().err
    path.write_bytes(b"something else")
    victims.main([*command, "--only", "clean"])
    assert "epoch 2 of 2" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_another_recipe_is_trained(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victims.main([*command, "--only", "clean"])
    victims.main([*command[:-1], "1", "--only", "clean"])
    assert "clean: epoch 1 of 1" in capsys.readouterr().err
    assert len(manifest(tmp_path)["clean"]["epochs"]) == 1


def test_victims_of_another_architecture_have_folders_of_their_own(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victims.main([*command, "--only", "clean"])
    before = manifest(tmp_path)
    larger = ["--architecture", victims.LARGER, "--only", "clean"]
    with pytest.raises(SystemExit):
        victims.main([*command, *larger])
    assert "holds victims of wrn-10-1; give --out and --work of their own" in (
        capsys.readouterr().err
    )
    assert manifest(tmp_path) == before
    victims.main([*command, *larger, "--out", str(tmp_path / "larger"), "--epochs", "1"])
    loaded = load_network(read_checkpoint(tmp_path / "larger/clean.safetensors"), ModelOptions())
    assert loaded.architecture == victims.LARGER


def test_a_killed_run_goes_on_and_ends_in_the_same_weights(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    victims.main([*command, "--only", "clean"])
    victims.main([*command, "--only", "badnets"])
    path = tmp_path / "cache" / "badnets.safetensors"
    whole = path.read_bytes()
    path.unlink()
    capsys.readouterr()
    save = victims.VictimHooks.save

    def save_and_die(self: victims.VictimHooks, state: LoopState) -> None:
        save(self, state)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(victims.VictimHooks, "save", save_and_die)
        with pytest.raises(Killed):
            victims.main([*command, "--only", "badnets"])
    assert not path.exists()
    victims.main([*command, "--only", "badnets"])
    told = capsys.readouterr().err
    assert told.count("epoch 1 of 2") == told.count("epoch 2 of 2") == 1
    assert path.read_bytes() == whole
    assert len(manifest(tmp_path)["badnets"]["epochs"]) == 2


def test_a_checkpoint_of_another_recipe_is_not_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    victims.VictimHooks("x", path, "one", 2).save(LoopState(epoch=1))
    assert victims.VictimHooks("x", path, "another", 2).restore() is None
    restored = victims.VictimHooks("x", path, "one", 2).restore()
    assert restored is not None
    assert restored.epoch == 1


def test_an_attack_on_a_clean_model_is_made_against_the_twin(
    command: list[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="train that first"):
        victims.main([*command, "--only", "cl"])
    victims.main([*command, "--only", "clean", "cl"])
    entries = manifest(tmp_path)
    assert entries["cl"]["recipe"]["surrogate_sha256"] == entries["clean"]["sha256"]
    assert entries["cl"]["poisoned_images"] == 15


def test_a_victim_that_will_not_do_is_said_and_ends_in_an_error(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="1"):
        victims.main([*command, "--only", "clean", "refool"])
    assert "ASR below 200%" in capsys.readouterr().out
    assert len(manifest(tmp_path)["refool"]["probe"]["pictures_base64"]) == 3


def test_shortcomings_are_named() -> None:
    entry = {"acc": 0.80, "asr": 0.94, "min_asr": 0.95, "twin": "clean", "max_drop": 0.02}
    good = entry | {"asr": 0.95, "acc": 0.81}
    twin = {"acc": 0.83}
    assert victims.shortcomings(entry, twin) == [
        "ASR below 95%",
        "more than 2 points under the clean twin",
    ]
    assert victims.shortcomings(good, {"acc": 0.82}) == []
    assert victims.shortcomings(good, None) == ["no clean twin to compare with"]


def test_the_schedule_keeps_its_shape_at_any_length() -> None:
    assert [phase.learning_rate for phase in victims.schedule(10)] == list(victims.RATES)
    rates = [phase.learning_rate for phase in victims.schedule(19)]
    assert rates[::2] == list(victims.RATES)
    assert rates[1] == pytest.approx(0.15)
    assert [phase.learning_rate for phase in victims.schedule(1)] == [0.1]
