"""What a release says of its privacy: once for machines (`PrivacyRecord`), once for people (STATEMENT.md)."""

import decimal
import math
from collections.abc import Mapping, Sequence
from importlib import metadata

from dpsapf.experiment.methods import Unit, method
from dpsapf.experiment.records import Release
from dpsapf.privacy.accounting import ACCOUNTANTS, epsilon
from dpsapf.privacy.audit import CERTIFIERS
from dpsapf.release.attacks import METHOD, attack_bounds
from dpsapf.release.found import Found
from dpsapf.release.records import Declared, Guarantee, PrivacyRecord, Together
from dpsapf.support.errors import UserError

HYPERPARAMETERS: dict[Declared, str] = {
    "public": "the owner declares that they were chosen on other, public images, never on the private ones",
    "paper": "the owner declares that they were taken as published, with the method's paper or with dpsapf, before the private "
    "images were seen",
    "accounted": "the owner declares that they were chosen by what noisy runs on the private images released, that all of these "
    "runs are counted in the total, and that no quality measured on private images chose them",
}
KINDS = {
    "pld": "upper bound; dp-accounting, privacy loss distributions",
    "prv": "upper bound; Opacus, privacy random variables",
    "rdp": "upper bound, looser; dp-accounting, Renyi divergences",
    "gdp": "approximation, no bound; Opacus, central limit theorem of Gaussian differential privacy",
}
NOISE = "drawn from the operating system's generator; no seed of it exists"
NOT_COVERED = {
    "image": (
        "several images of one person: each image is protected by itself, so a person with many images is protected less",
        "what the private images have in common: the synthetic images are meant to show that",
        "the images that the public model was trained on: its makers answer for those",
        "likeness: a synthetic image may look like somebody by chance",
        "other publications of the same private images that the register does not hold",
        "the decision to publish, and whatever quality the owner measured on private images: neither is in this folder",
        "errors of the computer's rounding: noise is drawn and added as floating-point numbers",
    ),
}
NOT_COVERED["user"] = (
    "groups: each person is protected by themselves, so a family or a ward is protected less",
    *NOT_COVERED["image"][1:],
)
UNITS: dict[Unit, tuple[str, str]] = {  # one of them; several of them
    "image": ("one private image, with its label", "private images"),
    "user": ("one person: all private images of that person", "persons"),
}
NAMES = {
    "saliency": "scores that say which matrices of the model matter",
    "dp-sgd": "fine-tuning of the model (DP-SGD), from step to step",
    "pe-histogram": "votes for synthetic images, from round to round",
}


def privacy_record(
    found: Found, counted: Mapping[tuple[str, Release], Release], earlier: int, others: int, declared: Declared
) -> PrivacyRecord:
    """Say what a run promises alone, and together with all that is counted.

    Args:
        found: the run.
        counted: every release by its name, the run's own among them.
        earlier: releases that the register holds of other runs.
        others: runs and records that were counted by ``--compose``.
        declared: where the hyperparameters come from.

    Raises:
        UserError: the total has no finite epsilon.
    """
    ledger, plan = found.ledger, found.plan
    own, everything = list(ledger.releases), sorted(counted.values(), key=repr)
    alone = _guarantee(own, ledger.delta)
    together = alone if everything == sorted(own, key=repr) else _guarantee(everything, ledger.delta)
    return PrivacyRecord(
        dataset=ledger.run.dataset,
        unit=ledger.unit,
        units=plan.population,
        relation=ledger.relation,
        delta=ledger.delta,
        this_release=alone,
        together=Together(**dict(together), earlier_releases=earlier, other_runs=others),
        noise=NOISE if own else "none was needed: no private image was used",
        hyperparameters=declared,
        hyperparameters_meaning=HYPERPARAMETERS[declared],
        treated_as_public=(
            "the name of the dataset, and the size of its images in pixels",
            *(item for item in plan.public if not item.startswith("hyperparameters")),
            f"hyperparameters: {HYPERPARAMETERS[declared]}",
        ),
        not_covered=NOT_COVERED[ledger.unit],
        accountants=KINDS,
        attack_bounds_method=METHOD,
        software=_software(ledger.provenance),
    )


