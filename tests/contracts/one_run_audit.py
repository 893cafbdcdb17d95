"""Empirical lower bounds on epsilon, each from one run with canaries, for the right mechanism and for broken ones.

Steinke, Nasr and Jagielski (2023, arXiv 2305.08846): each of m canaries takes part with probability 1/2; from
everything that is released, guess who did; the number of right guesses bounds epsilon from below. The attacker is the
strongest that the guarantee admits: it sees every noisy sum, and knows every canary and its draws, but not who takes
part. A fault changes the mechanism, never the attacker: one attack, with the planned noise and rate, for all of them.

``python -m tests.contracts.one_run_audit`` prints what it finds.
"""

import functools
import math
import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from scipy import optimize, stats
from scipy.special import ndtr, ndtri

from dpsapf.experiment.columns import BLOCK, CANDIDATES, LAYER, MATRIX, SCORE
from dpsapf.experiment.records import Release
from dpsapf.experiment.stages import ScoreSaliency
from dpsapf.finetune import train
from dpsapf.finetune.checkpoint import TrainingState
from dpsapf.gradients import ghost_clipping
from dpsapf.gradients.per_image import per_image_gradients
from dpsapf.privacy import clipping, meter, noise, spends
from dpsapf.privacy.accounting import epsilon
from dpsapf.privacy.evidence import check_measures
from dpsapf.privacy.mechanisms import Ranking, Refused, mechanism
from dpsapf.privacy.values import Private
from dpsapf.public_models.latents import Pairs
from dpsapf.saliency import score as saliency
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.parallel import ALONE
from dpsapf.support.randomness import numpy_generator, torch_generator
from tests.tiny import tiny_objective

# ---- Patch points: every name of the package that is replaced, and what the attacker knows of its seeds, stands here.

ADD_NOISE, ADD_GUMBEL, ADD_LAPLACE = noise.add_gaussian_noise, noise.gumbel_noise, noise.laplace_noise
DRAW_NOISE = noise.Draws.noise
CLIPPED_SUM = ghost_clipping.GhostClipping.clipped_sum


def planted_draws(draw: Callable) -> AbstractContextManager:
    """Give each canary its own draws in fine-tuning, whoever else takes part."""
    return patch.object(train, "draw_batch", draw)


def planted_saliency(model: torch.nn.Module | None, **replaced: Callable) -> AbstractContextManager:
    """Let the saliency stage score a planted model, or read planted squared norms, and read no records."""
    stack = ExitStack()
    replaced |= {
        "load_model": lambda _: SimpleNamespace(denoiser=lambda device: model or torch.nn.Identity(), objective=tiny_objective),
        "read_record": lambda *_: SimpleNamespace(name="canaries", id="canaries"),
        "settings": lambda _: {},
    }
    for name, value in replaced.items():
        stack.enter_context(patch.object(saliency, name, value))
    return stack


def noise_from_the_seed(release: Release, seed: int, canaries: int) -> np.ndarray:
    """Draw what a run with seeded noise would add at each step, in units of its standard deviation, [T, m]."""
    if release.name == "saliency":
        like, sources = torch.zeros(canaries, dtype=torch.float64), [torch_generator(seed, "saliency", "privacy noise")]
    else:
        like = torch.zeros(SIDE, SIDE)
        sources = [torch_generator(seed, "finetune", "privacy noise", step) for step in range(release.steps)]
    return np.stack([noise.SeededNoise(source).normal(like).double().flatten().numpy() for source in sources])


def _third(value, noise_multiplier, *rest):
    return ADD_NOISE(value, noise_multiplier / 3, *rest)


def _scaled(draw: Callable, factor: float) -> Callable:
    """Scale ranking noise: of a count (Gumbel) or of one number (Laplace), then scale and source."""
    return lambda *arguments: draw(*arguments[:-2], Decimal(factor) * arguments[-2], arguments[-1])


def _no_noise(value, *_):
    return value.clone()


def _each_pair_clipped(self, loss, bound, kind, multiplicity=1, resting=frozenset()):
    return CLIPPED_SUM(self, loss, bound, kind, 1, resting)


