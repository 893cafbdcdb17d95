"""The registries: sensitive datasets, public models, evaluation protocols, by name."""

import hashlib
import typing
from pathlib import Path

import yaml
from pydantic import Field

from dpsapf.support.checked import Checked, parse
from dpsapf.support.download import Download
from dpsapf.support.errors import UserError, UserErrors, one_of

LATER = {"later": True}
ESTIMATES = {"images", "architecture"}  # of an entry: no result depends on them


def later(default: object, description: str, **bounds: object) -> typing.Any:  # noqa: ANN401 - a field takes the type of its annotation
    """Declare a key that entries could not name at first: its default means what was done without it.

    Where it stands at its default it is left out of the entry's digest, so that older entries keep theirs.
    """
    return Field(default, description=description, json_schema_extra=LATER, **bounds)


class DatasetEntry(Checked):
    """One sensitive dataset of config/datasets.yaml."""

    loader: str = Field(description="a loader of dpsapf.datasets.loaders")
    source: str = Field(description="where the images come from; a path for every loader that reads files")
    licence: str = Field(description="licence of the images")
    classes: tuple[str, ...] = Field(description="class names, in label order")
    prompts: tuple[str, ...] = Field(description="one prompt per class, treated as public")
    resolution: int = Field(description="side of the square images [pixels]", ge=8)
    channels: typing.Literal[1, 3] = Field(description="1: grey, 3: RGB")
    validation: int = Field(description="images held out for validation, on average; 0 if the source has its own [images]", ge=0)
    test: int = Field(description="images held out for test, on average; 0 if the source has its own [images]", ge=0)
    train: int | None = Field(
        None, description="training images that are drawn as the reference code does; the others are validation [images]", ge=1
    )
    images: int | None = Field(
        None, description="training images, about: for what jobs ask for and `dpsapf estimate`, nothing else [images]", ge=1
    )
    users: str | None = Field(
        None, description="image-folder: CSV with columns file and user; camelyon17: patient or slide; null: not told"
    )
    labels: str | None = Field(
        None, description="image-folder: CSV with columns file, label and maybe split; null: the folders' names are the labels"
    )
    convert: bool = Field(False, description="True: files of other modes are converted to channels; else they are refused")
    split_seed: int = Field(0, description="seed of the split", ge=0)
    sha256: str | None = Field(None, description="digest of the source (file, or folder contents); null: not checked")
    downloads: tuple[Download, ...] = Field((), description="the files, as their owner publishes them; empty: none to fetch")
    procedural: bool = Field(False, description="True if the images are generated, not recorded")


class ModelEntry(Checked):
    """One public model of config/public_models.yaml."""

    path: str | None = Field(None, description="folder in diffusers layout; `package:NAME` for one that ships with dpsapf")
    hub_id: str | None = Field(None, description="repository on the Hugging Face hub, if there is no path")
    revision: str | None = Field(None, description="pinned commit of the hub repository")
    vae: str | None = Field(None, description="folder or hub repository of a VAE that replaces the model's own")
    vae_revision: str | None = Field(None, description="pinned commit of the VAE's hub repository")
    resolution: int = Field(description="side of the images that the model is given [pixels]", ge=8)
    architecture: str | None = Field(
        None, description="of dpsapf/experiment/work.json: for what jobs ask for and `dpsapf estimate`, nothing else"
    )
    licence: str = Field(description="licence of the weights")
    sha256: str | None = Field(None, description="digest of the folder; null: not checked")


ValueRange = typing.Literal["plus-minus-1", "tensorflow", "imagenet"]
Metric = typing.Literal["inception_score", "density", "coverage", "fld", "fid_infinity"]


