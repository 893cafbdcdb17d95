import contextlib
import functools
import itertools
import pathlib
import shutil
import signal
import sys
import types

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from dpsapf.experiment.columns import COLUMNS, FRAGILITY_SHRUNK, LORA_PARAMETERS, MATRIX, SCALE, SELECTED
from dpsapf.experiment.methods import TOLERATED_RISE
from dpsapf.experiment.records import Measured, Spend
from dpsapf.experiment.runs import normalise
from dpsapf.experiment.stages import Finetune
from dpsapf.finetune import train
from dpsapf.finetune.adapters import trainable
from dpsapf.finetune.weights import read_header
from dpsapf.optimization.noise_walk import squared_walk
from dpsapf.privacy.evidence import check_measures
from dpsapf.privacy.poisson import poisson_batch
from dpsapf.public_models.latents import draw_batch
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.interruption import Interrupted, listening
from dpsapf.support.parallel import Processes
from dpsapf.support.randomness import torch_generator
from dpsapf.support.records import read_record, write_record
from tests.tiny import TinyModel, candidates, tiny_latents, tiny_objective, tiny_record, tiny_unet, write_latents

IMAGES = 12
OUTPUTS = {"weights": "weights.safetensors", "training_log": "log.csv", "private": "private.json", "spend": "spend.json"}
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def options(tmp_path, plan, monkeypatch):
    """Inputs of a four-step run on the tiny UNet."""
    monkeypatch.setattr(train, "load_model", lambda record: {"tiny": TinyModel(record)}[record.name])
    release = replace(plan.releases[1], sampling_rate=0.5, steps=4)
    write_record(tmp_path / "plan.json", replace(plan, population=IMAGES, releases=(plan.releases[0], release)))
    write_record(tmp_path / "model.json", tiny_record())
    names = candidates(tiny_unet())
    pd.DataFrame({MATRIX: names, SELECTED: [index < 3 for index in range(len(names))]}).to_csv(tmp_path / "sel.csv", index=False)
    write_latents(tmp_path, tiny_latents(IMAGES))
    return Finetune(
        plan=tmp_path / "plan.json",
        model=tmp_path / "model.json",
        selection=tmp_path / "sel.csv",
        latents=tmp_path / "latents.safetensors",
        prompts=tmp_path / "prompts.safetensors",
        **{name: tmp_path / "out" / file for name, file in OUTPUTS.items()},
        learning_rate_lora=1e-2,
        learning_rate_full=1e-3,
        lora_rank=2,
        checkpoint_every=1,
        ema_decay=0.5,
        micro_batch=5,
    )


def weights(options):
    return load_file(options.weights)


def test_trains_what_the_plan_says_and_records_it(options):
    train.finetune(options)
    spend = read_record(options.spend, Spend)
    measured = read_record(options.private, Measured)
    assert spend.release == read_record(options.plan, train.Plan).releases[1] and len(measured.batches) == 4
    assert spend.private == sha256(options.private) and spend.digest == sha256(options.weights)
    assert spend.dataset_id == "d" * 64 and spend.made_from["selection"] == sha256(options.selection)
    assert spend.trainable_parameters == sum(value.numel() for value in weights(options).values())
    log = pd.read_csv(options.training_log)
    assert log["step"].tolist() == [1, 2, 3, 4]
    assert log["units"].tolist() == list(measured.batches)
    assert sum(measured.sizes) == spend.numbers == spend.trainable_parameters and len(measured.squares) == 4
    check_measures(spend, measured, options.private)
    assert 0.4 < measured.largest_contribution <= 1, "C g/(g + 0.01) of gradients near 0.01"
    assert any(value.abs().max() > 0 for name, value in weights(options).items() if "lora_B" in name)
    assert not options.weights.with_name("private.checkpoint.weights.safetensors").exists()


def drawn_first(batch):
    row = batch.rows(0, 1, "cpu")
    return row.latents, row.noise


