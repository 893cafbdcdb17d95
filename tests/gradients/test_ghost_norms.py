import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpsapf.gradients import ghost_norms, products
from dpsapf.gradients.ghost_norms import GhostNorms, LayerHooks, gram_is_cheaper, image_gradients, squared_norms
from dpsapf.support.errors import UserError
from tests.tiny import tiny_unet

MATRIX, NORM = (torch.nn.Linear, torch.nn.Conv2d), (torch.nn.GroupNorm, torch.nn.LayerNorm)
few = st.integers(1, 4)
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def linear(draw):
    layer = torch.nn.Linear(draw(st.integers(1, 12)), draw(st.integers(1, 12)))
    return layer, (*draw(st.lists(few, max_size=2)), layer.in_features)


@st.composite
def conv(draw):
    groups, kernel, dilation = draw(few), draw(pairs), draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.sampled_from(["same", "valid"])))
    stride = (1, 1) if padding == "same" else draw(pairs)
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    channels = groups * draw(few), groups * draw(few)
    settings_of = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": mode}
    return torch.nn.Conv2d(*channels, kernel, **settings_of), (channels[0], draw(st.integers(5, 7)), draw(st.integers(5, 7)))


@st.composite
def group_norm(draw):
    groups = draw(few)
    layer = torch.nn.GroupNorm(groups, groups * draw(few), eps=draw(st.sampled_from([1e-5, 0.3])))
    return layer, (layer.num_channels, *draw(st.lists(st.integers(2, 4), min_size=1, max_size=2)))


@st.composite
def layer_norm(draw):
    shape = draw(st.lists(st.integers(2, 5), min_size=1, max_size=2))
    return torch.nn.LayerNorm(shape, eps=draw(st.sampled_from([1e-5, 0.3]))), (*draw(st.lists(few, max_size=2)), *shape)