def _guarantee(releases: Sequence[Release], delta: float) -> Guarantee:
    spent = {name: epsilon(name, releases, delta) for name in ACCOUNTANTS}
    for name in CERTIFIERS:
        if not math.isfinite(spent[name]):
            used = sum(release.delta or 0 for release in releases)
            remedy = f"the releases that are counted have no finite epsilon at delta {delta:.3g}; their own deltas add up to {used:.3g}"
            raise UserError(f"{name} epsilon", spent[name], f"{remedy}: publish less of these images")
    finite = {name: value for name, value in spent.items() if math.isfinite(value)}
    return Guarantee(epsilon=finite, releases=tuple(releases), attack_bounds=attack_bounds(releases))


def _software(provenance: dict) -> dict[str, str]:
    """Name the versions that made and audited the run; not the machine."""
    versions = {"python": provenance["python"], **provenance["versions"], "riskcal": metadata.version("riskcal")}
    return versions | ({"dpsapf commit": provenance["git_commit"]} if provenance.get("git_commit") else {})


def certified(guarantee: Guarantee) -> float:
    """Return the largest epsilon of the accountants that certify."""
    return max(guarantee.epsilon[name] for name in CERTIFIERS)


def up(value: float, digits: int = 3) -> str:
    """Write a number with so many significant digits, rounded up, so that what is told is never too small."""
    context = decimal.Context(prec=digits, rounding=decimal.ROUND_CEILING)
    return format(context.create_decimal(decimal.Decimal(value)).normalize(), "f")


def percent(share: float) -> str:
    """Write a share of 1 in percent, rounded up."""
    return f"{up(min(100 * share, 100))} %"


def statement(record: PrivacyRecord, trained_by: str) -> str:
    """Write STATEMENT.md, in plain language, from what privacy.json says.

    Args:
        record: what privacy.json says.
        trained_by: the run's method.
    """
    one, several = UNITS[record.unit]
    total = record.together
    sections = [
        _beginning(record, one, several, trained_by),
        _attackers(record, one),
        _numbers(record),
        _earlier(total, record.delta),
        "## What was treated as public\n\nThe promise does not hide these:\n\n" + _list(record.treated_as_public),
        "## What is not promised\n\n" + _list(record.not_covered),
        _computed(record),
    ]
    return "\n\n".join(sections) + "\n"


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _beginning(record: PrivacyRecord, one: str, several: str, trained_by: str) -> str:
    total, titled = (
        certified(record.together),
        "# Privacy statement\n\nThe images in this folder are synthetic: a computer drew them.",
    )
    if not record.together.releases:
        return f"{titled}\nA public image model drew them from class names alone. No private image was used: epsilon is 0."
    learnt = "chose among its images by noisy votes of" if method(trained_by).evolves else "was adapted to"
    return f"""{titled}
They come from a public image model that {learnt} {record.units:,} {several} ("{record.dataset}").
Noise was added, so that what is published here keeps a promise called differential privacy.

**The promise: epsilon = {up(total)}, delta = {up(record.delta)}, for {one}.**

- Take {one} out of the collection. Everything in this folder could have come out nearly the same.
- Epsilon says how nearly. Whatever one looks for in this folder, {one} makes it more or less likely by a factor of at most
  e^epsilon, here {_factor(total)}. At epsilon 0 it would make no difference at all.
- Delta is the probability that is left out of this: {up(record.delta)}.
- The promise holds against everybody, with whatever knowledge and computers, now and later."""


def _factor(total: float) -> str:
    return up(math.exp(total)) if total < 10 else f"about {up(math.exp(min(total, 700)), 2)}"


