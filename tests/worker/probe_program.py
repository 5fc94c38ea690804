"""What a run that was taken over would try: `PROBE {"worker": PID, "own": FOLDER, ...}`.

Prints to standard error a JSON object with, for each try, `done` or the name of the system's error.
Its source is handed to Python by `-c`: shut in, it could not read this file.
"""

import ctypes
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

given = json.loads(sys.argv[1])
worker, own, other, root = given["worker"], given["own"], given["other"], given["root"]
found: dict[str, str] = {}


def attempt(what: Callable[[], object]) -> None:
    try:
        what()
        found[what.__name__] = "done"
    except OSError as error:
        found[what.__name__] = errno.errorcode[error.errno or 0]


def system_call(number: int, *arguments: int) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    result: int = library.syscall(*map(ctypes.c_long, (number, *arguments)))
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


@attempt
def read_environment_of_the_worker() -> None:
    Path(f"/proc/{worker}/environ").read_bytes()


@attempt
def read_memory_of_the_worker() -> None:
    Path(f"/proc/{worker}/mem").open("rb").close()


@attempt
def take_a_descriptor_of_the_worker() -> None:
    pidfd_getfd = 438
    system_call(pidfd_getfd, os.pidfd_open(worker), 0, 0)


@attempt
def signal_the_worker() -> None:
    os.kill(worker, 0)


@attempt
def read_environment_of_the_worker_by_a_descendant() -> None:
    ran = subprocess.run(["/bin/cat", f"/proc/{worker}/environ"], capture_output=True, check=False)
    if ran.returncode:
        raise OSError(errno.EACCES, "")


@attempt
def list_other_jobs() -> None:
    os.listdir(Path(own).parent)


@attempt
def read_a_file_of_another_job() -> None:
    Path(other, "model").read_bytes()


@attempt
def read_it_through_proc() -> None:
    Path("/proc/self/root" + other, "model").read_bytes()


@attempt
def write_to_another_job() -> None:
    Path(other, "new").write_text("x")


@attempt
def cut_a_file_of_another_job() -> None:
    os.truncate(Path(other, "model"), 0)


@attempt
def remove_a_file_of_another_job() -> None:
    Path(other, "model").unlink()


@attempt
def link_a_file_of_another_job() -> None:
    os.link(Path(other, "model"), Path(own, "work", "linked"))


@attempt
def list_etc() -> None:
    os.listdir("/etc")


@attempt
def list_processes() -> None:
    os.listdir("/proc")


@attempt
def write_the_specification() -> None:
    Path(own, "spec.json").write_text("{}")


@attempt
def write_input() -> None:
    Path(own, "input", "model").write_text("x")


@attempt
def remove_input() -> None:
    Path(own, "input", "model").unlink()


@attempt
def replace_the_folder_of_results() -> None:
    Path(own, "out").rename(Path(own, "other"))


@attempt
def write_to_a_reference_root() -> None:
    Path(root, "new").write_text("x")


@attempt
def make_a_symbolic_link() -> None:
    Path(own, "out", "link").symlink_to(other)


@attempt
def make_a_pipe() -> None:
    os.mkfifo(Path(own, "out", "pipe"))


@attempt
def make_a_socket() -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(Path(own, "home", "socket")))


@attempt
def start_a_program_of_its_own() -> None:
    program = Path(own, "home", "program")
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    subprocess.run([str(program)], check=True)


@attempt
def connect_by_tcp() -> None:
    socket.create_connection(("127.0.0.1", given["port"]), timeout=5).close()


@attempt
def listen_by_tcp() -> None:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))


@attempt
def connect_to_an_abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.connect("\0" + given["abstract"])


@attempt
def gain_privileges() -> None:
    # Not possible any more once this is set, by setuid programs or otherwise.
    if "NoNewPrivs:\t1" in Path("/proc/self/status").read_text():
        raise OSError(errno.EPERM, "")


@attempt
def read_the_specification() -> None:
    Path(own, "spec.json").read_bytes()


@attempt
def read_input() -> None:
    Path(own, "input", "model").read_bytes()


@attempt
def read_a_reference_root() -> None:
    Path(root, os.listdir(root)[0]).read_bytes()


@attempt
def write_results() -> None:
    Path(own, "out", "deep").mkdir()
    Path(own, "out", "deep", "file").write_bytes(b"x")


@attempt
def replace_a_checkpoint() -> None:
    for content in (b"half", b"whole"):
        Path(own, "work", "partial").write_bytes(content)
        Path(own, "work", "partial").replace(Path(own, "work", "checkpoint"))


@attempt
def use_and_empty_its_home() -> None:
    Path(own, "home", ".cache").mkdir()
    Path(own, "home", ".cache").rmdir()


@attempt
def read_its_own_process() -> None:
    Path("/proc/self/maps").read_bytes()
    Path(f"/proc/self/task/{os.getpid()}/stat").read_bytes()


@attempt
def count_processors() -> None:
    os.listdir("/sys/devices/system/cpu")
    Path("/proc/cpuinfo").read_bytes()
    Path("/proc/meminfo").read_bytes()


@attempt
def use_devices() -> None:
    with Path("/dev/urandom").open("rb") as source:
        Path("/dev/null").write_bytes(source.read(8))


@attempt
def start_a_program_of_the_system() -> None:
    subprocess.run(["/bin/sh", "-c", ":"], check=True)


json.dump(found, sys.stderr)
