"""Commands against the real server."""

import json
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from sanitizer.exits import Exit
from service.cli.app import app as command_line
from service.cli.config import KEY_VARIABLE, URL_VARIABLE, Login, saved_login
from service.cli.remote import Remote
from service.db.session import SessionFactory
from service.db.tables import Scope
from tests.service.cli.conftest import RunCommand
from tests.service.conftest import MakeKey
from tests.service.jobs.builders import finish_job, make_job, start_job


def submitted(run_command: RunCommand, model_file: Path, images_zip: Path, *more: str) -> str:
    """Submits a job; its id."""
    model = run_command("upload", str(model_file)).stdout.strip()
    data = run_command("data", "add", str(images_zip)).stdout.strip()
    answer = run_command("submit", "--model", model, "--clean", data, *more)
    assert answer.exit_code == 0, answer.stderr
    return str(answer.stdout.strip())


# --- login ---------------------------------------------------------------------------------------


def test_a_login_is_checked_and_saved(login: Login, run_command: RunCommand) -> None:
    answer = run_command("login", login.url + "/", "--key", "-", stdin=f"{login.api_key}\n")
    assert answer.exit_code == 0
    assert saved_login() == login
    assert login.api_key not in answer.output


def test_a_key_is_asked_for_without_echo(login: Login, run_command: RunCommand) -> None:
    answer = run_command("login", login.url, stdin=f"{login.api_key}\n")
    assert answer.exit_code == 0
    assert login.api_key not in answer.output
    assert saved_login() == login


def test_a_wrong_key_is_not_saved(login: Login, run_command: RunCommand) -> None:
    answer = run_command("login", login.url, "--key", "bds_wrong")
    assert answer.exit_code == Exit.ERROR
    assert "Error: A valid key is needed" in answer.stderr
    assert "Request id: " in answer.stderr
    assert saved_login() is None


# --- upload and data -----------------------------------------------------------------------------


def test_upload_prints_the_id_alone(run_command: RunCommand, api: Remote, model_file: Path) -> None:
    options = ["--architecture", "wrn-16-1", "--input-size", "16x16", "--mean", "0.5,0.5,0.5"]
    more = ["--std", "0.2,0.2,0.2", "--metadata", "ticket=SEC-1", "--name", "suspect"]
    answer = run_command("upload", str(model_file), *options, *more)
    model = api.model(answer.stdout.strip()).document
    assert model["architecture"] == "wrn-16-1"
    assert model["input_size"] == [16, 16]
    assert model["std"] == [0.2, 0.2, 0.2]
    assert model["metadata"] == {"ticket": "SEC-1"}


def test_json_is_the_api_object_alone(
    run_command: RunCommand, api: Remote, model_file: Path
) -> None:
    document = json.loads(run_command("upload", str(model_file), "--json").stdout)
    assert document == api.model(document["id"]).document


def test_a_folder_is_packed_and_uploaded(run_command: RunCommand, tmp_path: Path) -> None:
    for name in ("0/a.png", "1/b.png"):
        path = tmp_path / "digits" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"not looked at")
    answer = run_command("data", "add", str(tmp_path / "digits"), "--json")
    document = json.loads(answer.stdout)
    assert document["name"] == "digits"
    assert document["format"] == "zip"


def test_class_names_may_have_spaces_between_as_over_http(
    run_command: RunCommand, images_zip: Path
) -> None:
    answer = run_command("data", "add", str(images_zip), "--class-names", "cat, dog", "--json")
    assert json.loads(answer.stdout)["class_names"] == ["cat", "dog"]


def test_a_file_of_no_known_format_ends_with_exit_code_3(
    run_command: RunCommand, model_file: Path
) -> None:
    answer = run_command("data", "add", str(model_file))
    assert answer.exit_code == Exit.UNSUPPORTED
    assert "no known format" in answer.stderr


