"""Noisy counts on private validation images, by which a classifier's state is chosen: the one release that evaluation makes."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
import torch

from dpsapf.datasets.prepared import read_held_out
from dpsapf.evaluation.training import Images, right
from dpsapf.experiment.methods import NoiseMode
from dpsapf.experiment.records import Ledger, Release, Spend
from dpsapf.experiment.registries import COUNTS, Recipe
from dpsapf.experiment.stages import Evaluate
from dpsapf.privacy.kept import Once
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import Draws
from dpsapf.privacy.values import Private
from dpsapf.support.checkpoint import State
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.provenance import provenance
from dpsapf.support.records import read_record, write_record
from dpsapf.support.tables import write_table

COLUMNS = ("classifier", "repeat", "noisy_count")  # of what is released


@dataclass
class PrivateCounts:
    """Counts of right predictions, one for each checkpoint of each training, with Gaussian noise on each.

    An image adds 1 to a count if its class is predicted and else nothing: the sensitivity is 1. Classifiers in evaluation mode
    judge each image alone, so that zeroing one out changes no other's prediction. Nobody is trained on these images.

    Attributes:
        images: the private validation images.
        release: the planned counts.
        noise: where privacy noise is drawn from.
        seed: of the evaluation; in mode ``seed`` also of the noise.
        meter: of the release.
        rows: what was released: classifier, repeat, noisy count.
    """

    images: Images
    release: Release
    noise: NoiseMode
    seed: int
    meter: Meter
    rows: list[dict] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def judged(self, classifier: str, repeat: int) -> Callable[[torch.nn.Module], float]:
        """Return what gives a state of a classifier its noisy count."""

        def count(model: torch.nn.Module) -> float:
            step = len(self.rows)
            draws = Draws(self.noise, self.seed, "validation")
            who = self.meter.batch(self.release.sampling_rate, draws.secret("batch", step))
            added = torch.from_numpy(right(model, self.images)).double()[who]
            counts = Private([self.meter.rows(added[:, None], self.release.sensitivity)])
            source = draws.noise("privacy noise", step)
            (noisy,) = self.meter.gaussian(counts, self.release.noise_multiplier, self.release.sensitivity, source).values
            self.rows.append(dict(zip(COLUMNS, (classifier, repeat, float(noisy)), strict=True)))
            return float(noisy)

        return count

    def state(self) -> State:
        """Return what a checkpoint keeps."""
        facts, tensors = self.meter.state()
        return {"rows": self.rows, "meter": facts}, tensors

    def restore(self, facts: dict, tensors: dict[str, torch.Tensor]) -> None:
        """Go on from a checkpoint's state."""
        self.rows = facts["rows"]
        self.meter.restore(facts["meter"], tensors)


def planned_counts(recipe: Recipe, images: int, options: Evaluate) -> PrivateCounts | None:
    """Prepare the counts that a recipe selects by; None if it selects by something else.

    Args:
        recipe: of the images' size.
        images: number of training images.
        options: of the stage.

    Raises:
        UserError: a file for the counts or their records is not named, the ledger reserved no such counts or another number,
            or it is of another dataset; or a training has fewer steps than counts.
    """
    if recipe.selection != COUNTS:
        return None
    for name in ("ledger", "counts", "spend", "private"):
        if getattr(options, name) is None:
            remedy = f"{options.protocol} releases counts of private validation images: give the run's ledger and three files"
            raise UserError(f"--{name}", None, remedy)
    recipe.check_counts(images)
    ledger = read_record(options.ledger, Ledger)
    counts = len(recipe.trained) * recipe.repeats * recipe.checkpoints
    found = sum(release.steps for release in ledger.reserved)
    if found != counts:
        raise UserError("--ledger", ledger.run.id, f"reserved {found} counts, {options.protocol} makes {counts}: plan with it")
    if ledger.dataset_id != sha256(options.archive):
        raise UserError("--archive", str(options.archive), f"is another dataset than that of {ledger.run.id}")
    part = read_held_out(options.archive, "validation", f"protocol {options.protocol}")
    images = Images.all(part, part.labels, options.device)
    return PrivateCounts(images, ledger.reserved[0], ledger.noise, options.seed, Meter(len(part)))


def released_once(options: Evaluate, protocol: str) -> Once:
    """Describe the counts as a release that is made once, with all that is written beside them.

    Args:
        options: of the stage.
        protocol: digest of the protocol's entry.
    """
    ledger = read_record(options.ledger, Ledger)
    return Once(options, "validation", ledger.noise, ledger.run.id, ledger.dataset_id, {"protocol_digest": protocol})


def write_counts(counts: PrivateCounts, options: Evaluate) -> None:
    """Write the noisy counts, the spend record and, private, what was measured."""
    ledger = read_record(options.ledger, Ledger)
    write_table(options.counts, pd.DataFrame(counts.rows), COLUMNS)
    write_record(options.private, counts.meter.measured(time.monotonic() - counts.began, options.device))
    spend = Spend(
        subject=ledger.run.id,
        release=counts.meter.release(counts.release),
        unit="image",
        population=len(counts.images),
        dataset_id=sha256(options.archive),
        made_from={"ledger": sha256(options.ledger), "synthetic": sha256(options.synthetic)},
        digest=sha256(options.counts),
        numbers=1,
        trainable_parameters=0,
        private=sha256(options.private),
        provenance=provenance(),
    )
    write_record(options.spend, spend)
