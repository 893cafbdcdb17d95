import pytest
import torch

from dpsapf.bench import steps
from dpsapf.bench.steps import OpacusGradients, Subject
from dpsapf.experiment.columns import MATRIX, SELECTED
from dpsapf.experiment.stages import Bench
from dpsapf.gradients.per_image import per_image_gradients
from dpsapf.public_models.latents import Pairs
from dpsapf.support.checked import replace
from dpsapf.support.replay import Replay
from tests.tiny import candidates, tiny_objective, tiny_unet


@pytest.fixture
def options(tmp_path):
    return Bench(batch=2, repeats=1, threads=1, out=tmp_path / "bench.csv")


def pairs(images):
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, images, 4, 4, 4, generator=generator)
    timesteps = torch.randint(1000, (images,), generator=generator)
    return Pairs(latents, noise, timesteps, torch.zeros(images, dtype=torch.int64), torch.randn(1, 3, 8, generator=generator))


def tiny_subject(built, options, images=None):
    unet = tiny_unet()
    built.append(Subject(unet, tiny_objective(), pairs(images or options.batch), candidates(unet), options.device))
    return built[-1]


@pytest.fixture
def tiny(monkeypatch):
    """A tiny UNet instead of the packaged one; the subjects that were built, and what was trained of each."""
    built, trained, right = [], [], steps.trainable

    def trainable(unet, run, selection, rank, alpha):
        parameters = right(unet, run, selection, rank, alpha)
        trained.append((selection, parameters))
        return parameters

    monkeypatch.setattr(steps, "subject", lambda *given, **named: tiny_subject(built, *given, **named))
    monkeypatch.setattr(steps, "trainable", trainable)
    return built, trained


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_lora_is_put_on_a_share_of_the_matrices(tiny, options, share):
    steps.training(options, "dp-lora", share)
    (built,), ((selection, parameters),) = tiny
    assert selection[MATRIX].tolist() == built.matrices
    assert selection[SELECTED].sum() == round(share * len(built.matrices))
    assert len(parameters) == 2 * selection[SELECTED].sum() and all("lora_" in name for name in parameters)


@pytest.mark.parametrize("engine", [None, per_image_gradients], ids=["plain", "private"])
@pytest.mark.parametrize("method", ["dp-lora", "dp-full"])
def test_a_step_moves_what_is_trained_and_nothing_else(tiny, options, method, engine):
    step = steps.training(options, method, 0.3, engine)
    (built,), ((_, parameters),) = tiny
    before = {name: value.detach().clone() for name, value in built.unet.named_parameters()}
    step(), step()  # LoRA's B is zero at the start, so that A moves in the second step only
    moved = {name for name, value in built.unet.named_parameters() if not torch.equal(before[name], value)}
    assert moved == set(parameters)


@pytest.mark.parametrize("make", [steps.plain_pass, steps.one_by_one, steps.energy, steps.signal])
def test_a_pass_of_scores_moves_nothing(tiny, options, make):
    step = make(options)
    (built,), _ = tiny
    before = {name: value.detach().clone() for name, value in built.unet.named_parameters()}
    step(), step()
    assert all(torch.equal(before[name], value) and value.grad is None for name, value in built.unet.named_parameters())


@pytest.mark.parametrize("own", [False, True])
def test_a_sampling_step_gives_two_predictions_for_each_image(tiny, options, own, monkeypatch):
    step = steps.sampling(options, "fp32", own)
    (built,), ((selection, _),) = tiny
    assert selection[SELECTED].all()
    given = []
    monkeypatch.setattr(built.unet, "forward", lambda latents, timestep, texts, return_dict: given.append((latents, texts)))
    step()
    ((latents, texts),) = given
    assert len(latents) == len(texts) == 2 * options.batch
    assert built.unet.training is False
    layers = [module for module in built.unet.modules() if hasattr(module, "merged_adapters")]
    assert layers and all(bool(layer.merged_adapters) == own for layer in layers)


def test_what_is_frozen_is_in_the_options_precision(tiny, options):
    steps.frozen(replace(options, precision="bf16")), steps.frozen(options)
    outputs = []
    for built in tiny[0]:
        given = built.pairs.latents, 500, built.pairs.embeddings
        outputs.append(built.unet(*given).sample.detach())
    assert outputs[0].dtype == outputs[1].dtype == torch.float32
    assert not torch.equal(*outputs)
    torch.testing.assert_close(*outputs, rtol=0.1, atol=0.1)


