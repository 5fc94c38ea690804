from io import StringIO

from rich.console import Console

from service.cli.answers import ModelAnswer
from service.cli.tables import models_table


def test_sanitized_model_whose_job_was_deleted_is_not_called_an_upload() -> None:
    model = ModelAnswer(
        id="model_1",
        name="net (sanitized)",
        filename="net.pth",
        bytes=1,
        sha256="0" * 64,
        architecture="wrn-16-1",
        source_job_id=None,
        created_at="2026-11-29T22:59:00.000Z",
    )
    shown = StringIO()
    Console(file=shown, width=200).print(models_table([model]))
    assert "net (sanitized)" in shown.getvalue()
    assert "upload" not in shown.getvalue()
