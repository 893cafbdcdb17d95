"""What counts as a difference: the margins of all claims, from the paper's own numbers and not from ours.

Two values are level if they differ by no more than the margin. It is the smaller one of two:

- what the paper itself calls stable: the largest difference on its plateau, 20, 40 and 50 % of the matrices against 30 %. A
  metric that the paper has no plateau of has a tenth;
- half of the smallest effect that the paper publishes for the claim, so that an effect of the paper's size is never level.
"""

import math

from paper_figures.claims import CLAIMS, Claim, Metric
from paper_figures.comparisons import matching
from paper_figures.published import published

TENTH = 0.1
PLATEAU = next(claim for claim in CLAIMS if claim.id == "stable")


def margin(claim: Claim, metric: Metric) -> float:
    """Return the claim's margin in a metric, in the unit of a difference (its log, where the metric has logs)."""
    if metric.exact:
        return 0.0
    allowed = max(map(abs, paper_effects(PLATEAU, metric)), default=math.log1p(TENTH) if metric.log else TENTH)
    own = [abs(effect) / 2 for effect in paper_effects(claim, metric)] if claim.expected != "level" else []
    return min([allowed, *own])


def paper_effects(claim: Claim, metric: Metric) -> list[float]:
    """Return the paper's differences of a claim, ours minus theirs, rising; or the one that it quotes; none if it has neither."""
    if claim.published is None:
        return [claim.quoted[metric.name]] if metric.name in claim.quoted else []
    name, ours, theirs = claim.published
    table = published(name)
    if metric.column not in table:
        return []
    sides = [matching(table, side) for side in (ours, theirs)]
    pairs = sides[0].merge(sides[1], on=["dataset", "public_model", "epsilon"], suffixes=("", "_theirs"))
    values = zip(pairs[metric.column], pairs[metric.column + "_theirs"], strict=True)
    return sorted(math.log(one / other) if metric.log else one - other for one, other in values)


def smallest_effect(claim: Claim, metric: Metric) -> float:
    """Return the effect of the paper that is nearest to none; not a number if it has none, or claims that there is none."""
    effects = paper_effects(claim, metric) if claim.expected != "level" else []
    return min(effects, key=abs, default=math.nan)
