"""One installation, from `up` through faults: run by `make compose-test`."""

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.compose.conftest import Installation, run, wait_until
from tests.e2e.inputs import quick_request
from tests.e2e.user import User
from tests.sanitizer.builders import QUICK_TRAINING

pytestmark = pytest.mark.compose

SLOW = {
    "name": "finetune",
    "training": QUICK_TRAINING | {"phases": [{"epochs": 150, "learning_rate": 1e-4}]},
}
"""Half a minute or so: long enough for something to break meanwhile."""
PARTS = ("postgres", "redis", "service", "reconcile", "worker")


def _is_ready(user: User) -> bool:
    try:
        return user.http.get("/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _wait(user: User, job_id: str, *statuses: str) -> dict[str, Any]:
    """As `User.wait`, also while the API is being restarted."""
    deadline = time.monotonic() + 300
    while True:
        assert time.monotonic() < deadline
        try:
            return user.wait(job_id, *statuses, seconds=300)
        except httpx.HTTPError:
            time.sleep(0.5)


# --- What came up --------------------------------------------------------------------------------


def test_everything_is_ready(user: User) -> None:
    answer = user.http.get("/readyz")
    assert answer.status_code == 200, answer.text
    states = {part["name"]: part["state"] for part in answer.json()["components"]}
    assert states == {"database": "up", "broker": "up", "store": "up", "workers": "up"}


def test_every_container_is_locked_down(installation: Installation) -> None:
    for part in PARTS:
        for container in installation.containers(part):
            found = installation.inspect(container)
            host = found["HostConfig"]
            assert found["Config"]["User"] not in ("", "0", "root"), part
            assert host["ReadonlyRootfs"], part
            assert host["CapDrop"] == ["ALL"], part
            assert not host["CapAdd"], part
            assert "no-new-privileges:true" in host["SecurityOpt"], part
            assert host["Memory"] > 0, part
            assert host["NanoCpus"] > 0, part
            assert host["PidsLimit"] > 0, part


def test_nothing_listens_beyond_loopback(installation: Installation) -> None:
    published = {}
    for part in PARTS:
        for container in installation.containers(part):
            for bindings in installation.inspect(container)["HostConfig"]["PortBindings"].values():
                published[part] = [binding["HostIp"] for binding in bindings]
    assert published == {"service": ["127.0.0.1"]}


def test_worker_reaches_its_own_network_and_no_other(installation: Installation) -> None:
    (worker,) = installation.containers("worker")
    (back,) = installation.inspect(worker)["NetworkSettings"]["Networks"]
    (found,) = json.loads(run("docker", "network", "inspect", back))
    assert found["Internal"] is True

    (service,) = installation.containers("service")
    networks = installation.inspect(service)["NetworkSettings"]["Networks"]
    reached = {
        name: _can_connect(installation, network["IPAddress"]) for name, network in networks.items()
    }
    (front,) = networks.keys() - {back}
    assert reached == {back: True, front: False}


def _can_connect(installation: Installation, address: str) -> bool:
    """Whether the worker can connect to the API at an address."""
    program = (
        "import socket\n"
        "try:\n"
        f"    socket.create_connection(({address!r}, 8000), timeout=3)\n"
        "except OSError:\n"
        "    print('no')\n"
        "else:\n"
        "    print('yes')\n"
    )
    return installation.compose("exec", "-T", "worker", "python", "-c", program).strip() == "yes"


def test_nobody_but_the_broker_holds_its_password_in_a_command_line(
    installation: Installation,
) -> None:
    for part in PARTS:
        for container in installation.containers(part):
            found = installation.inspect(container)
            command = " ".join([found["Path"], *found["Args"]])
            # What is handed on and not set here has a name alone.
            variables = [entry.partition("=") for entry in found["Config"]["Env"]]
            secrets = [v for name, _, v in variables if "PASSWORD" in name or "SECRET" in name]
            assert not [secret for secret in secrets if secret and secret in command], part


def test_service_image_is_small_and_has_no_torch(installation: Installation) -> None:
    (service,) = installation.containers("service")
    image = installation.inspect(service)["Image"]
    (found,) = json.loads(run("docker", "image", "inspect", image))
    assert found["Size"] < 300e6
    names = run(
        "docker",
        "run",
        "--rm",
        "--network",
        "none",
        image,
        "python",
        "-c",
        "import importlib.metadata as m; print(*(d.name for d in m.distributions()))",
    )
    assert "torch" not in names.split()
    assert found["Config"]["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


# --- What it does --------------------------------------------------------------------------------


def test_model_is_sanitized_over_http(user: User, tmp_path: Path) -> None:
    job = user.wait(user.submit(**quick_request(user, tmp_path)))
    assert job["status"] == "succeeded", job
    answer = user.http.get(f"/v1/models/{job['result_model_id']}/file")
    (tmp_path / "result.pth").write_bytes(answer.content)
    before = torch.load(tmp_path / "suspect.pth", weights_only=True)["state_dict"]
    after = torch.load(tmp_path / "result.pth", weights_only=True)["state_dict"]
    assert list(after) == list(before)
    assert any(not torch.equal(after[key], before[key]) for key in before)


def test_every_restarted_part_comes_back_and_no_job_is_lost(
    installation: Installation, user: User, tmp_path: Path
) -> None:
    request = quick_request(user, tmp_path, method=SLOW)
    for part in PARTS:
        job_id = user.submit(**request)
        _wait(user, job_id, "running", "succeeded")
        installation.compose("restart", "--timeout", "30", part)
        wait_until(lambda: _is_ready(user))
        job = _wait(user, job_id)
        assert job["status"] == "succeeded", (part, job)


def test_job_of_a_killed_worker_ends_at_another_of_three(
    installation: Installation, user: User, tmp_path: Path
) -> None:
    installation.up("--scale", "worker=3", "--no-recreate")
    wait_until(
        lambda: (
            installation.sql(
                "SELECT count(*) FROM workers WHERE heartbeat_at > now() - interval '6 s'"
            )
            == "3"
        )
    )
    request = quick_request(user, tmp_path, method=SLOW)
    job_ids = [user.submit(**request) for _ in range(3)]
    for job_id in job_ids:
        _wait(user, job_id, "running")
    held = [installation.worker_of(job_id) for job_id in job_ids]
    assert len(set(held)) == 3

    killed = installation.inspect(held[0])["Name"].removeprefix(f"/{installation.name}-")
    run("docker", "kill", held[0])

    jobs = [_wait(user, job_id) for job_id in job_ids]
    assert [job["status"] for job in jobs] == ["succeeded"] * 3, jobs
    assert [job["attempt"] for job in jobs] == [2, 1, 1]
    assert installation.ended_at(job_ids[0], "worker") != killed
