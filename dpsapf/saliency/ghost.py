"""Per-image squared gradient norms of linear layers from one batched backward pass.

For a linear layer with inputs a [B, T, I] and output gradients g [B, T, O], image b's weight gradient
is G_b = sum_t g_bt a_bt^T. Its squared norm needs either G_b itself or the two Gram matrices
(Goodfellow 2015, arXiv 1510.01799; Li et al. 2022, arXiv 2110.05679): whichever is cheaper.
"""

from types import TracebackType

import torch


def squared_norms(inputs: torch.Tensor, output_gradients: torch.Tensor) -> torch.Tensor:
    """Return ||sum_t g_bt a_bt^T||_F^2 per image, fp32 [B].

    Args:
        inputs: a, [B, T, I] or [B, I].
        output_gradients: g, [B, T, O] or [B, O].
    """
    a = inputs.float().reshape(len(inputs), -1, inputs.shape[-1])
    g = output_gradients.float().reshape(len(inputs), -1, output_gradients.shape[-1])
    if gram_is_cheaper(a.shape[1], a.shape[2], g.shape[2]):
        return ((a @ a.mT) * (g @ g.mT)).sum((1, 2)).clamp_min(0)
    return (g.mT @ a).square().sum((1, 2))


def gram_is_cheaper(tokens: int, inputs: int, outputs: int) -> bool:
    """Compare multiplications per image: T^2 (I + O + 1) for Gram matrices, (T + 1) I O for the product."""
    return tokens * tokens * (inputs + outputs + 1) < (tokens + 1) * inputs * outputs


class GhostNorms:
    """Hooks that collect squared gradient norms of named linear layers during a backward pass.

    Args:
        model: holds the layers; its parameters may be frozen as long as gradients reach the layers' outputs.
        names: dotted names of ``torch.nn.Linear`` modules, M of them; each is called once per forward pass.
    """

    def __init__(self, model: torch.nn.Module, names: list[str]) -> None:
        self._names = names
        self._norms: dict[str, torch.Tensor] = {}
        modules = dict(model.named_modules())
        self._handles = [modules[name].register_forward_hook(self._hook(name)) for name in names]

    def __enter__(self) -> "GhostNorms":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def take(self) -> torch.Tensor:
        """Return the squared norms of the last backward pass, [B, M] in the order of ``names``, and forget them."""
        norms = torch.stack([self._norms[name] for name in self._names], dim=1)
        self._norms.clear()
        return norms

    def _hook(self, name: str):  # noqa: ANN202 - torch's hook signature
        def forward_hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            activation = inputs[0].detach()
            output.register_hook(lambda gradient: self._norms.__setitem__(name, squared_norms(activation, gradient)))

        return forward_hook
