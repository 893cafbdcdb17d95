"""What a release says of its privacy: once for machines (`PrivacyRecord`), once for people (STATEMENT.md)."""

import decimal
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata

from dpsapf.experiment.columns import CERTIFIERS
from dpsapf.experiment.methods import Unit, method
from dpsapf.experiment.records import Release
from dpsapf.privacy.accounting import finite, spent_epsilon
from dpsapf.privacy.plan import LARGE_DELTA
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
        "other releases of the same private images that neither the owner's register nor the record of what was spent holds",
        "the decision to publish, and whatever quality the owner measured on private images: neither is in this folder",
        "errors of the computer's rounding; and a broken AES-256, the cipher that the noise is drawn from",
    ),
}
NOT_COVERED["user"] = (
    "groups: each person is protected by themselves, so a family or a ward is protected less",
    *NOT_COVERED["image"][1:],
)
ONE: dict[Unit, str] = {"image": "one private image", "user": "one person"}
SEVERAL: dict[Unit, str] = {"image": "private images", "user": "persons' private images"}
WHOLE: dict[Unit, str] = {"image": "the image with its label", "user": "all private images of the person, with their labels"}
NAMES = {
    "saliency": "scores that say which matrices of the model matter",
    "dp-sgd": "fine-tuning of the model (DP-SGD), from step to step",
    "pe-histogram": "votes for synthetic images, from round to round",
}