def test_noise_and_pairs_are_drawn_anew_at_every_step(options, monkeypatch):
    """Whoever knew the noise of one step could subtract it from the others."""
    drawn, original = [], train.private_gradient

    def spied(loss, gradients, parameters, pairs, release, *, noise, **settings):
        report = original(loss, gradients, parameters, pairs, release, noise=noise, **settings)
        drawn.append((noise.normal(torch.zeros(3)), *drawn_first(pairs)))
        return report

    monkeypatch.setattr(train, "private_gradient", spied)
    train.finetune(options)
    for values in zip(*drawn, strict=True):
        assert len({tuple(value.flatten().tolist()) for value in values}) == 4


def without_guarantee(options):
    record = read_record(options.plan, train.Plan)
    exact = replace(record.releases[1], mechanism="none", noise_multiplier=None, sensitivity=None, noise=None)
    write_record(options.plan, replace(record, clipping="none", releases=(record.releases[0], exact)))
    return record.run.seed


def plain_training(options, seed, rate=1e-2):
    """Four steps of AdamW on the same batches: no hooks, no clipping, no noise."""
    unet, objective, latents = tiny_unet(), tiny_objective(), tiny_latents(IMAGES)
    run = read_record(options.plan, train.Plan).run
    parameters = trainable(unet, run, pd.read_csv(options.selection), 2, 4.0)
    optimizer = torch.optim.AdamW(parameters.values(), lr=rate, weight_decay=0.0)
    for step in range(4):
        batch = poisson_batch(IMAGES, 0.5, torch_generator(seed, "finetune", step, "batch"))
        pairs = draw_batch(latents, batch, 1, 1000, torch_generator(seed, "finetune", "pairs", step)).rows(0, len(batch), "cpu")
        loss = objective.loss(unet, pairs.rows(0, len(pairs), "cpu")).sum() / 6  # the expected batch
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: value.detach() for name, value in parameters.items()}


def test_without_a_guarantee_it_is_plain_training(options):
    """Epsilon = infinity: the whole of DP-SGD must reduce to AdamW; its twin, with a guarantee, must not."""
    settings = replace(options, ema_decay=0.0)
    train.finetune(settings)
    private = weights(settings)
    seed = without_guarantee(settings)
    train.finetune(settings)
    expected, computed = plain_training(settings, seed), weights(settings)
    assert sorted(expected) == sorted(computed)
    for name, value in computed.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=2e-5)  # rounding, through Adam's division
    assert any((value - expected[name]).abs().max() > 1e-3 for name, value in private.items())


class Killed(Exception):
    """Stands for a kill at a step."""


def interrupted(options, monkeypatch, step):
    """Run until a step, and let whoever goes on be counted: returns the steps that are done from now on."""
    original, done = train.train_step, []

    def killed(training, state):
        if state.step == step:
            raise Killed
        original(training, state)

    def counted(training, state):
        done.append(state.step)
        original(training, state)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train, "train_step", killed)
        train.finetune(options)
    monkeypatch.setattr(train, "train_step", counted)
    return done


@pytest.mark.parametrize(("every", "first"), [(1, 3), (2, 2), (100, 0)])
def test_training_goes_on_from_the_last_checkpoint(options, monkeypatch, every, first):
    settings = replace(options, checkpoint_every=every)
    done = interrupted(settings, monkeypatch, 3)
    train.finetune(settings)
    assert done == list(range(first, 4)) and len(pd.read_csv(settings.training_log)) == 4


def test_progress_is_shown_from_the_step_that_a_run_goes_on_at(options, monkeypatch):
    interrupted(options, monkeypatch, 2)
    shown = []
    monkeypatch.setattr(train, "track", lambda items, *described: shown.append(described) or items)
    train.finetune(options)
    assert shown == [(read_record(options.plan, train.Plan).run.id, "step", 4, 2)]


def test_a_moved_run_goes_on_and_one_of_other_contents_is_refused(options, monkeypatch, tmp_path):
    """A checkpoint is of what was read, wherever that stands."""
    done = interrupted(options, monkeypatch, 2)
    shutil.copytree(tmp_path, tmp_path / "elsewhere")
    files = {name: path.relative_to(tmp_path) for name, path in options if isinstance(path, pathlib.Path)}
    moved = {name: tmp_path / "elsewhere" / path for name, path in files.items()}
    train.finetune(Finetune(**(dict(options) | moved)))
    assert done == [2, 3]
    table = pd.read_csv(options.selection)
    table.assign(**{SELECTED: table[SELECTED].iloc[::-1].to_numpy()}).to_csv(options.selection, index=False)
    with pytest.raises(UserError, match="--selection.*checkpoint.weights.safetensors was made with.*delete the file"):
        train.finetune(options)


