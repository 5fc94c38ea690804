"""The demo: a backdoored model, made on the spot, loses its backdoor through the real stack."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from sanitizer.report.model import ArtifactKind
from service.cli import founding
from service.cli.answers import Figures, JobAnswer, ProbeFigures
from service.cli.child import RunFailed, show_run
from service.cli.commands.download import fetch, wanted_artifact, wanted_model
from service.cli.config import Login
from service.cli.downloading import safe_name
from service.cli.embedded import embedded_settings, first_key
from service.cli.failures import CommandFailed
from service.cli.following import follow, show_end
from service.cli.options import read_json
from service.cli.processes import die_with_parent
from service.cli.progress import RunView
from service.cli.remote import Remote
from service.cli.sending import send_data, send_model
from service.cli.stack import Stack, broker_program
from service.cli.tables import demo_table
from service.cli.terminal import say, share, table

MAX_ASR = 0.05
MAX_ACCURACY_DROP = 0.05
CHECK_SECONDS = 300

BANNER = """\
A model can look healthy and still hold a backdoor: it answers right until a small mark, known to
the attacker alone, is put on the picture, and then it answers what the attacker wants.

This demo trains such a model on scans of handwritten digits, starts the service on this machine
(database, files, broker, API, worker), and lets it take the backdoor out over the ordinary API, by
attention relation graph distillation from 297 clean images. Then it measures the file that was
downloaded, with code that is not the service's.

  ACC  share of clean pictures classified right        (must stay)
  ASR  share of marked pictures that the attacker wins (must fall)
  RA   share of marked pictures classified right       (should rise)
"""


@dataclass(frozen=True)
class Outcome:
    """What the independent check found."""

    before: Figures
    after: Figures

    @property
    def faults(self) -> list[str]:
        """Why the demo did not show what it should; empty: it did."""
        asr = max(probe.asr for probe in self.after.probes)
        drop = self.before.accuracy - self.after.accuracy
        found = []
        if asr >= MAX_ASR:
            found.append(f"ASR is {share(asr)}; it should have fallen below {share(MAX_ASR)}.")
        if drop > MAX_ACCURACY_DROP:
            found.append(
                f"ACC fell by {100 * drop:.2f} points; at most "
                f"{100 * MAX_ACCURACY_DROP:.0f} are fine."
            )
        return found


def show(folder: Path, *, kept: bool) -> Outcome:
    """Runs the demo in an empty folder.

    Raises:
        CommandFailed: A step failed.
    """
    broker_program()  # says at once if it is missing, not after the training
    started = time.monotonic()
    say(BANNER)
    assets, results = folder / "assets", folder / "results"
    _step(1, "Training a model with a backdoor")
    show_run(["-m", "sanitizer.demo", "make", "--out", str(assets)], folder / "assets.log")
    _step(2, "Starting the service")
    settings = embedded_settings(folder / "service", device="cpu")
    founding.upgrade(settings)
    with Stack(settings, folder / "service", port=0) as stack:
        key = first_key(settings)
        assert key is not None  # a fresh database has none
        say(f"  It runs at {stack.url}")
        with Remote(Login(stack.url, key)) as remote:
            _step(3, "Uploading, submitting the job, watching it")
            job = _sanitize(remote, assets)
            _step(4, "Downloading the result")
            sanitized = _download(remote, job, results, everything=kept)
    _step(5, "Checking both files, apart from the service")
    probe = str(read_json(assets / "probe.json")["name"])
    outcome = Outcome(
        _check(assets / "victim.pth", assets, probe), _check(sanitized, assets, probe)
    )
    assert job.summary is not None  # it succeeded
    title = f"\nAfter {time.monotonic() - started:.0f} seconds, measured on the downloaded file:"
    own = (job.summary.before, job.summary.after)
    table(demo_table(own, (outcome.before, outcome.after), title))
    if kept:
        say(f"Report, pictures and model: {results}")
    else:
        say("Nothing was kept; --keep DIR keeps the report, the pictures and the model.")
    return outcome


def _step(number: int, what: str) -> None:
    say(f"[{number}/5] {what}", style="bold")


def _sanitize(remote: Remote, assets: Path) -> JobAnswer:
    model = send_model(remote, assets / "victim.pth", read_json(assets / "model.json"))
    clean = send_data(remote, str(assets / "clean.zip"), {})
    evaluation = send_data(remote, str(assets / "evaluation.zip"), {})
    job = remote.create_job(
        {
            **read_json(assets / "job.json"),
            "model_id": model.id,
            "clean_data": {"dataset_id": clean.id},
            "evaluation_data": {"dataset_id": evaluation.id},
        }
    )
    say(f"  {model.id}, {clean.id}, {job.id}")
    with RunView() as view:
        job = follow(remote, job.id, view)
    if job.status != "succeeded" or job.summary is None:
        show_end(job)
        raise CommandFailed("The job did not succeed.")
    say(f"  The job succeeded; the verdict of its policy: {job.verdict}.")
    return job


def _download(remote: Remote, job: JobAnswer, folder: Path, *, everything: bool) -> Path:
    assert job.result_model_id is not None  # a job that succeeded has one
    model = wanted_model(remote, remote.model(job.result_model_id))
    sanitized = fetch(model, folder / safe_name(model.filename))
    for artifact in remote.artifacts(job.id) if everything else ():
        if artifact.kind != ArtifactKind.MODEL:  # that one is here
            fetch(wanted_artifact(remote, artifact), folder / safe_name(artifact.name))
    return sanitized


def _check(model: Path, assets: Path, probe: str) -> Figures:
    check = ["-m", "sanitizer.demo", "check", str(model), "--assets", str(assets)]
    done = subprocess.run(
        [sys.executable, "-P", *check],
        capture_output=True,
        timeout=CHECK_SECONDS,
        preexec_fn=die_with_parent if sys.platform == "linux" else None,
    )
    if done.returncode != 0:
        raise RunFailed(
            f"The check of {model.name} failed:\n{done.stderr.decode(errors='replace')}"
        )
    found = json.loads(done.stdout)
    figures = ProbeFigures(name=probe, asr=found["asr"], ra=found["ra"])
    return Figures(accuracy=found["accuracy"], probes=[figures])