def privacy_record(
    found: Found, counted: Iterable[tuple[str, Release]], earlier: int, unregistered: int, declared: Declared
) -> PrivacyRecord:
    """Say what a run promises alone, and together with all that is counted.

    Args:
        found: the run.
        counted: every release with its digest, the run's own among them.
        earlier: other runs that were published before, by the register.
        unregistered: releases that are counted and are neither the run's nor of such an other run.
        declared: where the hyperparameters come from.

    Raises:
        UserError: the total has no finite epsilon.
    """
    ledger, plan = found.ledger, found.plan
    own, everything = list(ledger.releases), sorted((release for _, release in counted), key=repr)
    alone = _guarantee(own, ledger.delta)
    together = alone if everything == sorted(own, key=repr) else _guarantee(everything, ledger.delta)
    return PrivacyRecord(
        dataset=ledger.run.dataset,
        unit=ledger.unit,
        units=plan.population,
        relation=ledger.relation,
        delta=ledger.delta,
        this_release=alone,
        together=Together(**dict(together), earlier_releases=earlier, unregistered=unregistered),
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
    spent = spent_epsilon(releases, delta)
    for name in CERTIFIERS:
        if not math.isfinite(spent[name]):
            used = sum(release.delta or 0 for release in releases)
            remedy = f"is not finite at delta {delta:.3g}: what is counted uses {used:.3g} by itself; publish fewer runs"
            raise UserError(f"{name} epsilon", spent[name], remedy)
    return Guarantee(epsilon=finite(spent), releases=tuple(releases), attack_bounds=attack_bounds(releases))


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


def promise(record: PrivacyRecord) -> str:
    """Write the promise in a line: of everything that is counted."""
    large = f" (large: 1 in {1 / record.delta:,.0f})" if record.delta >= LARGE_DELTA else ""
    return f"epsilon = {up(certified(record.together))}, delta = {up(record.delta)}{large}, for {ONE[record.unit]}"


def statement(record: PrivacyRecord, made_by: str) -> str:
    """Write STATEMENT.md, in plain language, from what privacy.json says.

    Args:
        record: what privacy.json says.
        made_by: the run's method.
    """
    sections = [
        _beginning(record, made_by),
        _attackers(record),
        _numbers(record),
        _earlier(record),
        "## What was treated as public\n\nThe promise does not hide these:\n\n" + _list(record.treated_as_public),
        "## What is not promised\n\n" + _list(record.not_covered),
        _computed(record),
    ]
    return "\n\n".join(sections) + "\n"


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def _beginning(record: PrivacyRecord, made_by: str) -> str:
    title, one = "# Privacy statement\n\nThe images in this folder are synthetic: a computer drew them.", ONE[record.unit]
    if not record.together.releases:
        return f"{title}\nA public image model drew them from prompts alone. No private image was used: epsilon is 0."
    private = f'{record.units:,} {SEVERAL[record.unit]} ("{record.dataset}")'
    learnt = "chose among its images by noisy votes of" if method(made_by).evolves else "was adapted to"
    made = f"""They come from a public image model that {learnt} {private}.
Noise was added on the way, so that this folder keeps"""
    if not record.this_release.releases:
        made = f"""A public image model drew them from prompts alone. No private image was used: this folder alone has epsilon 0.
What other releases tell of {private} is counted with it. Together they keep"""
    return f"""{title}
{made} a promise called differential privacy.

**The promise: {promise(record)}.**

- Leave {one} out, that is {WHOLE[record.unit]}. Everything in this folder could have come out nearly the same.
- Epsilon says how nearly. Whatever you look for in this folder, {one} makes it at most e^epsilon times as likely, or as
  unlikely: here {_factor(certified(record.together))} times. At epsilon 0, {one} would make no difference at all.
{_delta(record)}
- The promise holds whatever an attacker knows or does, now and later."""


def _delta(record: PrivacyRecord) -> str:
    if record.delta < LARGE_DELTA:
        return f"- Delta is a small probability on top of that: at most {up(record.delta)}."
    return f"""- Delta is a probability on top of that: at most {up(record.delta)}. That is large: there are few to hide among.
  Once in {1 / record.delta:,.0f} times the promise may fail, and {ONE[record.unit]} be seen in full."""


def _factor(exponent: float) -> str:
    return f"{decimal.Decimal(up(math.exp(exponent))):,}" if exponent < 20 else "more than 100 million"


def _attackers(record: PrivacyRecord) -> str:
    alone, total = record.this_release.attack_bounds, record.together.attack_bounds
    columns = {"at most, seeing this release": alone} | ({} if total == alone else {"at most, seeing all that is counted": total})
    rows = []
    for rate in total.true_positive_rate:
        guessed = f"{100 * float(rate):g} % of those that were"
        found = [percent(bounds.true_positive_rate[rate]) for bounds in columns.values()]
        rows.append([f"{guessed} not used", f"{guessed} used", *found])
    found = up(100 * total.true_positive_rate["0.01"])
    return f"""## What an attacker can do at most

Somebody wants to know whether {ONE[record.unit]} was used. They know everything else: all other private images, the model, the
method. They look at what was published, and name those that they think were used.

{table(["wrongly names", "finds by guessing", *columns], rows)}

- The middle row says: if such an attacker may wrongly name 1 of 100 that were not used, they find at most {found} of 100 that
  were. By guessing they would find 1.
- Their largest advantage, the share found less the share wrongly named, is {percent(total.advantage)}. By guessing it is 0.
- Ask them about one after the other, each used or not as a coin fell. At most {percent((1 + total.advantage) / 2)} of their
  answers are right. By guessing, 50 % are.
- These numbers hold for every attack that is possible. They do not say that an attack exists that comes near them."""


def _numbers(record: PrivacyRecord) -> str:
    alone, total = record.this_release, record.together
    columns = {"this release": alone.epsilon}
    if total.epsilon != alone.epsilon:
        columns["all that is counted"] = total.epsilon
    rows = [[name, *(_told(spent, name) for spent in columns.values()), kind] for name, kind in record.accountants.items()]
    released = [f"- {NAMES[release.name]}: {_mechanism(release)}" for release in alone.releases]
    made = "What this run released, each with noise:\n\n" + "\n".join(released) if released else "This run released nothing."
    return f"""## The numbers

Epsilon was computed in several ways, by accountants, at delta = {up(record.delta)}:

{table(["accountant", *columns, "what it is"], rows)}

The promise has the larger one of {" and ".join(CERTIFIERS)}. Numbers are rounded up; `privacy.json` has more digits.

- Unit, what is protected: {ONE[record.unit]}, that is {WHOLE[record.unit]}.
- Relation, what is compared: {record.relation}.
- Noise: {record.noise}.

{made}"""


def _told(spent: Mapping[str, float], name: str) -> str:
    return up(spent[name]) if name in spent else "none"


def _mechanism(release: Release) -> str:
    if release.mechanism != "gaussian":
        return f"{release.mechanism} mechanism, epsilon {up(release.epsilon)} and delta {up(release.delta)} as a whole"
    times = "once" if release.steps == 1 else f"{release.steps:,} times"
    told = f"{times}, with Gaussian noise of {release.noise_multiplier:.4g} times the most that one can add"
    if release.sampling_rate == 1:
        return f"{told}; each time from all of them, so that no chance helps to hide one" if release.steps > 1 else told
    return f"{told}; each time from a random sample, which one is in with probability {release.sampling_rate:.3g}"


def _earlier(record: PrivacyRecord) -> str:
    total = record.together
    earlier = "1 earlier release" if total.earlier_releases == 1 else f"{total.earlier_releases} earlier releases"
    told = f"Together with {earlier} of this dataset: epsilon {up(certified(total))} at delta {up(record.delta)}."
    if total.unregistered:
        told += (
            f"\nThis includes releases of other runs on the same images that were made and not published: {total.unregistered}."
        )
    if record.hyperparameters == "accounted":
        told += "\nOther runs shaped this one, so only the promise for all of them together counts."
    return f"""## Together with earlier releases

Each release of the same private images adds to what can be learnt of them. Their owner keeps a register of what was published,
and a record of what was spent, published or not.
{told}"""


def _computed(record: PrivacyRecord) -> str:
    audit = (
        "An audit compared what was planned with what was measured while it happened: batches, bounds, and the noise itself. No "
        "image left the private side before, and the audit was done again for this folder."
    )
    steps = [audit, f"Bounds on attackers: {record.attack_bounds_method}"] if record.together.releases else []
    versions = ", ".join(f"{name} {version}" for name, version in record.software.items())
    return f"## How this was computed\n\n{_list([*steps, f'Software: {versions}.'])}"
