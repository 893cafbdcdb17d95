"""What a GPU does is what a CPU does: products, clipped sums, recordings, training and sampling, in fp32 and in bf16."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dpsapf.experiment.records import Measured, Release, Spend
from dpsapf.finetune import train
from dpsapf.finetune.dp_sgd import private_gradient
from dpsapf.gradients.ghost_clipping import GhostClipping
from dpsapf.gradients.ghost_norms import GhostNorms
from dpsapf.gradients.per_image import per_image_gradients
from dpsapf.gradients.products import product, product_with_fp32
from dpsapf.privacy.clipping import MARGIN
from dpsapf.privacy.evidence import ADDITIVE, check_measures
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import SeededNoise
from dpsapf.public_models.latents import Pairs
from dpsapf.public_models.precision import in_precision
from dpsapf.saliency.progress import Progress
from dpsapf.saliency.score import saliency_scores
from dpsapf.sampling import sample
from dpsapf.support.checked import replace
from dpsapf.support.randomness import torch_generator
from dpsapf.support.records import read_record
from dpsapf.support.replay import NO_REPLAY, Replay, replayed
from tests.finetune.test_train import options as training  # noqa: F401 - fixtures, as the next two
from tests.finetune.test_train import without_guarantee
from tests.one_image import ADAPTERS, clipped_sum, drawn, error, flat, prepared, row_gradients
from tests.saliency.test_score import options as scoring
from tests.sampling.test_sample import options as sampling  # noqa: F401
from tests.tiny import candidates, tiny_latents, tiny_objective, tiny_unet

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
TF32 = 2e-3  # relative: convolutions of fp32 numbers are multiplied in TF32, which has 11 bits
OBJECTIVE = tiny_objective()
KINDS = (*ADAPTERS, "full", "weights")


def randoms(*shapes, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


@pytest.mark.parametrize("tokens", [16, 1000, 5000])
def test_products_of_bf16_numbers_are_as_exact_as_those_of_fp32_numbers(tokens):
    left, right = randoms((3, 2, 40, tokens), (3, 2, tokens, 24))
    exact = left.double() @ right.double()
    assert product(left, right).dtype == torch.float32
    # cut off 32 times a piece by 2^-24, which is 2e-6; sums in bf16 have 8 bits
    assert error(product(left, right).double(), exact) < 3e-6 < 1e-3 < error((left @ right).double(), exact)


def test_products_with_fp32_numbers_keep_their_24_bits():
    (right,), (left,) = randoms((1000, 24)), randoms((40, 1000), dtype=torch.float32)
    exact = left.double() @ right.double()
    assert error(product_with_fp32(left, right).double(), exact) < 3e-6  # as above
    assert error((left.bfloat16() @ right).double(), exact) > 1e-3


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_squared_norms_are_not_too_small_by_more_than_a_320th_of_the_margin_of_clipping(scale):
    """Both forms, where numbers all have one sign and rounding towards zero would add up."""
    from dpsapf.gradients.ghost_norms import squared_norms

    for tokens, width in ((4096, 320), (64, 1280)):
        layer = torch.nn.Linear(width, width, bias=False, device=DEVICE)
        a, g = (scale * values.abs() for values in randoms((2, tokens, width), (2, tokens, width)))
        exact = (g.double().mT @ a.double()).square().sum((1, 2)).float()
        ratio = squared_norms(layer, a, g) / exact
        assert ratio.min() > 1 - 2 * MARGIN / 320 and ratio.max() < 1 + 2**-14


def computed(kind, precision, replay=NO_REPLAY, calls=1, bound=1.0):
    """Clipped sums and norms of 12 images with 3 rows each, on the GPU; the last of some calls."""
    unet, parameters = prepared(kind)
    in_precision(unet.to(DEVICE), precision)
    parameters = {name: dict(unet.named_parameters())[name] for name in parameters}
    engine, pairs = per_image_gradients(unet, parameters, kind if kind in ADAPTERS else None), drawn(3).to(DEVICE)

    def work(*rows):
        sums, norms = engine.clipped_sum(OBJECTIVE.loss(engine.model, Pairs(*rows)), bound, "flat", 3)
        return norms, *sums

    for _ in range(calls):
        norms, *sums = replay(work, pairs.tensors)
    return flat(sums).cpu(), norms.cpu()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", TF32), ("bf16", 0.1)])
@pytest.mark.parametrize("kind", KINDS)
def test_clipped_sums_are_those_of_the_one_image_loop(kind, precision, tolerance):
    rows = row_gradients(kind, 3).mean(1)
    bound = rows.norm(dim=1).median().item()
    sums, norms = computed(kind, precision, bound=bound)
    assert error(norms, rows.norm(dim=1)) < tolerance
    assert error(sums, clipped_sum(rows, bound, "flat")) < tolerance


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_replayed_is_what_is_launched(kind, precision):
    launched, norms = computed(kind, precision)
    replay = Replay(DEVICE)
    again, norms_again = computed(kind, precision, replay, calls=3)
    assert replay._recordings[()], "it was recorded"
    torch.testing.assert_close(again, launched, rtol=1e-4, atol=1e-6)  # a GPU may choose other kernels
    torch.testing.assert_close(norms_again, norms, rtol=1e-4, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_one_image_adds_no_more_than_the_bound(kind, precision):
    """Measured in fp64 from what is added; the rest of a micro-batch is broken."""
    unet, parameters = prepared(kind)
    in_precision(unet.to(DEVICE), precision)
    parameters = {name: dict(unet.named_parameters())[name] for name in parameters}
    engine, bound = per_image_gradients(unet, parameters, "lora" if kind == "lora" else None), 1e-4
    pairs = drawn().to(DEVICE)
    pairs.latents[1:] = float("nan")
    sums, norms = engine.clipped_sum(OBJECTIVE.loss(engine.model, pairs), bound, "flat")
    assert norms[0] > bound and norms[1:].isnan().all()
    assert bound * (1 - 1.01 * MARGIN) < flat(sums).double().norm().item() <= bound


def steps(replay, precision, count=4, kind="lora"):
    """Some steps of DP-SGD with little noise and a last micro-batch of another size; the parameters at the end."""
    unet, parameters = prepared(kind)
    in_precision(unet.to(DEVICE), precision)
    parameters = [dict(unet.named_parameters())[name] for name in parameters]
    names = {name: value for name, value in unet.named_parameters() if any(value is one for one in parameters)}
    engine, optimizer = per_image_gradients(unet, names, kind), torch.optim.SGD(parameters, lr=1.0)
    reports, meter = [], Meter(12)
    for step in range(count):
        meter.batch(0.5, torch_generator(step, "batch"))
        report = private_gradient(
            lambda rows: OBJECTIVE.loss(engine.model, rows),
            engine,
            parameters,
            drawn(),
            Release(name="dp-sgd", noise_multiplier=1e-3, sensitivity=1.0, sampling_rate=0.5, steps=count),
            multiplicity=1,
            clipping="flat",
            micro_batch=4,
            device=DEVICE,
            noise=SeededNoise(torch_generator(step, "noise", device=DEVICE)),
            meter=meter,
            replay=replay,
        )
        optimizer.step()
        reports.append(report.loss)
    return flat(parameters).cpu(), reports, meter.measured(1.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_that_is_replayed_follows_its_weights(precision, monkeypatch):
    monkeypatch.setattr("dpsapf.privacy.meter.secrets.randbits", lambda bits: 0)  # the same units are looked at again
    expected, losses, measured = steps(NO_REPLAY, precision)
    replay = Replay(DEVICE)
    found, again, measured_again = steps(replay, precision)
    (recordings,) = replay._recordings.values()
    assert sorted(shapes[0][0][0] for shapes in recordings) == [1, 4]
    assert error(found, expected) < 1e-4 and again == pytest.approx(losses, rel=1e-3)  # other kernels, four steps on
    assert len(set(losses)) == 4, "the weights move"
    assert max(measured.not_additive, measured_again.not_additive) < ADDITIVE / 5, "some units again, together and alone"
    assert measured_again.largest_contribution == pytest.approx(measured.largest_contribution, rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_norms_of_candidates_are_those_of_a_cpu(precision):
    found = []
    for device in ("cpu", DEVICE):
        unet = in_precision(tiny_unet().requires_grad_(False).to(device), precision)
        with GhostNorms(unet, candidates(unet)) as norms:
            OBJECTIVE.loss(unet, drawn().to(device)).sum().backward()
            found.append(norms.take().cpu())
    assert error(found[1], found[0]) < (TF32 if precision == "fp32" else 0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_score_signal_is_recorded(precision):
    unet = in_precision(tiny_unet().requires_grad_(False).to(DEVICE), precision)
    weights = {f"{name}.weight": unet.get_submodule(name).weight for name in candidates(unet)}
    engine, replay, pairs = GhostClipping(unet, weights), Replay(DEVICE), drawn().to(DEVICE)

    def work(*rows):
        return tuple(engine.clipped_sum(OBJECTIVE.loss(unet, Pairs(*rows)), 1.0, "automatic")[0])

    first, *_, last = [flat(replay(work, pairs.tensors)).clone() for _ in range(3)]
    assert replay._recordings[()] and error(last, first) < 1e-4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_replayed_model_gives_a_result_of_its_own_each_time(precision):
    plain, replays = (in_precision(tiny_unet().requires_grad_(False).to(DEVICE), precision) for _ in range(2))
    replayed(replays, DEVICE)
    found = []
    with torch.no_grad():
        for seed in range(4):
            latents, texts = (torch.randn(shape, device=DEVICE) for shape in ((2, 4, 4, 4), (2, 3, 8)))
            given = {"sample": latents, "timestep": torch.tensor(100 * seed, device=DEVICE), "encoder_hidden_states": texts}
            (result,) = replays(**given, return_dict=False)
            found.append((result, plain(**given, return_dict=False)[0]))
    for result, expected in found:
        torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)  # a GPU may choose other kernels, in TF32


def test_work_that_cannot_be_recorded_is_called(caplog):
    replay, (values,) = Replay(DEVICE), randoms((3,), dtype=torch.float32)
    results = [replay(lambda part: (part * part.sum().item(),), (values,))[0] for _ in range(3)]
    assert all(torch.equal(result, results[0]) for result in results)
    assert "not recorded as a CUDA graph" in caplog.text and len(caplog.records) == 1


def test_nothing_waits_for_the_gpu_inside_a_micro_batch():
    for kind in ("lora", "dora", "full"):
        torch.cuda.synchronize()
        computed(kind, "bf16")  # compiles kernels
        unet, parameters = prepared(kind)
        in_precision(unet.to(DEVICE), "bf16")
        parameters = {name: dict(unet.named_parameters())[name] for name in parameters}
        engine, pairs = per_image_gradients(unet, parameters, kind if kind in ADAPTERS else None), drawn(3).to(DEVICE)
        OBJECTIVE.loss(engine.model, pairs)  # moves the schedule to the GPU
        torch.cuda.set_sync_debug_mode("error")
        try:
            sums, _ = engine.clipped_sum(OBJECTIVE.loss(engine.model, pairs), 1.0, "flat", 3)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert flat(sums).isfinite().all() and flat(sums).any(), "and a wait would have been an error"


def test_the_stage_finetune(training):  # noqa: F811
    """With noise, through the audit's tests of what was measured; then without, as a GPU's noise is of another generator."""
    train.finetune(replace(training, device=DEVICE, precision="bf16"))
    spend, measured = read_record(training.spend, Spend), read_record(training.private, Measured)
    check_measures(spend, measured, training.private)
    assert measured.peak_memory_mb > 0 and 0.4 < measured.largest_contribution <= 1
    without_guarantee(training)
    found = []
    for device in ("cpu", DEVICE):
        train.finetune(replace(training, device=device, ema_decay=0.0))
        found.append(flat(load_file(training.weights).values()))
    assert error(found[1], found[0]) < 0.05  # TF32, through four steps of AdamW, which divides by what is nearly 0


@pytest.mark.parametrize("name", ["energy", "signal"])
def test_scores_of_a_batch(name):
    found = []
    for device in ("cpu", DEVICE):
        unet, settings = tiny_unet().to(device), scoring(score=name, device=device, micro_batch=4)
        inputs = tiny_latents(), torch.arange(12), candidates(unet), settings, Progress(Meter(12))
        (scores,) = saliency_scores(unet, tiny_objective(), *inputs).opened()
        found.append(scores.cpu())
    assert error(found[1], found[0]) < TF32


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 3), ("bf16", 20)])  # of 255: TF32 has 11 bits, bf16 has 8
def test_the_stage_sample(sampling, precision, tolerance):  # noqa: F811
    found = []
    for device, its_precision in (("cpu", "fp32"), (DEVICE, precision)):
        sample.sample(replace(sampling, device=device, precision=its_precision, steps=4))
        with np.load(sampling.archive, allow_pickle=False) as archive:
            found.append(archive["images"].astype(int))
    assert np.abs(found[1] - found[0]).max() <= tolerance
