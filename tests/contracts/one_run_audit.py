"""An empirical lower bound on epsilon of score, select and fine-tune together, from one run with canaries.

Steinke, Nasr and Jagielski (2023, arXiv 2305.08846): each of m canaries takes part with probability 1/2; from
everything that is released, guess who did; the number of right guesses bounds epsilon from below. The adversary here
is the strongest that the guarantee admits: it sees every noisy gradient sum, and knows every canary and its draws.
"""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from scipy import optimize, stats

from dpsapf.bench.compare import OpacusGradients
from dpsapf.experiment.columns import LAYER, MATRIX, SCORE, SELECTED
from dpsapf.experiment.records import Plan, Release
from dpsapf.experiment.runs import RunSpec
from dpsapf.finetune import train
from dpsapf.finetune.adapters import trainable
from dpsapf.finetune.checkpoint import TrainingState
from dpsapf.finetune.parallel import ALONE
from dpsapf.privacy.accounting import calibrate
from dpsapf.privacy.clipping import clip_factors
from dpsapf.privacy.mechanisms import mechanism
from dpsapf.privacy.noise import SeededNoise
from dpsapf.public_models import latents as encoded
from dpsapf.public_models.latents import denoising_loss, draw_pairs
from dpsapf.saliency import score as saliency
from dpsapf.saliency.scores import Bounds
from dpsapf.saliency.select import chosen, ranking
from dpsapf.support.checked import replace
from dpsapf.support.randomness import numpy_generator, torch_generator
from tests.tiny import candidates, tiny_latents, tiny_scheduler, tiny_unet

CANARIES, GUESSES, STEPS, DELTA = 200, 100, 12, 1e-4
SIGMA_S, BOUND = 10.0, 1.0


def p_value(right: int, epsilon: float, guesses: int = GUESSES, canaries: int = CANARIES, delta: float = DELTA) -> float:
    """Bound the chance of at least ``right`` right guesses under (epsilon, delta)-DP (Steinke et al., theorem 5.2)."""
    rate = 1 / (1 + math.exp(-epsilon))
    tail = stats.binom.sf(right - 1, guesses, rate)
    sums = np.cumsum(stats.binom.pmf(right - np.arange(1, right + 1), guesses, rate))
    alpha = max(0.0, float((sums / np.arange(1, right + 1)).max())) if right else 0.0
    return min(1.0, float(tail) + 2 * canaries * delta * alpha)


def epsilon_lower_bound(right: int, confidence: float = 0.95, **sizes: float) -> float:
    """Return the epsilon below which so many right guesses have a chance of less than 1 - confidence; 0 if none."""
    if p_value(right, 0.0, **sizes) > 1 - confidence:
        return 0.0
    return float(optimize.brentq(lambda epsilon: p_value(right, epsilon, **sizes) - (1 - confidence), 0.0, 30.0))


def audit(target: float, seed: int, noisy: bool = True) -> tuple[int, float]:
    """Score, select and fine-tune on the canaries that a coin admits; returns right guesses and the lower bound.

    Args:
        target: epsilon that the releases are calibrated to.
        seed: of coins, draws and noise.
        noisy: False leaves out the noise of every release, and nothing else.
    """
    everyone = tiny_latents(CANARIES, seed)
    admitted = torch.from_numpy(numpy_generator(seed, "coins").random(CANARIES) < 0.5)
    releases = planned(target)
    table, released = scored(everyone, admitted, releases[0], seed, noisy)
    run = RunSpec(
        dataset="c", public_model="tiny", method="dp-sapf", level="matrix", ratio=0.3, adapter="lora", epsilon=target, seed=seed
    )
    table = table.assign(**{SCORE: released})
    table[SELECTED] = chosen(table, run)
    strength = releases[1].noise_multiplier if noisy else 1e-3
    normal, moment = observed(everyone, admitted, table, run, replace(releases[1], noise_multiplier=strength))
    guesses = torch.linalg.solve(normal + 4 * strength**2 * torch.eye(CANARIES, dtype=torch.float64), moment)
    order = guesses.argsort()
    half = GUESSES // 2
    right = int((~admitted[order[:half]]).sum() + admitted[order[-half:]].sum())
    return right, epsilon_lower_bound(right)


def planned(target: float) -> tuple[Release, Release]:
    """Calibrate DP-SGD together with the saliency release; every canary that is admitted takes part in every step."""
    first = Release(name="saliency", noise_multiplier=SIGMA_S, sensitivity=1.0, sampling_rate=1.0, steps=1)

    def build(sigma: float) -> list[Release]:
        steps = Release(name="dp-sgd", noise_multiplier=sigma, sensitivity=BOUND, sampling_rate=1.0, steps=STEPS)
        return [first, steps]

    return tuple(build(calibrate(target, DELTA, build)))


