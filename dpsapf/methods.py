"""The methods under comparison, as data: what selects the parameters and what is trained."""

import typing
from dataclasses import dataclass

from dpsapf.errors import UserError

MethodName = typing.Literal["dp-sapf", "dp-lora", "dp-full", "no-finetune"]
Level = typing.Literal["matrix", "layer"]
Adapter = typing.Literal["lora", "full", "none"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the paper's method table.

    Attributes:
        selects: True if noisy saliency scores choose the matrices (one more private release).
        adapter: ``lora`` on the chosen matrices, ``full`` for every UNet parameter, or ``none``.
    """

    selects: bool
    adapter: Adapter

    @property
    def trains(self) -> bool:
        """True if DP-SGD runs at all."""
        return self.adapter != "none"


METHODS: dict[str, Method] = {
    "dp-sapf": Method(selects=True, adapter="lora"),
    "dp-lora": Method(selects=False, adapter="lora"),
    "dp-full": Method(selects=False, adapter="full"),
    "no-finetune": Method(selects=False, adapter="none"),
}


def method(name: str) -> Method:
    """Look a method up.

    Raises:
        UserError: the name is not registered; names the known ones.
    """
    if name not in METHODS:
        raise UserError("method", name, f"must be one of {', '.join(METHODS)}")
    return METHODS[name]