def _attackers(record: PrivacyRecord, one: str) -> str:
    bounds, alone = record.together.attack_bounds, record.this_release.attack_bounds
    rows = [
        f"| {percent(float(rate))} of those that were not used | {percent(float(rate))} | {percent(alone.true_positive_rate[rate])} "
        f"| {percent(value)} |"
        for rate, value in bounds.true_positive_rate.items()
    ]
    once = bounds.true_positive_rate["0.01"]
    right = percent((1 + bounds.advantage) / 2)
    return f"""## What an attacker can do at most

Somebody wants to know whether {one} was used. They know everything else: all other private images, the model, the method.
They look at what was published, and guess.

| may be wrong about | finds by pure guessing | at most, with this release | at most, with all that is counted |
| --- | --: | --: | --: |
{chr(10).join(rows)}

- Read the middle row so: of 100 that were used, such an attacker finds at most {up(100 * once, 2)}, and wrongly names 1 of 100
  that were not.
- The largest advantage, the share found less the share wrongly named, is {percent(bounds.advantage)} (with this release alone
  {percent(alone.advantage)}). If used and not used are equally likely, at most {right} of all guesses are right; guessing
  gives 50 %.
- These are bounds on every attack that is possible, not what a known attack does. A high bound does not say that an attack
  exists; a low one says that none does."""


def _numbers(record: PrivacyRecord) -> str:
    alone, total = record.this_release.epsilon, record.together.epsilon
    rows = [f"| {name} | {_told(alone, name)} | {_told(total, name)} | {kind} |" for name, kind in record.accountants.items()]
    releases = [f"- {NAMES[release.name]}: {_mechanism(release)}" for release in record.this_release.releases]
    made = (
        "What this run released, each with noise:\n\n" + "\n".join(releases) if releases else "This run released nothing private."
    )
    return f"""## The numbers

Epsilon was computed in several ways, called accountants, at delta = {up(record.delta)}:

| accountant | this release | all that is counted | what it is |
| --- | --: | --: | --- |
{chr(10).join(rows)}

The promise above is the larger one of {" and ".join(CERTIFIERS)}. Numbers are rounded up; `privacy.json` has all digits.

- Unit, what is protected: {UNITS[record.unit][0]}.
- Relation, what is compared: {record.relation}.
- Noise: {record.noise}.

{made}"""


def _told(spent: Mapping[str, float], name: str) -> str:
    return up(spent[name]) if name in spent else "none"


def _mechanism(release: Release) -> str:
    if release.mechanism != "gaussian":
        return f"{release.mechanism} mechanism, ({up(release.epsilon)}, {up(release.delta)})-private as a whole"
    sampled = "" if release.sampling_rate == 1 else f", each of a random sample with rate {release.sampling_rate:.3g}"
    return f"{release.steps:,} x Gaussian noise, {release.noise_multiplier:.4g} times the bound on one contribution{sampled}"


def _earlier(total: Together, delta: float) -> str:
    spent = f"epsilon {up(certified(total))} at delta {up(delta)}"
    what = "1 earlier release" if total.earlier_releases == 1 else f"{total.earlier_releases} earlier releases"
    others = {0: "", 1: " and 1 other run"}.get(total.other_runs, f" and {total.other_runs} other runs")
    return f"""## Together with earlier releases

Each release of the same private images adds to what can be learnt of them. The owner keeps a register of them.
Together with {what}{others} of this dataset: {spent}."""


def _computed(record: PrivacyRecord) -> str:
    audit = (
        "Before any image was drawn, an audit compared what was planned with what was measured while it ran: batches, bounds, and "
        "the noise itself. It was repeated for this folder."
        if record.together.releases
        else "Nothing had to be audited."
    )
    return f"""## How this was computed

{audit} The bounds on attackers: {record.attack_bounds_method}
Software: {", ".join(f"{name} {version}" for name, version in record.software.items())}."""
