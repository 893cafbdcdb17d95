"""Steps of the optimizers: DP-AdamBC by hand and against Adam, SGD with momentum, and what each is built with."""

import math

import pytest
import torch

from dpsapf.optimization.noise_walk import noise_deviation
from dpsapf.optimization.optimizers import DPAdamBC, build_optimizer


def steps(optimizer, parameter, gradients):
    found = []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        found.append(parameter.detach().clone())
    return torch.stack(found)


def gradients(count=20, size=50, seed=0, deviation=1.0, mean=0.0):
    return mean + deviation * torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fresh(size=50):
    return torch.nn.Parameter(torch.zeros(size, dtype=torch.float64))


def test_one_step_by_hand():
    parameter = torch.nn.Parameter(torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64))
    steps(DPAdamBC([parameter], 0.1, 4.0), parameter, [torch.tensor([3.0, -1.0, 2.1], dtype=torch.float64)])
    floor = math.sqrt(0.4)  # of the second and third, whose squares are below or near the noise's
    assert parameter.tolist() == pytest.approx([1 - 0.3 / math.sqrt(5), 1 + 0.1 / floor, 1 - 0.21 / math.sqrt(0.41)])


def test_without_noise_it_is_adam():
    one, other, given = fresh(), fresh(), gradients()
    expected = steps(torch.optim.Adam([other], lr=0.01, eps=0.0), other, given)
    torch.testing.assert_close(steps(DPAdamBC([one], 0.01, 0.0), one, given), expected, rtol=1e-5, atol=1e-9)


def test_it_keeps_the_ratio_of_gradients_that_noise_hides_from_adam():
    """A gradient ten times as large moves Adam about as far, under noise, as one alone; here nearer to what it does without."""
    mean = torch.cat([torch.full((2000,), 0.3), torch.full((2000,), 3.0)]).double()
    noisy = mean + gradients(300, 4000, deviation=1.0)
    moved = {}
    for name, optimizer in (("adam", torch.optim.Adam), ("bc", None)):
        parameter = fresh(4000)
        built = DPAdamBC([parameter], 0.01, 1.0) if optimizer is None else optimizer([parameter], lr=0.01)
        last = steps(built, parameter, noisy)[-1].abs()
        moved[name] = (last[:2000].mean() / last[2000:].mean()).item()
    assert moved["adam"] < 0.35 < 0.6 < moved["bc"] <= 1.0  # without noise Adam moves both equally far


def test_sgd_has_momentum():
    parameter = fresh(1)
    moved = steps(build_optimizer("sgd", [parameter], 0.1, 5.0), parameter, torch.ones(3, 1, dtype=torch.float64))
    assert moved.flatten().tolist() == pytest.approx([-0.1, -0.1 - 0.19, -0.1 - 0.19 - 0.271])


def test_the_noise_is_that_of_the_mean_gradient():
    assert noise_deviation(2.0, 0.5, 100.0) == pytest.approx(0.01) and noise_deviation(None, None, 100.0) == 0.0
    built = build_optimizer("dp-adambc", [fresh()], 0.1, 0.01)
    assert built.param_groups[0]["noise_variance"] == pytest.approx(1e-4)
    assert build_optimizer("adamw", [fresh()], 0.1, 0.01).param_groups[0]["weight_decay"] == 0.0