def test_a_process_that_does_not_lead_takes_its_share_and_writes_nothing(options, monkeypatch):
    """It tells the others the step that it starts at."""
    shares, starts = [], []

    class Follower(Processes):
        """Is not the first, and has nobody to talk to."""

        def shard(self, units):
            shares.append(units)
            return super().shard(units)

        def check_equal(self, number, what):
            starts.append((number, what))

    monkeypatch.setattr(train, "processes", lambda device: contextlib.nullcontext(Follower(rank=1)))
    train.finetune(options)
    assert len(shares) == 4 and starts == [(0, "step that a process resumes at")]
    assert not options.weights.parent.exists()


def test_processes_agree_on_who_is_in_a_batch_and_on_pairs(options, monkeypatch):
    agreed, batches, drawn = [], [], train.draw_batch

    class Agreeing(Processes):
        """One of several, whose leader draws from a seed."""

        def agree_on_generator(self, generator, device):
            agreed.append(torch_generator(len(agreed), "leader"))
            return agreed[-1]

        def check_same(self, numbers, what):
            batches.append(numbers)

    def spied(latents, batch, multiplicity, timesteps, generator):
        assert generator is agreed[-1] and batch is batches[-1]
        return drawn(latents, batch, multiplicity, timesteps, generator)

    monkeypatch.setattr(train, "processes", lambda device: contextlib.nullcontext(Agreeing()))
    monkeypatch.setattr(train, "draw_batch", spied)
    train.finetune(options)
    assert len(agreed) == 8 and len(batches) == 4, "two draws of a step: who, and pairs"
    for step, batch in enumerate(batches):
        assert torch.equal(batch, poisson_batch(IMAGES, 0.5, torch_generator(2 * step, "leader")))


def test_several_pairs_of_an_image_are_clipped_as_one(options):
    settings = replace(options, noise_multiplicity=3)
    train.finetune(settings)
    spend, measured = read_record(settings.spend, Spend), read_record(settings.private, Measured)
    check_measures(spend, measured, settings.private)
    assert pd.read_csv(settings.training_log)["units"].tolist() == list(measured.batches)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_resume_from_every_step_equals_an_uninterrupted_run(options, monkeypatch, step):
    train.finetune(options)
    expected = weights(options)
    again = replace(options, weights=options.weights.with_name("again") / "weights.safetensors")
    original = train.train_step

    def killed(training, state):
        if state.step == step:
            raise Killed
        original(training, state)

    monkeypatch.setattr(train, "train_step", killed)
    with pytest.raises(Killed):
        train.finetune(again)
    assert not again.weights.exists()
    monkeypatch.setattr(train, "train_step", original)
    train.finetune(again)
    assert all(torch.equal(value, expected[name]) for name, value in weights(again).items())  # bit-equal


def test_a_checkpoint_of_other_settings_is_refused_by_name(options, monkeypatch):
    done = interrupted(options, monkeypatch, 2)
    with pytest.raises(UserError, match=r"--learning-rate-lora = 0.05: .*was made with 0.01"):
        train.finetune(replace(options, learning_rate_lora=5e-2))
    assert done == [] and not options.weights.exists()


def test_a_run_goes_on_with_what_changes_it_by_rounding_only(options, monkeypatch):
    """What one edits after running out of memory or time."""
    train.finetune(options)
    expected = weights(options)
    options.weights.unlink()
    done = interrupted(options, monkeypatch, 2)
    edited = {"micro_batch": 3, "threads": 2, "checkpoint_every": 7, "checkpoint_minutes": 1.0, "gradient_checkpointing": True}
    train.finetune(replace(options, **edited))
    assert done == [2, 3]
    for name, value in weights(options).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)  # sums in another order, through Adam


