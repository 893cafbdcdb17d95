"""How the learning rate falls over training, and how weights are averaged: post-processing of private gradients."""

import math


def rate_factor(schedule: str, step: int, steps: int) -> float:
    """Return the learning rate at a step over its peak: ``constant`` 1, ``linear`` or ``cosine`` from 1 towards 0.

    ``warm-up`` rises to 1 over the first third of the steps, and stays.

    Args:
        schedule: one of the four.
        step: from 0.
        steps: of the whole training.
    """
    factors = {
        "constant": 1.0,
        "linear": 1 - step / steps,
        "cosine": 0.5 + 0.5 * math.cos(math.pi * step / steps),
        "warm-up": min(1.0, (step + 1) / math.ceil(steps / 3)),
    }
    return factors[schedule]


def average_weight(decay: float, step: int) -> float:
    """Return the share of the newest weights in their running average, 1 - min(decay, (1 + t)/(10 + t)).

    Args:
        decay: of the average, in (0, 1).
        step: t, steps done.
    """
    return 1 - min(decay, (1 + step) / (10 + step))