def test_a_reference_that_is_not_open_is_refused_with_its_reason(run_command: RunCommand) -> None:
    answer = run_command("data", "add", "file:///etc")
    assert answer.exit_code == Exit.ERROR
    assert "The reference is refused" in answer.stderr


def test_what_was_forgotten_is_set_later_and_taken_back(
    run_command: RunCommand, api: Remote, model_file: Path
) -> None:
    model = run_command("upload", str(model_file), "--name", "suspect").stdout.strip()
    values = ["--mean", "0.5,0.5,0.5", "--std", "1,1,1", "--input-size", "16x16"]
    answer = run_command("models", "set", model, *values, "--architecture", "wrn-16-1")
    assert (answer.exit_code, answer.stderr) == (0, "")
    document = api.model(model).document
    assert (document["mean"], document["input_size"]) == ([0.5, 0.5, 0.5], [16, 16])
    assert document["architecture"] == "wrn-16-1"
    shown = run_command("models", "show", model).stdout
    assert "mean          [0.5, 0.5, 0.5]\n" in shown
    back = json.loads(run_command("models", "set", model, "--mean", "none", "--json").stdout)
    assert (back["mean"], back["std"], back["name"]) == (None, [1, 1, 1], "suspect")
    assert run_command("models", "set", model).exit_code == Exit.USAGE


def test_the_order_of_classes_is_set_later(
    run_command: RunCommand, api: Remote, images_zip: Path
) -> None:
    data = run_command("data", "add", str(images_zip)).stdout.strip()
    assert run_command("data", "set", data, "--class-names", "1,0").exit_code == 0
    assert api.dataset(data).document["class_names"] == ["1", "0"]
    assert 'class_names  ["1", "0"]\n' in run_command("data", "show", data).stdout


def test_models_and_data_are_listed_and_deleted(
    run_command: RunCommand, model_file: Path, images_zip: Path
) -> None:
    assert "No models." in run_command("models").stderr
    model = run_command("upload", str(model_file), "--name", "suspect").stdout.strip()
    data = run_command("data", "add", str(images_zip)).stdout.strip()
    for command, row in (("models", model), ("data", data)):
        listed = run_command(command).stdout
        assert row in listed
        assert json.loads(run_command(command, "--json").stdout)["data"][0]["id"] == row
        assert run_command(command, "delete", row).exit_code == 0
        assert row not in run_command(command).stdout
        assert run_command(command, "show", row).exit_code == Exit.ERROR


# --- jobs ----------------------------------------------------------------------------------------


def test_submit_sends_what_the_options_say(
    run_command: RunCommand, api: Remote, model_file: Path, images_zip: Path, tmp_path: Path
) -> None:
    probe = tmp_path / "probe.json"
    patch = {"kind": "patch", "target_class": 0, "row": 0, "column": 0, "pixels": [[255]]}
    probe.write_text(json.dumps(patch))
    options = ["--clean-images", "20", "--clean-seed", "3", "--probe", str(probe), "--seed", "7"]
    method = ["--method", "argd", "--preset", "paper", "--set", "student.batch_size=32"]
    policy = ["--max-asr", "0.1", "--max-accuracy-drop", "0.02", "--name", "nightly"]
    asked = [*options, *method, *policy, "--durability", "--precision", "float32"]
    asked += ["--device", "cpu"]
    job_id = submitted(run_command, model_file, images_zip, *asked)
    request = api.job(job_id).document["request"]
    assert request["clean_data"]["images"] == 20
    assert request["clean_data"]["seed"] == 3
    assert request["method"]["student"]["batch_size"] == 32
    assert request["probes"][0]["kind"] == "patch"
    assert request["policy"]["max_asr"] == 0.1
    assert request["policy"]["max_accuracy_drop"] == 0.02
    assert (request["seed"], request["name"]) == (7, "nightly")
    assert (request["durability"], request["inspect"]) == (True, False)
    assert (request["precision"], request["device"]) == ("float32", "cpu")


