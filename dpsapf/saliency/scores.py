"""What one image contributes to the saliency scores, and how much that can be: the score registry.

All scores but one are sums over images of non-negative contributions, so adding an image raises each score and lowers
none. One image's squared gradient norms q_m over the M candidates, ||g||^2 = sum_m q_m, come from
`dpsapf.gradients.ghost_norms`. The exception is ``signal``: the norms of a sum of clipped gradients.
"""

import math
import typing
from collections.abc import Callable
from dataclasses import dataclass

from dpsapf.support.errors import UserError

if typing.TYPE_CHECKING:
    import torch


SIGNAL_BOUND = 1.0  # C of score signal; clipping is automatic, so that no bound has to be tuned


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What limits a contribution.

    Attributes:
        clipping_norm: C_s, bound on ||g|| over all candidates together; ``energy`` and ``norm``. Infinite: no bound.
        votes: v, matrices that an image votes for; ``vote``.
    """

    clipping_norm: float
    votes: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """One score.

    Attributes:
        contributions: squared norms [B, M] and bounds -> contributions, float64 [B, M], >= 0; None for ``signal``, which is
            no sum of contributions.
        sensitivity: bounds -> largest L2 norm by which one image changes the scores.
        unit_sensitivity: bounds, size -> largest sum of one image's contributions over ``size`` matrices; None if an
            image may lower a score.
    """

    contributions: "Callable[[torch.Tensor, Bounds], torch.Tensor] | None"
    sensitivity: Callable[[Bounds], float]
    unit_sensitivity: Callable[[Bounds, int], float] | None


def energy(squared: "torch.Tensor", bounds: Bounds) -> "torch.Tensor":
    """Squared norms of the clipped gradient (DP-SAPF, selection stage).

    After clipping sum_m q_m <= C_s^2. The entries are non-negative, so their L2 norm is at most their sum: C_s^2.
    """
    from dpsapf.privacy.clipping import clip_factors

    factors = clip_factors(squared.double().sum(1), bounds.clipping_norm, "flat")
    return _finite(squared) * factors.square()[:, None]


def norm(squared: "torch.Tensor", bounds: Bounds) -> "torch.Tensor":
    """Norms of the clipped gradient.

    The squares of the entries sum to sum_m q_m <= C_s^2, so their L2 norm is at most C_s; over u matrices they
    sum to at most sqrt(u) C_s (Cauchy-Schwarz).
    """
    return energy(squared, bounds).sqrt()


def vote(squared: "torch.Tensor", bounds: Bounds) -> "torch.Tensor":
    """One vote for each of the v matrices with the largest norms (as JAX-Privacy's top-k vote probe).

    At most v entries are 1 and the rest 0: L2 norm at most sqrt(v). A broken or vanishing gradient does not vote.
    """
    chosen = squared.topk(min(bounds.votes, squared.shape[1]), dim=1).indices
    votes = squared.new_zeros(squared.shape).double().scatter_(1, chosen, 1.0)
    return votes * _usable(squared.double().sum(1))[:, None]


def share(squared: "torch.Tensor", bounds: Bounds) -> "torch.Tensor":
    """Share of the image's energy that each matrix carries: q_m / sum q; no bound has to be tuned.

    The entries are non-negative and sum to 1, or to 0 for a broken or vanishing gradient, so their L2 norm is at
    most 1.
    """
    total = squared.double().sum(1)
    return _finite(squared) / total.where(_usable(total), math.inf)[:, None]


def _usable(total: "torch.Tensor") -> "torch.Tensor":
    return total.isfinite() & (total > 0)


def _finite(squared: "torch.Tensor") -> "torch.Tensor":
    return squared.double().nan_to_num(nan=0.0, posinf=0.0)


SCORES: dict[str, Score] = {
    "energy": Score(
        contributions=energy,
        sensitivity=lambda bounds: bounds.clipping_norm**2,
        unit_sensitivity=lambda bounds, size: bounds.clipping_norm**2,
    ),
    "norm": Score(
        contributions=norm,
        sensitivity=lambda bounds: bounds.clipping_norm,
        unit_sensitivity=lambda bounds, size: math.sqrt(size) * bounds.clipping_norm,
    ),
    "vote": Score(
        contributions=vote,
        sensitivity=lambda bounds: math.sqrt(bounds.votes),
        unit_sensitivity=lambda bounds, size: float(min(size, bounds.votes)),
    ),
    "share": Score(
        contributions=share,
        sensitivity=lambda bounds: 1.0,
        unit_sensitivity=lambda bounds, size: 1.0,
    ),
    "signal": Score(  # `dpsapf.saliency.signal`, with its proof
        contributions=None,
        sensitivity=lambda bounds: SIGNAL_BOUND,
        unit_sensitivity=None,
    ),
}


def score(name: str) -> Score:
    """Look a score up.

    Raises:
        UserError: the name is not registered; names the known ones.
    """
    if name not in SCORES:
        raise UserError("score", name, f"must be one of {', '.join(SCORES)}")
    return SCORES[name]
