"""The sample of a proxy, by its text: Caddy itself is not here."""

import json
import re
from pathlib import Path

from service.settings import GIB, Settings

ROOT = Path(__file__).parents[2]
CADDYFILE = (ROOT / "deploy" / "Caddyfile").read_text()


def test_the_largest_upload_passes() -> None:
    (size,) = re.findall(r"max_size (\d+)GiB", CADDYFILE)
    settings = Settings(_env_file=None)
    assert int(size) * GIB > max(settings.max_dataset_bytes, settings.max_model_bytes)


def test_paths_that_it_names_are_those_of_the_api() -> None:
    paths = json.loads((ROOT / "docs" / "openapi.json").read_text())["paths"]
    assert {"/metrics", "/v1/jobs/{job_id}/events"} <= paths.keys()
    assert "respond /metrics 404\n" in CADDYFILE
    assert "path /v1/jobs/*/events\n" in CADDYFILE
