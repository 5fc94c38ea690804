"""A run is shut into its own files: real processes under the real launcher and kernel."""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from sanitizer.events import Event, ResultEvent
from sanitizer.report.model import ArtifactKind
from service.settings import Settings
from tests.e2e.inputs import ENDLESS
from tests.sanitizer.builders import write_spec
from tests.worker.conftest import Bench
from worker import isolation, landlock
from worker.child import Child, Limits
from worker.folders import JobFolder, job_folder

VERSION = landlock.find_version()
NEWEST = isolation.NEEDED[-1][0]
needs_landlock = pytest.mark.skipif(VERSION == 0, reason="this kernel has no Landlock")

PROBE = Path(__file__).with_name("probe_program.py")

REFUSED = {
    "read_environment_of_the_worker": "EACCES",
    "read_memory_of_the_worker": "EACCES",
    "take_a_descriptor_of_the_worker": "EPERM",
    "read_environment_of_the_worker_by_a_descendant": "EACCES",
    "list_other_jobs": "EACCES",
    "read_a_file_of_another_job": "EACCES",
    "read_it_through_proc": "EACCES",
    "write_to_another_job": "EACCES",
    "remove_a_file_of_another_job": "EACCES",
    "link_a_file_of_another_job": "EXDEV",
    "list_etc": "EACCES",
    "list_processes": "EACCES",
    "write_the_specification": "EACCES",
    "write_input": "EACCES",
    "remove_input": "EACCES",
    "replace_the_folder_of_results": "EACCES",
    "write_to_a_reference_root": "EACCES",
    "make_a_symbolic_link": "EACCES",
    "make_a_pipe": "EACCES",
    "make_a_socket": "EACCES",
    "start_a_program_of_its_own": "EACCES",
    "gain_privileges": "EPERM",
}
REFUSED_SINCE = {
    "cut_a_file_of_another_job": (3, "EACCES"),
    "connect_by_tcp": (4, "EACCES"),
    "listen_by_tcp": (4, "EACCES"),
    "connect_to_an_abstract_socket": (6, "EPERM"),
    "signal_the_worker": (6, "EPERM"),
}
"""By the version of Landlock's interface."""
DONE = {
    "read_the_specification",
    "read_input",
    "read_a_reference_root",
    "write_results",
    "replace_a_checkpoint",
    "use_and_empty_its_home",
    "read_its_own_process",
    "count_processors",
    "use_devices",
    "start_a_program_of_the_system",
}


