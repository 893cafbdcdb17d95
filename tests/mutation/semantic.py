"""Faults of the privacy code that no operator of `operators` makes: what a person would get wrong."""

import ast
from dataclasses import dataclass


@dataclass(frozen=True)
class SemanticMutant:
    """One fault.

    Attributes:
        name: what goes wrong.
        file: source file below ``dpsapf/``.
        old: text that occurs there once.
        new: what replaces it.
    """

    name: str
    file: str
    old: str
    new: str
    inside = False  # any of the module's tests may notice

    @property
    def id(self) -> str:
        """Return file and name."""
        return f"{self.file}: {self.name}"

    @property
    def where(self) -> str:
        """Return the file."""
        return self.file

    def tree(self, source: str) -> ast.Module:
        """Return the mutated syntax tree of the file's text.

        Raises:
            ValueError: the text does not occur once.
        """
        if source.count(self.old) != 1:
            raise ValueError(f"{self.id}: its text occurs {source.count(self.old)} times")
        return ast.parse(source.replace(self.old, self.new))


SEMANTIC = tuple(
    SemanticMutant(*row)
    for row in (
        ("noise of 2/3", "privacy/noise.py", "mul_(noise_multiplier *", "mul_(0.667 * noise_multiplier *"),
        (
            "secret draws of 32 bits",
            "privacy/noise.py",
            "return _system_generator() if",
            'return torch.Generator().manual_seed(int.from_bytes(os.urandom(7), "big")) if',
        ),
        ("Gumbel noise of one draw", "privacy/noise.py", "source.uniform(count)]", "source.uniform(1) * count]"),
        ("contributions rounded up", "privacy/noise.py", ".floor_()", ".ceil_()"),
        (
            "batch of fixed size",
            "privacy/poisson.py",
            "return near[enters]",
            "return torch.randperm(population, generator=generator)[: round(rate * population)]",
        ),
        (
            "images of a user clipped each",
            "public_models/latents.py",
            "return len(self.labels) if self.users is None else len(self._images_of_users[1])",
            "return len(self.labels)",
        ),
        (
            "splits that hang together",
            "datasets/splits.py",
            'key = f"dpsapf split {seed}".encode()',
            'key = f"dpsapf split {seed} {len(pool.labels)}".encode()',
        ),
        (
            "pairs of DP-SGD from the public seed",
            "finetune/train.py",
            "_draws(plan).secret(*names)",
            'Draws("seed" if names[0] == "pairs" else plan.noise, plan.run.seed, "finetune").secret(*names)',
        ),
        (
            "pairs of the saliency pass from the public seed",
            "saliency/score.py",
            '_draws(options).secret("pairs")',
            'Draws("seed", options.seed, "saliency").secret("pairs")',
        ),
        (
            "votes without noise",
            "evolution/votes.py",
            "return self.meter.gaussian(",
            "return Released(tuple(part.clone() for part in counts.opened())) or self.meter.gaussian(",
        ),
        (
            "two votes of an image",
            "evolution/votes.py",
            "self.meter.votes(found.cpu(), len(labels), units)",
            "self.meter.votes(found.cpu().repeat(2), len(labels), units.repeat(2))",
        ),
        (
            "a vote that counts twice",
            "evolution/votes.py",
            "counts += self.meter.votes(",
            "counts += 2 * self.meter.votes(",
        ),
        (
            "threshold before the noise",
            "evolution/votes.py",
            "return Private([counts])",
            "return Private([torch.where(counts < 2, 0, counts)])",
        ),
        (
            "voters of a user from the public seed",
            "evolution/votes.py",
            'draws.secret(step, "voters")',
            'Draws("seed", self.seed, "evolve").secret(step, "voters")',
        ),
        (
            "too much amplification by subsampling",
            "privacy/accounting.py",
            "PoissonSampledDpEvent(release.sampling_rate, step)",
            "PoissonSampledDpEvent(release.sampling_rate**2, step)",
        ),
        (
            "steps not composed",
            "privacy/accounting.py",
            "SelfComposedDpEvent(step, release.steps)",
            "SelfComposedDpEvent(step, 1)",
        ),
        (
            "release missing from the ledger",
            "privacy/audit.py",
            "if sorted(spent) != sorted(planned):",
            "if not set(spent) <= set(planned):",
        ),
        (
            "audit ignores sigma",
            "privacy/audit.py",
            "if getattr(planned, key) != getattr(spent, key):",
            'if key != "noise_multiplier" and getattr(planned, key) != getattr(spent, key):',
        ),
        ("audit asks one certifier", "privacy/audit.py", "for name in CERTIFIERS:", "for name in CERTIFIERS[:1]:"),
        (
            "Gram cross terms dropped",
            "gradients/ghost_norms.py",
            "return a.mul_(g).sum((1, 2, 3))",
            "return a.mul_(g).diagonal(dim1=-2, dim2=-1).sum((1, 2))",
        ),
        (
            "ghost factors not applied",
            "gradients/ghost_clipping.py",
            "weights = clip_factors(squared, bound, clipping)",
            "weights = clip_factors(squared, bound, clipping) * 0 + 1",
        ),
        (
            "pairs clipped instead of images",
            "gradients/per_image.py",
            "return rows.float().unflatten(0, (-1, multiplicity)).mean(1)",
            "return rows.float()",
        ),
        (
            "no noise on an empty batch",
            "finetune/dp_sgd.py",
            'if release.mechanism != "gaussian":',
            'if release.mechanism != "gaussian" or not any(part.any() for part in sums.opened()):',
        ),
        (
            "divided by the realised batch",
            "finetune/dp_sgd.py",
            "released.means()",
            "(value / max(len(batch), 1) for value in released.values)",
        ),
        ("repetitions count", "finetune/dp_sgd.py", "loss_function(Pairs(*rows)) * real", "loss_function(Pairs(*rows))"),
        (
            "an image's own gradient is not averaged",
            "gradients/ghost_norms.py",
            ".div_(multiplicity).reshape(-1, *layer.weight.shape)",
            ".reshape(-1, *layer.weight.shape)",
        ),
        ("fp32 factors rounded to bf16", "gradients/products.py", "for _ in range(3)", "for _ in range(1)"),
    )
)