def _unclipped(squared_norms, *_):
    return torch.ones_like(squared_norms)


def _reused_noise() -> AbstractContextManager:
    """One secret draw, made again at every step."""
    secret = int.from_bytes(os.urandom(7), "big")
    return patch.object(noise.Draws, "noise", lambda *_, **__: noise.SeededNoise(torch.Generator().manual_seed(secret)))


def _seeded(draws: noise.Draws, *names: str | int, **told: object) -> noise.NoiseSource:
    return DRAW_NOISE(replace(draws, mode="seed"), *names, **told)


FINETUNE_FAULTS: dict[str, Callable[[], AbstractContextManager]] = {
    "noise / 3": lambda: patch.object(meter, "add_gaussian_noise", _third),
    "no clipping": lambda: patch.object(ghost_clipping, "clip_factors", _unclipped),
    "noise reused at every step": _reused_noise,
    "noise from the public seed": lambda: patch.object(noise.Draws, "noise", _seeded),
}
MULTIPLE_FAULTS: dict[str, Callable[[], AbstractContextManager]] = {
    "each pair clipped": lambda: patch.object(ghost_clipping.GhostClipping, "clipped_sum", _each_pair_clipped),
}
SAMPLING_FAULTS: dict[str, Callable[[], AbstractContextManager]] = {
    "everybody at every step": lambda: patch.object(meter, "poisson_batch", lambda images, *_: torch.arange(images)),
}
SCORE_FAULTS: dict[str, Callable[[], AbstractContextManager]] = {
    "noise / 3": lambda: patch.object(meter, "add_gaussian_noise", _third),
    "no noise": lambda: patch.object(meter, "add_gaussian_noise", _no_noise),
    "no clipping": lambda: patch.object(clipping, "clip_factors", _unclipped),
    "noise from the public seed": lambda: patch.object(noise.Draws, "noise", _seeded),
}

SIGNAL_FAULTS = SCORE_FAULTS | {"no clipping": lambda: patch.object(ghost_clipping, "clip_factors", _unclipped)}
DRAW_FAULTS: dict[str, Callable[[], AbstractContextManager]] = {
    "noise / 5": lambda: patch.object(meter, "gumbel_noise", _scaled(ADD_GUMBEL, 1 / 5)),
    "each at the cost of all": lambda: patch.object(meter, "gumbel_noise", _scaled(ADD_GUMBEL, 1 / math.sqrt(DRAWN))),
}
TEST_FAULTS: dict[str, Callable[[], AbstractContextManager]] = {
    "noise / 3": lambda: patch.object(meter, "laplace_noise", _scaled(ADD_LAPLACE, 1 / 3)),
}

# ---- What is attacked. Both bounds need many canaries: ideal attacks reach half of epsilon with 65,536, not with 2,000.

SIDE, SCORED = 256, 2**14  # canaries of fine-tuning, SIDE^2: one for each entry of a matrix; of the scores: matrices
DELTA, SEED, STEPS = 1e-6, 0, 4
STRETCH = 10.0  # a canary's gradient norm over C, so that clipping matters
MU_STEP = 1e-3
GUESSES = (1024, 2048)  # half of them "took part", for the highest statistics, half "did not"
FULL = Release(name="dp-sgd", noise_multiplier=3.1, sensitivity=1.0, sampling_rate=1.0, steps=STEPS, noise="system")
SAMPLED = Release(name="dp-sgd", noise_multiplier=0.97, sensitivity=1.0, sampling_rate=0.1, steps=STEPS, noise="system")
SIGNALLED, PAIRS = 2**12, 4  # matrices whose signal is scored; draws for each image where there are several
SCORES = Release(name="saliency", noise_multiplier=1.55, sensitivity=1.0, sampling_rate=1.0, steps=1, noise="system")


@functools.cache
def target(release: Release) -> float:
    """Return the epsilon that the accounting gives a release: what is attacked."""
    return epsilon("pld", [release], DELTA)


# ---- From right guesses to bounds