def test_a_cancelled_job_is_tried_again_and_deleted(
    run_command: RunCommand, api: Remote, model_file: Path, images_zip: Path
) -> None:
    first = submitted(run_command, model_file, images_zip)
    assert run_command("jobs", "delete", first).exit_code == Exit.ERROR  # it waits
    run_command("cancel", first)
    again = run_command("jobs", "retry", first).stdout.strip()
    assert api.job(again).document["retry_of_id"] == first
    assert run_command("jobs", "delete", first).exit_code == 0
    assert [job["id"] for job in api.jobs().data] == [again]


def test_options_are_laid_over_the_request_of_a_file(
    run_command: RunCommand, api: Remote, model_file: Path, images_zip: Path, tmp_path: Path
) -> None:
    first = api.job(submitted(run_command, model_file, images_zip)).document["request"]
    path = tmp_path / "request.json"
    path.write_text(json.dumps(first))
    options = ["--request", str(path), "--clean-images", "5", "--seed", "9", "--method", "nad"]
    job_id = run_command("submit", *options).stdout.strip()
    second = api.job(job_id).document["request"]
    assert second["model_id"] == first["model_id"]
    assert second["clean_data"] == {**first["clean_data"], "images": 5}
    assert second["seed"] == 9
    assert second["method"]["name"] == "nad"


def test_a_request_that_is_only_checked_makes_no_job(
    run_command: RunCommand, api: Remote, model_file: Path, images_zip: Path
) -> None:
    model = api.upload_model(model_file, {})
    data = api.upload_dataset(images_zip, {})
    answer = run_command("submit", "--model", model.id, "--clean", data.id, "--validate-only")
    assert answer.exit_code == 0
    assert "request: passed" in answer.stdout
    assert "estimate: " in answer.stdout
    assert api.jobs().data == []


def test_a_request_that_does_not_validate_names_the_fields(
    run_command: RunCommand, api: Remote, model_file: Path, images_zip: Path
) -> None:
    model = api.upload_model(model_file, {})
    data = api.upload_dataset(images_zip, {})
    options = ["--model", model.id, "--clean", data.id, "--set", "student.batch_size=-1"]
    answer = run_command("submit", *options)
    assert answer.exit_code == Exit.USAGE
    assert answer.stderr.count("/method/student/batch_size") == 1
    assert "Traceback" not in answer.stderr


def test_somebody_elses_model_is_not_there(
    login: Login, run_command: RunCommand, make_key: MakeKey, model_file: Path
) -> None:
    with Remote(Login(login.url, make_key("globex", [Scope.ADMIN]))) as other:
        model = other.upload_model(model_file, {})
    answer = run_command("download", model.id)
    assert answer.exit_code == Exit.ERROR
    assert "There is no such model" in answer.stderr


def test_a_cancelled_job_is_listed_shown_and_watched_to_its_end(
    run_command: RunCommand, model_file: Path, images_zip: Path
) -> None:
    job_id = submitted(run_command, model_file, images_zip, "--name", "[red]x[/]")
    shown = run_command("jobs", "show", job_id)
    assert shown.stdout.startswith(f"{job_id}  queued  argd  [red]x[/]")
    assert "The job is queued" in shown.stderr
    assert run_command("cancel", job_id).exit_code == 0
    listed = run_command("jobs", "--status", "cancelled")
    assert job_id in listed.stdout
    assert run_command("jobs", "--status", "running").stdout == ""
    watched = run_command("watch", job_id)
    assert watched.exit_code == Exit.ERROR
    assert "The job was cancelled." in watched.stderr
    twice = run_command("cancel", job_id)
    assert twice.exit_code == Exit.ERROR
    assert "The job has ended" in twice.stderr
    missing = run_command("download", job_id)
    assert missing.exit_code == Exit.ERROR
    assert "has made no model" in missing.stderr
    document = json.loads(run_command("jobs", "--all", "--json").stdout)
    assert [item["id"] for item in document["data"]] == [job_id]


