import types

import pandas as pd
import pytest
import torch

from dpsapf.bench import compare
from dpsapf.bench.compare import OpacusGradients, Subject
from dpsapf.experiment.columns import MATRIX, SELECTED
from dpsapf.experiment.stages import Bench
from dpsapf.gradients.per_image import per_image_gradients
from dpsapf.public_models.latents import Pairs
from dpsapf.support.checked import replace
from tests.tiny import candidates, tiny_objective, tiny_unet

pytestmark = pytest.mark.slow

SIZES = (3, 7, 13)


@pytest.fixture
def options(tmp_path):
    return Bench(batch=2, repeats=1, threads=1, out=tmp_path / "bench.csv")


def pairs(images):
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, images, 4, 4, 4, generator=generator)
    steps = torch.randint(1000, (images,), generator=generator)
    return Pairs(latents, noise, steps, torch.zeros(images, dtype=torch.int64), torch.randn(1, 3, 8, generator=generator))


@pytest.fixture
def tiny(monkeypatch):
    """A tiny UNet instead of the packaged one; the subjects that were built, and what was trained of each."""
    built, trained, right = [], [], compare.trainable

    def subject(options, images=None):
        unet = tiny_unet()
        built.append(Subject(unet, tiny_objective(), pairs(images or options.batch), candidates(unet), options.device))
        return built[-1]

    def trainable(unet, run, selection, rank, alpha):
        parameters = right(unet, run, selection, rank, alpha)
        trained.append((selection, parameters))
        return parameters

    monkeypatch.setattr(compare, "subject", subject)
    monkeypatch.setattr(compare, "trainable", trainable)
    monkeypatch.setattr(compare, "LOGICAL", SIZES)
    return built, trained


def test_every_comparison_has_a_row(tiny, options, monkeypatch):
    monkeypatch.setattr(compare, "_peak_mb", lambda step, device: 1.0)  # the profiler takes seconds
    compare.bench(options)
    table = pd.read_csv(options.out)
    assert table["comparison"].is_unique and len(table) == 3 + 2 + 2 + len(SIZES) - 1
    assert set(table["architecture"]) == {"public-mini"} and set(table["batch"]) == {2}
    assert set(table["device"]) == {"cpu, 1 threads"}
    assert (table.select_dtypes("number") > 0).all(axis=None)
    assert table["ratio"].tolist() == pytest.approx((table["seconds"] / table["base_seconds"]).tolist())  # of one pair each
    assert [path.name for path in options.out.parent.iterdir()] == ["bench.csv"]


def test_lora_is_timed_on_a_share_and_on_all_of_the_matrices(tiny, options):
    compare.adapter_steps(options)
    built, trained = tiny
    assert len(trained) == 4, "a plain and a private step for each share"
    for (selection, parameters), share in zip(trained, (0.3, 0.3, 1.0, 1.0), strict=True):
        assert selection[MATRIX].tolist() == built[0].matrices
        assert selection[SELECTED].sum() == round(share * len(built[0].matrices))
        assert len(parameters) == 2 * selection[SELECTED].sum() and all("lora_" in name for name in parameters)


@pytest.mark.parametrize("engine", [None, per_image_gradients], ids=["plain", "private"])
@pytest.mark.parametrize("method", ["dp-lora", "dp-full"])
def test_a_step_moves_what_is_trained_and_nothing_else(tiny, options, method, engine):
    step = compare._step(options, method, 0.3, engine)
    (unet,), ((_, parameters),) = ([subject.unet for subject in tiny[0]], tiny[1])
    before = {name: value.detach().clone() for name, value in unet.named_parameters()}
    step(), step()  # LoRA's B is zero at the start, so that A moves in the second step only
    moved = {name for name, value in unet.named_parameters() if not torch.equal(before[name], value)}
    assert moved == set(parameters)


