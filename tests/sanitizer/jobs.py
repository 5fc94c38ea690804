"""Jobs on a model that knows its images."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from sanitizer.spec import SanitizeSpec
from tests.sanitizer.builders import write_npz, write_spec
from tests.sanitizer.methods.networks import trained


def digits_job(folder: Path, *, clean: range, evaluation: range, **changes: Any) -> SanitizeSpec:
    """A job on a model that tells most digits, with other digits; nothing is screened.

    Args:
        clean: Which of the scans the job gets; the model has seen those before 800.
        evaluation: Likewise.
        changes: Of the specification.
    """
    model = folder / "suspect.safetensors"
    changes = {"model": {"path": str(model), "input_size": [8, 8]}, "screen": False, **changes}
    path = write_spec(folder, **changes)
    save_file(trained().state_dict(), model)
    write_npz(folder / "clean.npz", clean.start, clean.stop)
    write_npz(folder / "evaluation.npz", evaluation.start, evaluation.stop)
    return SanitizeSpec.model_validate_json(path.read_bytes())
