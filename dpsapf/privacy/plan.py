"""The plan of a run: every release, and the noise that meets its target, before anything is computed."""

import logging
import math
from collections.abc import Sequence

from dpsapf.experiment.columns import NEARLY
from dpsapf.experiment.methods import AXES, TRAINING_AXES, Method, Unit, method
from dpsapf.experiment.records import DatasetRecord, Plan, Release
from dpsapf.experiment.runs import RunSpec, check_rule
from dpsapf.experiment.stages import PlanPrivacy
from dpsapf.privacy.accounting import CARRIED, LARGEST_SIGMA, LEAST, check_target, epsilon, surely_meets
from dpsapf.privacy.calibrations import calibrated
from dpsapf.privacy.kept import AGAIN
from dpsapf.support.errors import Mistakes, UserError
from dpsapf.support.provenance import provenance

LOG = logging.getLogger(__name__)
RELATION = {
    "image": "zero out one image: N is public and the same, the image adds nothing",
    "user": "zero out one user: N is public and the same, none of the user's images adds anything",
}
PUBLIC = (
    "N, the number of units: training images, or the users that they are of; and with it delta and the sampling rates",
    "the class names, their prompts and the number of classes",
    "hyperparameters, chosen without the images that the run trains on",
    "the public model",
)
ASKED = ("mechanism", "sensitivity", "sampling_rate", "steps", "noise")  # what a user says of a release; not the noise's size
LARGE_DELTA = 1e-3  # the field takes 1e-5 or less, far below 1/N
PUBLIC_PROXY = "every image of {}: their scores, without noise, chose what is trained"
CHOSEN_EXACTLY = "its matrices are chosen by the private images without noise: no guarantee, epsilon is infinite"


def make_plan(
    run: RunSpec,
    dataset: DatasetRecord,
    saliency: list[Release],
    options: PlanPrivacy,
    prior: Sequence[Release] = (),
    prior_keys: Sequence[str] = (),
    proxy: DatasetRecord | None = None,
) -> Plan:
    """Calibrate DP-SGD, or votes, beside what is released before it; returns the plan without writing it.

    Args:
        run: what is planned.
        dataset: its training images and their users.
        saliency: the saliency release as its own side describes it; empty for a method that does not select.
        options: DP-SGD's settings, and the number of rounds of votes.
        prior: earlier releases of the dataset (`dpsapf.privacy.compose`), which the target has to hold, too.
        prior_keys: of each earlier release, the digest by which it is known again; empty if not told.
        proxy: another dataset, whose scores choose; None: none does.

    Raises:
        UserError: the target cannot be met.
    """
    row, count = method(run.method), population(dataset, options.unit)
    delta = target_delta(count, options)
    alone = _noise(prior, run, count, delta, options)
    noisy = with_noise(saliency)
    sigma = _noise([*prior, *noisy], run, count, delta, options) if noisy else alone
    releases = [*saliency, *([own_release(row, sigma, count, options)] if row.spends else [])]
    LOG.info("%s: %d releases, noise multiplier %s (%s without selection)", run.id, len(releases), sigma, alone)
    guaranteed, refused = run.target_epsilon is not None, CHOSEN_EXACTLY if run.target_epsilon != run.epsilon else None
    planned = {name: epsilon(name, [*prior, *releases], delta) for name in ("pld", "rdp")} if guaranteed else {}
    if guaranteed and not planned["pld"] <= run.epsilon:
        remedy = f"the planned releases cost {planned['pld']:g}: remove {options.calibrations}, whose noise is too small"
        raise UserError("epsilon", run.epsilon, remedy)
    less = spends_less(run.epsilon, planned["pld"]) if guaranteed else None
    told = [*([f"epsilon = {run.epsilon:g}: {less}"] if less else []), *([f"not for release: {refused}"] if refused else [])]
    for caution in [*told, *cautions(releases, delta, count, options)]:
        LOG.warning("%s: %s", run.id, caution)
    if prior and guaranteed:
        LOG.warning("%s: of epsilon = %g earlier releases have spent %.4g", run.id, run.epsilon, epsilon("pld", prior, delta))
    return Plan(
        run=run,
        unit=options.unit,
        population=count,
        target_epsilon=run.target_epsilon,
        without_guarantee=refused,
        proxy_id=proxy and proxy.id,
        delta=delta,
        relation=RELATION[options.unit],
        public=(*PUBLIC, *([PUBLIC_PROXY.format(proxy.name)] if proxy else [])),
        clipping=options.clipping if row.clips else "none",
        clipping_norm=options.clipping_norm,
        noise=options.noise,
        prior=tuple(prior),
        prior_keys=tuple(prior_keys),
        releases=tuple(releases),
        planned_epsilon=planned,
        spends_less=less,
        selection_epsilon=epsilon("pld", saliency, delta) if saliency and guaranteed else None,
        dp_sgd_noise_alone=alone if row.trains else None,
        dataset_id=dataset.id,
        provenance=provenance(),
    )