def test_a_model_is_downloaded_into_a_folder(
    run_command: RunCommand, api: Remote, model_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    model = api.upload_model(model_file, {})
    answer = run_command("download", model.id, "--output", str(folder))
    assert answer.exit_code == 0
    assert answer.stdout.strip() == str(folder / "victim.pth")
    assert (folder / "victim.pth").read_bytes() == model_file.read_bytes()
    again = run_command("download", model.id, "--output", str(folder))
    assert again.exit_code == Exit.USAGE
    assert "--force" in again.stderr


def test_a_place_that_cannot_be_written_is_named_and_is_not_taken_for_a_verdict(
    run_command: RunCommand, login: Login, api: Remote, model_file: Path, tmp_path: Path
) -> None:
    model = api.upload_model(model_file, {})
    answer = run_command("download", model.id, "--output", "/proc/nope/x")
    assert answer.exit_code == Exit.ERROR
    assert "Error: /proc/nope: No such file or directory" in answer.stderr
    (tmp_path / "config").write_text("no folder")
    answer = run_command("login", login.url, "--key", login.api_key)
    assert answer.exit_code == Exit.ERROR
    assert f"Error: {tmp_path / 'config'}" in answer.stderr


def test_of_a_job_whose_model_was_deleted_the_rest_is_downloaded(
    run_command: RunCommand,
    app: FastAPI,
    remote: httpx.Client,
    sessions: SessionFactory,
    tmp_path: Path,
) -> None:
    job_id = make_job(remote)["id"]
    claim = start_job(sessions, job_id)
    (tmp_path / "worker").mkdir()
    finish_job(sessions, app.state.services.store, claim, tmp_path / "worker")
    model_id = remote.get(f"/v1/jobs/{job_id}").json()["result_model_id"]
    assert remote.delete(f"/v1/models/{model_id}").status_code == 204

    missing = run_command("download", job_id)
    assert missing.exit_code == Exit.ERROR
    assert "was deleted" in missing.stderr
    assert "--all" in missing.stderr

    rest = run_command("download", "--all", job_id, "--output", str(tmp_path / "rest"))
    assert rest.exit_code == 0, rest.stderr
    assert "model.pt was deleted on the server" in rest.stderr
    assert sorted(path.name for path in (tmp_path / "rest").iterdir()) == [
        "report.html",
        "report.json",
    ]


# --- keys ----------------------------------------------------------------------------------------


def test_a_key_is_made_listed_and_revoked(login: Login, run_command: RunCommand) -> None:
    made = run_command("keys", "create", "--name", "nightly", "--scope", "read")
    secret = made.stdout.strip()
    with Remote(Login(login.url, secret)) as remote:
        remote.check_key()
    listed = json.loads(run_command("keys", "list", "--json").stdout)
    row = next(item for item in listed["data"] if item["name"] == "nightly")
    assert secret not in json.dumps(listed)
    assert row["prefix"] in run_command("keys", "list").stdout
    assert run_command("keys", "revoke", row["id"]).exit_code == 0
    refused = run_command("login", login.url, "--key", secret)
    assert refused.exit_code == Exit.ERROR
    assert "revoked" in refused.stderr


def test_the_first_key_of_a_database_is_made_without_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANITIZER_DATABASE_URL", f"sqlite:///{tmp_path / 'new' / 'x.db'}")
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    runner = CliRunner()
    early = runner.invoke(command_line, ["keys", "bootstrap", "--tenant", "acme"])
    assert early.exit_code == Exit.ERROR
    assert "sanitizer migrate" in early.stderr
    assert runner.invoke(command_line, ["migrate"]).exit_code == 0
    answer = runner.invoke(command_line, ["keys", "bootstrap", "--tenant", "acme"])
    assert answer.exit_code == 0
    assert answer.stdout.startswith("bds_")