def p_value(right: int, epsilon: float, guesses: int, canaries: int, delta: float) -> float:
    """Bound the chance of at least ``right`` right guesses under (epsilon, delta)-DP (Steinke et al., theorem 5.2).

    Right guesses are at most W + F: W ~ Binomial(guesses, e^epsilon/(1 + e^epsilon)), and F >= 0 with a mean of at
    most 2 m delta. Of all such F, one that is 0 or some i maximises P(W + F >= right).
    """
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


def gaussian_refuted(right: int, chance: float, mu: float, guesses: int, canaries: int) -> bool:
    """Tell if mu-Gaussian DP excludes a chance of ``chance`` of at least ``right`` right guesses.

    Mahloujifar, Melis and Chaudhuri (2025, arXiv 2410.22235). Flip one canary's coin: where i guesses were right, its
    own among them, i - 1 are. Averaged over canaries, with p_l the chance of l right ones, A_i = sum_{l >= i} l p_l / m
    and B_i = sum_{l >= i} (guesses - l) p_l / m, the trade-off curve gives A_i <= Phi(Phi^-1(B_{i-1}) + mu) for all i.
    From p_right = chance downwards, take of each p_{i-1} the least that this admits; refuted if they exceed 1.
    """
    total, a, b = chance, chance * right / canaries, chance * (guesses - right) / canaries
    for i in range(right, 0, -1):
        least = ndtr(ndtri(a) - mu)
        if least > b:
            added = (least - b) * canaries / (guesses - i + 1)
            total, a, b = total + added, a + added * (i - 1) / canaries, least
        if total > 1:
            return True
    return False


def gaussian_lower_bound(right: int, confidence: float, guesses: int, canaries: int) -> float:
    """Return the largest mu, to MU_STEP, for which mu-Gaussian DP is refuted at a confidence; 0 if none."""
    low, high = 0.0, 10.0
    while high - low > MU_STEP:
        middle = (low + high) / 2
        refuted = gaussian_refuted(right, 1 - confidence, middle, guesses, canaries)
        low, high = (middle, high) if refuted else (low, middle)
    return low


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the epsilon at ``delta`` of mu-Gaussian DP (Dong, Roth and Su 2022, corollary 1); 0 if mu gives none."""

    def excess(value: float) -> float:
        return ndtr(mu / 2 - value / mu) - math.exp(value) * ndtr(-mu / 2 - value / mu) - delta

    return float(optimize.brentq(excess, 0.0, 100.0)) if mu and excess(0.0) > 0 else 0.0


@dataclass(frozen=True)
class Found:
    """What the attacker found: (right, guessed) of every statistic and number of guesses that it tried.

    Each bound is the best over them, at a confidence that is corrected for having tried them all (Bonferroni).
    """

    tried: tuple[tuple[int, int], ...]
    canaries: int

    def _each(self, confidence: float) -> float:
        return 1 - (1 - confidence) / len(self.tried)

    def bound(self, confidence: float = 0.95) -> float:
        """Bound epsilon from below, whatever else the mechanism does."""
        sizes = {"canaries": self.canaries, "delta": DELTA, "confidence": self._each(confidence)}
        return max(epsilon_lower_bound(right, guesses=guesses, **sizes) for right, guesses in self.tried)

    def curve_bound(self, confidence: float = 0.95) -> float:
        """Bound epsilon of a mechanism whose plan is Gaussian DP, at rate 1, from below: tighter, by its whole curve."""
        chance, best = 1 - self._each(confidence), 0.0
        for right, guesses in self.tried:
            if gaussian_refuted(right, chance, best + MU_STEP, guesses, self.canaries):
                best = gaussian_lower_bound(right, 1 - chance, guesses, self.canaries)
        return gaussian_epsilon(best, DELTA)


# ---- The attacker


def attack(sums: np.ndarray, signs: np.ndarray, admitted: np.ndarray, release: Release) -> Found:
    """Guess who took part by several statistics, for several numbers of guesses.

    Args:
        sums: what was released, one entry for each canary, [T, m].
        signs: known sign of each canary's contribution, at each step, [T, m].
        admitted: who took part, to count right guesses, bool [m].
        release: the plan: its noise, rate and sensitivity.
    """
    scaled = sums / release.sensitivity
    without_seeded = scaled - release.noise_multiplier * noise_from_the_seed(release, SEED, len(admitted))
    statistics = (_likelihood(signs * scaled, release), _differences(scaled, signs), _likelihood(signs * without_seeded, release))
    return Found(tuple(_counted(values, admitted, count) for values in statistics for count in GUESSES), len(admitted))


def _likelihood(values: np.ndarray, release: Release) -> np.ndarray:
    """Log-likelihood ratio of taking part (1 with chance q at each step) against not; at rate 1 the matched filter."""
    rate, variance = release.sampling_rate, release.noise_multiplier**2
    left_out = math.log1p(-rate) if rate < 1 else -math.inf
    return np.logaddexp(left_out, math.log(rate) + (values - 0.5) / variance).sum(0)


def _differences(values: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Matched filter on differences between steps: noise that is the same at all steps cancels."""
    centred = signs - signs.mean(0)
    return (centred * (values - signs / 2)).sum(0)