def test_a_signal_ends_after_its_step_and_the_next_start_goes_on(options, monkeypatch):
    train.finetune(options)
    expected = weights(options)
    options.weights.unlink()
    settings, original, done = replace(options, checkpoint_every=100), train.train_step, []

    def asked(training, state):
        done.append(state.step)
        if state.step == 1 and len(done) == 2:
            signal.raise_signal(signal.SIGTERM)
        original(training, state)

    monkeypatch.setattr(train, "train_step", asked)
    with listening(), pytest.raises(Interrupted, match="asked to end by SIGTERM: the same command goes on from .*checkpoint"):
        train.finetune(settings)
    assert done == [0, 1] and not settings.weights.exists()
    train.finetune(settings)
    assert done == [0, 1, 2, 3]
    assert all(torch.equal(value, expected[name]) for name, value in weights(settings).items())  # bit-equal


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "warm-up"])
def test_the_learning_rate_follows_its_schedule(options, schedule):
    train.finetune(replace(options, learning_rate_schedule=schedule))
    rates = pd.read_csv(options.training_log)["learning_rate"].tolist()
    expected = {"constant": [1, 1, 1, 1], "linear": [1, 0.75, 0.5, 0.25], "cosine": [1, 0.853553, 0.5, 0.146447]}
    expected["warm-up"] = [0.5, 1, 1, 1]
    assert rates == pytest.approx([1e-2 * factor for factor in expected[schedule]], rel=1e-5)  # six digits


def test_a_falling_rate_survives_a_resume(options, monkeypatch):
    settings = replace(options, learning_rate_schedule="cosine")
    test_resume_from_every_step_equals_an_uninterrupted_run(settings, monkeypatch, 2)


def test_bf16_differs_by_rounding_and_keeps_weights_in_fp32(options):
    train.finetune(options)
    expected = weights(options)
    train.finetune(replace(options, precision="bf16"))
    rounded = weights(options)
    assert {value.dtype for value in rounded.values()} == {torch.float32}
    assert any(not torch.equal(value, expected[name]) for name, value in rounded.items())
    for name, value in rounded.items():
        torch.testing.assert_close(value, expected[name], rtol=0.2, atol=5e-3)  # Adam turns rounded gradients into steps of 1e-2


def test_gradient_checkpointing_differs_by_rounding(options):
    train.finetune(options)
    expected = weights(options)
    train.finetune(replace(options, gradient_checkpointing=True))
    for name, value in weights(options).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)  # sums in another order, through Adam


def test_eight_bit_moments_differ_by_rounding_and_survive_a_resume(options, monkeypatch):
    optim = pytest.importorskip("bitsandbytes", reason="bitsandbytes, an extra, is not installed").optim
    monkeypatch.setattr(optim, "AdamW8bit", functools.partial(optim.AdamW8bit, min_8bit_size=1))  # tiny tensors, too
    train.finetune(options)
    expected, settings = weights(options), replace(options, optimizer="adamw-8bit")
    test_resume_from_every_step_equals_an_uninterrupted_run(settings, monkeypatch, 2)
    rounded = weights(settings)
    assert any(not torch.equal(value, expected[name]) for name, value in rounded.items())
    for name, value in rounded.items():
        torch.testing.assert_close(value, expected[name], rtol=0.2, atol=2e-2)  # steps of 1e-2, moments in 8 bits


def test_an_optimizer_that_is_not_installed_is_named_with_its_remedy(options, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match=r"--optimizer = 'adamw-8bit'.*8bit"):
        train.finetune(replace(options, optimizer="adamw-8bit"))


def with_noise(options, mode):
    """Plan real noise, or seeded one."""
    record = read_record(options.plan, train.Plan)
    releases = tuple(replace(release, noise=mode) for release in record.releases)
    write_record(options.plan, replace(record, noise=mode, releases=releases))
    return record.run


def test_system_noise_differs_every_time(options, new_owner):
    """Of two owners; one releases once."""
    run, found = with_noise(options, "system"), []
    for out in ("a", "b"):
        new_owner(run=run)
        there = {name: options.plan.parent / out / file for name, file in OUTPUTS.items()}
        train.finetune(replace(options, **there))
        found.append(weights(replace(options, **there)))
    first, second = found
    assert any(not torch.equal(value, first[name]) for name, value in second.items())


