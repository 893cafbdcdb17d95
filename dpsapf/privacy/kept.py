"""Releases with real noise are kept: each is made once, and what it left can be put back.

Nobody can repeat noise from the operating system. A stage that ran again would release again, and spend again. So everything
that it wrote is kept in a private folder beside its spend record, ``private.released/RELEASE-NUMBER-DIGEST``. It is no rule's
output. A second start puts the files back and computes nothing.

A release is made in five steps. After each of them the next start knows how to go on:

1. all files are written into a folder under way, and are on the disk;
2. the spend goes on record (`dpsapf.privacy.spends`): from here on it is released;
3. the checkpoint goes: whatever the owner says now, nothing goes on from what is released;
4. the folder gets its name;
5. its files are copied to where the stage's outputs belong.

A stage whose noise comes from a seed, or that adds none, writes its outputs itself, each time that it is started.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dpsapf.experiment.fields import READS, WRITES, asked, paths
from dpsapf.experiment.methods import NoiseMode
from dpsapf.experiment.records import Spend
from dpsapf.privacy import spends
from dpsapf.privacy.spend_record import Spent, opened
from dpsapf.support.checked import Checked, replace
from dpsapf.support.errors import Mistakes, UserError
from dpsapf.support.files import copied, sha256, synced
from dpsapf.support.leading import leads
from dpsapf.support.records import read_record, write_record

LOG = logging.getLogger(__name__)
FOLDER = "private.released"
SOURCES = ("plan", "selection")  # of what a stage reads, what is kept, too: later stages compare them with the release
BESIDE = {"refused": "spend", "private.refused": "private"}  # what a refusal leaves, and the option whose file it stands beside
AGAIN = "or say dpsapf spend-again, and it is released once more, which spends once more"


class Kept(Checked):
    """kept.json: what was asked for when a release was made, and what it left."""

    settings: dict
    files: dict[str, str]  # name -> SHA-256


@dataclass(frozen=True)
class Once:
    """A release that is made once.

    Attributes:
        options: of the stage that makes it; they have a field ``spend``.
        name: of the release, such as dp-sgd.
        noise: where its noise is drawn from; None: it has none.
        subject: id of the run, or of the scores that runs share.
        dataset_id: of the images that it is made of.
    """

    options: Checked
    name: str
    noise: NoiseMode | None
    subject: str
    dataset_id: str

    def put_back(self) -> bool:
        """Put the files of this release back, if it was made before; finish it, if it was interrupted after its spend.

        Returns:
            Whether it was made: then the stage has nothing to compute. Of several processes one writes.

        Raises:
            UserError: it was made, and what is asked for now is something else, or another dataset; or what was kept of it is
                missing or changed.
        """
        if self.noise != "system":
            return False
        if not leads():
            return _is_released(self._under_way) or self._live is not None
        if _is_released(self._under_way):
            self._take_name()
        if (kept := self._live) is None:
            self._check_unreleased()
            return False
        self._check_asked(kept)
        self._copy(kept)
        LOG.info("%s was released before: its files are put back from %s, nothing is computed", self.subject, kept)
        return True

    @property
    def refused(self) -> bool:
        """Whether nothing came out when it was made, though epsilon was spent."""
        return self._live is not None and (self._live / "refused.json").exists()

    @contextmanager
    def making(self) -> Iterator[Checked]:
        """Give the stage's options, with other places to write to: those files are the release once the block ends.

        Raises:
            UserError: the spend cannot go on record; nothing is released then.
        """
        if self.noise != "system":
            yield self.options
            return
        folder = self._under_way
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        places = {name: folder / f"{name}{path.suffix}" for name, path in self._targets.items()}
        yield replace(self.options, **places)
        self._describe(folder)
        synced(folder)
        spends.record(_spend(folder))
        self._copy(self._take_name())

    @property
    def _targets(self) -> dict[str, Path]:
        return {name: path for name, (path,) in paths(self.options, WRITES).items()}

    @property
    def _folder(self) -> Path:
        return self._targets["spend"].parent

    @property
    def _under_way(self) -> Path:
        """The folder of a release that has no name yet; of another subject beside it, another one."""
        return self._folder / FOLDER / f"{self.name}-under-way-{hashlib.sha256(self.subject.encode()).hexdigest()[:12]}"

    @property
    def _live(self) -> Path | None:
        return live(self._folder, self.subject, self.name)

    def _describe(self, folder: Path) -> None:
        """Add what was read and must stay as it was, and kept.json."""
        for name, found in paths(self.options, READS).items():
            if name in SOURCES:
                shutil.copyfile(found[0], folder / f"{name}{found[0].suffix}")
        files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        write_record(folder / "kept.json", Kept(settings=asked(self.options), files=files))
        for path in folder.iterdir():
            path.chmod(path.stat().st_mode & 0o444)  # nobody changes it by mistake

    def _take_name(self) -> Path:
        """Remove the checkpoint, and give the folder under way its name, with the next number."""
        from dpsapf.support.checkpoint import Checkpoint  # torch waits for the stages that need it

        for path in self._targets.values():
            Checkpoint.beside(path, {}).remove()
        places = self._under_way.parent
        number = 1 + max((_number(path, self.name) for path in _named(places, self.name)), default=0)
        kept = places / f"{self.name}-{number}-{_key(_spend(self._under_way))[:12]}"
        self._under_way.rename(kept)
        synced(places)
        return kept

    def _check_unreleased(self) -> None:
        for spent in spends.released(self.subject, self.dataset_id):
            if spent.release.name == self.name:
                there = self._folder / FOLDER
                remedy = f"was released before, and is not in {there}: put that folder back from a copy, {AGAIN}"
                raise UserError(self.subject, spent.key[:12], remedy)

    def _check_asked(self, kept: Path) -> None:
        """Check that what is asked for now is what was released."""
        mistakes, spend = Mistakes(), _spend(kept)
        if spend.dataset_id != self.dataset_id:
            remedy = f"{self.subject} was released of {spend.dataset_id[:12]}: put that dataset back from a copy, {AGAIN}"
            mistakes.append(UserError("dataset id", self.dataset_id[:12], remedy))
        before, defaults = read_record(kept / "kept.json", Kept).settings, type(self.options).model_construct()
        defaults = json.loads(defaults.model_dump_json())
        for name, value in json.loads(json.dumps(asked(self.options))).items():
            released_with = before.get(name, defaults.get(name, value))
            if value != released_with:
                remedy = f"{self.subject} was released with {released_with!r}: give that again, {AGAIN}"
                mistakes.append(UserError(_option(name), value, remedy))
        mistakes.tell()

    def _copy(self, kept: Path) -> None:
        """Copy what was kept to where it belongs. A link would let what changes an output change what is kept."""
        files, targets = _checked(kept), self._targets
        if "spend.json" in files and (
            missing := [name for name in targets if not any(Path(file).stem == name for file in files)]
        ):
            remedy = f"was not written when {self.subject} was released, and cannot be made later: leave it out"
            raise UserError(_option(missing[0]), str(targets[missing[0]]), remedy)
        for file in files:
            name = Path(file).stem
            if name in targets:
                copied(kept / file, targets[name])
            elif name in BESIDE:
                copied(kept / file, targets[BESIDE[name]].with_name(file))


def live(folder: Path, subject: str, *names: str) -> Path | None:
    """Find the newest of a subject's kept releases that the owner has not set free; it goes on record, if it is not there.

    Args:
        folder: where the spend record of the stage belongs.
        subject: id of the run, or of the scores.
        names: of the release: any of them.
    """
    kept = {place: _spend(place) for name in names for place in _named(folder / FOLDER, name)}
    kept = {place: spend for place, spend in kept.items() if spend.subject == subject}
    if not kept:
        return None
    with opened() as book:
        for spend in kept.values():
            spends.know_by_name(book, spend.dataset_id, subject.split("--")[0])
            spends.put(book, spends.spent_of(spend))
        keys = {spent.key for name in {spend.dataset_id for spend in kept.values()} for spent in book.live(subject, name)}
    return next((place for place, spend in reversed(kept.items()) if _key(spend) in keys), None)


def source(file: str, folder: Path, subject: str) -> Path | None:
    """Find what a run's training, or its votes, was made from, if that release is kept in a folder; see `live`.

    Raises:
        UserError: something that was kept is missing or changed.
    """
    kept = live(folder, subject, "dp-sgd", "pe-histogram")
    return kept / file if kept and file in _checked(kept) else None


def on_record(spend: Spend) -> bool:
    """Tell whether a release is on record, set free or not."""
    with opened() as book:
        return any(spent.key == _key(spend) for spent in book.of(Spent))


def _is_released(folder: Path) -> bool:
    """Tell whether a folder holds a release that is on record."""
    try:
        return on_record(_spend(folder))
    except FileNotFoundError:  # nothing is under way, or its spend is not written yet
        return False


def _checked(kept: Path) -> list[str]:
    """Return the names of a release's files.

    Raises:
        UserError: one of them is missing, or is not what was kept; names the first.
    """
    files = read_record(kept / "kept.json", Kept).files
    for name, digest in files.items():
        path = kept / name
        found = sha256(path) if path.exists() else None
        if found != digest:
            remedy = (
                f"is not the file that was kept, {digest[:12]}, of a release that cannot be made again: put it back from a copy,"
            )
            raise UserError(str(path), found and found[:12], f"{remedy} {AGAIN}")
    return list(files)


def _named(places: Path, name: str) -> list[Path]:
    """List the kept releases of a name, oldest first."""
    return sorted(places.glob(f"{name}-[0-9]*-*"), key=lambda path: _number(path, name))


def _number(path: Path, name: str) -> int:
    return int(path.name.removeprefix(f"{name}-").split("-")[0])


def _spend(folder: Path) -> Spend:
    refused = folder / "refused.json"
    return read_record(refused if refused.exists() else folder / "spend.json", Spend)


def _key(spend: Spend) -> str:
    return spend.digest or spend.private


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