def admitted_latents(everyone: encoded.Latents, admitted: torch.Tensor) -> encoded.Latents:
    """Keep the canaries that the coin admits."""
    kept = {name: getattr(everyone, name)[admitted] for name in ("mean", "std", "labels")}
    return dataclasses.replace(everyone, **kept)


def own_draws(everyone: encoded.Latents, admitted: torch.Tensor):
    """Give each canary the same draws whoever else is admitted."""

    def draw(latents, batch, multiplicity, timesteps, generator):
        pairs = draw_pairs(everyone, torch.arange(CANARIES), multiplicity, timesteps, generator)
        return pairs.images(torch.arange(CANARIES)[admitted], multiplicity, "cpu")

    return draw


def scored(everyone, admitted, release, seed, noisy):
    """Run the saliency pass on the admitted canaries and release the scores."""
    unet = tiny_unet()
    names = candidates(unet)
    table = pd.DataFrame({MATRIX: names, LAYER: [name.rsplit(".", 1)[0] for name in names]})
    options = SimpleNamespace(
        score="share", mechanism="gaussian", votes=3, clipping_norm=BOUND, micro_batch=64, seed=seed, noise="seed", device="cpu"
    )
    latents = admitted_latents(everyone, admitted)
    exact = saliency.saliency_scores(unet, tiny_scheduler(), latents, torch.arange(len(latents)), names, options).numpy()
    units = ranking(table, None, None, "share", Bounds(clipping_norm=BOUND, votes=3))
    source = SeededNoise(torch_generator(seed, "audit", "saliency"))
    return table, mechanism("gaussian").release(exact, units, release, source) if noisy else exact


def observed(everyone, admitted, table, run, release):
    """Fine-tune on the admitted canaries; return the normal equations of least squares for who took part.

    At every step the noisy sum is sum_i w_i g_i + noise with g_i canary i's clipped gradient, w_i its coin.
    """
    latents, scheduler = admitted_latents(everyone, admitted), tiny_scheduler()
    plan = Plan(
        run=run,
        images=len(latents),
        target_epsilon=run.epsilon,
        delta=DELTA,
        relation="add or remove one image",
        unit="one canary",
        public=(),
        clipping="automatic",
        clipping_norm=BOUND,
        noise="seed",
        releases=(release,),
        planned_epsilon={},
        selection_epsilon=None,
        dp_sgd_noise_alone=None,
        dataset_sha256="",
        provenance={},
    )
    unet = tiny_unet()
    parameters = trainable(unet, run, table, 2, 2.0)
    options = SimpleNamespace(
        device="cpu", micro_batch=64, noise_multiplicity=1, ema_decay=0.0, learning_rate_schedule="constant", precision="fp32"
    )
    gradients = OpacusGradients(unet, parameters)
    training = train.Training(options, plan, release, latents, scheduler, gradients, ALONE)
    state = TrainingState(parameters, torch.optim.AdamW(parameters.values(), lr=1e-2), None)
    normal, moment = torch.zeros(CANARIES, CANARIES, dtype=torch.float64), torch.zeros(CANARIES, dtype=torch.float64)
    original, train.draw_pairs = train.draw_pairs, own_draws(everyone, admitted)
    try:
        for step in range(release.steps):
            known = clipped(training, everyone, run.seed, step, parameters)
            train.train_step(training, state)
            noisy_sum = torch.cat([value.grad.flatten() for value in parameters.values()]).double() * len(latents)
            normal += known @ known.T
            moment += known @ noisy_sum
    finally:
        train.draw_pairs = original
    return normal, moment


def clipped(training, everyone, seed, step, parameters):
    """Return every canary's clipped gradient at the current weights, float64 [m, d]."""
    generator = torch_generator(seed, "finetune", "pairs", step)
    pairs = draw_pairs(everyone, torch.arange(CANARIES), 1, 1000, generator)
    rows = pairs.rows(0, CANARIES, "cpu")
    rows.latents.requires_grad_()
    denoising_loss(training.gradients.model, training.scheduler, rows).sum().backward()
    flat = torch.cat([value.grad_sample.flatten(1) for value in parameters.values()], dim=1)
    for value in parameters.values():
        value.grad_sample = value.grad = None
    return (flat * clip_factors(flat.square().sum(1), BOUND, "automatic")[:, None]).double()