def data(layer, shape, rows, seed=0, dtype=torch.float32):
    """Inputs, and a factor for every output that makes the loss; rounded to a dtype."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, *shape, generator=generator).to(dtype)
    with torch.no_grad():
        output = layer(inputs.float())
    return inputs, torch.randn(output.shape, generator=generator).to(dtype)


def oracle(layer, kind, inputs, factors, multiplicity):
    """Squared gradient norm of each image: one backward pass per image in double precision."""
    layer, norms = copy.deepcopy(layer).double(), []
    for rows, weights in zip(inputs.double().split(multiplicity), factors.double().split(multiplicity), strict=True):
        (gradient,) = torch.autograd.grad((layer(rows) * weights).sum() / multiplicity, getattr(layer, kind))
        norms.append(gradient.square().sum())
    return torch.stack(norms).float()


def batched_norms(layer, kind, inputs, factors, multiplicity):
    """The same from one batched backward pass through hooks, with every parameter frozen."""
    received = {}
    hooks = LayerHooks(layer.requires_grad_(False), [""], MATRIX + NORM, lambda name, *kept: received.update({name: kept}))
    (layer(inputs) * factors).sum().backward()
    hooks.close()
    layer.requires_grad_(True)
    if kind == "weight" and isinstance(layer, MATRIX):
        return squared_norms(layer, *received[""], multiplicity)
    return image_gradients(layer, kind, *received[""], multiplicity).flatten(1).square().sum(1)


def check(layer, shape, images, multiplicity, seed=0):
    inputs, factors = data(layer, shape, images * multiplicity, seed)
    for kind in ("weight", "bias"):
        computed = batched_norms(layer, kind, inputs, factors, multiplicity)
        expected = oracle(layer, kind, inputs, factors, multiplicity)
        torch.testing.assert_close(computed, expected, rtol=1e-4, atol=1e-4)  # fp32 sums of numbers of order 1 to 1000


@pytest.mark.parametrize("layers", [linear(), conv(), group_norm(), layer_norm()], ids=["linear", "conv", "group", "layer"])
def test_equals_the_batch_of_one_loop(layers):
    @settings(max_examples=60, deadline=None)
    @given(layer=layers, images=st.integers(1, 4), multiplicity=st.integers(1, 3), seed=st.integers(0, 99))
    def run(layer, images, multiplicity, seed):
        check(*layer, images, multiplicity, seed)

    run()


@pytest.mark.parametrize("kind", ["weight", "bias"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (torch.nn.Linear(20, 30), (8, 20)),
        (torch.nn.Linear(20, 3), (40, 20)),
        (torch.nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 6, 6)),
        (torch.nn.GroupNorm(2, 6), (6, 9)),
        (torch.nn.LayerNorm(6), (30, 6)),
    ],
)
def test_sums_are_fp32_whatever_the_activations(layer, shape, kind):
    inputs, factors = data(layer, shape, 6, dtype=torch.bfloat16)
    if kind == "weight" and isinstance(layer, MATRIX):
        computed = squared_norms(layer, inputs, factors, 2)
    else:
        computed = image_gradients(layer, kind, inputs, factors, 2).square().sum(1)
    expected = oracle(layer, kind, inputs, factors, 2)
    torch.testing.assert_close(computed, expected, rtol=1e-4, atol=1e-4)  # bf16 sums would be off by 1e-2


SHAPES = {
    "gram": (torch.nn.Linear(50, 60), (4, 50)),
    "product": (torch.nn.Linear(8, 8), (64, 8)),
    "conv gram": (torch.nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect"), (32, 3, 3)),
    "conv product": (torch.nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", groups=2), (4, 6, 6)),
}


def test_the_cheaper_form_is_chosen():
    assert gram_is_cheaper(4, 50, 60) and gram_is_cheaper(9, 288, 32)
    assert not gram_is_cheaper(64, 8, 8) and not gram_is_cheaper(36, 18, 3)


@pytest.mark.parametrize("tokens", [1, 3])
def test_norms_of_large_matrices_are_exact_to_a_tenth_of_the_margin_of_clipping(tokens, monkeypatch):
    """torch's own norm of 9e6 numbers is 4e-4 too small on the CPU, so that a clipped gradient would exceed the bound."""
    layer = torch.nn.Linear(3000, 3000, bias=False)
    generator = torch.Generator().manual_seed(0)
    inputs, gradients = (torch.randn(1, tokens, 3000, generator=generator) for _ in range(2))
    expected = (gradients[0].double().T @ inputs[0].double()).square().sum().item()
    for cheaper in (True, False):
        monkeypatch.setattr(ghost_norms, "gram_is_cheaper", lambda *sizes, answer=cheaper: answer)
        monkeypatch.setattr(ghost_norms, "GRAM_ROUNDING", 0)
        assert squared_norms(layer, inputs, gradients).item() == pytest.approx(expected, rel=2 * 1.5e-6)


def without_cross_terms(layer, inputs, gradients, multiplicity, contracted):
    """Gram form without the products of different tokens: the product form without the sum over tokens."""
    a = ghost_norms.tokens(layer, ghost_norms.patches(layer, inputs), multiplicity)
    return (a.square().sum(2) * ghost_norms.tokens(layer, gradients, multiplicity).square().sum(2)).sum((1, 2))


def each_row(layer, inputs, gradients, multiplicity, contracted):
    """Norms of the K rows of an image, summed."""
    return WORKING(layer, inputs, gradients, 1).reshape(-1, multiplicity).sum(1)


def not_averaged(layer, inputs, gradients, multiplicity, contracted):
    return WORKING(layer, inputs, gradients, multiplicity) * multiplicity


WORKING = ghost_norms._squared_norms


@pytest.mark.parametrize("wrong", [without_cross_terms, each_row, not_averaged])
@pytest.mark.parametrize("form", SHAPES)
def test_a_wrong_formula_is_noticed(form, wrong, monkeypatch):
    check(*SHAPES[form], 3, 2)
    monkeypatch.setattr(ghost_norms, "_squared_norms", wrong)
    with pytest.raises(AssertionError, match="not close"):
        check(*SHAPES[form], 3, 2)


@pytest.mark.parametrize("form", ["conv gram", "conv product"])
def test_a_wrong_padding_is_noticed(form, monkeypatch):
    monkeypatch.setattr(ghost_norms, "padded", lambda layer, inputs: torch.nn.functional.pad(inputs, [1] * 4))
    with pytest.raises(AssertionError, match="not close"):
        check(*SHAPES[form], 3, 2)


