"""Settings that do not fit together are refused."""

import pytest
from pydantic import ValidationError

from service.settings import Settings


@pytest.mark.parametrize(("lease", "heartbeat"), [(60, 20), (30, 10), (6, 2)])
def test_lease_outlives_two_heartbeats_that_fail(lease: float, heartbeat: float) -> None:
    settings = Settings(_env_file=None, lease_seconds=lease, heartbeat_seconds=heartbeat)
    assert settings.lease_seconds == lease


def test_heartbeat_that_comes_too_late_for_the_lease_is_refused() -> None:
    with pytest.raises(ValidationError, match="at most a third of lease_seconds, got 10 and 5"):
        Settings(_env_file=None, lease_seconds=5)
