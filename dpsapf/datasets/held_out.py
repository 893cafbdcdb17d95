"""Whether a dataset will have the test images that a protocol needs: told by names alone, before anything is prepared."""

from dpsapf.datasets.loaders import loader
from dpsapf.experiment.registries import DatasetEntry
from dpsapf.support.errors import UserError


def check_held_out(where: str, item: DatasetEntry, protocol: str) -> None:
    """Check that test images are held out, or are apart in the source.

    Files are listed, not decoded; of a source that is not there yet everything is believed.

    Args:
        where: the entry's registry and name, for errors.
        item: the dataset's entry.
        protocol: the protocol's name, for errors.

    Raises:
        UserError: there are none.
    """
    if item.test or "test" in loader(item).own_splits(item):
        return
    remedy = f"protocol {protocol} needs images that are held out, and the source has none apart: hold some out, or stop "
    raise UserError(f"{where}.test", 0, remedy + "before the evaluation, as docs/release.md says")