@pytest.mark.parametrize("layer", [torch.nn.GroupNorm(2, 6), torch.nn.LayerNorm([6, 3])])
def test_a_normalisation_that_is_not_undone_is_noticed(layer, monkeypatch):
    check(layer, (6, 3), 3, 2)
    monkeypatch.setattr(ghost_norms, "_normalised", lambda layer, inputs: inputs)
    with pytest.raises(AssertionError, match="not close"):
        check(layer, (6, 3), 3, 2)


def test_chunks_of_images_do_not_change_the_norms(monkeypatch):
    monkeypatch.setitem(ghost_norms.CHUNK_FLOATS, "cpu", 1)
    for layer, shape in SHAPES.values():
        check(layer, shape, 3, 2)


@pytest.mark.parametrize("images", [1, 2, 3])
@pytest.mark.parametrize("form", SHAPES)
def test_chunks_of_images_do_not_change_their_gradients(form, images, monkeypatch):
    layer, shape = SHAPES[form]
    inputs, factors = data(layer, shape, 2 * images)
    whole = image_gradients(layer, "weight", inputs, factors, 2)
    monkeypatch.setitem(ghost_norms.CHUNK_FLOATS, "cpu", 1)
    assert len(list(ghost_norms.chunks(layer, inputs, factors, 2))) == images
    torch.testing.assert_close(image_gradients(layer, "weight", inputs, factors, 2), whole, rtol=1e-5, atol=1e-5)  # fp32 sums


def test_norms_of_tokens_that_cancel_are_not_negative():
    """Rounding makes the Gram form negative where the sum over tokens is nearly zero: its root would be no number."""
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(64, 64, bias=False)
    inputs = torch.randn(100, 1, 64, generator=generator).expand(100, 3, 64)
    first, second = torch.randn(2, 100, 1, 64, generator=generator)
    gradients = torch.cat([first, second, -(first + second)], 1)
    rounded = ((inputs @ inputs.mT) * (gradients @ gradients.mT)).sum((1, 2))
    assert gram_is_cheaper(3, 64, 64) and (rounded < 0).any()
    assert (squared_norms(layer, inputs, gradients) >= 0).all()


def cancelling(rho, seed, rows=4, tokens=64, width=320):
    """Tokens that are nearly equal, with gradients that nearly cancel: the norm is some rho of what the Gram form sums."""
    generator = torch.Generator().manual_seed(seed)
    common, own, gradients = (torch.randn(rows, count, width, generator=generator) for count in (1, tokens, tokens))
    return common + rho * own, gradients - gradients.mean(1, keepdim=True)


def exact_norms(inputs, gradients):
    return (gradients.double().mT @ inputs.double()).flatten(1).norm(dim=1)


@pytest.mark.parametrize("rho", [1.0, 0.1, 0.01, 1e-3, 1e-5])
def test_the_gram_form_is_never_too_small(rho):
    """A norm that is too small would let a clipped gradient exceed the bound."""
    layer, ratios, without = torch.nn.Linear(320, 320, bias=False), [], []
    assert gram_is_cheaper(64, 320, 320)
    for seed in range(5):
        inputs, gradients = cancelling(rho, seed)
        exact = exact_norms(inputs, gradients)
        ratios.append(squared_norms(layer, inputs, gradients).double().sqrt() / exact)
        plain = ((inputs @ inputs.mT) * (gradients @ gradients.mT)).sum((1, 2)).clamp_min(0)
        without.append(plain.double().sqrt() / exact)
    ratios, without = torch.cat(ratios), torch.cat(without)
    assert ratios.min() > 1 - 1e-6
    if rho == 1.0:
        assert ratios.max() < 1 + 2e-3, "and little too large where nothing cancels"
    if rho < 1e-3:
        assert without.min() < 0.5, "without what is added"


def cut_off(left, right, out_dtype):
    """A product as matrix units make it: 16 products at a time are added, and what does not fit into 24 bits is cut off."""
    total = torch.zeros(*left.shape[:2], right.shape[2], dtype=torch.float64)
    for a, b in zip(left.double().split(16, 2), right.double().split(16, 1), strict=True):
        total += a @ b
        mantissa, exponent = torch.frexp(total)
        total = torch.ldexp((mantissa * 2**24).trunc() / 2**24, exponent)
    return total.to(out_dtype)


