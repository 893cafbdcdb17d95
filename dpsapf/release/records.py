"""What a release says of itself (privacy.json), and what the register keeps of it."""

import typing

from pydantic import Field

from dpsapf.experiment.methods import Unit
from dpsapf.experiment.records import Release
from dpsapf.support.checked import Checked
from dpsapf.support.journal import Line

Declared = typing.Literal["public", "paper", "accounted"]


class AttackBounds(Checked):
    """What no attacker exceeds who guesses whether one unit was among the private ones."""

    true_positive_rate: dict[str, float]  # false-positive rate -> largest share of those that were in and are found
    advantage: float = Field(description="largest true-positive rate minus false-positive rate", ge=0, le=1)


class Guarantee(Checked):
    """What some releases promise together."""

    epsilon: dict[str, float]  # accountant -> epsilon at the record's delta
    releases: tuple[Release, ...]
    attack_bounds: AttackBounds


class Together(Guarantee):
    """What this release and all that is counted beside it promise together."""

    earlier_releases: int  # other runs that were published before, by the register
    unregistered: int  # releases of other runs that are counted, and that the register does not hold


class PrivacyRecord(Checked):
    """privacy.json: the guarantee of a published folder; nothing in it is private."""

    dataset: str
    unit: Unit  # what is protected: an image, or all images of a user
    units: int  # N, treated as public
    relation: str
    delta: float
    this_release: Guarantee
    together: Together
    noise: str
    hyperparameters: Declared
    hyperparameters_meaning: str
    treated_as_public: tuple[str, ...]
    not_covered: tuple[str, ...]
    accountants: dict[str, str]
    attack_bounds_method: str
    software: dict[str, str]


class Counted(Checked):
    """One release, and the digest by which it is known again."""

    key: str  # SHA-256 of the file that was released, or of the record where nothing was
    release: Release


class Registered(Line):
    """One line of a register: one folder that was published."""

    run: str
    dataset: str
    unit: Unit
    delta: float
    hyperparameters: Declared
    images: str  # SHA-256 of the published images
    weights: str | None  # SHA-256 of the published weights; null: not published
    own: tuple[str, ...]  # keys of the releases that the run itself made
    counted: tuple[Counted, ...]  # all that its total held, but what the register held before
