"""The rule by which every claim is judged.

A comparison is ``ahead`` if its difference is shown to be better than the margin, ``behind`` if worse, ``level`` if within it,
each by one-sided tests at 5 %; they are disjoint, so that at most one can be wrong (Goeman, Solari, Stijnen 2010, Statist. Med.
29:2117-2125). A claim about all comparisons is reproduced if each of them is as claimed: an intersection-union test, which needs
no correction (Berger 1982, Technometrics 24:295-300). It is not reproduced if one of them is shown not to be: that is looked for
in all, and so corrected by Holm's method. A comparison over several learning rates is as claimed if one of the rates shows it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dpsapf.aggregation.multiple_tests import LEVEL, holm
from dpsapf.aggregation.welch import Difference, against_number, seeds_needed, welch
from paper_figures.claims import Expected, Metric
from paper_figures.comparisons import Comparison

REPRODUCED, NOT_REPRODUCED, OPEN, NOT_RUN = "reproduced", "not reproduced", "cannot tell", "not run"
NEEDS = "needs other data or models"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, OPEN, NOT_RUN, NEEDS)
STATES: tuple[Expected, ...] = ("ahead", "level", "behind")
UNDECIDED = "undecided"
INTERVAL = 2 * LEVEL  # error of the interval that decides as the one-sided tests do


@dataclass(frozen=True)
class Judged:
    """A comparison, what it shows, and p-values.

    Attributes:
        comparison: what was compared.
        difference: ours minus theirs, in the metric's unit; logs where it has them.
        low: end of the 90 % interval; of what is counted, the least difference.
        high: likewise.
        state: of `STATES`, or `UNDECIDED`.
        supports: one-sided p-value of the claim's opposite; small where the comparison is as claimed.
        opposes: likewise of the claim; small where the comparison is not as claimed.
    """

    comparison: Comparison
    difference: Difference
    low: float
    high: float
    state: str
    supports: float
    opposes: float


@dataclass(frozen=True)
class Rule:
    """How the comparisons of one claim and metric are judged.

    Attributes:
        expected: how ours stands to theirs.
        better: 1 if more is better, -1 if less.
        margin: what is no difference, in the metric's unit.
        exact: True if values are counted, and differences have no error.
    """

    expected: Expected
    better: int
    margin: float
    exact: bool = False

    @property
    def region(self) -> tuple[float, float]:
        """The open interval in which a difference is as claimed."""
        return self.regions[self.expected]

    @property
    def regions(self) -> dict[str, tuple[float, float]]:
        """The open interval of each state."""
        upper, lower = (self.margin, math.inf), (-math.inf, -self.margin)
        ahead, behind = (upper, lower) if self.better > 0 else (lower, upper)
        return {"ahead": ahead, "level": (-self.margin, self.margin), "behind": behind}


def rule_of(metric: Metric, expected: Expected, margin: float) -> Rule:
    """Return the rule of a claim in one metric."""
    return Rule(expected, metric.better, margin, metric.exact)


def judge(comparison: Comparison, rule: Rule) -> Judged:
    """Judge one comparison."""
    ours, theirs = comparison.ours, comparison.theirs
    difference = against_number(ours, theirs[0]) if comparison.published else welch(ours, theirs)
    if rule.exact:
        low, high = ours.min() - theirs.max(), ours.max() - theirs.min()
    else:
        half = difference.half_width(INTERVAL)
        low, high = difference.mean - half, difference.mean + half
    state = next((name for name in STATES if _within(low, high, rule.regions[name])), UNDECIDED)
    supports, opposes = _counted(state, rule) if rule.exact else _tested(difference, rule.region)
    return Judged(comparison, difference, float(low), float(high), state, supports, opposes)


def _within(low: float, high: float, region: tuple[float, float]) -> bool:
    return region[0] < low and high < region[1]


def _counted(state: str, rule: Rule) -> tuple[float, float]:
    return float(state != rule.expected), float(state in (rule.expected, UNDECIDED))


def _tested(difference: Difference, region: tuple[float, float]) -> tuple[float, float]:
    """Return the p-values of one-sided tests at the ends of a region: that a difference is within, and that it is beyond."""
    low, high = region
    inside = [difference.above(low)] * math.isfinite(low) + [difference.below(high)] * math.isfinite(high)
    outside = [difference.below(low)] * math.isfinite(low) + [difference.above(high)] * math.isfinite(high)
    return max(inside), min(outside)


@dataclass(frozen=True)
class Entry:
    """A comparison at each learning rate that was tried, or at its only one."""

    rates: tuple[Judged, ...]

    @property
    def shown(self) -> Judged:
        """The rate at which the claim begins to hold, or else the one that is nearest to it."""
        return self.holding[0] if self.holding else min(self.rates, key=lambda one: _known(one.supports))

    @property
    def supports(self) -> float:
        """The p-value that it holds at no rate, after Bonferroni's correction over the rates."""
        return min(1.0, len(self.rates) * min(_known(one.supports) for one in self.rates))

    @property
    def opposes(self) -> float:
        """The p-value that it holds at a rate; not a number where none has been tested."""
        return max((one.opposes for one in self.rates), key=_known)

    @property
    def holding(self) -> list[Judged]:
        """The rates at which it holds, Holm's correction over all of them; the least first."""
        corrected = holm([one.supports for one in self.rates])
        found = [one for one, p in zip(self.rates, corrected, strict=True) if p <= LEVEL]
        return sorted(found, key=lambda one: one.comparison.setting.get("rate", 0))