@pytest.mark.parametrize("rho", [1.0, 0.1, 0.03])
def test_nor_where_a_gpu_cuts_off(rho, monkeypatch):
    monkeypatch.setattr(products, "_is_bf16_on_a_gpu", lambda values: True)
    monkeypatch.setattr(torch, "bmm", cut_off)
    inputs, gradients = (values.bfloat16() for values in cancelling(rho, 0, 2, 77, 512))
    layer, exact = torch.nn.Linear(512, 512, bias=False), exact_norms(inputs, gradients)
    assert squared_norms(layer, inputs, gradients).double().sqrt().div(exact).min() > 1
    monkeypatch.setattr(ghost_norms, "GRAM_ROUNDING", 0)
    assert squared_norms(layer, inputs, gradients).double().sqrt().div(exact).min() < 1


def test_what_is_added_is_what_two_sums_of_a_piece_may_lack():
    assert products.PIECE == 512 and ghost_norms.GRAM_ROUNDING == 2 * (512 / 16) * 2**-24


def test_what_is_added_is_of_each_groups_tokens_together(monkeypatch):
    monkeypatch.setattr(ghost_norms, "GRAM_ROUNDING", 0.5)
    generator = torch.Generator().manual_seed(0)
    a, g = (torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2))  # images, groups, tokens, features
    lengths = (a.norm(dim=3) * g.norm(dim=3)).sum(2)
    expected = (g.mT @ a).square().sum((1, 2, 3)) + 0.5 * lengths.square().sum(1)
    torch.testing.assert_close(ghost_norms._from_grams(a @ a.mT, g @ g.mT), expected, rtol=1e-5, atol=0)  # fp32 sums


@pytest.mark.parametrize("lost", [0, 1])
def test_what_is_added_for_lost_squares_is_of_each_groups_tokens_together(lost):
    huge, nothing = 1e37 * torch.eye(3).expand(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)
    found = ghost_norms._from_grams(*((huge.clone(), nothing) if lost else (nothing.clone(), huge)))
    assert found.item() == pytest.approx(2 * 9 * 1e37 * torch.finfo(torch.float32).tiny, rel=1e-4)


@pytest.mark.parametrize("small", [2.6e-23, 1.3e-20])
@pytest.mark.parametrize("swapped", [False, True])
def test_squares_that_are_lost_are_made_up_for(swapped, small):
    """Squares of small numbers are lost in fp32; times huge numbers, what they stand for is not small."""
    layer, factors = torch.nn.Linear(64, 64, bias=False), (torch.full((1, 3, 64), 4e17), torch.full((1, 3, 64), small))
    inputs, gradients = reversed(factors) if swapped else factors
    torch.set_flush_denormal(True)  # as a GPU may
    try:
        assert gram_is_cheaper(3, 64, 64) and (factors[1] @ factors[1].mT).max() == 0
        found = squared_norms(layer, inputs, gradients)
    finally:
        torch.set_flush_denormal(False)
    assert found.double().sqrt() > exact_norms(inputs, gradients)


@pytest.mark.parametrize("setting", [{}, {"stride": 2, "padding": 1}, {"dilation": (2, 1), "padding": (0, 2)}])
def test_patches_are_torchs_unfolded_ones(setting):
    layer, inputs = torch.nn.Conv2d(3, 5, (3, 2), **setting), torch.randn(2, 3, 9, 8)
    assert torch.equal(ghost_norms.patches(layer, inputs), torch.nn.functional.unfold(inputs, (3, 2), **setting))


