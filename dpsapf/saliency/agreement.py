"""compare-scores: how well noisy scores keep the noiseless order. Outside the guarantee: for research, not for a release."""

import logging
import typing
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch

from dpsapf.experiment.columns import AGREEMENT_COLUMNS, MATRIX, SCORE
from dpsapf.experiment.records import DatasetRecord, ModelRecord
from dpsapf.experiment.stages import CompareScores
from dpsapf.privacy.mechanisms import mechanism
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import SeededNoise
from dpsapf.privacy.values import Private
from dpsapf.public_models.families import load_model
from dpsapf.public_models.families.family import Objective
from dpsapf.public_models.latents import Batch, Latents, Origin, check_origin, draw_batch
from dpsapf.saliency.progress import Progress
from dpsapf.saliency.score import squared_gradient_norms
from dpsapf.saliency.scores import Bounds, score
from dpsapf.saliency.select import candidates, ranking, top_units
from dpsapf.saliency.signal import signal_norms
from dpsapf.support.files import atomic, sha256
from dpsapf.support.randomness import torch_generator
from dpsapf.support.records import read_record

if typing.TYPE_CHECKING:
    from dpsapf.experiment.stages import CompareRankings

LOG = logging.getLogger(__name__)


def compare_scores(options: CompareScores) -> None:
    """Write one row per score, noise multiplier and draw of the noise: rank correlation and overlap of the selections."""
    torch.set_num_threads(options.threads)
    names = [read_record(options.dataset, DatasetRecord).name, read_record(options.model, ModelRecord).name]
    table = candidates(options.candidate_table, options.candidates)
    rows = [[*names, *row] for row in _rows(exact_scores(options, table), table, options)]
    frame = pd.DataFrame(rows, columns=list(AGREEMENT_COLUMNS))
    LOG.info("overlap\n%s", frame.pivot_table("overlap", "score", "sigma_s").round(2).to_string())
    with atomic(options.out) as temporary:
        frame.to_csv(temporary, index=False)


def exact_scores(options: CompareScores, table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Compute every score without noise, float64 [M] by name, from the same timesteps and noise. Private."""
    limits = Bounds(clipping_norm=options.clipping_norm, votes=options.votes)
    additive = [name for name in options.score if score(name).contributions]
    squared = squared_norms(options, table) if additive else None
    found = {name: score(name).contributions(squared, limits).sum(0).numpy() for name in additive}
    return {name: found[name] if name in found else signal_scores(options, table) for name in options.score}


def signal_scores(options: "CompareScores | CompareRankings", table: pd.DataFrame, share: float = 1.0) -> np.ndarray:
    """Compute score ``signal`` without noise from a share of the images, the first in a random order, float64 [M]. Private."""
    denoiser, objective, batch = _inputs(options, share)
    progress = Progress(Meter(len(batch)))
    (norms,) = progress.meter.exact(signal_norms(denoiser, objective, batch, table[MATRIX].tolist(), options, progress)).values
    return norms.cpu().numpy()


def squared_norms(options: "CompareScores | CompareRankings", table: pd.DataFrame) -> torch.Tensor:
    """Compute every image's squared gradient norms, in that order, [N, M]. Private."""
    batches = squared_gradient_norms(*_inputs(options), table[MATRIX].tolist(), options)
    return torch.cat([squared.cpu() for squared in batches])


def _inputs(options: "CompareScores | CompareRankings", share: float = 1.0) -> tuple[torch.nn.Module, Objective, Batch]:
    dataset = read_record(options.dataset, DatasetRecord)
    check_origin("--latents", options.latents, Origin(dataset.id, sha256(options.model)))
    model = load_model(read_record(options.model, ModelRecord))
    latents = Latents.load(options.latents, options.prompts, options.model)
    denoiser, objective = model.denoiser(options.device), model.objective()
    draws = torch_generator(options.seed, "saliency", "pairs")
    order = torch.randperm(len(latents), generator=torch_generator(options.seed, "saliency", "order"))
    images = order[: round(share * len(latents))]
    return denoiser, objective, draw_batch(latents, images, 1, objective.timesteps, draws)


def _rows(scores: dict[str, np.ndarray], table: pd.DataFrame, options: CompareScores) -> Iterator[list]:
    limits = Bounds(clipping_norm=options.clipping_norm, votes=options.votes)
    for name, exact in scores.items():
        units = ranking(table, None, None, name, limits)
        for sigma in options.sigma_s:
            for draw in range(options.draws):
                source = SeededNoise(torch_generator(options.seed, "agreement", name, f"{sigma:g}", draw))
                gaussian = mechanism("gaussian")
                planned, sums = gaussian.plan(units, sigma, 1.0, 1.0), Private([torch.tensor(exact)])
                (noisy,) = gaussian.release(sums, units, planned, source, Meter(1)).values
                yield [name, sigma, options.ratio, draw, *agreement(exact, noisy.numpy(), table, options.ratio)]


def agreement(exact: np.ndarray, noisy: np.ndarray, table: pd.DataFrame, ratio: float) -> tuple[float, float]:
    """Compare two score vectors [M] of the same matrices.

    Returns:
        Spearman's rank correlation in [-1, 1], and the share of the first one's selection that the second one keeps.
    """
    from scipy.stats import spearmanr

    chosen = [top_units(table.assign(**{SCORE: scores}), "matrix", ratio) for scores in (exact, noisy)]
    return float(spearmanr(exact, noisy).statistic), float((chosen[0] & chosen[1]).sum() / chosen[0].sum())
