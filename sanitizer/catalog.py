"""Names, descriptions and JSON schemas of what a job can ask for.

Torch-free, so that the API can serve it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import getdoc
from typing import Any

from pydantic import BaseModel

from sanitizer import spec


@dataclass(frozen=True)
class CatalogEntry:
    """One thing a job can name."""

    name: str
    description: str
    config: type[BaseModel]
    presets: tuple[str, ...] = ()

    def json_schema(self) -> dict[str, Any]:
        """JSON Schema (2020-12) of its settings."""
        return self.config.model_json_schema()

    def defaults(self) -> dict[str, Any]:
        """The settings with a default, at that default."""
        return {
            name: value
            for name, field in self.config.model_fields.items()
            if not field.is_required()
            for value in [_jsonable(field.get_default(call_default_factory=True))]
        }


@dataclass(frozen=True)
class ArchitectureEntry:
    """One architecture, or a family of them with numbers in the name."""

    name: str
    family: str
    description: str
    input_size: tuple[int, int]


def _jsonable(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _entry(config: type[BaseModel], key: str, presets: Sequence[str] = ()) -> CatalogEntry:
    name = config.model_fields[key].default
    return CatalogEntry(name, " ".join((getdoc(config) or "").split()), config, tuple(presets))


METHODS: tuple[CatalogEntry, ...] = tuple(
    _entry(
        config,
        "name",
        [
            preset
            for method, preset in spec.PRESETS
            if method == config.model_fields["name"].default
        ],
    )
    for config in (spec.FinetuneConfig, spec.NadConfig, spec.ArgdConfig)
)

ATTACKS: tuple[CatalogEntry, ...] = tuple(
    _entry(config, "kind")
    for config in (spec.PatchProbe, spec.BlendProbe, spec.SinusoidProbe, spec.ImageMaskProbe)
)
