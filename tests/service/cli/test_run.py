import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sanitizer.exits import Exit
from service.cli.app import app
from service.cli.child import RunFailed, show_run
from service.cli.failures import UnsupportedInput
from tests.service.cli.test_up import alive

SLOW = """
import subprocess, sys, time
from sanitizer.events import Stage, StageEvent, to_line
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
sys.stdout.write(to_line(StageEvent(stage=Stage.LOAD, message=f"child {child.pid}")))
sys.stdout.flush()
time.sleep(60)
"""


def test_a_wrong_specification_is_wrong_usage_and_its_place_is_named(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"modle": 1}))
    answer = CliRunner().invoke(app, ["run", str(spec), "--out", str(tmp_path / "out")])
    assert answer.exit_code == Exit.USAGE
    assert "modle" in answer.stderr


def test_an_input_at_fault_ends_with_exit_code_3_and_its_reason(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid 1\n")
    (tmp_path / "clean").mkdir()
    arguments = ["run", "--model", str(tmp_path / "model.pth"), "--clean", str(tmp_path / "clean")]
    answer = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert answer.exit_code == Exit.UNSUPPORTED
    assert "LFS" in answer.stderr


def test_options_and_a_specification_exclude_each_other(tmp_path: Path) -> None:
    arguments = ["run", "spec.json", "--out", str(tmp_path), "--seed", "1"]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == Exit.USAGE
    assert "not both" in answer.stderr


def test_a_child_that_crashes_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"exit code 1 (.|\n)*NameError"):
        show_run(["-c", "what_is_this"], tmp_path / "log")


def test_a_child_that_says_why_it_failed_is_believed(tmp_path: Path) -> None:
    code = (
        "import sys; from sanitizer.errors import Fault\n"
        "from sanitizer.events import ErrorEvent, to_line\n"
        "sys.stdout.write(to_line(ErrorEvent(code='bad', fault=Fault.INPUT, message='7')))\n"
        "sys.exit(3)"
    )
    with pytest.raises(UnsupportedInput, match="bad: 7"):
        show_run(["-c", code], tmp_path / "log")


def test_lines_that_are_no_events_are_passed_over(tmp_path: Path) -> None:
    show_run(["-c", "print('not an event')"], tmp_path / "log")


def test_a_child_imports_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "argparse.py").write_text("raise SystemExit('a stray file was imported')")
    monkeypatch.chdir(tmp_path)
    show_run(["-m", "sanitizer", "--help"], tmp_path / "log")


def test_an_interrupt_ends_the_child_and_what_it_started(tmp_path: Path) -> None:
    # A shell that starts its commands in the background has them ignore interrupts, and so would
    # this process; a person at a terminal has no such shell.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "import sys, pathlib; from service.cli.child import show_run\n"
    code += "show_run(['-c', sys.argv[1]], pathlib.Path(sys.argv[2]))"
    with subprocess.Popen(
        [sys.executable, "-c", code, SLOW, str(tmp_path / "log")],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stderr is not None
            grandchild = int(process.stderr.readline().split()[-1])
            assert alive([grandchild])
            os.kill(process.pid, signal.SIGINT)
            process.communicate(timeout=30)
        finally:
            process.kill()
    deadline = time.monotonic() + 5
    while alive([grandchild]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive([grandchild])


def test_a_run_ends_with_its_table_and_verdict(tmp_path: Path) -> None:
    import torch

    from tests.sanitizer.builders import write_npz
    from tests.sanitizer.methods.networks import trained

    torch.save(trained().state_dict(), tmp_path / "model.pth")
    write_npz(tmp_path / "clean.npz", 800, 1000)
    probe = {"kind": "patch", "target_class": 0, "row": 0, "column": 0, "pixels": [[255]]}
    (tmp_path / "probe.json").write_text(json.dumps(probe))
    answer = CliRunner().invoke(
        app,
        ["run", "--model", str(tmp_path / "model.pth"), "--clean", str(tmp_path / "clean.npz")]
        + ["--input-size", "8x8", "--probe", str(tmp_path / "probe.json"), "--max-asr", "1"]
        + ["--mean", "0", "--std", "1", "--class-names", "0,1,2,3,4,5,6,7,8,9"]
        + ["--device", "cpu", "--strict"]
        + ["--max-accuracy-drop", "1", "--out", str(tmp_path / "out"), "--method", "finetune"]
        + ["--set", 'training.phases=[{"epochs": 1, "learning_rate": 0.01}]'],
    )
    assert answer.exit_code == Exit.ALLOWED, answer.stderr
    spec = json.loads((tmp_path / "out" / "spec.json").read_text())
    assert (spec["model"]["mean"], spec["model"]["std"]) == ([0.0], [1.0])
    assert spec["clean_data"]["class_names"] == list("0123456789")
    assert spec["device"] == "cpu"
    assert "ACC  clean accuracy" in answer.stdout
    assert "ASR  trigger" in answer.stdout
    assert "Verdict: allowed" in answer.stdout
    assert "clean images for 1 epoch.\n" in answer.stderr
    assert "finetune epoch 1: loss" in answer.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["decision"]["verdict"] == "allowed"
