"""The registries: sensitive datasets, public models, evaluation protocols, by name."""

import hashlib
import typing
from pathlib import Path

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from dpsapf.support.checked import Checked, parse
from dpsapf.support.download import Download
from dpsapf.support.errors import UserError, UserErrors, one_of
from dpsapf.support.names import Composed
from dpsapf.support.yaml_files import load_yaml

ESTIMATES = {"images", "architecture"}  # of an entry: no result depends on them


def later(default: object, description: str, **bounds: object) -> typing.Any:  # noqa: ANN401 - a field takes the type of its annotation
    """Declare a key that entries could not name at first: its default means what was done without it.

    Where it stands at its default it is left out of the entry's JSON and digest, so that older entries keep theirs.
    """
    return Field(default, description=description, exclude_if=lambda value: value == default, **bounds)


PACKAGED = "package:"  # before the name of a public model, or a feature network, that ships with dpsapf
ClassifierName = typing.Literal[
    "resnet",
    "wideresnet",
    "resnext",
    "resnet-164",
    "resnet-164-basic",
    "wrn-28-10",
    "wrn-28-10-dropout",
    "wrn-40-4-dropout",
    "resnext-29-8x64d",
    "resnext-28-8x",
    "probe",
]
PROBE = "probe"  # its name among a protocol's classifiers
ModelSelection = typing.Literal["synthetic", "last"]


class DatasetEntry(Checked):
    """One sensitive dataset of config/datasets.yaml."""

    loader: str = Field(description="a loader of dpsapf.datasets.loaders")
    source: str = Field(description="where the images come from; a path for every loader that reads files")
    licence: str = Field(description="licence of the images")
    classes: tuple[Composed, ...] = Field(description="class names, in label order")
    prompts: tuple[str, ...] = Field(description="one prompt per class, treated as public")
    resolution: int = Field(description="side of the square images [pixels]", ge=8)
    channels: typing.Literal[1, 3] = Field(description="1: grey, 3: RGB")
    validation: int = Field(description="images held out for validation, on average; 0: none, or the source's own [images]", ge=0)
    test: int = Field(description="images held out for test, on average; 0: none, or the source's own [images]", ge=0)
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


FEWEST_TO_EXTRAPOLATE = 20  # synthetic images of FID infinity
ValueRange = typing.Literal["plus-minus-1", "tensorflow", "imagenet"]
Metric = typing.Literal["inception_score", "density", "coverage", "fld", "fid_infinity"]


