"""fetch-dataset: get the files of a published dataset, or say which file to put where."""

import logging
import shutil
import tarfile
import zlib
from pathlib import Path

from dpsapf.experiment.registries import DatasetEntry, entry
from dpsapf.experiment.stages import FetchDataset
from dpsapf.support.download import Download, download
from dpsapf.support.errors import UserError, UserErrors
from dpsapf.support.files import write_text

LOG = logging.getLogger("dpsapf")


def fetch_dataset(options: FetchDataset) -> None:
    """Download and unpack what an entry's ``downloads`` name, unless its source is there (prepare-dataset checks it).

    Raises:
        UserErrors: a line for every file that could not be had, with where to get it and where to put it.
    """
    item, errors = entry(options.registry, options.name, DatasetEntry), []
    if not item.downloads:
        raise UserError("name", options.name, "its entry names no downloads: nothing has to be fetched")
    there = [Path(item.source)] if Path(item.source).exists() else []
    for file in () if there else item.downloads:
        try:
            there.append(fetched(file))
        except UserError as error:
            errors.append(error)
    if errors:
        raise UserErrors(errors)
    LOG.info("there: %s", ", ".join(map(str, there)))
    if options.out:
        write_text(options.out, "".join(f"{path}\n" for path in there))


def fetched(wanted: Download) -> Path:
    """Get one file, and unpack it if it is to be; return what is there then.

    Raises:
        UserError: see `dpsapf.support.download.download` and `unpack`.
    """
    if wanted.unpack is None:
        return download(wanted)
    if not wanted.target.exists():
        unpack(download(wanted), wanted.target)
    return wanted.target


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .tar.gz beside its target, which takes its name when all of it is there; nothing lands outside.

    Raises:
        UserError: the archive is damaged, or has an entry that would land outside or is no plain file or folder.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with tarfile.open(archive) as packed:
            packed.extractall(temporary, filter="data")
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError("file", str(archive), f"cannot be unpacked ({error}): delete it and get it again") from error
    temporary.replace(folder)
