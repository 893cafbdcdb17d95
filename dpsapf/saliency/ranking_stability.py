"""compare-rankings: what else than noise moves the order of the scores. Outside the guarantee: for research, not for a release.

The clipping bound (a larger one cuts less and adds more noise), the number of images (fewer carry less signal against the
same noise), the draw of timesteps and diffusion noise, and, with all of these fixed, a second release.
"""

import itertools
import logging
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch

from dpsapf.experiment.columns import RANKING_COLUMNS
from dpsapf.experiment.records import DatasetRecord, ModelRecord
from dpsapf.experiment.stages import CompareRankings
from dpsapf.privacy.mechanisms import mechanism
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import SeededNoise
from dpsapf.privacy.values import Private
from dpsapf.saliency.agreement import agreement, signal_scores, squared_norms
from dpsapf.saliency.scores import Bounds, score
from dpsapf.saliency.select import candidates, ranking
from dpsapf.support.checked import replace
from dpsapf.support.files import atomic
from dpsapf.support.randomness import torch_generator
from dpsapf.support.records import read_record

LOG = logging.getLogger(__name__)


def compare_rankings(options: CompareRankings) -> None:
    """Write one row per score, thing that varies, its value and draw: rank correlation and overlap of two orders.

    What varies is the ``clipping_norm`` (value: over the config's) and the ``images`` (their share), the noisy order against
    the noiseless one of all images at the config's bound; the ``timesteps``, two noiseless orders; and the ``release``, two
    noisy orders of other noise and timesteps.
    """
    torch.set_num_threads(options.threads)
    names = [read_record(options.dataset, DatasetRecord).name, read_record(options.model, ModelRecord).name]
    table = candidates(options.candidate_table, options.candidates)
    exact = _Exact(table, options)
    rows = [[*names, *row] for name in options.score for row in _rows(name, exact, table, options)]
    frame = pd.DataFrame(rows, columns=list(RANKING_COLUMNS))
    LOG.info("overlap\n%s", frame.pivot_table("overlap", ["varied", "value"], "score").round(2).to_string())
    with atomic(options.out) as temporary:
        frame.to_csv(temporary, index=False)


def _rows(name: str, exact: "_Exact", table: pd.DataFrame, options: CompareRankings) -> Iterator[list]:
    repeated = [exact(name, repeat) for repeat in range(options.repeats)]
    whole, bound, ratio = repeated[0], options.clipping_norm, options.ratio
    for factor in options.clipping_factors if _has_a_bound(name, options) else ():
        yield from _noisy_rows(name, "clipping_norm", factor, exact(name, 0, bound=factor * bound), whole, table, options)
    for share in options.images:
        some = whole if share == 1 else exact(name, 0, share)
        yield from _noisy_rows(name, "images", share, some, whole, table, options)
    released = [_noisy(name, scores, bound, ("release", repeat), table, options) for repeat, scores in enumerate(repeated)]
    for varied, orders in (("timesteps", repeated), ("release", released)):
        for pair, (one, other) in enumerate(itertools.combinations(orders, 2)):
            yield [name, varied, 1.0, ratio, pair, *agreement(one, other, table, ratio)]


def _has_a_bound(name: str, options: CompareRankings) -> bool:
    bounds = [Bounds(clipping_norm=factor * options.clipping_norm, votes=options.votes) for factor in (1, 2)]
    return score(name).sensitivity(bounds[0]) != score(name).sensitivity(bounds[1])


def _noisy_rows(
    name: str, varied: str, value: float, exact: np.ndarray, whole: np.ndarray, table: pd.DataFrame, options: CompareRankings
) -> Iterator[list]:
    bound = options.clipping_norm * (value if varied == "clipping_norm" else 1.0)
    for draw in range(options.draws):
        noisy = _noisy(name, exact, bound, (varied, f"{value:g}", draw), table, options)
        yield [name, varied, value, options.ratio, draw, *agreement(whole, noisy, table, options.ratio)]


def _noisy(name: str, exact: np.ndarray, bound: float, draw: tuple, table: pd.DataFrame, options: CompareRankings) -> np.ndarray:
    units = ranking(table, None, None, name, Bounds(clipping_norm=bound, votes=options.votes))
    gaussian, source = mechanism("gaussian"), SeededNoise(torch_generator(options.seed, "rankings", name, *draw))
    planned, sums = gaussian.plan(units, options.sigma_s, 1.0, 1.0), Private([torch.tensor(exact)])
    return gaussian.release(sums, units, planned, source, Meter(1)).values[0].numpy()


class _Exact:
    """Scores without noise, float64 [M], by draw of timesteps, share of the images and clipping bound. Private.

    One pass over the images for each draw serves every score that is a sum over them.
    """

    def __init__(self, table: pd.DataFrame, options: CompareRankings) -> None:
        self._table, self._options = table, options
        self._squared: dict[int, torch.Tensor] = {}

    def __call__(self, name: str, repeat: int, share: float = 1.0, bound: float | None = None) -> np.ndarray:
        options = replace(self._options, seed=self._options.seed + repeat)
        if not score(name).contributions:
            return signal_scores(options, self._table, share)
        if repeat not in self._squared:
            self._squared[repeat] = squared_norms(options, self._table)
        limits = Bounds(clipping_norm=bound or options.clipping_norm, votes=options.votes)
        contributions = score(name).contributions(self._squared[repeat], limits)
        return contributions[: round(share * len(contributions))].sum(0).numpy()
