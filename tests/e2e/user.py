"""What a user does, over plain HTTP."""

import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

TERMINAL = ("succeeded", "failed", "cancelled")


class User:
    """Uploads, submits, waits."""

    def __init__(self, url: str, api_key: str) -> None:
        self.http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {api_key}"}, timeout=30
        )

    def upload_model(self, path: Path, **fields: str) -> str:
        """The id of the uploaded model."""
        with path.open("rb") as file:
            answer = self.http.post("/v1/models", files={"file": (path.name, file)}, data=fields)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def upload_data(self, path: Path, **fields: str) -> str:
        """The id of the uploaded data set."""
        with path.open("rb") as file:
            answer = self.http.post("/v1/datasets", files={"file": (path.name, file)}, data=fields)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def submit(self, **request: Any) -> str:
        """The id of the job."""
        answer = self.http.post("/v1/jobs", json=request)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """The job as it is now."""
        answer = self.http.get(f"/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        job: dict[str, Any] = answer.json()
        return job

    def wait(self, job_id: str, *statuses: str, seconds: float = 180) -> dict[str, Any]:
        """The job once it has one of the statuses; any final one without."""
        deadline = time.monotonic() + seconds
        while (job := self.job(job_id))["status"] not in (statuses or TERMINAL):
            assert time.monotonic() < deadline, job
            assert job["status"] not in TERMINAL, job
            time.sleep(0.1)
        return job

    def close(self) -> None:
        """Ends the connections."""
        self.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