class Recipe(Checked):
    """How a protocol's classifiers are trained on images up to some size."""

    largest_side: int | None = Field(None, description="of images that this recipe is for; null: any [pixels]", ge=8)
    classifiers: tuple[ClassifierName, ...] = Field(description="names of dpsapf.evaluation.classifiers, and probe", min_length=1)
    epochs: int | None = Field(None, description="passes over the training images, each in a new order; or steps", ge=1)
    steps: int | None = Field(None, description="batches drawn with replacement, whatever the number of images; or epochs", ge=1)
    batch: int = Field(description="batch [images]", ge=1)
    optimizer: typing.Literal["sgd", "adam", "adamw"] = Field(description="torch.optim's, with its defaults but for what is told")
    learning_rate: float = Field(description="learning rate at the start; one-cycle: at its peak", gt=0)
    momentum: float = Field(0.9, description="of optimizer sgd", ge=0, lt=1)
    weight_decay: float = Field(0.0, description="weight decay", ge=0)
    schedule: typing.Literal["constant", "step", "one-cycle"] = Field(
        "constant", description="of the learning rate; step: times decay_factor every decay_every epochs"
    )
    decay_every: int = Field(60, description="schedule step [epochs]", ge=1)
    decay_factor: float = Field(0.2, description="schedule step", gt=0, le=1)
    ema_decay: float = Field(
        0.0,
        description="decay of the weight average that is tested, at most (1 + t)/(10 + t) after step t; 0: none",
        ge=0,
        lt=1,
    )
    augmentation: typing.Literal["none", "shift", "crop-flip"] = Field(
        "none",
        description="shift: batches by up to 2 pixels; crop-flip: each image by up to 4, zeros around it, half are mirrored",
    )
    label_smoothing: float = Field(0.0, description="label smoothing", ge=0, lt=1)
    precision: typing.Literal["fp32", "bf16"] = Field("fp32", description="bf16: torch's autocast; weights stay fp32")
    selection: ModelSelection = Field(
        "synthetic",
        description="which state of a classifier is tested. synthetic: the best on a share of the training images; or last",
    )
    validation_share: float = Field(0.1, description="selection synthetic: share of the training images", gt=0, le=0.5)
    checkpoints: int = Field(8, description="states that the selection chooses from, at equal distances [states]", ge=1)
    repeats: int = Field(1, description="trainings of each classifier, whose mean counts [trainings]", ge=1)

    @model_validator(mode="after")
    def _has_a_length(self) -> "Recipe":
        if (self.epochs is None) == (self.steps is None):
            raise PydanticCustomError("length", "must have either epochs or steps")
        if self.schedule == "step" and self.epochs is None:
            raise PydanticCustomError("length", "schedule step counts epochs: give epochs instead of steps")
        return self

    def length(self, images: int) -> int:
        """Return the steps of a training on so many images."""
        return self.steps or self.epochs * -(-images // self.batch)

    @property
    def trained(self) -> tuple[str, ...]:
        """Classifiers that are trained step by step: all but the probe."""
        return tuple(name for name in self.classifiers if name != PROBE)


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
    classifiers: tuple[ClassifierName, ...] = Field(
        (), description="utility classifiers: names of dpsapf.evaluation.classifiers, and probe; empty: those of recipes"
    )
    classifier_steps: int = Field(
        1, description="steps of each classifier, whatever the number of images; probe, recipes: not used [steps]", ge=1
    )
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
    recipes: tuple[Recipe, ...] = later(
        (), "in the place of classifiers and classifier_*: the first whose largest_side the images do not exceed"
    )

    @model_validator(mode="after")
    def _has_one_kind_of_classifiers(self) -> "ProtocolEntry":
        if self.recipes and self.classifiers:
            raise PydanticCustomError("classifiers", "must have either classifiers or recipes")
        return self

    @property
    def fewest(self) -> int:
        """Real images that its metrics need, and synthetic ones [images]."""
        return max(2, self.least_images, 1 + self.neighbours, 1 + (self.precision_neighbours or 0))

    @property
    def fewest_synthetic(self) -> int:
        """Synthetic images that its metrics need [images]."""
        extrapolated = FEWEST_TO_EXTRAPOLATE if "fid_infinity" in self.metrics else 0
        split = self.inception_splits if "inception_score" in self.metrics else 0
        return max(self.fewest, extrapolated, split)

    def recipe(self, side: int) -> Recipe:
        """Return how classifiers are trained on square images of a side [pixels].

        Raises:
            UserError: no recipe is for images of that size, or the protocol has no classifiers.
        """
        if not self.recipes:
            if not self.classifiers:
                raise UserError("classifiers", [], "the protocol names none: choose another one")
            return self._small_recipe()
        for recipe in self.recipes:
            if recipe.largest_side is None or side <= recipe.largest_side:
                return recipe
        raise UserError("recipes", side, f"none is for images of that side: largest_side is {self.recipes[-1].largest_side}")

    def _small_recipe(self) -> Recipe:
        return Recipe(
            classifiers=self.classifiers,
            steps=self.classifier_steps,
            batch=self.classifier_batch,
            optimizer="adamw",
            learning_rate=self.classifier_learning_rate,
            weight_decay=0.05,
            schedule="one-cycle",
            augmentation="shift",
            label_smoothing=0.1,
            validation_share=self.synthetic_validation,
            repeats=self.classifier_repeats,
        )


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
    return hashlib.sha256(item.model_dump_json(exclude=ESTIMATES).encode()).hexdigest()[:16]


def entry_digest(file: str | Path, name: str, cls: type[Checked]) -> str:
    """Digest one entry of a registry, so that adding or changing another entry re-runs nothing."""
    return digest(entry(file, name, cls))
