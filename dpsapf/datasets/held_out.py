"""Whether a dataset will have the held-out images that a protocol needs: told by names alone, before anything is prepared."""

from dpsapf.datasets.loaders import loader
from dpsapf.experiment.registries import COUNTS, DatasetEntry, ProtocolEntry
from dpsapf.support.errors import Mistakes, UserError


def check_held_out(where: str, item: DatasetEntry, protocol_name: str, protocol: ProtocolEntry) -> None:
    """Check that each split that a protocol needs is held out, or is apart in the source.

    Files are listed, not decoded; of a source that is not there yet everything is believed.

    Args:
        where: the entry's registry and name, for errors.
        item: the dataset's entry.
        protocol_name: the protocol's name, for errors.
        protocol: says what is needed: test images always, validation images where it counts on them.

    Raises:
        UserErrors: a line for each split that is missing.
    """
    needed = ["test", *["validation"] * any(recipe.selection == COUNTS for recipe in protocol.recipes)]
    missing = [split for split in needed if not getattr(item, split)]
    own = loader(item).own_splits(item) if missing else ()
    remedy = f"protocol {protocol_name} needs images that are held out, and the source has none apart: hold some out, or stop "
    remedy += "before the evaluation, as docs/release.md says"
    Mistakes(UserError(f"{where}.{split}", 0, remedy) for split in missing if split not in own).tell()