def test_a_logical_batch_needs_the_memory_of_a_micro_batch(tiny, options):
    rows = compare.logical_batches(options)
    assert [len(subject.pairs) for subject in tiny[0]] == list(SIZES)
    assert [row["comparison"] for row in rows] == [f"logical batch {size} against {SIZES[0]}" for size in SIZES[1:]]
    assert all(row["memory_ratio"] < 1.5 for row in rows), "six micro-batches one after the other, and the first image alone"


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


def test_the_subject_is_the_packaged_model_and_the_same_each_time(options):
    state = torch.get_rng_state()
    first, second = compare.subject(options), compare.subject(options, 5)
    assert torch.equal(state, torch.get_rng_state())
    assert (len(first.pairs), len(second.pairs)) == (2, 5)
    assert len(first.matrices) == 56 and first.unet.training
    assert torch.equal(first.pairs.latents, compare.subject(options).pairs.latents)
    rows = first.objective.loss(first.unet, first.pairs)
    assert first.loss(first.unet).item() == pytest.approx(rows.sum().item()) and rows.min() > 0


def test_stable_diffusion_has_random_weights_that_do_not_change(options, monkeypatch):
    asked = []

    class Fake(torch.nn.Module):
        def __init__(self, **settings):
            super().__init__()
            asked.append(settings)
            self.attn1 = torch.nn.ModuleDict({"to_q": torch.nn.Linear(3, 3), "norm": torch.nn.Linear(3, 3)})

    monkeypatch.setattr("diffusers.UNet2DConditionModel", Fake)
    large, state = replace(options, architecture="sd-v1-5"), torch.get_rng_state()
    first, second = compare.subject(large), compare.subject(large)
    assert torch.equal(state, torch.get_rng_state())
    assert asked == [{"sample_size": 32, "cross_attention_dim": 768}] * 2
    assert first.pairs.latents.shape == (2, 4, 32, 32) and first.pairs.embeddings.shape == (2, 77, 768)
    assert first.matrices == ["attn1.to_q"]
    assert torch.equal(first.unet.attn1["to_q"].weight, second.unet.attn1["to_q"].weight)


@pytest.fixture
def clock(monkeypatch):
    """Steps that take given seconds, one call after the other, by a clock of their own."""
    now = [0.0]

    def step(*durations):
        left = iter(durations)

        def take():
            now[0] += next(left, 0.0)

        return take

    monkeypatch.setattr(compare, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(compare, "_peak_mb", lambda step, device: 1.0)
    return step


def test_the_first_of_two_steps_is_not_timed(clock):
    assert compare._seconds(clock(100.0, 3.0), "cpu") == 3.0


def test_the_ratio_is_the_median_of_the_pairs_ratios(clock, options):
    """Three pairs, each behind a step that is not timed: (1, 2), (10, 30), (2, 2) seconds."""
    base, other = clock(9.0, 1.0, 9.0, 10.0, 9.0, 2.0), clock(9.0, 2.0, 9.0, 30.0, 9.0, 2.0)
    row = compare._compared("x", base, other, options, repeats=3)
    assert (row["base_seconds"], row["seconds"], row["ratio"]) == (2.0, 2.0, 2.0)
    slow, steady = clock(0.0, 1.0, 0.0, 5.0), clock(0.0, 2.0, 0.0, 10.0)
    assert compare._compared("x", slow, steady, options, repeats=2)["ratio"] == 2.0, "a slower machine cancels"


def test_pairs_are_timed_in_turns_as_often_as_the_options_say(clock, options):
    calls = []

    def step(name):
        take = clock(*[1.0] * 6)
        return lambda: (calls.append(name), take())

    compare._compared("x", step("base"), step("other"), replace(options, repeats=3))
    assert calls == ["base", "base", "other", "other"] * 3


def megabytes(count):
    return torch.empty(count * 250_000)


def test_peak_memory_counts_what_is_held_at_once():
    held = megabytes(8)
    assert compare._peak_mb(lambda: [megabytes(2), megabytes(3)], "cpu") == pytest.approx(5, rel=0.01)
    assert compare._peak_mb(lambda: [megabytes(2).sum(), megabytes(3).sum()], "cpu") == pytest.approx(3, rel=0.01)
    assert held.numel() == 8 * 250_000
