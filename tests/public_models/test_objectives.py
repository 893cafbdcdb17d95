"""What each family's denoiser learns: against targets written from the papers, and against the one-image loop."""

import functools

import pandas as pd
import pytest
import torch

from dpsapf.experiment.columns import MATRIX, SELECTED
from dpsapf.experiment.runs import RunSpec
from dpsapf.finetune.adapters import trainable
from dpsapf.gradients.ghost_norms import GhostNorms
from dpsapf.gradients.per_image import per_image_gradients
from dpsapf.public_models.families.stable_diffusion import NoiseObjective
from dpsapf.public_models.families.z_image import FlowObjective, padded, without_padding
from dpsapf.public_models.latents import Pairs, draw_batch
from dpsapf.support.randomness import torch_generator
from tests.one_image import clipped_sum, error, flat
from tests.tiny import tiny_latents, tiny_objective, tiny_scheduler, tiny_unet
from tests.tiny_models import z_image_transformer


def drawn(indices=(3, 0, 7), multiplicity=2):
    batch = draw_batch(tiny_latents(), torch.tensor(indices), multiplicity, 1000, torch_generator(0, "pairs"))
    return batch.rows(0, len(batch), "cpu")


def parts(pairs):
    return pairs.latents, pairs.noise, pairs.timesteps, pairs.labels


def objective(prediction="epsilon"):
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return NoiseObjective(DDIMScheduler.from_config(tiny_scheduler().config, prediction_type=prediction))


def signal(pairs):
    """The share of signal and of noise at each row's timestep, by Ho et al.'s cumulative product."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)[pairs.timesteps].float()[:, None, None, None]
    return kept.sqrt(), (1 - kept).sqrt()


def test_the_model_sees_the_noised_latents_their_timesteps_and_prompts():
    pairs, seen = drawn(), {}

    def model(noisy, timesteps, embeddings, return_dict):
        seen.update(noisy=noisy, timesteps=timesteps, embeddings=embeddings)
        return (torch.zeros_like(noisy),)

    loss = objective().loss(model, pairs)
    kept, added = signal(pairs)
    torch.testing.assert_close(seen["noisy"], kept * pairs.latents + added * pairs.noise, rtol=1e-4, atol=1e-5)  # fp32 products
    assert torch.equal(seen["timesteps"], pairs.timesteps) and torch.equal(seen["embeddings"], pairs.embeddings)
    torch.testing.assert_close(loss, pairs.noise.square().mean((1, 2, 3)))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_target_is_what_the_scheduler_predicts(prediction):
    pairs = drawn()
    kept, added = signal(pairs)
    targets = {"epsilon": pairs.noise, "v_prediction": kept * pairs.noise - added * pairs.latents}
    losses = {
        name: objective(prediction).loss(lambda *inputs, value=value, **keywords: (value,), pairs)
        for name, value in targets.items()
    }
    right, wrong = losses.pop(prediction), *losses.values()
    assert right.shape == (6,) and right.max() < 1e-6 and wrong.min() > 1e-3


def test_each_row_has_its_own_loss():
    unet, pairs = tiny_unet(), drawn()
    with torch.no_grad():
        whole = tiny_objective().loss(unet, pairs)
        one = torch.cat([tiny_objective().loss(unet, pairs.rows(row, row + 1, "cpu")) for row in range(6)])
        changed = Pairs(*(part.clone() for part in parts(pairs)), pairs.prompt_embeddings)
        changed.latents[2] += 1.0
        other = tiny_objective().loss(unet, changed)
    torch.testing.assert_close(one, whole, rtol=1e-4, atol=1e-6)  # fp32 passes in other batches
    assert ((other - whole).abs() > 1e-5).tolist() == [row == 2 for row in range(6)]


def test_the_loss_of_a_prediction_in_bf16_is_fp32():
    pairs = drawn()
    loss = objective().loss(lambda *inputs, **keywords: (pairs.noise.bfloat16(),), pairs)
    assert loss.dtype == torch.float32 and 0 < loss.max() < 1e-4  # the rounding of the prediction, squared


def flow(shift=3.0):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowObjective(FlowMatchEulerDiscreteScheduler(shift=shift))


def captions(lengths=(5, 40), width=16):
    """Embeddings of captions that fill one, and two, of the transformer's groups of 32 tokens."""
    return padded([torch.randn(length, width, generator=torch_generator(length)) for length in lengths])


@functools.cache
def flow_pairs(rows=6, side=8):
    generator = torch_generator(0, "flow")
    latents, noise = (torch.randn(rows, 16, side, side, generator=generator) for _ in range(2))
    return Pairs(latents, noise, torch.randint(1000, (rows,), generator=generator), torch.arange(rows) % 2, captions())