@pytest.fixture(scope="module")
def frozen_pass():
    """Every linear layer and convolution of a UNet: norms of 4 rows in one pass, nothing requiring a gradient before."""
    unet = tiny_unet().requires_grad_(False)
    names = [name for name, layer in unet.named_modules() if isinstance(layer, MATRIX)]
    generator = torch.Generator().manual_seed(0)
    latents, prompts = (torch.randn(shape, generator=generator) for shape in ((4, 4, 4, 4), (4, 3, 8)))
    rows = latents, torch.tensor([3, 500, 700, 9]), prompts
    norms = {}
    with GhostNorms(unet, names, multiplicity=2) as ghosts:
        for dtype in (torch.float32, torch.bfloat16):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                output = unet(*rows, return_dict=False)[0]
            output.float().square().flatten(1).mean(1).sum().backward()
            norms[dtype] = ghosts.take()
    return unet, names, rows, norms


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-4), (torch.bfloat16, 0.2)],  # fp32 passes of a whole UNet; bf16 has 8 bits, and squares double errors
)
def test_a_frozen_unet(frozen_pass, dtype, tolerance):
    unet, names, rows, norms = frozen_pass
    assert all(parameter.grad is None for parameter in unet.parameters())
    copied = copy.deepcopy(unet).requires_grad_(True)
    weights = [copied.get_submodule(name).weight for name in names]
    for image in range(2):
        output = copied(*(part[2 * image : 2 * image + 2] for part in rows), return_dict=False)[0]
        gradients = torch.autograd.grad(output.square().flatten(1).mean(1).mean(), weights)
        expected = torch.stack([gradient.square().sum() for gradient in gradients])
        torch.testing.assert_close(norms[dtype][image], expected, rtol=tolerance, atol=1e-9)


def test_hooks_leave_with_the_context_and_forward_passes_without_autograd_are_ignored():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).requires_grad_(False)
    inputs = torch.randn(5, 3)
    with GhostNorms(model, ["0", "1"]) as norms:
        with torch.no_grad():
            model(inputs)
        model(inputs).square().sum().backward()
        assert norms.take().shape == (5, 2)
    assert not model[0]._forward_hooks


def test_a_layer_called_twice_is_refused():
    layer = torch.nn.Linear(3, 3)
    with GhostNorms(torch.nn.Sequential(layer), ["0"]), pytest.raises(UserError, match="'0'.*called twice"):
        layer(layer(torch.randn(2, 3))).sum().backward()


def test_norms_without_a_backward_pass_are_refused():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    with GhostNorms(model, ["0"]) as norms:
        model(torch.randn(2, 3))
        with pytest.raises(UserError, match="'0'.*no gradient"):
            norms.take()


class Doubled(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("name", ["embedding", "doubled", "missing"])
def test_other_modules_are_refused_by_name(name):
    model = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(3, 3), "doubled": Doubled(3, 3)})
    with pytest.raises(UserError, match=f"'{name}'.*Linear, Conv2d"):
        GhostNorms(model, [name])


@pytest.mark.parametrize(
    ("name", "found"), [("absent", "is not in the model"), ("0", "is ReLU: per-image norms are known for Linear")]
)
def test_what_is_no_layer_is_named(name, found):
    with pytest.raises(UserError, match=f"module = '{name}': {found}"):
        GhostNorms(torch.nn.Sequential(torch.nn.ReLU()), [name])


def test_norms_after_a_backward_pass_that_broke_off():
    model, inputs = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)).requires_grad_(False), torch.randn(2, 3)
    with GhostNorms(model, ["0", "1"]) as norms:
        model(inputs).sum().backward()
        expected = norms.take()
        right, norms._hooks._receive = norms._hooks._receive, lambda name, *kept: broken() if name == "0" else None

        def broken():
            raise RuntimeError("operation not permitted when stream is capturing")

        with pytest.raises(RuntimeError, match="capturing"):
            model(inputs).sum().backward()
        norms._hooks._receive = right
        norms.forget()
        model(inputs).sum().backward()
        assert torch.equal(norms.take(), expected)
        model(inputs).sum().backward()
        norms.forget()
        with pytest.raises(UserError, match="got no gradient"):
            norms.take()


def test_what_was_multiplied_is_kept():
    """Under autocast a linear layer multiplies its input in bf16."""
    layer, seen = torch.nn.Linear(3, 3), []
    hooks = LayerHooks(layer, [""], MATRIX, lambda name, *kept: seen.extend(part.dtype for part in kept))
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(2, 3)).float().sum().backward()
    hooks.close()
    assert seen == [torch.bfloat16, torch.bfloat16]
