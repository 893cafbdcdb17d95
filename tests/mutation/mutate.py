"""Break the privacy code on purpose, one line at a time: every mutant must make a test fail (`make mutants`).

Each mutant is applied to a copy of the project, never to the working tree.
"""

import concurrent.futures
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("dpsapf", "tests", "config", "paper_figures", "workflow", "pyproject.toml", "Snakefile")


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: what goes wrong.
        file: source file below ``dpsapf/``.
        old: text that occurs there once.
        new: what replaces it.
        tests: test files that must notice.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


NOISE, CLIP, POISSON, AUDIT, ACCOUNT, MECHANISM = (
    f"tests/privacy/test_{name}.py" for name in ("noise", "clipping", "poisson", "audit", "accounting", "mechanisms")
)
PLAN, SALIENCY_PLAN = "tests/privacy/test_plan.py", "tests/saliency/test_plan.py"
SCORES, SCORE = (f"tests/saliency/test_{name}.py" for name in ("scores", "score"))
GHOST, GHOST_CLIP, PER_IMAGE = (f"tests/gradients/test_{name}.py" for name in ("ghost_norms", "ghost_clipping", "per_image"))
SGD, TRAIN, CHECKPOINT, PARALLEL = (f"tests/finetune/test_{name}.py" for name in ("dp_sgd", "train", "checkpoint", "parallel"))