@functools.cache
def transformer():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = z_image_transformer()
        for token in (model.x_pad_token, model.cap_pad_token):
            token.data.normal_()
    return model.eval()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flows_are_matched_as_in_the_papers(shift):
    """Row by row, from numbers: x = (1 - s) z + s n, s of a shifted grid; given 1 - s; it predicts z - n."""
    pairs, seen = flow_pairs(), {}

    def model(images, times, texts, return_dict):
        seen.update(images=images, times=times, texts=texts)
        return ([torch.full_like(image, 0.25) for image in images],)

    losses = flow(shift).loss(model, pairs)
    for row, (z, n, index, label) in enumerate(zip(*parts(pairs), strict=True)):
        even = (1000 - int(index)) / 1000
        s = shift * even / (1 + (shift - 1) * even)
        torch.testing.assert_close(seen["images"][row], ((1 - s) * z + s * n)[:, None], rtol=1e-4, atol=1e-5)
        assert float(seen["times"][row]) == pytest.approx(1 - s, abs=1e-6)
        assert len(seen["texts"][row]) == (5, 40)[label], "without the padding of the batch"
        assert float(losses[row]) == pytest.approx(float((-0.25 - (n - z)).square().mean()), rel=1e-5)


def test_a_perfect_flow_has_no_loss_and_its_opposite_has():
    pairs = flow_pairs()
    velocity = pairs.latents - pairs.noise
    for sign, low in ((1, True), (-1, False)):
        loss = flow().loss(lambda *_, sign=sign, **keywords: (list((sign * velocity).unsqueeze(2)),), pairs)
        assert loss.shape == (6,) and bool((loss < 1e-9).all()) == low


def test_padding_is_taken_off_and_a_token_of_zeros_is_refused():
    texts = [torch.ones(3, 2), torch.ones(5, 2) * 2]
    assert [text.tolist() for text in without_padding(padded(texts))] == [text.tolist() for text in texts]
    with pytest.raises(ValueError, match="marks padding"):
        padded([torch.ones(3, 2), torch.tensor([[1.0, 1.0], [0.0, 0.0]])])


def test_a_row_of_a_flow_is_the_same_in_any_company():
    """Captions of other lengths make the transformer pad: the padding changes nothing but rounding."""
    pairs, model = flow_pairs(), transformer()
    with torch.no_grad():
        whole = flow().loss(model, pairs)
        alone = torch.cat([flow().loss(model, pairs.rows(row, row + 1, "cpu")) for row in range(6)])
    torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-6)


def attention():
    return [name for name, _ in transformer().named_modules() if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))]


def test_ghost_norms_of_every_attention_matrix_are_those_of_one_image_alone():
    pairs, model, names = flow_pairs(), transformer().requires_grad_(False), attention()
    assert len(names) == 16
    with GhostNorms(model, names) as norms:
        flow().loss(model, pairs).sum().backward()
        squared = norms.take()
    weights = [model.get_submodule(name).weight.requires_grad_(True) for name in names]
    for row in range(len(pairs)):
        loss = flow().loss(model, pairs.rows(row, row + 1, "cpu")).sum()
        alone = torch.stack([gradient.square().sum() for gradient in torch.autograd.grad(loss, weights)])
        torch.testing.assert_close(squared[row], alone, rtol=1e-4, atol=1e-12)  # fp32 sums in another order
        assert (alone > 0).all()
    model.requires_grad_(False)


@pytest.mark.parametrize("adapter", ["lora", "dora", "loha", "lokr", "ffa-lora", None])
def test_clipped_gradients_of_a_flow_are_those_of_the_one_image_loop(adapter):
    pairs, model = flow_pairs(), z_image_transformer()
    model.load_state_dict(transformer().state_dict())
    names = attention()[:10]
    run = RunSpec(dataset="d", public_model="m", method="dp-lora" if adapter else "no-lora", adapter=adapter)
    parameters = trainable(model, run, pd.DataFrame({MATRIX: names, SELECTED: True}), 2, 2.0)
    with torch.no_grad():
        for index, parameter in enumerate(parameters.values()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch_generator(0, index)))
    rows = []
    for row in range(len(pairs)):
        loss = flow().loss(model, pairs.rows(row, row + 1, "cpu")).sum()
        rows.append(flat(torch.autograd.grad(loss, list(parameters.values()))))
    alone = torch.stack(rows).unflatten(0, (-1, 2)).mean(1)
    bound = alone.norm(dim=1).median().item()
    engine = per_image_gradients(model, parameters, adapter)
    sums, norms = engine.clipped_sum(flow().loss(engine.model, pairs), bound, "flat", 2)
    assert error(norms, alone.norm(dim=1)) < 1e-4 and error(flat(sums), clipped_sum(alone, bound, "flat")) < 1e-4
    assert error(flat(sums), clipped_sum(alone, bound / 2, "flat")) > 1e-2


def test_layers_that_see_all_images_in_one_sequence_would_have_wrong_norms():
    """Why Z-Image's embedders are no candidates: their rows are tokens, of all images one after another."""
    pairs, model = flow_pairs(), transformer().requires_grad_(False)
    with GhostNorms(model, ["all_x_embedder.2-1"]) as norms:
        flow().loss(model, pairs).sum().backward()
        assert len(norms.take()) != len(pairs)
