"""Options that several commands share."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.failures import WrongUsage
from service.lists import from_text

NOTHING = "none"
"""Takes a value back."""

Json = Annotated[
    bool,
    typer.Option("--json", help="Print the API's object and nothing else on standard output."),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="finetune, nad, argd, fine_pruning, anp, clp, ft_sam, fst, i_bau, mcr or auto, which "
        "tries several; argd if left out.",
    ),
]
Preset = Annotated[
    str | None,
    typer.Option("--preset", help="Where settings come from: paper or fast; of argd default too."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A setting of the method, such as student.batch_size=32; may be repeated.",
    ),
]
ProbeFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--probe",
        metavar="FILE.json",
        help="A trigger to measure before and after; may be repeated.",
    ),
]
MaxAsr = Annotated[
    float | None, typer.Option(help="Policy: the largest attack success rate, 0 to 1.")
]
MaxDrop = Annotated[
    float | None, typer.Option(help="Policy: the largest fall of clean accuracy, 0 to 1.")
]
Screen = Annotated[
    bool | None,
    typer.Option(
        "--screen/--no-screen",
        help="Leave out clean images that carry a trigger; done if left out.",
    ),
]
Inspect = Annotated[
    bool | None,
    typer.Option(
        "--inspect/--no-inspect",
        help="Search for triggers before and after, with the clean images alone; takes longer.",
    ),
]
Durability = Annotated[
    bool | None,
    typer.Option(
        "--durability/--no-durability",
        help="Train copies of the sanitized model further and tell whether the backdoor comes "
        "back; takes longer.",
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Exit with 1 unless the verdict is allowed: where it is undecided, too, since no "
        "trigger was given to measure or something speaks for a backdoor that is left.",
    ),
]
InputSize = Annotated[
    str | None, typer.Option("--input-size", metavar="HxW", help="Height and width, such as 32x32.")
]
Mean = Annotated[
    str | None, typer.Option("--mean", help="Per channel, for inputs in [0, 1]: 0.49,0.48,0.45")
]
Std = Annotated[str | None, typer.Option("--std", help="Per channel: 0.25,0.24,0.26")]
ClassNames = Annotated[
    str | None,
    typer.Option(
        "--class-names",
        help="Folder names in the order of the model's outputs: cat,dog,horse; as JSON where they "
        'have commas: ["cat, big", "dog"]; or @FILE with one a line.',
    ),
]
Seed = Annotated[int | None, typer.Option(help="Of every random choice of the run.")]
Devices = Annotated[
    int | None, typer.Option(help="So many devices of one machine share the run; 1 if left out.")
]
Device = Annotated[
    str | None,
    typer.Option(
        help="cpu or cuda. Left out: a GPU where there is one; with a server, what the worker that "
        "takes the job has."
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="What training computes in: float32, bfloat16, or auto, which takes bfloat16 where "
        "the processor is faster in it; auto if left out."
    ),
]
Limit = Annotated[int, typer.Option(min=1, help="How many, newest first.")]
Everything = Annotated[bool, typer.Option("--all", help="All of them.")]
MetadataPairs = Annotated[
    list[str] | None,
    typer.Option("--metadata", metavar="KEY=VALUE", help="A pair of your own; may be repeated."),
]


def read_json(path: Path) -> Any:
    """The JSON document in a file.

    Raises:
        WrongUsage: There is none, or it is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise WrongUsage(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise WrongUsage(f"{path} is no JSON document: {error}.") from error


def read_probes(paths: Sequence[Path]) -> list[Any]:
    """The probes in files; each holds one, or a list of them."""
    probes: list[Any] = []
    for path in paths:
        document = read_json(path)
        probes += document if isinstance(document, list) else [document]
    return probes


def class_names(text: str) -> list[str]:
    """Names with commas between, as a JSON list, or one a line in `@FILE`.

    Raises:
        WrongUsage: They are none of these.
    """
    if text.startswith("@"):
        path = Path(text[1:])
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise WrongUsage(f"{path} cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise WrongUsage(f"{path} is not UTF-8.") from error
        return [line.strip() for line in lines if line.strip()]
    try:
        names = from_text(text)
    except (ValueError, RecursionError) as error:
        raise WrongUsage(f"--class-names begins like JSON and is none: {error}.") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise WrongUsage(f"--class-names {text!r}: expected a list of names.")
    return names


def pairs(given: Sequence[str], option: str) -> dict[str, str]:
    """`KEY=VALUE` options as a mapping.

    Raises:
        WrongUsage: One has no `=` or no key, or a key comes twice.
    """
    found: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise WrongUsage(f"{option} {text!r}: expected KEY=VALUE.")
        if key in found:
            raise WrongUsage(f"{option}: {key} came twice.")
        found[key] = value
    return found


def method_config(
    name: str | None, preset: str | None, settings: Sequence[str]
) -> dict[str, Any] | None:
    """The `method` of a request; none where nothing was said of it.

    Raises:
        WrongUsage: Two settings contradict each other.
    """
    if name is None and preset is None and not settings:
        return None
    config: dict[str, Any] = {"name": name or "argd"}
    if preset is not None:
        config["preset"] = preset
    for path, text in pairs(settings, "--set").items():
        *parents, last = path.split(".")
        place = config
        for parent in parents:
            inner = place.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise WrongUsage(f"--set {path}: {parent} has a value of its own already.")
            place = inner
        if isinstance(place.get(last), dict):
            raise WrongUsage(f"--set {path}: settings within it were given too.")
        place[last] = _value(text)
    return config


def size(text: str) -> list[int]:
    """`32x32` as height and width.

    Raises:
        WrongUsage: It is not two numbers.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise WrongUsage(f"--input-size {text!r}: expected HEIGHTxWIDTH, such as 32x32.")
    return [int(part) for part in parts]


def numbers(text: str, option: str) -> list[float]:
    """`0.49,0.48,0.45` as numbers.

    Raises:
        WrongUsage: One is no number.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise WrongUsage(f"{option} {text!r}: expected numbers with commas between.") from error


def or_nothing(name: str, text: str | None, read: Callable[[str], Any]) -> dict[str, Any]:
    """A field with what an option says; with None where that is `none`, and none where nothing."""
    if text is None:
        return {}
    return {name: None if text == NOTHING else read(text)}


def given(**fields: Any) -> dict[str, Any]:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