def _counted(statistic: np.ndarray, admitted: np.ndarray, guesses: int) -> tuple[int, int]:
    order, half = statistic.argsort(), guesses // 2
    return int((~admitted[order[:half]]).sum() + admitted[order[-half:]].sum()), guesses


def ideal(release: Release, canaries: int, seed: int) -> Found:
    """Attack the mechanism on paper, in which each canary moves its own number by 1: nobody can do better on average."""
    random = np.random.default_rng(seed)
    admitted, shape = random.random(canaries) < 0.5, (release.steps, canaries)
    taken = admitted & (random.random(shape) < release.sampling_rate)
    sums = taken + release.noise_multiplier * random.standard_normal(shape)
    tried = [_counted(_likelihood(sums, release), admitted, count) for count in GUESSES]
    return Found(tuple(tried * 3), canaries)  # the attacker above tries three statistics


# ---- Fine-tuning under attack


class PlantedModel(torch.nn.Module):
    """Predict a matrix times the prompt embedding.

    With embedding e_c, and a latent's noise that is huge in entry k alone, a canary's gradient is huge in entry (k, c)
    of the matrix and next to 0 elsewhere: canaries' gradients are orthogonal.
    """

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.nn.Linear(SIDE, SIDE, bias=False)
        torch.nn.init.zeros_(self.matrix.weight)

    def forward(self, latents, timesteps, embeddings, return_dict):
        return (self.matrix(embeddings[:, 0]).reshape(latents.shape),)


def measured_finetuning(release: Release, fault: Callable[[], AbstractContextManager] = nullcontext) -> str | None:
    """Train as `attack_finetuning`, and return what the audit's tests of the measures refuse, if they do."""
    members = torch.from_numpy(coins(SIDE**2).nonzero()[0])
    signs = torch.from_numpy(numpy_generator(SEED, "signs").choice([-1.0, 1.0], (release.steps, SIDE**2))).float()
    training, state = _trainer(release, len(members))
    with fault():
        for step in range(release.steps):
            with planted_draws(_draws(members, signs[step])):
                train.train_step(training, state)
    done = state.meter.release(release)
    if done != release:
        return "the release differs from the plan"
    spend = SimpleNamespace(release=done, unit="image", population=len(members), numbers=SIDE**2)
    try:
        check_measures(spend, state.meter.measured(0.0), Path("private.json"))
    except UserError as error:
        return str(error)
    return None


def attack_finetuning(
    release: Release, fault: Callable[[], AbstractContextManager] = nullcontext, multiplicity: int = 1
) -> Found:
    """Train a matrix by ``train.train_step`` on the canaries that a coin admits; system noise, several draws of an image."""
    admitted, signs = coins(SIDE**2), numpy_generator(SEED, "signs").choice([-1.0, 1.0], (release.steps, SIDE**2))
    with fault():
        sums = finetuned(release, torch.from_numpy(admitted.nonzero()[0]), torch.from_numpy(signs).float(), multiplicity)
    return attack(sums, signs, admitted, release)


def attack_several_draws(fault: Callable[[], AbstractContextManager] = nullcontext) -> Found:
    """Train with several draws for each image and step."""
    return attack_finetuning(FULL, fault, PAIRS)