@pytest.mark.parametrize("mode", ["seed", "system"])
def test_only_system_mode_draws_secret_batches_and_pairs(options, monkeypatch, new_owner, mode):
    """Pairs drawn by position from a public seed would change for all images behind one that is added."""
    run = with_noise(options, mode)
    states = {"poisson_batch": [], "draw_batch": []}

    def recording(name, function):
        def call(*arguments):
            states[name].append(bytes(arguments[-1].get_state().numpy()))
            return function(*arguments)

        return call

    monkeypatch.setattr("dpsapf.privacy.meter.poisson_batch", recording("poisson_batch", poisson_batch))
    monkeypatch.setattr(train, "draw_batch", recording("draw_batch", draw_batch))
    for out in ("a", "b"):
        new_owner(run=run)
        train.finetune(replace(options, **{name: options.plan.parent / out / file for name, file in OUTPUTS.items()}))
    steps = read_record(options.plan, train.Plan).releases[1].steps
    for name, seen in states.items():
        assert len(seen) == 2 * steps and len(set(seen)) == (steps if mode == "seed" else 2 * steps), name


def test_seeds_share_no_draw(options, monkeypatch):
    """Neither privacy noise nor batches nor pairs: averages over seeds are of independent runs."""
    drawn, original = [], train.private_gradient

    def spied(loss, gradients, parameters, pairs, release, *, noise, **settings):
        drawn.append((len(pairs), drawn_first(pairs)[1].flatten().tolist(), noise.uniform(3)))
        return original(loss, gradients, parameters, pairs, release, noise=noise, **settings)

    monkeypatch.setattr(train, "private_gradient", spied)
    record = train.read_record(options.plan, train.Plan)
    for seed in (0, 1):
        write_record(options.plan, replace(record, run=replace(record.run, seed=seed)))
        train.finetune(options)
    batches, pairs, noise = ((values[:4], values[4:]) for values in zip(*drawn, strict=True))
    for one, other in (batches, pairs, noise):
        assert one != other
    assert not any(value in pairs[1] for value in pairs[0]) and not any(value in noise[1] for value in noise[0])


@pytest.mark.parametrize("decay", [0.25, 0.0])
def test_the_average_follows_the_weights(options, monkeypatch, decay):
    original, seen = train.train_step, []

    def watched(training, state):
        seen.append({name: value.detach().clone() for name, value in state.parameters.items()})
        original(training, state)
        if state.step == 4:
            seen.append({name: value.detach().clone() for name, value in state.parameters.items()})

    monkeypatch.setattr(train, "train_step", watched)
    train.finetune(replace(options, ema_decay=decay))
    expected = seen[0]
    for weights_then, kept in zip(seen[1:], (2 / 11, 0.25, 0.25, 0.25), strict=True):
        kept = kept if decay else 0.0
        expected = {name: kept * value + (1 - kept) * weights_then[name] for name, value in expected.items()}
    for name, value in weights(options).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-8)  # rounding


def test_weights_do_not_decay(options, monkeypatch):
    original = train.train_step

    def checked(training, state):
        assert [group["weight_decay"] for group in state.optimizer.param_groups] == [0.0]
        original(training, state)

    monkeypatch.setattr(train, "train_step", checked)
    train.finetune(options)


@pytest.mark.parametrize("wanted", [True, False])
def test_activations_are_computed_again_only_if_asked_for(options, monkeypatch, wanted):
    unet = tiny_unet()
    monkeypatch.setattr(TinyModel, "denoiser", lambda model, device: {"cpu": unet}[device])
    train.finetune(replace(options, gradient_checkpointing=wanted))
    assert unet.is_gradient_checkpointing == wanted


