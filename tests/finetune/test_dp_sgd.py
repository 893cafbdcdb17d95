import copy
import math

import pytest
import torch
from opacus.grad_sample import GradSampleModule

from dpsapf.experiment.records import Release
from dpsapf.finetune.dp_sgd import private_gradient
from dpsapf.gradients.per_image import per_image_gradients
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import SeededNoise
from dpsapf.support.randomness import torch_generator
from dpsapf.support.replay import NO_REPLAY, Replay
from tests.one_image import ADAPTERS, BATCH, TOLERANCE, drawn, error, flat, median_norm, oracle, prepared, row_gradients
from tests.tiny import tiny_objective

EXPECTED = 6.0


def release(sigma=1.0, bound=1.0):
    return Release(name="dp-sgd", noise_multiplier=sigma, sensitivity=bound, sampling_rate=0.5, steps=3)


def metered(expected):
    """A meter that has drawn a batch of so many units, on average."""
    meter = Meter(int(2 * expected))
    meter.batch(0.5, torch.Generator())
    return meter


def gradient(
    *,
    micro_batch=12,
    multiplicity=1,
    sigma=1e-9,
    bound=1.0,
    clipping="automatic",
    kind="lora",
    batch=BATCH,
    noise=0,
    expected=EXPECTED,
    described=None,
    meter=None,
    replay=NO_REPLAY,
):
    unet, parameters = prepared(kind)
    per_image = per_image_gradients(unet, parameters, kind if kind in ADAPTERS else None)
    objective = tiny_objective()
    report = private_gradient(
        lambda rows: objective.loss(per_image.model, rows),
        per_image,
        list(parameters.values()),
        drawn(multiplicity, batch),
        described or release(sigma, bound),
        multiplicity=multiplicity,
        clipping=clipping,
        micro_batch=micro_batch,
        device="cpu",
        noise=SeededNoise(torch_generator(noise, "noise")),
        meter=meter or metered(expected),
        replay=replay,
    )
    return flat([parameter.grad for parameter in parameters.values()]), report


@pytest.mark.parametrize("multiplicity", [1, 3])
@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_equals_the_one_image_loop_over_the_expected_batch(kind, multiplicity):
    """One kind of each way to per-image gradients; `tests/gradients/test_per_image.py` has them all."""
    options = {"clipping": "flat", "kind": kind, "multiplicity": multiplicity, "bound": median_norm(kind, multiplicity)}
    assert error(gradient(micro_batch=5, **options)[0], oracle(**options) / EXPECTED) < TOLERANCE


def test_the_divisor_is_the_expected_batch_and_not_the_realised_one():
    few, many = gradient(expected=6.0)[0], gradient(expected=24.0)[0]
    torch.testing.assert_close(few, 4 * many, rtol=1e-6, atol=0)


@pytest.mark.parametrize("micro_batch", [1, 5, 7])
def test_micro_batch_does_not_change_the_gradient(micro_batch):
    torch.testing.assert_close(gradient(micro_batch=micro_batch)[0], gradient()[0], rtol=1e-3, atol=1e-6)  # fp32 sums


def test_noise_is_added_once_whatever_the_micro_batch():
    small, large = gradient(sigma=3.0, micro_batch=1)[0], gradient(sigma=3.0)[0]
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-5)  # same noise, fp32 sums


def test_noise_scale_is_sigma_times_bound_over_the_expected_batch():
    noisy, clean = gradient(sigma=2.0, bound=0.5)[0], gradient(bound=0.5)[0]
    scale = (noisy - clean).std().item()
    assert scale == pytest.approx(2.0 * 0.5 / 6.0, rel=5 / math.sqrt(2 * len(noisy)))  # five standard errors


def test_without_a_guarantee_nothing_is_clipped_or_noised():
    exact = Release(name="dp-sgd", mechanism="none", sensitivity=None, sampling_rate=0.5, steps=3)
    computed = gradient(described=exact, clipping="none", micro_batch=5)[0]
    torch.testing.assert_close(computed, oracle(clipping="none") / EXPECTED, rtol=1e-3, atol=2e-6)  # plain training's gradient