def coins(canaries: int) -> np.ndarray:
    """Toss who takes part."""
    return numpy_generator(SEED, "coins").random(canaries) < 0.5


def finetuned(release: Release, members: torch.Tensor, signs: torch.Tensor, multiplicity: int) -> np.ndarray:
    """Return the noisy gradient sum of each step, [T, m]."""
    training, state = _trainer(release, len(members), multiplicity)
    (matrix,), sums = state.parameters.values(), []
    for step in range(release.steps):
        with planted_draws(_draws(members, signs[step])):
            train.train_step(training, state)
        sums.append(matrix.grad.double().flatten().numpy() * release.sampling_rate * len(members))
    return np.stack(sums)


def _trainer(release: Release, images: int, multiplicity: int = 1) -> tuple[train.Training, TrainingState]:
    plan = SimpleNamespace(run=SimpleNamespace(seed=SEED, adapter=None), population=images, clipping="automatic", noise="system")
    settings = {"device": "cpu", "micro_batch": 8192, "ema_decay": 0.0, "learning_rate_schedule": "constant", "precision": "fp32"}
    options = SimpleNamespace(noise_multiplicity=multiplicity, **settings)
    model = PlantedModel()
    parameters = dict(model.named_parameters())
    gradients = per_image_gradients(model, parameters, None)
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3, weight_decay=0.0)
    training = train.Training(options, plan, release, None, tiny_objective(), gradients, ALONE)
    return training, TrainingState(parameters, optimizer, None, meter.Meter(images))