class Runs:
    """Starts children in job folders, and ends them after the tests."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self.root = root
        self._stack = stack

    def folder(self, name: str) -> JobFolder:
        folder = job_folder(self.root / "work", name, wait_seconds=0, check=lambda: None)
        return self._stack.enter_context(folder)

    def start(
        self,
        folder: JobFolder,
        *command: str,
        roots: list[Path] | None = None,
        uses_tcp: bool = False,
    ) -> Child:
        allowed = isolation.find_allowed(folder, roots or [], uses_cuda=False, uses_tcp=uses_tcp)
        return self.start_under(Limits(16 << 30, 1 << 30, allowed), folder, *command)

    def start_under(self, limits: Limits, folder: JobFolder, *command: str) -> Child:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder.home),
            "TMPDIR": str(folder.home),
            "OMP_NUM_THREADS": "1",
        }
        child = Child(command, environment=environment, folder=folder.home, limits=limits)
        self._stack.callback(child.finish)
        return child


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with ExitStack() as stack:
        yield Runs(tmp_path_factory.mktemp("isolation"), stack)


def _sanitizer(folder: JobFolder) -> tuple[str, ...]:
    """As the supervisor starts it."""
    return (
        *(sys.executable, "-P", "-m", "sanitizer", "run", str(folder.spec)),
        *("--out", str(folder.out), "--work", str(folder.work), "--exit-with-parent"),
    )


def _hear_out(child: Child) -> list[Event]:
    heard: list[Event] = []
    while True:
        over = not child.is_heard
        events = child.take_events()
        heard += events
        if over and not events:
            return heard
        time.sleep(0.01)


@pytest.fixture(scope="module")
def tried(runs: Runs) -> dict[str, str]:
    """What came of each try of the probe."""
    folder = runs.folder("job_own")
    folder.spec.write_text("{}")
    (folder.input / "model").write_text("own")
    assert folder.out.is_dir()
    assert folder.work.is_dir()
    other = runs.folder("job_other").input
    (other / "model").write_text("other")
    root = runs.root / "references"
    root.mkdir()
    (root / "images").write_text("images")
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0" + f"probe-{os.getpid()}")
        abstract.listen()
        given = {
            "worker": os.getpid(),
            "own": str(folder.path),
            "other": str(other),
            "root": str(root),
            "port": tcp.getsockname()[1],
            "abstract": f"probe-{os.getpid()}",
        }
        command = (sys.executable, "-I", "-c", PROBE.read_text(), json.dumps(given))
        child = runs.start(folder, *command, roots=[root])
        assert _hear_out(child) == []
        assert child.finish() == 0, child.error_tail()
    assert (other / "model").read_text() == "other"
    found: dict[str, str] = json.loads(child.error_tail().splitlines()[-1])
    return found


@needs_landlock
class TestRunThatWasTakenOver:
    @pytest.mark.parametrize("what", REFUSED)
    def test_it_cannot(self, tried: dict[str, str], what: str) -> None:
        assert tried[what] == REFUSED[what]

    @pytest.mark.parametrize("what", REFUSED_SINCE)
    def test_on_this_kernel_it_cannot(self, tried: dict[str, str], what: str) -> None:
        since, error = REFUSED_SINCE[what]
        if since > VERSION:
            pytest.skip(f"Landlock of this kernel has version {VERSION}, this came with {since}")
        assert tried[what] == error

    @pytest.mark.parametrize("what", sorted(DONE))
    def test_it_can(self, tried: dict[str, str], what: str) -> None:
        assert tried[what] == "done"

    def test_nothing_else_was_tried(self, tried: dict[str, str]) -> None:
        assert tried.keys() == REFUSED.keys() | REFUSED_SINCE.keys() | DONE


@needs_landlock
class TestRealRun:
    def test_it_leaves_the_same_model_as_one_that_is_not_shut_in(self, runs: Runs) -> None:
        shut, free = runs.folder("job_shut"), runs.folder("job_free")
        for folder in (shut, free):
            write_spec(folder.input).rename(folder.spec)
        children = [
            runs.start(shut, *_sanitizer(shut)),
            runs.start_under(Limits(16 << 30, 1 << 30), free, *_sanitizer(free)),
        ]
        models = []
        for folder, child in zip((shut, free), children, strict=True):
            (result,) = [event for event in _hear_out(child) if isinstance(event, ResultEvent)]
            (name,) = [file.name for file in result.artifacts if file.kind is ArtifactKind.MODEL]
            models.append((folder.out / name).read_bytes())
            assert child.finish() == 0
            assert child.error_tail() == ""
        assert models[0] == models[1]

    def test_processes_that_share_a_run_meet_within(self, runs: Runs) -> None:
        folder = runs.folder("job_shared")
        once = {"phases": [{"epochs": 1, "learning_rate": 0.01}], "least_epoch_images": 0}
        method = {"name": "finetune", "training": once}
        write_spec(folder.input, method=method, devices=2).rename(folder.spec)
        child = runs.start(folder, *_sanitizer(folder), uses_tcp=True)
        events = _hear_out(child)
        assert isinstance(events[-1], ResultEvent), child.error_tail()
        assert child.finish() in (0, 1)
        report = json.loads((folder.out / "report.json").read_bytes())
        assert report["devices"] == 2

    def test_it_ends_with_its_parent(self, runs: Runs) -> None:
        folder = runs.folder("job_parent")
        write_spec(folder.input, method=ENDLESS).rename(folder.spec)
        child = runs.start(folder, *_sanitizer(folder))
        while not child.take_events():
            assert not child.has_exited(), child.error_tail()
            time.sleep(0.01)
        child._process.stdin.close()  # type: ignore[union-attr]  # as if this process had died
        assert child.has_exited(20)


CONNECT = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])))"


@pytest.mark.skipif(VERSION < 4, reason="Landlock of this kernel leaves TCP to everybody")
@pytest.mark.parametrize(("uses_tcp", "code"), [(True, 0), (False, 1)])
def test_only_a_run_that_several_processes_share_has_tcp(
    runs: Runs, uses_tcp: bool, code: int
) -> None:
    folder = runs.folder(f"job_tcp_{uses_tcp}".lower())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        command = (sys.executable, "-I", "-c", CONNECT, port)
        child = runs.start(folder, *command, uses_tcp=uses_tcp)
        assert _hear_out(child) == []
        assert child.finish() == code, child.error_tail()


@needs_landlock
def test_run_that_is_shut_in_ends_when_it_is_asked_to(runs: Runs) -> None:
    child = runs.start(runs.folder("job_asked"), "/bin/sleep", "600")
    child.stop(grace_seconds=20)
    assert child.finish() == -15


READ_ENVIRONMENT = (
    *(sys.executable, "-I", "-c"),
    "import os; open(f'/proc/{os.getppid()}/environ').read()",
)


@pytest.mark.skipif(VERSION < NEWEST, reason="this kernel cannot do all that `required` asks for")
def test_operators_own_command_is_shut_in_where_that_is_required(bench: Bench) -> None:
    job_id = bench.add_job(max_attempts=1)
    bench.run(job_id, "succeed", child_command=READ_ENVIRONMENT, child_isolation="required")
    data = bench.job(job_id).error_data
    assert data is not None
    assert "Permission denied" in data["stderr"]


def test_operators_own_command_is_let_alone_otherwise(bench: Bench) -> None:
    job_id = bench.add_job(max_attempts=1)
    bench.run(job_id, "succeed", child_command=READ_ENVIRONMENT)
    assert bench.job(job_id).error_data == {"exit_code": 0, "stderr": ""}


@needs_landlock
def test_folder_that_a_link_has_replaced_is_not_followed(runs: Runs) -> None:
    folder = runs.folder("job_link")
    (folder.path / "work").symlink_to(runs.root)
    child = runs.start(folder, "/bin/true")
    assert _hear_out(child) == []
    assert child.finish() == 126
    assert f"{folder.path / 'work'} is a link" in child.error_tail()


def _settings(**given: Any) -> Settings:
    return Settings(_env_file=None, **given)


class TestSetting:
    def test_kernel_with_all_of_it_is_enough_where_it_is_required(self) -> None:
        isolation.require(_settings(child_isolation="required"), NEWEST)

    def test_worker_that_requires_it_does_not_start_without(self) -> None:
        with pytest.raises(isolation.IsolationMissing, match=r"takes Linux 6\.12") as raised:
            isolation.require(_settings(child_isolation="required"), 0)
        assert len(raised.value.missing) == len(isolation.NEEDED)

    def test_worker_that_requires_it_does_not_start_with_half(self) -> None:
        with pytest.raises(isolation.IsolationMissing, match="TCP; commands to devices"):
            isolation.require(_settings(child_isolation="required"), 3)

    @pytest.mark.parametrize("mode", ["auto", "off"])
    def test_worker_that_does_not_require_it_starts_without(self, mode: str) -> None:
        isolation.require(_settings(child_isolation=mode), 0)

    @pytest.mark.parametrize(
        ("mode", "command", "version", "expected"),
        [
            ("auto", (), NEWEST, True),
            ("auto", (), 1, True),
            ("auto", (), 0, False),
            ("auto", ("bwrap",), NEWEST, False),
            ("required", (), NEWEST, True),
            ("required", ("bwrap",), NEWEST, True),
            ("off", (), NEWEST, False),
        ],
    )
    def test_it_is_on_where_it_can_be_and_is_wanted(
        self, mode: str, command: tuple[str, ...], version: int, expected: bool
    ) -> None:
        settings = _settings(child_isolation=mode, child_command=command)
        assert isolation.is_on(settings, version) is expected

    def test_run_on_cuda_is_shut_in_only_where_that_is_required(self) -> None:
        modes = ("auto", "required", "off")
        assert [
            isolation.is_on(_settings(child_isolation=mode), NEWEST, uses_cuda=True)
            for mode in modes
        ] == [False, True, False]


class TestReport:
    @staticmethod
    def _logged(
        version: int, *, uses_cuda: bool = False, **given: Any
    ) -> list[tuple[str, str, object]]:
        with capture_logs() as logs:
            isolation.report(_settings(**given), version, uses_cuda=uses_cuda)
        return [(line["log_level"], line["event"], line.get("missing")) for line in logs]

    def test_what_this_kernel_cannot_do_is_said(self) -> None:
        ((level, event, missing),) = self._logged(5)
        assert (level, event) == ("warning", "runs are shut in, but not as well as they could be")
        assert missing == ["signals to other processes, abstract Unix sockets"]

    def test_kernel_without_it_is_warned_of(self) -> None:
        ((level, event, _),) = self._logged(0)
        assert (level, event) == ("warning", "runs are not shut into their folders")

    def test_worker_with_cuda_is_warned_that_its_runs_are_not_shut_in(self) -> None:
        ((level, event, _),) = self._logged(NEWEST, uses_cuda=True)
        assert (level, event.split(":")[0]) == (
            "warning",
            "runs on CUDA are not shut into their folders",
        )

    def test_nothing_is_said_where_nothing_is_missing(self) -> None:
        assert self._logged(NEWEST) == []

    def test_command_of_the_operators_own_is_no_warning(self) -> None:
        ((level, _, _),) = self._logged(NEWEST, child_command=("bwrap",))
        assert level == "info"


class TestAllowed:
    def test_cuda_gets_its_devices_and_a_run_on_the_cpu_does_not(self, runs: Runs) -> None:
        folder = runs.folder("job_devices")
        on_cpu = isolation.find_allowed(folder, [], uses_cuda=False)
        on_cuda = isolation.find_allowed(folder, [], uses_cuda=True)
        assert os.path.realpath("/dev/shm") not in on_cpu.write
        assert os.path.realpath("/dev/shm") in on_cuda.write
        assert "/sys" not in on_cpu.read
        assert "/sys" in on_cuda.read

    def test_nothing_that_is_written_can_be_started_and_no_root_is_open(self, runs: Runs) -> None:
        allowed = isolation.find_allowed(runs.folder("job_lists"), [], uses_cuda=True)
        assert not set(allowed.write) & set(allowed.programs)
        for path in (*allowed.programs, *allowed.read, *allowed.write):
            assert path not in ("/", "/etc", "/proc", "/dev", "/usr", "/tmp", "/root", "/home")