MUTANTS = (
    Mutant("noise dropped", "privacy/noise.py", "value + noise_multiplier * sensitivity", "value + 0 * sensitivity", (NOISE,)),
    Mutant("sensitivity left out", "privacy/noise.py", "noise_multiplier * sensitivity *", "noise_multiplier *", (NOISE,)),
    Mutant("noise of 2/3", "privacy/noise.py", "value + noise_multiplier *", "value + 0.667 * noise_multiplier *", (NOISE,)),
    Mutant("system noise too small", "privacy/noise.py", "alpha=-(2.0**-63)", "alpha=-(2.0**-64)", (NOISE,)),
    Mutant("system noise from fewer uniforms", "privacy/noise.py", "squares.mul_(other)", "squares.square_()", (NOISE,)),
    Mutant("cipher with a known key", "privacy/noise.py", "AES256(os.urandom(32))", "AES256(bytes(32))", (NOISE,)),
    Mutant("forked processes draw the same", "privacy/noise.py", "self._process != os.getpid()", "self._process < 0", (NOISE,)),
    Mutant("Gumbel noise halved", "privacy/noise.py", "value - scale * np.log", "value - 0.5 * scale * np.log", (NOISE,)),
    Mutant("Laplace noise halved", "privacy/noise.py", "value - scale * math", "value - 0.5 * scale * math", (NOISE,)),
    Mutant("clip doubled", "privacy/clipping.py", "torch.clamp(bound / norms", "torch.clamp(2 * bound / norms", (CLIP,)),
    Mutant("no margin for rounding", "privacy/clipping.py", "bound *= 1 - MARGIN", "bound *= 1 - 0", (CLIP,)),
    Mutant("automatic clip doubled", "privacy/clipping.py", "factors = bound / (norms", "factors = 2 * bound / (norms", (CLIP,)),
    Mutant(
        "clip per parameter",
        "privacy/clipping.py",
        ".square().sum(1) for gradient in gradients]).sum(0)",
        ".square().sum(1) for gradient in gradients]).amax(0)",
        (CLIP,),
    ),
    Mutant(
        "broken images kept",
        "privacy/clipping.py",
        "torch.isfinite(norms), factors, torch.zeros_like(factors)",
        "torch.isfinite(norms), factors, torch.ones_like(factors)",
        (CLIP,),
    ),
    Mutant(
        "factors not applied",
        "privacy/clipping.py",
        '"b,b...->...", factors, gradient',
        '"b,b...->...", factors * 0 + 1, gradient',
        (CLIP,),
    ),
    Mutant(
        "batch of fixed size",
        "privacy/poisson.py",
        "return torch.tensor(next(iter(sampler)), dtype=torch.int64)",
        "return torch.randperm(images, generator=generator)[: round(rate * images)]",
        (POISSON,),
    ),
    Mutant(
        "secret draws from the public seed in system mode",
        "privacy/noise.py",
        "return _system_generator() if",
        "return torch_generator(seed, *names) if",
        (NOISE,),
    ),
    Mutant(
        "secret draws of 32 bits",
        "privacy/noise.py",
        "return _system_generator() if",
        'return torch.Generator().manual_seed(int.from_bytes(os.urandom(7), "big")) if',
        (NOISE,),
    ),
    Mutant(
        "pairs of DP-SGD from the public seed",
        "finetune/train.py",
        'secret_generator(plan.noise, plan.run.seed, "finetune", *names)',
        'secret_generator("seed" if names[0] == "pairs" else plan.noise, plan.run.seed, "finetune", *names)',
        (TRAIN,),
    ),
    Mutant(
        "pairs of the saliency pass from the public seed",
        "saliency/score.py",
        'secret_generator(options.noise, options.seed, "saliency", "pairs")',
        'secret_generator("seed", options.seed, "saliency", "pairs")',
        (SCORE,),
    ),
    Mutant(
        "wrong q",
        "privacy/plan.py",
        "rate = min(options.expected_batch_size / images, 1.0)",
        "rate = min(0.5 * options.expected_batch_size / images, 1.0)",
        (PLAN,),
    ),
    Mutant(
        "selection left out of the calibration",
        "privacy/plan.py",
        "_dp_sgd_noise(saliency, run,",
        "_dp_sgd_noise([], run,",
        (PLAN,),
    ),
    Mutant("selection left out of the plan", "privacy/plan.py", "releases = [*saliency, *", "releases = [*", (PLAN,)),
    Mutant(
        "steps miscounted",
        "privacy/plan.py",
        '"steps": options.steps}',
        '"steps": options.steps - 1}',
        (PLAN,),
    ),
    Mutant(
        "too much amplification by subsampling",
        "privacy/accounting.py",
        "PoissonSampledDpEvent(release.sampling_rate, step)",
        "PoissonSampledDpEvent(release.sampling_rate**2, step)",
        (ACCOUNT,),
    ),
    Mutant(
        "steps not composed",
        "privacy/accounting.py",
        "SelfComposedDpEvent(step, release.steps)",
        "SelfComposedDpEvent(step, 1)",
        (ACCOUNT,),
    ),
    Mutant(
        "whole releases free",
        "privacy/accounting.py",
        "return composed + sum(release.epsilon for release in whole)",
        "return composed",
        (ACCOUNT,),
    ),
    Mutant("delta spent twice", "privacy/accounting.py", "left = delta - sum(", "left = delta + 0 * sum(", (ACCOUNT,)),
    Mutant(
        "no guarantee counts as 0",
        "privacy/accounting.py",
        "if left <= 0 or len(gaussians) + len(whole) < len(releases):",
        "if left <= 0:",
        (PLAN, AUDIT),
    ),
    Mutant(
        "release missing from the ledger",
        "privacy/audit.py",
        "if sorted(spent) != sorted(planned):",
        "if not set(spent) <= set(planned):",
        (AUDIT,),
    ),
    Mutant(
        "audit ignores the target",
        "privacy/audit.py",
        "if spent[name] > plan.target_epsilon:",
        "if spent[name] > 2 * plan.target_epsilon + 99:",
        (AUDIT,),
    ),
    Mutant(
        "audit ignores sigma",
        "privacy/audit.py",
        "if getattr(planned, key) != getattr(spent, key):",
        'if key != "noise_multiplier" and getattr(planned, key) != getattr(spent, key):',
        (AUDIT,),
    ),
    Mutant("audit believes any batch sizes", "privacy/audit.py", "if min(chances) < UNLIKELY:", "if min(chances) < 0:", (AUDIT,)),
    Mutant(
        "audit believes other data", "privacy/audit.py", "or spend.dataset_sha256 != plan.dataset_sha256:", "or False:", (AUDIT,)
    ),
    Mutant(
        "exponential mechanism twice as sharp",
        "privacy/mechanisms.py",
        "planned.sensitivity / epsilon",
        "0.5 * planned.sensitivity / epsilon",
        (MECHANISM,),
    ),
    Mutant("exponential mechanism undercharged", "privacy/mechanisms.py", "epsilon=rho + 2 *", "epsilon=rho + 1 *", (MECHANISM,)),
    Mutant("PTR threshold too low", "privacy/mechanisms.py", "threshold = 1 + math", "threshold = 0 * math", (MECHANISM,)),
    Mutant("PTR falls back", "privacy/mechanisms.py", 'raise UserError("mechanism", "ptr", remedy)', "pass", (MECHANISM,)),
    Mutant(
        "energy not clipped",
        "saliency/scores.py",
        "return _finite(squared) * factors.square()[:, None]",
        "return _finite(squared)",
        (SCORES,),
    ),
    Mutant("energy clipped once", "saliency/scores.py", "factors.square()[:, None]", "factors[:, None]", (SCORES,)),
    Mutant(
        "sensitivity of C instead of C^2",
        "saliency/scores.py",
        "sensitivity=lambda bounds: bounds.clipping_norm**2",
        "sensitivity=lambda bounds: bounds.clipping_norm",
        (SCORES, SALIENCY_PLAN),
    ),
    Mutant(
        "one vote more", "saliency/scores.py", "squared.topk(min(bounds.votes,", "squared.topk(min(bounds.votes + 1,", (SCORES,)
    ),
    Mutant(
        "shares sum to 2",
        "saliency/scores.py",
        "return _finite(squared) / total",
        "return 2 * _finite(squared) / total",
        (SCORES,),
    ),
    Mutant(
        "Gram cross terms dropped",
        "gradients/ghost_norms.py",
        "((a.mT @ a) * (g.mT @ g)).sum((1, 2, 3))",
        "((a.mT @ a) * (g.mT @ g)).diagonal(dim1=-2, dim2=-1).sum((1, 2))",
        (GHOST,),
    ),
    Mutant("norm of sums", "gradients/ghost_norms.py", "(g @ a.mT).square_().sum(", "(g @ a.mT).abs_().sum(", (GHOST,)),
    Mutant("second calls overwrite", "gradients/ghost_norms.py", "if name in self._received:", "if False:", (GHOST, PER_IMAGE)),
    Mutant(
        "ghost factors not applied",
        "gradients/ghost_clipping.py",
        "weights = (clip_factors(squared, bound, clipping) / multiplicity)",
        "weights = (clip_factors(squared, bound, clipping) * 0 + 1 / multiplicity)",
        (GHOST_CLIP,),
    ),
    Mutant(
        "factors not applied in the pass of the sums",
        "gradients/ghost_clipping.py",
        "_weighted_sum(layer, kept[0][rows], kept[1][rows], weights)",
        "_weighted_sum(layer, kept[0][rows], kept[1][rows], weights * 0 + 1)",
        (GHOST_CLIP,),
    ),
    Mutant(
        "every layer kept under gradient checkpointing",
        "gradients/per_image.py",
        "two_passes=checkpointed and adapter is None",
        "two_passes=False",
        (PER_IMAGE,),
    ),
    Mutant(
        "LoKr's scale dropped",
        "gradients/adapter_rows.py",
        "layer.scaling[adapter] * g.unflatten",
        "g.unflatten",
        (PER_IMAGE,),
    ),
    Mutant(
        "no noise on an empty batch",
        "finetune/dp_sgd.py",
        'if release.mechanism == "gaussian" and processes.leads:',
        'if release.mechanism == "gaussian" and processes.leads and total.any():',
        (SGD,),
    ),
    Mutant(
        "divided by the realised batch",
        "finetune/dp_sgd.py",
        "/ expected_batch).to(parameter)",
        "/ max(len(pairs), 1)).to(parameter)",
        (SGD,),
    ),
    Mutant(
        "pairs clipped instead of images",
        "gradients/per_image.py",
        "return rows.float().unflatten(0, (-1, multiplicity)).mean(1)",
        "return rows.float()",
        (PER_IMAGE,),
    ),
    Mutant(
        "same noise at every step",
        "finetune/train.py",
        '"finetune", "privacy noise", step,',
        '"finetune", "privacy noise",',
        (TRAIN,),
    ),
    Mutant(
        "adapters without layers of their own clipped to twice the bound",
        "gradients/per_image.py",
        "for name in self._names], bound, clipping)",
        "for name in self._names], 2 * bound, clipping)",
        (PER_IMAGE,),
    ),
    Mutant(
        "wrong q of the saliency pass", "saliency/plan.py", "rate = min(settings.", "rate = min(0.5 * settings.", (SALIENCY_PLAN,)
    ),
    Mutant(
        "mechanism of another delta",
        "saliency/plan.py",
        "delta = options.delta or default_delta(images)",
        "delta = default_delta(images)",
        (SALIENCY_PLAN,),
    ),
    Mutant(
        "units ranked as matrices",
        "saliency/plan.py",
        "ranking(table, None if whole else run.level,",
        "ranking(table, None,",
        (SALIENCY_PLAN,),
    ),
    Mutant(
        "audit ignores the rate of whole batches",
        "privacy/audit.py",
        "if (sizes != spend.images).any():",
        "if False:",
        (AUDIT,),
    ),
    Mutant(
        "audit asks one certifier",
        "privacy/audit.py",
        'CERTIFIERS = ("pld", "prv")',
        'CERTIFIERS = ("pld",)',
        (AUDIT,),
    ),
    Mutant("Gumbel noise of one draw", "privacy/noise.py", "source.uniform(len(value))", "source.uniform(1)", (NOISE,)),
    Mutant("uniforms of 0", "privacy/noise.py", "draws.clamp_min(2.0**-54)", "draws", (NOISE,)),
    Mutant(
        "checkpoint of another run used",
        "finetune/checkpoint.py",
        'if facts["identity"] != identity:',
        'if facts["identity"] is None:',
        (CHECKPOINT,),
    ),
    Mutant(
        "processes draw other batches",
        "finetune/parallel.py",
        "return generator.set_state(state.cpu())",
        "return generator",
        (PARALLEL,),
    ),
    Mutant(
        "shares of a batch not summed",
        "finetune/parallel.py",
        "dist.all_reduce(tensor)",
        "pass",
        (PARALLEL,),
    ),
    Mutant("processes keep their own sums", "finetune/dp_sgd.py", "processes.agree([total])", "pass", (PARALLEL,)),
)