def _known(p: float) -> float:
    return 1.0 if math.isnan(p) else p


def entries(judged: Sequence[Judged]) -> list[Entry]:
    """Put comparisons together that differ in their learning rate's number only."""
    together: dict[tuple, list[Judged]] = {}
    for one in judged:
        together.setdefault(tuple(part for part in one.comparison.entry if part[0] != "rate"), []).append(one)
    return [Entry(tuple(rates)) for rates in together.values()]


def verdict(found: Sequence[Entry], complete: bool = True) -> str:
    """Combine the entries of a claim, which is about all of them; ``complete``: none of what it is about was left out."""
    if not found:
        return NOT_RUN
    if against(found):
        return NOT_REPRODUCED
    return REPRODUCED if complete and all(one.supports <= LEVEL for one in found) else OPEN


def against(found: Sequence[Entry]) -> list[Entry]:
    """Return the entries that are shown not to be as claimed, after Holm's correction; the clearest first."""
    corrected = holm([one.opposes for one in found])
    refuted = [(p, place) for place, p in enumerate(corrected) if p <= LEVEL]
    return [found[place] for _, place in sorted(refuted)]


def deciding(found: Sequence[Entry], rule: Rule) -> Entry:
    """Return the entry that decides: the clearest one against; else the one that would be decided first, or all wait for."""
    refuted = against(found)
    return refuted[0] if refuted else _waited_for(found, rule)[0]


def seeds_that_decide(found: Sequence[Entry], rule: Rule) -> float:
    """Return how many seeds a side would decide an open claim in 80 of 100 studies, if the differences are as they were seen."""
    return _waited_for(found, rule)[1]


def _waited_for(found: Sequence[Entry], rule: Rule) -> tuple[Entry, float]:
    """Find the entry that the claim waits for, and its seeds: the first that is not as claimed, or the last that is."""
    low, high = rule.region
    outside = [one for one in found if not low < one.shown.difference.mean < high]
    level = LEVEL / (len(found) if outside else len(found[0].rates))
    widest = max((one.shown.difference.spread for one in found), key=lambda spread: -1 if math.isnan(spread) else spread)
    needed = [
        (_needed(one.shown, rule, level, widest), _known(one.supports), place) for place, one in enumerate(outside or found)
    ]
    seeds, _, place = min(needed) if outside else max(needed)
    return (outside or found)[place], seeds


def _needed(one: Judged, rule: Rule, level: float, widest: float) -> float:
    """Return the seeds that a comparison needs; one seed is taken to spread as the widest of its claim."""
    mean, ends = one.difference.mean, [end for end in rule.region if math.isfinite(end)]
    inside = rule.region[0] < mean < rule.region[1]
    gaps = [abs(mean - end) for end in ends] if inside else [min(abs(mean - end) for end in ends)]
    spread = widest if math.isnan(one.difference.spread) else one.difference.spread
    return seeds_needed(spread, gaps, level) if all(gaps) else math.inf


def excluded(found: Sequence[Entry], effect: float) -> int:
    """Count the entries whose difference is shown to be less than an effect of the paper, in its direction, at every rate."""
    tests = [
        [one.difference.below(effect) if effect > 0 else one.difference.above(effect) for one in entry.rates] for entry in found
    ]
    return sum(max(map(_known, of_rates)) <= LEVEL for of_rates in tests)


def count(found: Sequence[Entry]) -> dict[str, int]:
    """Count the entries by state."""
    states = [one.shown.state for one in found]
    return {name: states.count(name) for name in (*STATES, UNDECIDED)}
