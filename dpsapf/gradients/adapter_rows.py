"""Row gradients of DoRA, LoHa and LoKr, whose parameters sit in no layer of their own, in closed form.

An adapted layer is linear in its input, layer(x) = W(theta) x + b, a convolution being linear in its patches. With a
row's inputs a_t and output gradients g_t its gradient with respect to W is G = sum_t g_t a_t^T, and theta's is the
pull-back of G through theta -> W(theta). W(theta) is made of small factors, so the tokens are contracted with these
and G, O I numbers a row, is never made.
"""

import typing
from collections.abc import Callable

import torch

from dpsapf.gradients.ghost_norms import CHUNK_FLOATS, patches, tokens
from dpsapf.support.errors import UserError

if typing.TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer

Rows = dict[str, torch.Tensor]  # by name of the parameter in the adapted layer, [rows, *shape]


def adapter_layers() -> dict[type, Callable[["BaseTunerLayer", torch.Tensor, torch.Tensor], Rows]]:
    """Return peft's layers that are handled, with their form; imported late, since peft is slow to import."""
    from peft.tuners import loha, lokr, lora

    forms = {lora: dora_rows, loha: loha_rows, lokr: lokr_rows}
    return {kind: form for module, form in forms.items() for kind in (module.layer.Linear, module.layer.Conv2d)}