def survives(mutant: Mutant) -> bool:
    """Run the mutant's tests on a changed copy; True if they all pass."""
    with tempfile.TemporaryDirectory() as folder:
        for name in COPIED:
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, Path(folder) / name)
        path = Path(folder) / "dpsapf" / mutant.file
        text = path.read_text()
        if text.count(mutant.old) != 1:
            raise SystemExit(f"mutant '{mutant.name}': its text occurs {text.count(mutant.old)} times in {mutant.file}")
        path.write_text(text.replace(mutant.old, mutant.new))
        words = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "--no-cov", "-p", "no:cacheprovider", *mutant.tests]
        environment = os.environ | {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
        return subprocess.run(words, cwd=folder, env=environment, capture_output=True, check=False).returncode == 0


def main() -> None:
    """Make every mutant, or those whose names contain the words given; fail if one survives."""
    chosen = [mutant for mutant in MUTANTS if all(word in mutant.name for word in sys.argv[1:])]
    alive = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutant, survived in zip(chosen, pool.map(survives, chosen), strict=True):
            print(f"{'SURVIVED' if survived else 'killed  '}  {mutant.file:28}  {mutant.name}", flush=True)
            alive += [mutant.name] * survived
    print(f"{len(chosen)} mutants made, {len(chosen) - len(alive)} killed")
    sys.exit(1 if alive else 0)


if __name__ == "__main__":
    main()