def _draws(members: torch.Tensor, signs: torch.Tensor) -> Callable:
    """Plant canary k SIDE + c: embedding e_c, and noise in entry k that makes its gradient STRETCH C long."""

    def draw(latents, batch, multiplicity, timesteps, generator):
        who = members[batch].repeat_interleave(multiplicity)
        planted = torch.zeros(len(who), SIDE)
        planted[torch.arange(len(who)), who // SIDE] = -STRETCH * FULL.sensitivity * SIDE / 2 * signs[who]
        planted = planted.reshape(-1, 1, 16, SIDE // 16)
        return Pairs(torch.zeros_like(planted), planted, torch.zeros_like(who), who % SIDE, torch.eye(SIDE)[:, None])

    return draw


# ---- The saliency scores under attack


def attack_scores(fault: Callable[[], AbstractContextManager] = nullcontext) -> Found:
    """Run the saliency stage on canaries of which each has all its energy in its own matrix; system noise."""
    admitted = coins(SCORED)
    with tempfile.TemporaryDirectory() as folder, planted_saliency(None, squared_gradient_norms=_own_matrix), fault():
        released = released_scores(Path(folder), torch.from_numpy(admitted.nonzero()[0]))
    return attack(released[None], np.ones((1, SCORED)), admitted, SCORES)


class ManyMatrices(torch.nn.Module):
    """Predict the sum of matrices of one entry, each times its own entry of the prompt embedding.

    With embedding e_c and huge noise, a canary's gradient is huge in matrix c and 0 in the others.
    """

    def __init__(self) -> None:
        super().__init__()
        for number in range(SIGNALLED):
            self.add_module(f"m{number}", torch.nn.Linear(1, 1, bias=False))
            torch.nn.init.zeros_(self.get_submodule(f"m{number}").weight)

    def forward(self, latents, timesteps, embeddings, return_dict):
        inputs = embeddings[:, 0].split(1, dim=1)
        outputs = [matrix(part) for matrix, part in zip(self.children(), inputs, strict=True)]
        return (torch.cat(outputs, dim=1).sum(1).reshape(latents.shape),)


def attack_signal(fault: Callable[[], AbstractContextManager] = nullcontext) -> Found:
    """Score by ``signal`` a model in which each canary has its own matrix; system noise."""
    admitted = coins(SIGNALLED)
    with tempfile.TemporaryDirectory() as folder, planted_saliency(ManyMatrices(), draw_batch=_own_signal), fault():
        released = released_scores(Path(folder), torch.from_numpy(admitted.nonzero()[0]), SIGNALLED, "signal")
    return attack(released[None], np.ones((1, SIGNALLED)), admitted, SCORES)


def _own_signal(latents, batch, multiplicity, timesteps, generator):
    who = latents.labels[batch]
    planted = torch.full((len(who), 1, 1, 1), STRETCH)
    return Pairs(torch.zeros_like(planted), planted, torch.zeros_like(who), who, torch.eye(SIGNALLED)[:, None])


def _own_matrix(denoiser, objective, pairs, names, options, parts):
    for who in pairs.latents.labels[pairs.images].split(256):
        squared = torch.zeros(len(who), len(names))
        yield squared.scatter_(1, who[:, None], (STRETCH * SCORES.sensitivity) ** 2)


def released_scores(folder: Path, members: torch.Tensor, matrices: int = SCORED, score: str = "energy") -> np.ndarray:
    """Return the noisy scores that ``score_saliency`` writes."""
    names = [f"m{number}" for number in range(matrices)]
    table = pd.DataFrame({MATRIX: names, LAYER: names, BLOCK: "b", CANDIDATES: "attention"})
    table.to_csv(folder / "candidates.csv", index=False)
    (folder / "model.json").write_text("read by no one, but digested")
    origin = {"dataset_id": "canaries", "model": sha256(folder / "model.json")}
    shapes = {"mean": (len(members), 1, 1, 1), "std": (len(members), 1, 1, 1)}
    latents = {name: torch.zeros(shape) for name, shape in shapes.items()}
    save_file(latents | {"labels": members}, folder / "latents.safetensors", origin)
    save_file({"classes": torch.zeros(1, 1, 1), "null": torch.zeros(1, 1)}, folder / "prompts.safetensors", origin)
    options = ScoreSaliency(
        dataset=folder / "dataset.json",
        model=folder / "model.json",
        candidate_table=folder / "candidates.csv",
        latents=folder / "latents.safetensors",
        prompts=folder / "prompts.safetensors",
        score=score,
        mechanism="gaussian",
        sigma_s=SCORES.noise_multiplier,
        clipping_norm=SCORES.sensitivity,
        expected_batch_size=matrices,
        noise="system",
        seed=SEED,
        micro_batch=2048,
        threads=1,
        scores=folder / "scores.csv",
        spend=folder / "spend.json",
        private=folder / "private.json",
    )
    with patch.dict(os.environ, DPSAPF_SPENDS=str(folder / "spends")):  # each attack is on an owner of its own
        with spends.opened() as book:
            spends.know_by_name(book, origin["dataset_id"], "canaries")
        saliency.score_saliency(options)
    return pd.read_csv(options.scores)[SCORE].to_numpy()


# ---- Rankings under attack: one image tells so little of itself there that the release is made anew, many times

UNITS, DRAWN, GAP = 100, 20, 8.0  # units to rank, draws of the exponential mechanism; gap of propose-test-release, in D
ROUNDS, MAY_FAIL = 3_000, 1e-6  # releases with the image, and as many without; chance of a bound above epsilon
RANKED_DELTA, RANKED_SIGMA = 1e-3, {"exponential": 1.5, "ptr": 1.0}


def ranking_release(name: str) -> tuple[Ranking, Release]:
    """Plan a release of a ranking, on units of one matrix each, one of which an image raises by at most 2."""
    ranking = Ranking(unit_of=np.arange(UNITS), kept=DRAWN, sensitivity=2.0, unit_sensitivity=2.0)
    return ranking, mechanism(name).plan(ranking, RANKED_SIGMA[name], 1.0, RANKED_DELTA)


def attack_ranking(name: str, fault: Callable[[], AbstractContextManager] = nullcontext) -> float:
    """Bound epsilon from below by telling releases with one image from releases without it; system noise.

    The image raises every other unit (``exponential``: more of them are drawn), or the k best (``ptr``: the test passes
    sooner). A threshold on what is seen is chosen on the first half of the releases, and judged on the second by
    Clopper and Pearson's intervals, each at half of what may fail: TPR <= e^epsilon FPR + delta.
    """
    ranking, planned = ranking_release(name)
    ranks = np.arange(UNITS) < DRAWN
    without = np.zeros(UNITS) if name == "exponential" else GAP * 2.0 * ranks
    raised = np.arange(UNITS) % 2 == 0 if name == "exponential" else ranks
    with fault():
        neighbours = (without, without + 2.0 * raised)
        seen = [[_seen(name, scores, raised, ranking, planned) for _ in range(ROUNDS)] for scores in neighbours]
    tries, judged = np.split(np.array(seen), 2, axis=1)
    threshold = max(np.unique(tries), key=lambda value: _ratio_bound(tries >= value, planned.delta))
    return _ratio_bound(judged >= threshold, planned.delta)


def _seen(name: str, scores: np.ndarray, raised: np.ndarray, ranking: Ranking, planned: Release) -> float:
    try:
        sums = Private([torch.from_numpy(scores)])
        (released,) = mechanism(name).release(sums, ranking, planned, noise.SystemNoise(), meter.Meter(1)).values
    except Refused:
        return -1.0
    return float((released.numpy()[raised] > 0).sum())


def _ratio_bound(positive: np.ndarray, delta: float) -> float:
    """Return the largest epsilon that rates of positives without and with the image, bool [2, n], exclude; at least 0."""
    wrong, right = positive.sum(1)
    least = stats.beta.ppf(MAY_FAIL / 2, right, positive.shape[1] - right + 1) if right else 0.0
    most = stats.beta.ppf(1 - MAY_FAIL / 2, wrong + 1, positive.shape[1] - wrong) if wrong < positive.shape[1] else 1.0
    return max(0.0, math.log((least - delta) / most)) if least > delta else 0.0


# ---- The table

SUBJECTS: dict[str, tuple[Release, int, Callable, dict[str, Callable]]] = {
    "fine-tuning, rate 1": (FULL, SIDE**2, lambda *fault: attack_finetuning(FULL, *fault), FINETUNE_FAULTS),
    "fine-tuning, rate 0.1": (SAMPLED, SIDE**2, lambda *fault: attack_finetuning(SAMPLED, *fault), SAMPLING_FAULTS),
    "fine-tuning, 4 draws": (FULL, SIDE**2, attack_several_draws, MULTIPLE_FAULTS),
    "scores": (SCORES, SCORED, attack_scores, SCORE_FAULTS),
    "scores, signal": (SCORES, SIGNALLED, attack_signal, SIGNAL_FAULTS),
}
RANKINGS: dict[str, dict[str, Callable]] = {"exponential": DRAW_FAULTS, "ptr": TEST_FAULTS}


def main() -> None:
    """Print what is found of the right mechanisms, of every fault, and what ideal attacks reach (median of 11)."""
    print(f"{'':23}{'':28}{'right of guessed':18}{'bound':>8}{'curve':>8}{'epsilon':>9}")
    for subject, (release, canaries, attacked, faults) in SUBJECTS.items():
        for name, fault in {"right": nullcontext, **faults}.items():
            found = attacked(fault)
            _print(subject, name, release, found, found.bound(), found.curve_bound())
        runs = [ideal(release, canaries, seed) for seed in range(11)]
        bounds = (float(np.median([getattr(run, key)() for run in runs])) for key in ("bound", "curve_bound"))
        _print(subject, "ideal attack", release, runs[0], *bounds)
    for subject, faults in RANKINGS.items():
        for name, fault in {"right": nullcontext, **faults}.items():
            bound, planned = attack_ranking(subject, fault), ranking_release(subject)[1].epsilon
            print(f"{subject:23}{name:28}{f'{2 * ROUNDS} releases':18}{bound:8.2f}{'':8}{planned:9.2f}", flush=True)


def _print(subject: str, name: str, release: Release, found: Found, bound: float, curve: float) -> None:
    right, guesses = max(found.tried, key=lambda pair: pair[0] / pair[1])
    curve = f"{curve:8.2f}" if release.sampling_rate == 1 else f"{'':8}"
    print(f"{subject:23}{name:28}{f'{right} of {guesses}':18}{bound:8.2f}{curve}{target(release):9.2f}", flush=True)


if __name__ == "__main__":
    main()