def check_possible(run: RunSpec, dataset: DatasetRecord, before: Sequence[Release], options: PlanPrivacy) -> None:
    """Check that a plan can be made, without looking for its noise.

    Args:
        run: what is planned.
        dataset: its training images and their users.
        before: what the target has to hold besides DP-SGD, or votes.
        options: as of `make_plan`.

    Raises:
        UserError: it cannot, for the reason that `make_plan` would tell.
    """
    row, count = method(run.method), population(dataset, options.unit)
    delta = target_delta(count, options)

    def build(sigma: float) -> list[Release]:
        return [*with_noise(before), own_release(row, sigma, count, options)]

    if run.epsilon is not None and not surely_meets(run.epsilon, delta, build(LARGEST_SIGMA)):
        check_target(run.epsilon, delta, build)


def check_same(
    kept: Plan,
    run: RunSpec,
    dataset: DatasetRecord,
    saliency: list[Release],
    options: PlanPrivacy,
    proxy: DatasetRecord | None = None,
) -> None:
    """Check that a plan that something was released by is what is asked for now.

    What the suite computes itself may differ: noise that it found, epsilons, earlier releases, what made the record.

    Args:
        kept: the plan that something was released by.
        run: and
        dataset: and
        saliency: and
        options: and
        proxy: as of `make_plan`.

    Raises:
        UserErrors: a line for everything that differs.
    """
    count, own = population(dataset, options.unit), [item for item in kept.releases if item.name != "saliency"]
    told = {"run": run, "unit": options.unit, "dataset_id": dataset.id, "population": count, "noise": options.noise}
    told |= {"proxy_id": proxy and proxy.id}
    told |= {"target_epsilon": run.target_epsilon, "delta": target_delta(count, options), "clipping_norm": options.clipping_norm}
    compared = {name: (getattr(kept, name), value) for name, value in told.items()}
    if method(run.method).clips:
        compared["clipping"] = (kept.clipping, options.clipping)
    if method(run.method).spends:
        own = [own_release(method(run.method), item.noise_multiplier, count, options) for item in own]
    compared |= _compared(kept.releases, [*saliency, *own])
    mistakes = Mistakes()
    for name, (before, now) in compared.items():
        if before != now:
            remedy = f"{kept.run.id} was released with {before!r}, and cannot be planned otherwise: ask for that again, {AGAIN}"
            mistakes.append(UserError(name, now, remedy))
    mistakes.tell()


def _compared(kept: Sequence[Release], asked: Sequence[Release]) -> dict[str, tuple[object, object]]:
    """Pair what was released with what is asked for, release by release."""
    names = [[release.name for release in releases] for releases in (kept, asked)]
    if names[0] != names[1]:
        return {"releases": tuple(names)}
    return {
        f"{one.name}: {key}": (getattr(one, key), getattr(other, key))
        for one, other in zip(kept, asked, strict=True)
        for key in ASKED
    }


def spends_less(target: float, planned: float) -> str | None:
    """Say what a plan spends and why, if that is clearly less than its target; else None."""
    if planned >= NEARLY * target:
        return None
    error = f"calibration leaves {target - planned:.2g} to the target, the error of accountants over so many steps"
    end = f"accountants carry Gaussian noise up to an epsilon of {CARRIED:g}; a larger target changes nothing"
    return f"the run spends {planned:.4g} of it, {planned / target:.0%}: {end if target > CARRIED else error}"


def cautions(releases: Sequence[Release], delta: float, population: int, options: PlanPrivacy) -> list[str]:
    """Say what weakens the promise or wastes noise where there are few units, each with its remedy.

    Args:
        releases: what the run releases.
        delta: of the plan.
        population: N.
        options: say what the unit is, and the expected batch.
    """
    found = []
    if delta >= LARGE_DELTA and any(release.mechanism != "none" for release in releases):
        told = f"delta = {delta:.2g} at N = {population} is large: once in {1 / delta:,.0f} times the promise may fail, and"
        found.append(f"{told} one {options.unit} be seen in full; use more {options.unit}s, or set privacy.delta, say to 1e-05")
    batch = options.batch_size or options.expected_batch_size
    if any(release.name == "dp-sgd" and release.noise_multiplier and release.sampling_rate == 1 for release in releases):
        told = f"expected_batch_size = {batch} at N = {population}: the sampling rate is 1, each {options.unit} is in each step,"
        found.append(f"{told} and no chance helps to hide it; set a batch well below N: the same epsilon then needs less noise")
    return found


