import math
import os
import socket

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpsapf.experiment.records import Release
from dpsapf.finetune.dp_sgd import private_gradient
from dpsapf.gradients.ghost_clipping import GhostClipping
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import Draws, SeededNoise
from dpsapf.public_models.latents import Pairs
from dpsapf.support.errors import UserError
from dpsapf.support.parallel import ALONE, Processes, processes
from dpsapf.support.randomness import torch_generator

IMAGES = 7  # one process gets one more than the other


def gradient(joined, images=IMAGES, noise="leader", sigma=1.0):
    """DP-SGD's gradient of a linear model, and the report, in one of some processes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
    rows = torch.randn(images, 3, generator=torch_generator(0, "rows"))
    pairs = Pairs(rows, rows, torch.zeros(images), torch.zeros(images, dtype=torch.int64), torch.zeros(1, 1, 1))
    engine, parameters = GhostClipping(model, dict(model.named_parameters())), list(model.parameters())
    report = private_gradient(
        lambda chunk: engine.model(chunk.latents).square().sum(1),
        engine,
        parameters,
        pairs,
        Release(name="dp-sgd", noise_multiplier=sigma, sensitivity=0.5, sampling_rate=0.5, steps=1),
        multiplicity=1,
        clipping="flat",
        micro_batch=2,
        device="cpu",
        noise=SeededNoise(torch_generator(0, noise)),
        meter=Meter(4),  # the mean is over four
        processes=joined,
    )
    return torch.cat([parameter.grad.flatten() for parameter in parameters]), (report.units, report.loss, report.gradient_norm)


def counted(joined, shard):
    """What the meters of some processes saw after each added up some of a batch of everybody, and checkpointed on the way."""
    meter = Meter(IMAGES)
    meter.batch(1.0, Draws("system", 0, "test").secret())
    meter.rows(torch.full((len(shard), 2), 0.25 * (joined.rank + 1)), 1.0)
    meter.agree(joined)
    facts, tensors = meter.state()
    again = Meter(IMAGES)
    again.restore(facts, tensors, joined.leads)
    again.agree(joined)
    return again.measured(1.0)


class Fault(Exception):
    """No error of torch's own is one."""


