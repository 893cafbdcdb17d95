"""Families of public models: one class each, which says what it knows of a model, and refuses every other by name.

In: a model's folder in diffusers layout; its record. Out: denoiser, objective, pipelines, embeddings. Open `family` first.
"""

from pathlib import Path

from dpsapf.experiment.records import ModelRecord
from dpsapf.public_models.check import read_config
from dpsapf.public_models.families.family import Family
from dpsapf.public_models.families.stable_diffusion import StableDiffusion
from dpsapf.public_models.families.z_image import ZImage
from dpsapf.support.errors import UserError, one_of

FAMILIES: dict[str, type[Family]] = {family.name: family for family in (StableDiffusion, ZImage)}


def load_model(record: ModelRecord) -> Family:
    """Return a prepared model as one of its family; its parts are loaded when they are asked for.

    Raises:
        UserError: the record is of a family that is not registered.
    """
    if record.family not in FAMILIES:
        raise UserError(f"{record.name}: family", record.family, one_of(record.family, FAMILIES))
    return FAMILIES[record.family](record)


def find_family(name: str, path: Path) -> type[Family]:
    """Find the family of a model by the pipeline that its folder was published for.

    Raises:
        UserError: no family knows it; names the pipeline and the known ones.
    """
    pipeline = read_config(name, path / "model_index.json").get("_class_name")
    for family in FAMILIES.values():
        if pipeline == family.pipeline:
            return family
    known = ", ".join(family.pipeline for family in FAMILIES.values())
    remedy = f"{path} is of no family that the suite knows ({known}): choose another model, or add its family (CONTRIBUTING.md)"
    raise UserError(f"{name}: pipeline", pipeline, remedy)