def population(dataset: DatasetRecord, unit: Unit) -> int:
    """Return N, the number of units in the training images.

    Raises:
        UserError: the unit is ``user``, and the dataset names none or fewer than two.
    """
    if unit == "image":
        return dataset.train
    if dataset.users is None or dataset.users < 2:
        remedy = f"{dataset.name} names {dataset.users or 'no'} users: add a CSV of them to its entry (key users), or use image"
        raise UserError("unit", unit, remedy)
    return dataset.users


def target_delta(population: int, options: PlanPrivacy) -> float:
    """Return the delta of a plan.

    Raises:
        UserError: it is not below 1/N.
    """
    delta = options.delta or default_delta(population)
    check_delta(delta, population)
    return delta


def check_delta(delta: float, population: int) -> None:
    """Check that delta is below 1/N: at 1/N a mechanism may publish a unit drawn at random.

    Raises:
        UserError: it is not.
    """
    if not 0 < delta < 1 / population:
        remedy = f"must be below 1/N = {1 / population:.3g} for N = {population}; leave it out for 1/(N ln N)"
        raise UserError("delta", delta, remedy)


def default_delta(population: int) -> float:
    """Return the paper's delta, 1/(N ln N), for N training images or users (N >= 2)."""
    return 1 / (population * math.log(population))


def dp_sgd_release(sigma: float | None, population: int, options: PlanPrivacy, *, clips: bool = True) -> Release:
    """Describe DP-SGD: ``steps`` Poisson-subsampled Gaussian releases of clipped gradient sums; exact without sigma."""
    rate = min((options.batch_size or options.expected_batch_size) / population, 1.0)
    common = {"name": "dp-sgd", "sampling_rate": rate, "steps": options.training_steps or options.steps}
    if sigma is None:
        return Release(mechanism="none", sensitivity=options.clipping_norm if clips else None, **common)
    return Release(noise_multiplier=sigma, sensitivity=options.clipping_norm, noise=options.noise, **common)


def histogram_release(sigma: float, options: PlanPrivacy) -> Release:
    """Describe the votes of Private Evolution: T histograms of all units' votes, each with Gaussian noise on every bin.

    A unit votes once in a round, for one image: zeroing it out changes one bin by 1, so a histogram's L2 sensitivity is 1,
    over all classes together, and lookahead changes nothing in that (Lin et al. 2024, arXiv 2305.15560, Algorithm 2).
    Everybody votes in every round. What is voted on depends on earlier histograms only, as adaptive composition allows.
    """
    return Release(
        name="pe-histogram",
        noise_multiplier=sigma,
        sensitivity=1.0,
        sampling_rate=1.0,
        steps=options.evolution.iterations,
        noise=options.noise,
    )


def own_release(row: Method, sigma: float | None, population: int, options: PlanPrivacy) -> Release:
    """Describe what a run releases beside scores: votes if images evolve, else DP-SGD."""
    return histogram_release(sigma, options) if row.evolves else dp_sgd_release(sigma, population, options, clips=row.clips)


def with_noise(releases: Sequence[Release]) -> list[Release]:
    """Leave out releases without noise: no target holds them, and DP-SGD's noise is found as if they were not."""
    return [release for release in releases if release.mechanism != "none"]


def _noise(before: Sequence[Release], run: RunSpec, population: int, delta: float, options: PlanPrivacy) -> float | None:
    if run.epsilon is None:
        return None
    row = method(run.method)
    build = lambda sigma: [*before, own_release(row, sigma, population, options)]  # noqa: E731
    return calibrated(options.calibrations, run.epsilon, delta, build)


def check_axes(run: RunSpec) -> None:
    """Check that a run has exactly the axes that its method uses; those of training may be the config's.

    Raises:
        UserError: names the first axis that is missing or superfluous, or an epsilon below the accountants' resolution.
    """
    for axis in sorted(AXES):
        value = getattr(run, axis)
        if axis in run.uses and value is None and axis not in (*TRAINING_AXES, "ratio"):
            raise UserError(axis, value, f"method {run.method} needs it")
        if axis not in run.uses and value is not None:
            raise UserError(axis, value, f"method {run.method} does not use it; leave it out")
    check_rule(run)
    if run.epsilon is not None and run.epsilon < LEAST:
        raise UserError("epsilon", run.epsilon, f"must be at least {LEAST}, the accountants' resolution")