def work(rank, ports, folder):
    """What each of the two processes does; the test reads what it left."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0]), "RANK": str(rank), "WORLD_SIZE": "2"}
    with processes("cpu") as joined:
        result = {"rank": joined.rank, "count": joined.count, "leads": joined.leads}
        sums, leading = [torch.full((2,), rank + 1.0), torch.tensor(10.0 * (rank + 1))], [torch.full((3,), float(rank))]
        joined.add(sums)
        joined.agree(leading)
        result |= {"sums": sums, "leading": leading}
        result["secret"] = torch.rand(9, generator=joined.agree_on_generator(Draws("system", 0, "test").secret(), "cpu"))
        result["own"] = torch.rand(9, generator=Draws("system", 0, "test").secret())
        result["gradient"] = gradient(joined, noise=("leader", "follower")[rank])
        result["largest"] = joined.largest(0.1 + rank), joined.any(rank == 1), joined.any(False)
        result["few"] = gradient(joined, 1)  # the second process has none
        result["empty"] = gradient(joined, 0)
        result["shards"] = dict(counted(joined, joined.shard(IMAGES)))
        result["whole batches"] = dict(counted(joined, torch.arange(IMAGES)))
        joined.check_equal(7, "step")
        try:
            joined.check_equal(rank, "step that a process resumes at")
        except UserError as error:
            result["unequal"] = str(error)
        joined.check_same(torch.arange(3), "units")
        try:
            joined.check_same(torch.tensor([0, 1, 2 + rank]), "units")
        except UserError as error:
            result["another"] = str(error)
    os.environ["MASTER_PORT"] = str(ports[1])  # the first port's store may still be closing
    try:
        with processes("cpu"):
            raise Fault
    except Fault:
        result["left"] = not torch.distributed.is_initialized()
    torch.save(result, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The results of two processes that talk through gloo."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as first, socket.socket() as second:
        for free in (first, second):
            free.bind(("127.0.0.1", 0))
        ports = first.getsockname()[1], second.getsockname()[1]
    torch.multiprocessing.spawn(work, (ports, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_torchruns_variables_say_who_a_process_is(two):
    assert [(result["rank"], result["count"], result["leads"]) for result in two] == [(0, 2, True), (1, 2, False)]


def test_add_sums_over_processes(two):
    for result in two:
        assert [value.tolist() for value in result["sums"]] == [[3.0, 3.0], 30.0]


def test_agree_takes_the_leading_process_values(two):
    for result in two:
        assert result["leading"][0].tolist() == [0.0, 0.0, 0.0]


def test_the_largest_of_the_processes_numbers_in_double_precision(two):
    assert [result["largest"] for result in two] == [(1.1, True, False)] * 2
    assert (ALONE.largest(0.1), ALONE.any(True), ALONE.any(False)) == (0.1, True, False)


def test_what_the_processes_saw_is_joined(two):
    leading = two[0]["shards"]
    assert leading["surplus"] == 0 and leading["largest_contribution"] == pytest.approx(0.5 * math.sqrt(2))  # the other's


def test_units_that_two_processes_both_added_up_are_too_many(two):
    assert two[0]["whole batches"]["surplus"] == IMAGES


def test_processes_agree_on_secret_draws(two):
    assert torch.equal(two[0]["secret"], two[1]["secret"])
    assert not torch.equal(two[0]["own"], two[1]["own"])  # without agreeing they differ


def test_numbers_that_differ_between_processes_are_refused(two):
    assert all("hash of units = " in result["another"] and "a defect of the code" in result["another"] for result in two)


@pytest.mark.parametrize(("name", "images"), [("gradient", IMAGES), ("few", 1), ("empty", 0)])
def test_shares_of_a_batch_give_the_gradient_of_the_whole_with_the_noise_of_one(two, name, images):
    expected, report = gradient(ALONE, images)
    assert expected.isfinite().all()
    for result in two:
        torch.testing.assert_close(result[name][0], expected, rtol=1e-5, atol=1e-6)  # fp32 sums in another order
        assert result[name][1] == pytest.approx(report, rel=1e-5, nan_ok=True)
    assert torch.equal(two[0][name][0], two[1][name][0])  # bit-equal: weights never drift apart


def test_the_noise_of_the_other_process_or_of_both_would_differ(two):
    leader, other, exact = (
        gradient(ALONE, noise=name, sigma=sigma)[0] for name, sigma in (("leader", 1), ("follower", 1), ("x", 1e-9))
    )
    for wrong in (other, leader + other - exact, exact):
        assert not torch.allclose(two[0]["gradient"][0], wrong, rtol=1e-2, atol=1e-2)


def talk(rank, port, folder, device):
    """All that processes say to each other, on tensors of a device."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
    }
    with processes(device) as joined:
        sums, leading = [torch.full((2,), rank + 1.0, device=device)], [torch.full((3,), float(rank), device=device)]
        joined.add(sums)
        joined.agree(leading)
        joined.check_equal(7, "step")
        draws = torch.rand(9, generator=joined.agree_on_generator(Draws("system", 0, "test").secret(), device))
        told = [sums[0].tolist(), leading[0].tolist(), joined.largest(0.1 + rank), joined.any(rank == 1), draws.tolist()]
        torch.save(told, folder / f"{rank}.pt")


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs here"))],
)
def test_processes_talk_through_gloo_or_nccl(device, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(talk, (port, tmp_path, device), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second and first[:4] == [[3.0, 3.0], [0.0, 0.0, 0.0], 1.1, True]


def test_processes_that_resume_at_different_steps_are_refused(two):
    for rank, result in enumerate(two):
        assert f"resumes at = {rank}: others have 0 to 1: put the outputs in a folder" in result["unequal"]


def test_the_group_is_left_after_an_error(two):
    assert [result["left"] for result in two] == [True, True]


@settings(deadline=None)
@given(images=st.integers(0, 200), count=st.integers(1, 17))
def test_shards_partition_every_batch_evenly(images, count):
    shards = [Processes(rank, count).shard(images) for rank in range(count)]
    assert sorted(torch.cat(shards).tolist()) == list(range(images))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert {shard.dtype for shard in shards} == {torch.int64}
    assert [Processes(rank, count).leads for rank in range(count)] == [True] + [False] * (count - 1)


@settings(deadline=None)
@given(start=st.integers(0, 50), rows=st.integers(0, 100), size=st.integers(1, 20), count=st.integers(1, 9))
def test_rounds_of_rows_take_each_once_and_in_order(start, rows, size, count):
    stop, joined = start + rows, [Processes(rank, count) for rank in range(count)]
    parts = [one.rows(first, stop, size) for first in joined[0].rounds(start, stop, size) for one in joined]
    assert [row for part in parts for row in part] == list(range(start, stop))
    assert all(len(part) <= size and part.step == 1 for part in parts)
    assert len(joined[0].rounds(start, stop, size)) == -(-rows // (size * count)), "and no round more than that needs"
    assert {one.rounds(start, stop, size) for one in joined} == {joined[0].rounds(start, stop, size)}


@pytest.mark.parametrize("count", [None, "1"])
def test_without_torchrun_a_process_is_alone(monkeypatch, count):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if count is not None:
        monkeypatch.setenv("WORLD_SIZE", count)
    with processes("cpu") as joined:
        assert joined is ALONE and joined.leads
        assert not torch.distributed.is_initialized()


def test_alone_there_is_nothing_to_sum_or_to_agree_on():
    value, generator = torch.arange(3.0), torch_generator(0)
    before = generator.get_state()
    ALONE.add([value])
    ALONE.agree([value])
    ALONE.check_equal(3, "step")
    assert value.tolist() == [0, 1, 2]
    assert ALONE.agree_on_generator(generator, "cpu") is generator and torch.equal(generator.get_state(), before)
