"""The JSON schemas of the config files, for editors and readers: ``python -m dpsapf.experiment.schemas`` writes them."""

import json
from pathlib import Path

from pydantic import TypeAdapter

from dpsapf.experiment.registries import DatasetEntry, ModelEntry, ProtocolEntry
from dpsapf.experiment.settings import Config

FILES = {
    "config": Config,
    "datasets": dict[str, DatasetEntry],
    "public_models": dict[str, ModelEntry],
    "protocols": dict[str, ProtocolEntry],
}


def schemas() -> dict[str, dict]:
    """Return the JSON schemas of the config files, by the stem of their file in workflow/schemas."""
    return {name: TypeAdapter(kind).json_schema() for name, kind in FILES.items()}


def write_schemas(folder: Path) -> None:
    """Write every schema of `schemas` to ``folder``."""
    for name, schema in schemas().items():
        (folder / f"{name}.schema.json").write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_schemas(Path(__file__).parents[2] / "workflow" / "schemas")
