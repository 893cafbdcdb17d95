"""The methods under comparison, as data: what chooses the matrices, what is trained or evolves, under which guarantee."""

import typing
from dataclasses import dataclass

from pydantic import Field

from dpsapf.support.errors import UserError, one_of

MethodName = typing.Literal[
    "dp-sapf",
    "dp-lora",
    "dp-full",
    "dp-ldm",
    "random",
    "noisy",
    "no-lora",
    "all-params",
    "dp-bitfit",
    "proxy",
    "pe",
    "aug-pe",
    "clip-only",
    "no-dp",
    "no-finetune",
]
AnyMethod = typing.Literal[MethodName, "external"]  # images of another group: in no study, and nothing of them is planned
Level = typing.Literal["matrix", "layer", "block"]
Candidates = typing.Literal["attention", "attention+proj", "attention+ffn", "all-params"]
MEMBERS: dict[Candidates, tuple[Candidates, ...]] = {  # what a candidate table calls the matrices of each set
    "attention": ("attention",),
    "attention+proj": ("attention", "attention+proj"),
    "attention+ffn": ("attention", "attention+ffn"),
    "all-params": typing.get_args(Candidates),
}
Adapter = typing.Literal["lora", "rslora", "dora", "loha", "lokr", "ffa-lora", "la-lora"]
ScoreName = typing.Literal["energy", "norm", "vote", "share", "signal"]
MechanismName = typing.Literal["gaussian", "exponential", "ptr"]
Rule = typing.Literal["top", "least", "random", "gap", "noise-aware", "equal-curvature", "noise-budget"]
COUNTS_ITSELF = ("gap", "noise-aware", "equal-curvature", "noise-budget")  # rules that find a ratio, where it is auto
WEIGHS_NOISE = ("noise-aware", "equal-curvature", "noise-budget")  # rules that need the signal's energy
FRAGILITY = "fragility"  # what method proxy selects by, where it is no dataset: what noise in each matrix breaks
WALKING = ("lora", "ffa-lora")  # adapters of which it is known how far noise carries them
TOLERATED_RISE = (
    0.1  # by noise, of the unit variance of what a denoiser predicts: mnist5k began to break there, docs/stability.md
)
Optimizer = typing.Literal["adamw", "adamw-8bit", "dp-adambc", "sgd"]
Unit = typing.Literal["image", "user"]
NoiseMode = typing.Literal["seed", "system"]
Precision = typing.Literal["fp32", "bf16"]
Sampler = typing.Literal["model", "ddim"]
Ratio = typing.Annotated[float, Field(gt=0, le=1)]
Positive = typing.Annotated[float, Field(gt=0)]
Seed = typing.Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the paper's method table.

    Attributes:
        selection: ``saliency`` (released scores choose), ``proxy`` (scores of another dataset without noise, or public
            numbers), ``random`` (a data-free draw of as many) or ``all``.
        trained: an ``adapter`` on the chosen matrices, the chosen ``weights`` themselves, every parameter of the
            ``attention`` modules, every bias (``biases``), every parameter of the ``unet``, or ``nothing``.
        private: False for methods without noise, whose epsilon is infinite.
        clips: False where no gradient is clipped.
        candidates: the only candidate set of the method; None if the run says which.
        randomises_rest: True if the candidates that were not chosen are replaced by random values.
        evolves: how votes of the private images choose among synthetic ones, for methods that train nothing and let images
            evolve: ``drawn`` in proportion to their votes, or the ``first`` by votes; None for all others.
        made_elsewhere: True where another group made the images: this suite plans, trains and audits nothing of them.
    """

    selection: typing.Literal["saliency", "proxy", "random", "all"]
    trained: typing.Literal["adapter", "weights", "attention", "biases", "unet", "nothing"]
    private: bool = True
    clips: bool = True
    candidates: Candidates | None = None
    randomises_rest: bool = False
    evolves: typing.Literal["drawn", "first"] | None = None
    made_elsewhere: bool = False

    @property
    def selects(self) -> bool:
        """True if saliency scores of the private images choose the matrices."""
        return self.selection == "saliency"

    @property
    def trains(self) -> bool:
        """True if anything is trained at all."""
        return self.trained != "nothing"

    @property
    def trains_more(self) -> bool:
        """True if more is trained than candidate matrices, or adapters on them."""
        return self.trained in ("attention", "biases", "unet")

    @property
    def spends(self) -> bool:
        """True if a run releases something of its own beside scores: it trains, or lets images evolve."""
        return self.trains or self.evolves is not None

    @property
    def uses(self) -> frozenset[str]:
        """Axes of a run that change this method's result, besides dataset, public model and seed."""
        axes = {
            "level": self.selection != "all",
            "ratio": self.selection != "all",
            "score": self.selection in ("saliency", "proxy"),
            "mechanism": self.selects and self.private,
            "sigma_s": self.selects and self.private,
            "rule": self.selects,
            "proxy": self.selection == "proxy",
            "candidates": self.trained in ("adapter", "weights") and self.candidates is None,
            "adapter": self.trained == "adapter",
            "epsilon": self.spends and self.private,
            "lora_rank": self.trained == "adapter",
            **dict.fromkeys(("learning_rate", "training_steps", "batch_size", "optimizer"), self.trains),
        }
        return frozenset(axis for axis, used in axes.items() if used)


METHODS: dict[str, Method] = {
    "dp-sapf": Method(selection="saliency", trained="adapter"),
    "dp-lora": Method(selection="all", trained="adapter"),
    "dp-full": Method(selection="all", trained="unet"),
    "dp-ldm": Method(selection="all", trained="attention"),
    "random": Method(selection="random", trained="adapter"),
    "noisy": Method(selection="saliency", trained="adapter", randomises_rest=True),
    "no-lora": Method(selection="saliency", trained="weights"),
    "all-params": Method(selection="saliency", trained="weights", candidates="all-params"),
    "dp-bitfit": Method(selection="all", trained="biases"),  # Bu et al. 2022, arXiv 2210.00036
    "proxy": Method(selection="proxy", trained="adapter"),
    "pe": Method(selection="all", trained="nothing", clips=False, evolves="drawn"),  # Lin et al. 2024, arXiv 2305.15560
    "aug-pe": Method(selection="all", trained="nothing", clips=False, evolves="first"),  # Xie et al. 2024, arXiv 2403.01749
    "clip-only": Method(selection="saliency", trained="adapter", private=False),
    "no-dp": Method(selection="saliency", trained="adapter", private=False, clips=False),
    "no-finetune": Method(selection="all", trained="nothing"),
}
EXTERNAL = Method(selection="all", trained="nothing", clips=False, made_elsewhere=True)
AXES = frozenset().union(*(row.uses for row in METHODS.values()))
TRAINING_AXES = ("learning_rate", "training_steps", "batch_size", "lora_rank", "optimizer")  # null: the config's own value


def method(name: str) -> Method:
    """Look a method up.

    Raises:
        UserError: the name is not registered; names the known ones.
    """
    if name == "external":
        return EXTERNAL
    if name not in METHODS:
        raise UserError("method", name, one_of(name, METHODS))
    return METHODS[name]