def adapter_rows(layer: "BaseTunerLayer", inputs: torch.Tensor, output_gradients: torch.Tensor) -> Rows:
    """Return each row's gradients of the adapter's parameters, fp32.

    Args:
        layer: peft's, on a ``Linear`` or a ``Conv2d`` that `check_base` accepts.
        inputs: what the layer was called with, [rows, ..., I] or [rows, I, H, W].
        output_gradients: gradient of the sum of row losses with respect to its output, [rows, ..., O] or [rows, O, H', W'].
    """
    base, form = layer.get_base_layer(), adapter_layers()[type(layer)]
    numbers = output_gradients[0].numel() // len(base.weight) * base.weight[0].numel()  # of a row's patches
    chunk = max(1, CHUNK_FLOATS[inputs.device.type] // numbers)
    with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
        parts = [
            form(layer, *(tokens(base, values, 1)[:, 0].mT for values in (patches(base, a.float()), g.float())))
            for a, g in zip(inputs.split(chunk), output_gradients.split(chunk), strict=True)
        ]
    shapes = {name: value.shape for name, value in layer.named_parameters()}
    return {name: torch.cat([part[name] for part in parts]).reshape(-1, *shapes[name]) for name in parts[0]}


def check_base(name: str, layer: "BaseTunerLayer") -> None:
    """Refuse a convolution whose adapted forward pass is not one of W: peft's DoRA knows no dilation and pads with zeros.

    Raises:
        UserError: it has groups or dilation, or does not pad with zeros.
    """
    base = layer.get_base_layer()
    plain = {"groups": 1, "dilation": (1, 1), "padding_mode": "zeros"}
    differing = [key for key, value in plain.items() if isinstance(base, torch.nn.Conv2d) and getattr(base, key) != value]
    if differing:
        raise UserError(
            "module", name, f"has {differing[0]} {getattr(base, differing[0])}: no per-image gradients of this adapter"
        )


def dora_rows(layer: "BaseTunerLayer", a: torch.Tensor, g: torch.Tensor) -> Rows:
    """W = m (W0 + s B A) / n, by output; n, the norms of (W0 + s B A)'s rows, is a constant (Liu et al. 2024, section 4.3).

    Args:
        layer: A [r, I], B [O, r], m [O] and scale s.
        a: inputs [rows, T, I].
        g: output gradients [rows, T, O].
    """
    (adapter,) = layer.active_adapters
    low, high = layer.lora_A[adapter].weight.flatten(1), layer.lora_B[adapter].weight.flatten(1)
    scale, magnitude = layer.scaling[adapter], layer.lora_magnitude_vector[adapter].weight.flatten()
    merged = layer.get_base_layer().weight.flatten(1) + scale * high @ low
    lengths = merged.norm(dim=1)
    scaled = g * (scale * magnitude / lengths)
    return {
        f"lora_A.{adapter}.weight": (scaled @ high).mT @ a,
        f"lora_B.{adapter}.weight": scaled.mT @ (a @ low.T),
        f"lora_magnitude_vector.{adapter}.weight": (g * (a @ merged.T)).sum(1) / lengths,
    }


def loha_rows(layer: "BaseTunerLayer", a: torch.Tensor, g: torch.Tensor) -> Rows:
    """W = s (A1 B1) * (A2 B2), entry by entry: a matrix of rank r^2 (Hyeon-Woo et al. 2022, proposition 1).

    W[o, i] = s sum_pq A1[o, p] A2[o, q] B1[p, i] B2[q, i], so that G meets the factors of rank r^2 first.

    Args:
        layer: A1, A2 [O, r], B1, B2 [r, I] and scale s.
        a: inputs [rows, T, I].
        g: output gradients [rows, T, O].
    """
    (adapter,) = layer.active_adapters
    first, first_right, second, second_right = (
        getattr(layer, f"hada_{name}")[adapter] for name in ("w1_a", "w1_b", "w2_a", "w2_b")
    )
    rank, scale = len(first_right), layer.scaling[adapter]
    pairs = (first_right[:, None] * second_right).flatten(0, 1)  # [r r, I]
    left = scale * (g.mT @ (a @ pairs.T)).unflatten(2, (rank, rank))  # [rows, O, p, q]
    pairs = (first[:, :, None] * second[:, None]).flatten(1)  # [O, r r]
    right = scale * ((g @ pairs).mT @ a).unflatten(1, (rank, rank))  # [rows, p, q, I]
    return {
        f"hada_w1_a.{adapter}": (left * second[:, None]).sum(3),
        f"hada_w1_b.{adapter}": (right * second_right).sum(2),
        f"hada_w2_a.{adapter}": (left * first[:, :, None]).sum(2),
        f"hada_w2_b.{adapter}": (right * first_right[:, None]).sum(1),
    }


def lokr_rows(layer: "BaseTunerLayer", a: torch.Tensor, g: torch.Tensor) -> Rows:
    """W = s kron(C, D): W[(l, k), (m, n)] = s C[l, m] D[k, n] (Yeh et al. 2024); C or D may be a product itself.

    Args:
        layer: C [l, m], D [k, n] and scale s; O = l k and I = m n, a convolution's n holding the kernel.
        a: inputs [rows, T, I].
        g: output gradients [rows, T, O].
    """
    (adapter,) = layer.active_adapters
    left, right = _factor(layer, "lokr_w1", adapter), _factor(layer, "lokr_w2", adapter)
    a, g = a.unflatten(2, (left.shape[1], -1)), layer.scaling[adapter] * g.unflatten(2, (len(left), -1))
    of_left = torch.einsum("btlk,btmk->blm", g, a @ right.T)
    of_right = torch.einsum("btmk,btmn->bkn", torch.einsum("btlk,lm->btmk", g, left), a)
    return _factor_rows(layer, "lokr_w1", adapter, of_left) | _factor_rows(layer, "lokr_w2", adapter, of_right)


def _factor(layer: "BaseTunerLayer", name: str, adapter: str) -> torch.Tensor:
    """Return a factor as a matrix, multiplied out if it is a product."""
    whole = getattr(layer, name)
    if adapter in whole:
        return whole[adapter].flatten(1)
    return getattr(layer, f"{name}_a")[adapter] @ getattr(layer, f"{name}_b")[adapter]


def _factor_rows(layer: "BaseTunerLayer", name: str, adapter: str, gradients: torch.Tensor) -> Rows:
    """Pull a factor's row gradients back to the two that it is a product of, if it is one."""
    if adapter in getattr(layer, name):
        return {f"{name}.{adapter}": gradients}
    left, right = getattr(layer, f"{name}_a")[adapter], getattr(layer, f"{name}_b")[adapter]
    return {f"{name}_a.{adapter}": gradients @ right.T, f"{name}_b.{adapter}": left.T @ gradients}