def test_the_contribution_that_is_measured_is_in_double_precision():
    exact = Release(name="dp-sgd", mechanism="none", sensitivity=None, sampling_rate=0.5, steps=3)
    meter = Meter(1)
    added = gradient(described=exact, clipping="none", batch=BATCH[:1], meter=meter)[0]
    assert meter.measured(1.0).largest_contribution == pytest.approx(added.double().norm().item(), rel=1e-9)


@pytest.mark.parametrize("kind", ["lora", "lokr", "full"])
def test_an_empty_batch_still_gets_noise(kind):
    empty, report = gradient(sigma=2.0, batch=torch.tensor([], dtype=torch.int64), kind=kind)
    assert empty.abs().min() > 0 and report.units == 0 and math.isnan(report.loss)


@pytest.mark.parametrize("micro_batch", [5, 12])
def test_the_report_is_of_images_and_not_of_rows(micro_batch):
    """Means over images of the loss and of the norm before clipping, whatever the bound and the noise."""
    _, report = gradient(multiplicity=3, micro_batch=micro_batch, bound=1e-3, sigma=5.0)
    unet, _ = prepared()
    with torch.no_grad():
        losses = tiny_objective().loss(unet, drawn(3))
    assert report.units == 12
    assert report.loss == pytest.approx(losses.mean().item(), rel=1e-5)  # fp32 sums
    assert report.gradient_norm == pytest.approx(row_gradients("lora", 3).mean(1).norm(dim=1).mean().item(), rel=1e-4)


def test_equals_opacus_own_optimizer_without_noise():
    """Opacus' DPOptimizer, flat clipping, as a second oracle."""
    from opacus.optimizers import DPOptimizer

    unet, parameters = prepared()
    bound = median_norm()
    model, objective = GradSampleModule(unet, loss_reduction="sum", strict=False), tiny_objective()
    optimizer = DPOptimizer(
        torch.optim.SGD(list(parameters.values()), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=bound,
        expected_batch_size=6,
        loss_reduction="mean",
    )
    objective.loss(model, drawn()).sum().backward()
    before = copy.deepcopy([parameter.detach() for parameter in parameters.values()])
    optimizer.step()
    step = flat([a - b.detach() for a, b in zip(before, parameters.values(), strict=True)])
    assert error(gradient(bound=bound, clipping="flat")[0], step) < 1e-3  # Opacus adds 1e-6 to norms of 1e-2


@pytest.mark.parametrize("clipping", ["flat", "automatic"])
def test_the_sum_is_at_most_one_bound_per_image(clipping):
    bound = 0.1 * median_norm()
    computed = gradient(bound=bound, clipping=clipping)[0]
    assert 0 < computed.norm() * 6.0 <= 12 * bound * (1 + 1e-4)  # fp32 rounding


@pytest.mark.parametrize("multiplicity", [1, 3])
@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_chunks_that_are_filled_up_to_one_size_give_the_same(kind, multiplicity):
    """Nine images: one alone, five, and three with two repetitions that count for nothing."""
    sizes = []

    class Filling(Replay):
        def __init__(self):
            self.records = True

        def __call__(self, work, inputs, kind=()):
            sizes.append(len(inputs[0]))
            return work(*inputs)

    options = {"kind": kind, "multiplicity": multiplicity, "micro_batch": 5, "batch": BATCH[:9], "bound": 1e-3}
    (expected, report), (found, filled) = gradient(**options), gradient(replay=Filling(), **options)
    probed = [5, 1, 1, 1, 1]  # some together, and each alone
    assert sizes == [multiplicity * size for size in (1, 5, 5, *probed)]
    assert error(found, expected) < TOLERANCE
    assert filled.units == report.units == 9
    assert filled.loss == pytest.approx(report.loss, rel=1e-5) and filled.gradient_norm == pytest.approx(
        report.gradient_norm, rel=1e-5
    )
