"""Three worker hosts and an S3 store: run by `make compose-test`."""

from pathlib import Path

import httpx
import pytest

from tests.compose.conftest import Installation, run, wait_until
from tests.compose.test_installation import SLOW
from tests.e2e.inputs import quick_request

pytestmark = pytest.mark.compose

HOSTS = ("worker-a", "worker-b", "worker-c")


def _network_of(fleet: Installation, container: str) -> str:
    (network,) = fleet.inspect(container)["NetworkSettings"]["Networks"]
    return str(network)


def _container_named(fleet: Installation, hostname: str) -> tuple[str, str]:
    """The service and the whole id of the container with this host name."""
    for service in HOSTS:
        for container in fleet.containers(service):
            if container.startswith(hostname):
                return service, container
    raise AssertionError(f"no worker is named {hostname}")


def test_results_come_from_s3_by_a_presigned_address(fleet: Installation, tmp_path: Path) -> None:
    with fleet.user() as user:
        job = user.wait(user.submit(**quick_request(user, tmp_path)))
        assert job["status"] == "succeeded", job
        model = user.http.get(f"/v1/models/{job['result_model_id']}").json()
        answer = user.http.get(f"/v1/models/{job['result_model_id']}/file")
        assert answer.status_code == 307, answer.text
    file = httpx.get(answer.headers["location"])  # with no key of the service
    assert file.status_code == 200
    assert len(file.content) == model["bytes"]
    assert "sanitized-suspect.pth" in file.headers["content-disposition"]


def test_job_of_a_host_that_is_cut_off_ends_elsewhere_and_its_late_writes_are_refused(
    fleet: Installation, tmp_path: Path
) -> None:
    with fleet.user() as user:
        job_id = user.submit(**quick_request(user, tmp_path, method=SLOW))
        user.wait(job_id, "running")
        wait_until(
            lambda: fleet.sql(f"SELECT checkpoint_key FROM jobs WHERE id = '{job_id}'") != ""
        )
        service, cut_off = _container_named(fleet, fleet.worker_of(job_id))
        network = _network_of(fleet, cut_off)
        run("docker", "network", "disconnect", network, cut_off)

        job = user.wait(job_id, seconds=300)
        assert job["status"] == "succeeded", job
        assert job["attempt"] == 2
        elsewhere = fleet.ended_at(job_id, *HOSTS).removesuffix("-1")
        assert elsewhere != service
        logs = fleet.logs(elsewhere)
        assert "the run goes on from a checkpoint in the store" in logs, logs
        events = fleet.sql(f"SELECT count(*) FROM job_events WHERE job_id = '{job_id}'")

        run("docker", "network", "connect", network, cut_off)
        wait_until(lambda: '"outcome": "lost"' in fleet.logs(service))
        assert f"attempt 1 of {job_id} is no longer held" in fleet.logs(service)
        assert fleet.sql(f"SELECT count(*) FROM job_events WHERE job_id = '{job_id}'") == events
        assert user.job(job_id) == job

        # The host is of use again: alone it runs the next job.
        fleet.compose("stop", *(host for host in HOSTS if host != service))
        last = user.wait(user.submit(**quick_request(user, tmp_path)), seconds=240)
        assert last["status"] == "succeeded", last