def test_a_plain_step_is_of_the_whole_logical_batch_whatever_the_micro_batch(tiny, options):
    for micro_batch in (2, 7):
        steps.training(replace(options, batch=micro_batch, logical_batch=7), "dp-lora", 1.0, None)()
    (one, other), trained = tiny
    assert len(one.pairs) == len(other.pairs) == 7
    for few, many in zip(*(parameters.values() for _, parameters in trained), strict=True):
        torch.testing.assert_close(few.grad, many.grad, rtol=1e-3, atol=1e-6)  # fp32 sums


@pytest.mark.slow
@pytest.mark.parametrize("clipping", ["flat", "automatic"])
@pytest.mark.parametrize("multiplicity", [1, 2])
def test_opacus_and_ghost_clipping_give_the_same_sum(multiplicity, clipping):
    sums, norms = [], []
    for engine in (lambda unet, trained: OpacusGradients(unet, trained), lambda *given: per_image_gradients(*given, None)):
        unet = tiny_unet().train()
        gradients = engine(unet, dict(unet.named_parameters()))
        losses = tiny_objective().loss(gradients.model, pairs(4))
        total, norm = gradients.clipped_sum(losses, 0.5, clipping, multiplicity)
        sums.append(torch.cat([part.flatten() for part in total]))
        norms.append(norm)
        assert all(parameter.grad is None for parameter in unet.parameters())
        assert all(getattr(parameter, "grad_sample", None) is None for parameter in unet.parameters()), "would be added to"
    assert norms[0].shape == (4 // multiplicity,) and norms[0].min() > 0.5, "all are clipped"
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-4, atol=0)
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-4, atol=1e-5 * sums[1].abs().max().item())  # fp32, another order


@pytest.mark.slow
def test_a_logical_batch_needs_the_memory_of_a_micro_batch(tiny, options):
    from dpsapf.bench.compare import _peak_mb

    small, large = (_peak_mb(steps.training(options, "dp-lora", 0.3, images=size), "cpu") for size in (3, 13))
    assert [len(subject.pairs) for subject in tiny[0]] == [3, 13]
    assert large < 1.5 * small, "six micro-batches one after the other, and the first image alone"


@pytest.mark.slow
def test_the_subject_is_the_packaged_model_and_the_same_each_time(options):
    state = torch.get_rng_state()
    first, second = steps.subject(options), steps.subject(options, 5)
    assert torch.equal(state, torch.get_rng_state())
    assert (len(first.pairs), len(second.pairs)) == (2, 5)
    assert len(first.matrices) == 56 and first.unet.training
    assert torch.equal(first.pairs.latents, steps.subject(options).pairs.latents)
    rows = first.objective.loss(first.unet, first.pairs)
    assert first.loss(first.unet, first.pairs.tensors).item() == pytest.approx(rows.sum().item()) and rows.min() > 0


def test_stable_diffusion_has_random_weights_that_do_not_change(options, monkeypatch):
    asked = []

    class Fake(torch.nn.Module):
        def __init__(self, **settings):
            super().__init__()
            asked.append(settings)
            self.attn1 = torch.nn.ModuleDict({"to_q": torch.nn.Linear(3, 3), "norm": torch.nn.Linear(3, 3)})

    monkeypatch.setattr("diffusers.UNet2DConditionModel", Fake)
    large, state = replace(options, architecture="sd-v1-5"), torch.get_rng_state()
    first, second = steps.subject(large), steps.subject(large)
    assert torch.equal(state, torch.get_rng_state())
    assert asked == [{"sample_size": 32, "cross_attention_dim": 768}] * 2
    assert first.pairs.latents.shape == (2, 4, 32, 32) and first.pairs.embeddings.shape == (2, 77, 768)
    assert first.matrices == ["attn1.to_q"]
    assert torch.equal(first.unet.attn1["to_q"].weight, second.unet.attn1["to_q"].weight)


def test_a_step_that_is_not_recorded_is_launched_each_time(monkeypatch):
    calls, replay = [], Replay("cuda")

    def work(values):
        calls.append(values)
        return (values,)

    made = steps.not_recorded(lambda: lambda: replay(work, (torch.zeros(1),)))
    assert not calls, "nothing is made before its turn"
    step = made()
    for _ in range(4):
        step()
    assert len(calls) == 4 and not replay._recordings