class ProtocolEntry(Checked):
    """One evaluation protocol of config/protocols.yaml: records that differ in it are never mixed."""

    feature_network: str = Field(description="`package:NAME`, or a key of dpsapf.evaluation.weights.PUBLISHED")
    feature_sha256: str | None = Field(
        None, description="digest of the feature network's weights; null: not checked, for a packaged network only"
    )
    feature_resolution: int = Field(description="side of the images that the feature network is given [pixels]", ge=8)
    resize: typing.Literal["lanczos", "bicubic", "torch-bilinear"] = Field(
        description="filter for images that have another size than feature_resolution"
    )
    neighbours: int = Field(5, description="k of recall, and of precision, density and coverage", ge=1)
    kid_subsets: int = Field(50, description="subsets of the KID estimate", ge=1)
    kid_subset_size: int = Field(200, description="images per KID subset [images]", ge=2)
    classifiers: tuple[str, ...] = Field(description="utility classifiers: names of dpsapf.evaluation.classifiers, and probe")
    classifier_steps: int = Field(description="steps of each classifier, whatever the number of images [steps]", ge=1)
    classifier_batch: int = Field(64, description="batch of each classifier [images]", ge=1)
    classifier_learning_rate: float = Field(2e-3, description="peak learning rate of each classifier", gt=0)
    classifier_repeats: int = Field(1, description="trainings of each classifier, whose mean accuracy counts [trainings]", ge=1)
    synthetic_validation: float = Field(0.1, description="share of the training images that selects the best state", gt=0, le=0.5)
    probe_ridge: float = Field(0.1, description="ridge of the probe per training image; its features have variance 1", gt=0)
    quantise: bool = later(False, "True: resized images have whole numbers again, as a file of them would")
    value_range: ValueRange = later("plus-minus-1", "what the feature network is given for values 0 to 255")
    reference_split: typing.Literal["train", "test"] = later("train", "real images that synthetic ones are compared with")
    reference_images: int | None = later(None, "of these at most so many, drawn once; null: all [images]", ge=2)
    synthetic_images: int | None = later(None, "synthetic images, exactly; null: any number that is enough [images]", ge=2)
    least_images: int = later(2, "fewer real or synthetic images are refused [images]", ge=2)
    frechet_images: int | None = later(None, "synthetic images of FID, at most, drawn; null: all [images]", ge=2)
    precision_neighbours: int | None = later(None, "k of precision alone; null: neighbours", ge=1)
    counts_itself: bool = later(False, "True: in precision and recall, an image is its own first neighbour")
    metrics: tuple[Metric, ...] = later((), "metrics beside FID, KID, precision and recall")
    fld_of: typing.Literal["test", "train"] = later("test", "real images whose likelihood FLD takes")
    inception_splits: int = later(10, "splits that the Inception Score is averaged over", ge=1)
    bootstrap_draws: int = later(0, "draws of FID's bootstrap interval; 0: none", ge=0)


def load_yaml(path: str | Path) -> dict:
    """Parse a YAML mapping.

    Raises:
        UserError: the file is missing, no text, not YAML, or is not a mapping.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError("config file", str(path), "does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("config file", str(path), f"cannot be read as UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(str(path), "not YAML", str(error).replace("\n", " ")) from error
    if not isinstance(data, dict):
        raise UserError(str(path), data, "must be a mapping of keys to values")
    return data


def load_registry(path: str | Path, cls: type[Checked]) -> dict[str, typing.Any]:
    """Read a registry: a mapping of names to entries of ``cls``, each checked.

    Raises:
        UserErrors: a line for every mistake of every entry.
    """
    entries, errors = {}, []
    for name, data in load_yaml(path).items():
        try:
            entries[name] = parse(cls, data, f"{path}: {name}")
        except UserErrors as error:
            errors += error.errors
    if errors:
        raise UserErrors(errors)
    return entries


def entry(path: str | Path, name: str, cls: type[Checked]) -> typing.Any:  # noqa: ANN401
    """Return one entry of a registry file.

    Raises:
        UserError: the registry has no such name.
    """
    registry = load_registry(path, cls)
    if name not in registry:
        raise UserError(f"entry of {path}", name, one_of(name, registry))
    return registry[name]


def digest(item: Checked) -> str:
    """Digest what an entry of a registry means, not how it is written: 16 hex digits."""
    at_default = {
        name
        for name, field in type(item).model_fields.items()
        if field.json_schema_extra == LATER and getattr(item, name) == field.default
    }
    return hashlib.sha256(item.model_dump_json(exclude=ESTIMATES | at_default).encode()).hexdigest()[:16]


def entry_digest(file: str | Path, name: str, cls: type[Checked]) -> str:
    """Digest one entry of a registry, so that adding or changing another entry re-runs nothing."""
    return digest(entry(file, name, cls))
