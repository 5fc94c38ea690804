import stat
from pathlib import Path

import pytest

from scripts.make_env import SECRETS, main


def _values(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    assert main(str(tmp_path / ".env")) == 0

    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600


def test_every_secret_is_new_and_its_own(tmp_path: Path) -> None:
    main(str(tmp_path / "one"))
    main(str(tmp_path / "other"))

    one, other = _values(tmp_path / "one"), _values(tmp_path / "other")
    secrets = [values[name] for values in (one, other) for name in SECRETS]
    assert len(set(secrets)) == 2 * len(SECRETS)
    assert all(len(secret) == 48 and int(secret, 16) for secret in secrets)


def test_file_that_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".env").write_text("POSTGRES_PASSWORD=kept\n")

    assert main(str(tmp_path / ".env")) == 0
    assert (tmp_path / ".env").read_text() == "POSTGRES_PASSWORD=kept\n"
    assert "stays as it is" in capsys.readouterr().err