def test_the_log_has_a_row_a_step_and_the_time_that_each_took(options, monkeypatch):
    clock = (0.12346 * tick for tick in itertools.count())
    monkeypatch.setattr(train, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    train.finetune(options)
    log = pd.read_csv(options.training_log)
    assert list(log.columns) == ["step", "units", "loss", "gradient_norm_mean", "learning_rate", "seconds"]
    assert log["seconds"].tolist() == [0.1235] * 4
    assert read_record(options.private, Measured).seconds == pytest.approx(4 * 0.12346)


def test_as_many_threads_as_asked_for(options, monkeypatch):
    interrupted(replace(options, threads=2), monkeypatch, 0)
    assert torch.get_num_threads() == 2


def test_another_seed_gives_other_weights(options, plan):
    train.finetune(options)
    first = weights(options)
    record = train.read_record(options.plan, train.Plan)
    write_record(options.plan, replace(record, run=replace(record.run, seed=1)))
    train.finetune(options)
    assert any(not torch.equal(value, first[name]) for name, value in weights(options).items())


def test_without_noise_and_clipping_loss_falls(options, plan):
    """Sanity of the optimisation itself: noiseless full training on a fixed batch reduces the loss."""
    record = train.read_record(options.plan, train.Plan)
    release = replace(record.releases[1], noise_multiplier=1e-9, sampling_rate=1.0, steps=12)
    run = normalise(replace(record.run, method="dp-full"))
    write_record(options.plan, replace(record, run=run, releases=(release,)))
    train.finetune(replace(options, learning_rate_full=5e-3))
    log = pd.read_csv(options.training_log)
    assert log["loss"].tail(5).mean() < log["loss"].head(5).mean()


def test_wrong_inputs_are_refused(options):
    record = train.read_record(options.plan, train.Plan)
    write_record(options.plan, replace(record, population=99))
    with pytest.raises(UserError, match="the plan is for 99 images"):
        train.finetune(options)
    write_record(options.plan, replace(record, releases=()))
    with pytest.raises(UserError, match="trains nothing"):
        train.finetune(options)
    assert not options.weights.parent.exists()


def test_clip_only_clips_and_adds_no_noise(options):
    record = train.read_record(options.plan, train.Plan)
    release = replace(record.releases[1], mechanism="none", noise_multiplier=None, noise=None, sensitivity=0.01)
    run = normalise(replace(record.run, method="clip-only"))
    write_record(options.plan, replace(record, run=run, releases=(release,), clipping="flat"))
    train.finetune(options)
    spend, measured = read_record(options.spend, Spend), read_record(options.private, Measured)
    assert spend.release == release and measured.sizes == () and 0 < measured.largest_contribution <= 0.01 * (1 + 1e-6)
    check_measures(spend, measured, options.private)
    with pytest.raises(UserError, match="exceeds the sensitivity"):
        check_measures(spend, replace(measured, largest_contribution=0.011), options.private)


def test_bitfit_trains_every_bias_and_nothing_else(options):
    record = train.read_record(options.plan, train.Plan)
    write_record(options.plan, replace(record, run=normalise(replace(record.run, method="dp-bitfit"))))
    train.finetune(options)
    biases = {name for name, _ in tiny_unet().named_parameters() if name.endswith(".bias")}
    assert set(weights(options)) == biases and len(biases) > 20


def alternating(options):
    record = train.read_record(options.plan, train.Plan)
    write_record(options.plan, replace(record, run=replace(record.run, adapter="la-lora")))
    return options


def test_la_lora_trains_b_and_a_in_turn(options, monkeypatch):
    """One of them moves at each step, with what an image adds to it within the bound, and noise drawn for both."""
    seen, step = [], train.train_step

    def watched(training, state):
        before = {name: value.detach().clone() for name, value in state.parameters.items()}
        step(training, state)
        moved = {name for name, value in state.parameters.items() if not torch.equal(value, before[name])}
        seen.append({name.split(".")[-3] for name in moved})
        assert len(moved) == len(before) / 2

    monkeypatch.setattr(train, "train_step", watched)
    train.finetune(alternating(options))
    assert seen == [{"lora_B"}, {"lora_A"}, {"lora_B"}, {"lora_A"}]
    spend, measured = read_record(options.spend, Spend), read_record(options.private, Measured)
    check_measures(spend, measured, options.private)
    assert sum(measured.sizes) == spend.numbers and len(measured.squares) == 4 and 0.4 < measured.largest_contribution <= 1, (
        "C g/(g + 0.01) of gradients near 0.01"
    )


@pytest.mark.parametrize("step", [1, 2, 3])
def test_la_lora_resumes_with_the_same_turn(options, monkeypatch, step):
    """After the first step Adam knows nothing of A yet."""
    train.finetune(alternating(options))
    expected = weights(options)
    again = replace(options, weights=options.weights.with_name("again") / "weights.safetensors")
    assert interrupted(again, monkeypatch, step) == []
    train.finetune(again)
    assert all(torch.equal(value, expected[name]) for name, value in weights(again).items())


def test_noise_finds_the_learning_rate(options, tmp_path):
    """Four times as fragile, half the rate, as A is frozen; matrices that are not trained do not count."""
    names = candidates(tiny_unet())
    selection = pd.DataFrame({MATRIX: names, SELECTED: [index < 3 for index in range(len(names))], LORA_PARAMETERS: 40})
    selection.to_csv(options.selection, index=False)
    record = train.read_record(options.plan, train.Plan)
    write_record(options.plan, replace(record, run=replace(record.run, learning_rate="auto", adapter="ffa-lora")))
    rates = []
    for scale in (1.0, 4.0):
        found = [scale * 1e-3 if index < 3 else 1e9 for index in range(len(names))]
        pd.DataFrame({MATRIX: names, FRAGILITY_SHRUNK: found, COLUMNS: 16, SCALE: 2.0}).to_csv(
            tmp_path / "fragility.csv", index=False
        )
        train.finetune(replace(options, fragility=tmp_path / "fragility.csv"))
        (rate,) = set(pd.read_csv(options.training_log)["learning_rate"])
        rates.append(rate)
    walk = squared_walk("adamw", 4, "constant", 0.5, 1.0)
    assert rates == pytest.approx(
        [(TOLERATED_RISE / (walk * 3 * 2 * 40 * scale * 1e-3)) ** 0.5 for scale in (1.0, 4.0)], rel=0.01
    )
    with pytest.raises(UserError, match="--fragility = None"):
        train.finetune(options)


def test_weights_say_how_they_were_trained_by_the_runs_own_values(options):
    train.finetune(options)
    header = read_header(options.weights)
    assert header.adapter == "lora" and (header.lora_rank, header.lora_alpha) == (2, options.lora_alpha)
    assert header.optimizer == "adamw" and header.ema_decay == options.ema_decay
    record = train.read_record(options.plan, train.Plan)
    write_record(options.plan, replace(record, run=replace(record.run, optimizer="sgd", lora_rank=3)))
    train.finetune(options)
    assert (read_header(options.weights).optimizer, read_header(options.weights).lora_rank) == ("sgd", 3)


@pytest.mark.parametrize("axes", [{"optimizer": "sgd"}, {"optimizer": "dp-adambc"}, {"learning_rate": 0.5}, {"lora_rank": 3}])
def test_axes_of_a_run_replace_the_configs(options, axes):
    train.finetune(options)
    before = weights(options)
    record = train.read_record(options.plan, train.Plan)
    write_record(options.plan, replace(record, run=replace(record.run, **axes)))
    train.finetune(options)
    after = weights(options)
    if "lora_rank" in axes:
        assert {min(value.shape) for value in after.values()} == {3} and {min(value.shape) for value in before.values()} == {2}
    else:
        assert before.keys() == after.keys() and not any(torch.equal(value, before[name]) for name, value in after.items())
    if "learning_rate" in axes:
        assert pd.read_csv(options.training_log)["learning_rate"].tolist() == [0.5] * 4


def test_the_optimizer_knows_the_noise_in_the_mean_gradient(options, monkeypatch):
    """sigma C / B, which DP-AdamBC subtracts: three unequal numbers, so that none can stand for another."""
    record = train.read_record(options.plan, train.Plan)
    release = replace(record.releases[1], noise_multiplier=1.5, sensitivity=0.2, sampling_rate=0.25)
    write_record(options.plan, replace(record, releases=(record.releases[0], release)))
    seen, build = [], train.build_optimizer

    def seeing(name, parameters, rate, deviation):
        seen.append(deviation)
        return build(name, parameters, rate, deviation)

    monkeypatch.setattr(train, "build_optimizer", seeing)
    train.finetune(options)
    assert seen == [pytest.approx(1.5 * 0.2 / (0.25 * IMAGES))]
