import contextlib
import dataclasses
import itertools
import shutil
import signal
from decimal import Decimal
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from dpsapf.experiment.columns import BLOCK, CANDIDATES, LAYER, MATRIX, SCORE
from dpsapf.experiment.records import Measured, Plan, Spend
from dpsapf.experiment.settings import SaliencyConfig
from dpsapf.experiment.stages import PlanPrivacy, ScoreSaliency
from dpsapf.gradients.ghost_norms import GhostNorms
from dpsapf.privacy.clipping import MARGIN
from dpsapf.privacy.evidence import check_measures
from dpsapf.privacy.mechanisms import Refused
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import grid
from dpsapf.privacy.values import Private
from dpsapf.public_models.latents import draw_batch
from dpsapf.public_models.precision import in_precision
from dpsapf.saliency import score
from dpsapf.saliency.plan import plan_privacy
from dpsapf.saliency.progress import Progress
from dpsapf.saliency.score import saliency_scores, squared_gradient_norms
from dpsapf.saliency.scores import SCORES, Bounds
from dpsapf.saliency.select import top_units
from dpsapf.support.checkpoint import Checkpoint
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.interruption import Interrupted, listening
from dpsapf.support.parallel import ALONE, Processes
from dpsapf.support.randomness import torch_generator
from dpsapf.support.records import read_record, write_record
from dpsapf.support.replay import Replay
from tests.tiny import TinyModel, candidates, tiny_latents, tiny_objective, tiny_record, tiny_unet, write_latents

EVERYONE = torch.arange(12)


def options(**changes):
    return SimpleNamespace(
        **(
            {
                "score": "energy",
                "mechanism": "gaussian",
                "votes": 3,
                "clipping_norm": 0.1,
                "micro_batch": 5,
                "seed": 0,
                "device": "cpu",
                "noise": "seed",
            }
            | changes
        )
    )


def scores(batch=EVERYONE, latents=None, **changes):
    unet, latents = tiny_unet(), latents or tiny_latents()
    progress = Progress(Meter(len(latents)))
    (found,) = saliency_scores(unet, tiny_objective(), latents, batch, candidates(unet), options(**changes), progress).opened()
    return found


def oracle(bound):
    """Batch-of-one backward passes with real weight gradients."""
    unet, objective, latents = tiny_unet(), tiny_objective(), tiny_latents()
    names = candidates(unet)
    weights = [unet.get_submodule(name).weight for name in names]
    pairs = draw_batch(latents, EVERYONE, 1, 1000, torch_generator(0, "saliency", "pairs")).rows(0, 12, "cpu")
    total = torch.zeros(len(names), dtype=torch.float64)
    for image in range(12):
        loss = objective.loss(unet, pairs.rows(image, image + 1, "cpu")).sum()
        gradients = torch.autograd.grad(loss, weights)
        squared = torch.stack([gradient.double().square().sum() for gradient in gradients])
        total += squared * min(1.0, (1 - MARGIN) * bound / squared.sum().sqrt().item()) ** 2
    return total


@pytest.mark.parametrize("bound", [0.05, 100.0])
def test_equals_the_batch_of_one_loop(bound):
    torch.testing.assert_close(
        scores(clipping_norm=bound), oracle(bound), rtol=1e-4, atol=12 * grid(bound**2, 32)
    )  # fp32 backward passes


def test_another_seed_draws_other_pairs():
    assert not torch.equal(scores(seed=0), scores(seed=1))


def test_scores_are_summed_in_double_precision_and_leave_the_model_alone():
    unet, meter = tiny_unet(), Meter(12)
    settings = options(clipping_norm=1.0)
    scored = saliency_scores(unet, tiny_objective(), tiny_latents(), EVERYONE, candidates(unet), settings, Progress(meter))
    (found,), spacing = scored.opened(), grid(1.0, len(candidates(unet)))
    assert torch.equal(found, (found / spacing).round() * spacing), "on the grid, so that sums are exact"
    assert found.dtype == torch.float64
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_micro_batch_does_not_change_the_scores():
    torch.testing.assert_close(
        scores(micro_batch=1), scores(micro_batch=12), rtol=1e-4, atol=12 * grid(0.1**2, 32)
    )  # fp32 reductions


def test_system_mode_draws_secret_pairs():
    """A public seed would fix them by position, and one image more would change those of all behind it."""
    assert torch.equal(scores(), scores()) and not torch.equal(scores(noise="system"), scores(noise="system"))


@pytest.fixture
def same_draws(monkeypatch):
    """Give each image the same draws whoever else takes part: the coupling of the proofs."""

    def coupled(latents, batch, multiplicity, timesteps, generator):
        return draw_batch(latents, EVERYONE, multiplicity, timesteps, generator).rows(0, len(batch), "cpu")

    monkeypatch.setattr("dpsapf.saliency.score.draw_batch", coupled)


@pytest.mark.usefixtures("same_draws")
@pytest.mark.parametrize("name", list(SCORES))
def test_neighbours_differ_by_at_most_the_sensitivity(name):
    """Remove the last image, whose latents are huge."""
    latents = tiny_latents()
    extreme = dataclasses.replace(latents, mean=latents.mean.clone())
    extreme.mean[11] *= 1e3
    whole, without = (scores(latents=extreme, score=name, batch=batch) for batch in (EVERYONE, EVERYONE[:11]))
    limits = Bounds(clipping_norm=0.1, votes=3)
    change = whole - without
    assert change.norm() <= SCORES[name].sensitivity(limits) * (1 + 1e-6)  # fp32 norms in another micro-batch
    assert change.norm() > 0 and (change.min() >= -1e-6 or SCORES[name].contributions is None)


@pytest.mark.usefixtures("same_draws")
@pytest.mark.parametrize("micro_batch", [1, 5])
def test_the_largest_contribution_of_an_image_is_measured(micro_batch):
    unet, meter = tiny_unet(), Meter(12)
    settings = options(clipping_norm=1.0, micro_batch=micro_batch)
    saliency_scores(unet, tiny_objective(), tiny_latents(), EVERYONE, candidates(unet), settings, Progress(meter))
    sums = [scores(batch=EVERYONE[:count], clipping_norm=1.0) for count in range(13)]
    norms = [(after - before).norm().item() for before, after in itertools.pairwise(sums)]
    assert meter.measured(1.0).largest_contribution == pytest.approx(max(norms), rel=1e-3)  # fp32 in other batches; the grid
    assert max(norms) > 1.1 * min(norms)


@pytest.mark.usefixtures("same_draws")
def test_without_clipping_neighbours_differ_by_more():
    """Twice the bound, which is small beside every image's gradient."""
    changes = [
        (scores(EVERYONE, mechanism=name, clipping_norm=0.01) - scores(EVERYONE[:11], mechanism=name, clipping_norm=0.01)).norm()
        for name in ("gaussian", None)
    ]
    assert changes[0] <= 0.01**2 * (1 + 1e-4) and changes[1] > 2 * 0.01**2


@pytest.mark.parametrize("name", list(SCORES))
def test_micro_batches_change_no_score(name):
    torch.testing.assert_close(
        scores(score=name, micro_batch=1), scores(score=name, micro_batch=12), rtol=1e-4, atol=12 * grid(3.0, 32)
    )


def test_an_empty_batch_scores_zero():
    assert scores(torch.tensor([], dtype=torch.int64)).abs().sum() == 0


@pytest.fixture
def stage(tmp_path, dataset_record, monkeypatch):
    """Inputs of score-saliency and plan-privacy on the tiny UNet: a function that runs both and returns their records."""
    unet = tiny_unet()
    monkeypatch.setattr(score, "load_model", lambda record: {"tiny": TinyModel(record)}[record.name])
    monkeypatch.setattr("dpsapf.privacy.calibrations.calibrate", lambda *_: 1.0)  # DP-SGD's is slow to find
    names = candidates(unet)
    layers = [name.rpartition(".to_")[0] for name in names]
    table = pd.DataFrame({MATRIX: names, LAYER: layers, BLOCK: "b", CANDIDATES: "attention"})
    table.to_csv(tmp_path / "candidates.csv", index=False)
    write_latents(tmp_path, tiny_latents(3500), dataset_record.id)
    write_record(tmp_path / "model.json", tiny_record())
    write_record(tmp_path / "dataset.json", dataset_record)

    def scored(*inputs):
        inputs[-1].meter.contribution(0.5)
        return Private([torch.arange(len(names), dtype=torch.float64) * 100])

    monkeypatch.setattr(score, "saliency_scores", scored)
    files = {"dataset": tmp_path / "dataset.json", "candidate_table": tmp_path / "candidates.csv"}

    def run(mechanism, level, ratio, batch, threads=1, **common):
        axes = {"noise": "seed"} | common | {"mechanism": mechanism, "sigma_s": 5.0 if mechanism else None, "score": "share"}
        plan_axes = {"method": "dp-sapf", "epsilon": 10.0} if mechanism else {"method": "no-dp"}
        plan = PlanPrivacy(
            **files,
            **axes,
            **plan_axes,
            level=level,
            ratio=ratio,
            out=tmp_path / "plan.json",
            public_model="tiny",
            steps=3,
            expected_batch_size=350,
            saliency=SaliencyConfig(expected_batch_size=batch),
        )
        plan_privacy(plan)
        whole = mechanism in ("exponential", "ptr")
        options = ScoreSaliency(
            **files,
            **axes,
            model=tmp_path / "model.json",
            latents=tmp_path / "latents.safetensors",
            prompts=tmp_path / "prompts.safetensors",
            expected_batch_size=batch,
            level=level if whole else None,
            ratio=ratio if whole else None,
            threads=threads,
            scores=tmp_path / "s.csv",
            spend=tmp_path / "spend.json",
            private=tmp_path / "private.json",
        )
        score.score_saliency(options)
        return read_record(plan.out, Plan), read_record(options.spend, Spend), pd.read_csv(options.scores)

    return run


@pytest.mark.parametrize("other", ["dataset", "model"])
def test_latents_of_another_dataset_or_model_are_refused_before_anything_is_released(stage, tmp_path, dataset_record, other):
    origin = (dataset_record.id, "other") if other == "model" else ("other", None)
    write_latents(tmp_path, tiny_latents(3500), *origin)
    with pytest.raises(UserError, match=f"--latents = .* was made with {other} other"):
        stage("gaussian", "matrix", 0.3, 3500)
    assert not (tmp_path / "s.csv").exists() and not (tmp_path / "spend.json").exists()


@pytest.mark.parametrize("mechanism", ["gaussian", "exponential", None])
@pytest.mark.parametrize("batch", [50000, 700])
def test_what_is_released_is_what_was_planned(stage, tmp_path, mechanism, batch):
    plan, spend, released = stage(mechanism, "matrix", 0.3, batch)
    assert spend.release == plan.releases[0] and plan.run.mechanism == mechanism
    measured = read_record(tmp_path / "private.json", Measured)
    assert measured.batches == (3500,) if batch > 3500 else 0 < measured.batches[0] < 1000
    check_measures(spend, measured, tmp_path / "private.json")
    assert spend.subject == plan.run.scores_id and spend.dataset_id == plan.dataset_id
    assert list(released.columns) == [MATRIX, SCORE] and len(released) == len(candidates(tiny_unet()))
    assert spend.trainable_parameters == 0 and set(spend.made_from) == {"model", "latents", "candidate_table"}


def test_what_a_plan_found_is_what_is_released(stage, tmp_path):
    """C_s and sigma_s auto; and the plan of other scores is refused."""
    stage("gaussian", "matrix", 0.3, 50000)
    names = {name: tmp_path / file for name, file in (("dataset", "dataset.json"), ("candidate_table", "candidates.csv"))}
    matrices = pd.read_csv(tmp_path / "candidates.csv")[MATRIX]
    pd.DataFrame({MATRIX: matrices, "0": 0.01, "1": 0.01}).to_csv(tmp_path / "gradients.csv", index=False)
    automatic = {"saliency": SaliencyConfig(clipping_norm="auto"), "sigma_s": "auto", "gradients": tmp_path / "gradients.csv"}
    axes = {"public_model": "tiny", "method": "dp-sapf", "level": "matrix", "ratio": 0.3, "score": "energy", "epsilon": 10.0}
    settings = {"steps": 3, "expected_batch_size": 350, "out": tmp_path / "plan.json"}
    plan_privacy(PlanPrivacy(**names, **axes, **automatic, **settings))
    files = {"model": "model.json", "latents": "latents.safetensors", "prompts": "prompts.safetensors", "plan": "plan.json"}
    files |= {"scores": "auto.csv", "spend": "auto.json", "private": "private.auto.json"}
    common = {"mechanism": "gaussian", "noise": "seed", "clipping_norm": "auto", "score": "energy"}
    options = ScoreSaliency(**names, **{name: tmp_path / file for name, file in files.items()}, **common)
    score.score_saliency(options)
    plan, spend = read_record(tmp_path / "plan.json", Plan), read_record(options.spend, Spend)
    bound = float(f"{(0.01 * len(matrices)) ** 0.5:.2g}")
    assert spend.release == plan.releases[0] and spend.release.sensitivity == bound**2
    assert spend.subject == plan.run.scores_id and "-sauto-eps10" in spend.subject
    for wrong, message in (
        ({"score": "share"}, "score = 'energy': must be share"),
        ({"plan": None}, "--plan = None: clipping_norm auto"),
    ):
        with pytest.raises(UserError, match=message):
            score.score_saliency(options.model_copy(update=wrong))


def test_a_delta_of_one_s_own_is_planned_and_spent(stage):
    plan, spend, _ = stage("exponential", "matrix", 0.3, 50000, delta=1e-6)
    assert spend.release == plan.releases[0] and spend.release.delta == pytest.approx(1e-7)


def test_another_seed_draws_another_batch_and_other_noise(stage, tmp_path):
    """The exact scores of the fixture are the same."""
    batches, noise = set(), set()
    for seed in (0, 1, 0):
        released = stage("gaussian", "matrix", 0.3, 700, seed=seed)[2]
        batches.add(read_record(tmp_path / "private.json", Measured).batches)
        noise.add(tuple(released[SCORE]))
    assert len(batches) == len(noise) == 2


def test_only_system_mode_draws_secret_batches(stage, tmp_path, new_owner):
    """Two batches of about 700 have one size once in 80 times, five once in 4e7."""
    for mode in ("seed", "system"):
        batches = set()
        for _ in range(5):
            new_owner()
            shutil.rmtree(tmp_path / "private.released", ignore_errors=True)
            stage("gaussian", "matrix", 0.3, 700, noise=mode)
            batches.add(read_record(tmp_path / "private.json", Measured).batches)
        assert (len(batches) > 1) == (mode == "system")


def test_the_stage_releases_the_scores_of_its_batch(stage, monkeypatch):
    """Without a mechanism, exactly."""
    monkeypatch.setattr(score, "saliency_scores", saliency_scores)
    _, spend, released = stage(None, "matrix", 0.3, 10)
    batch = Meter(3500).batch(spend.release.sampling_rate, torch_generator(0, "saliency", "batch"))
    expected = scores(batch, tiny_latents(3500), score="share", mechanism=None)
    assert 3 < len(batch) < 30 and released[SCORE].tolist() == pytest.approx(expected.tolist(), rel=1e-4)


@pytest.mark.parametrize("noise", ["seed", "system"])
@pytest.mark.parametrize("name", ["energy", "signal"])
@pytest.mark.parametrize("micro_batch", [1, 5])
def test_an_interrupted_pass_goes_on_to_the_same_scores(tmp_path, monkeypatch, name, noise, micro_batch):
    """Who is in the batch is kept, whatever the noise is drawn from; each image is counted once."""
    drawn = [draw_batch(tiny_latents(), EVERYONE, 1, 1000, torch_generator(0, "pairs"))] * 3
    monkeypatch.setattr(score, "draw_batch", lambda *_: drawn.pop())  # the same pairs for both, also from secret draws
    settings, inputs, names = options(score=name, noise=noise), (tiny_objective(), tiny_latents()), candidates(tiny_unet())
    whole = Progress(Meter(12))
    (expected,) = saliency_scores(tiny_unet(), *inputs, EVERYONE, names, settings, whole).opened()
    checkpoint = Checkpoint(tmp_path / "c.safetensors", {}, 10)
    progress, seen = Progress(Meter(12), checkpoint), []
    batch = progress.meter.batch(1.0, torch.Generator())
    adds = "add_clipped" if name == "signal" else "add"
    right = getattr(progress, adds)

    def asked(*parts):
        right(*parts)
        seen.append(progress.rows)
        if len(seen) == 2:
            signal.raise_signal(signal.SIGTERM)

    setattr(progress, adds, asked)
    with listening(), pytest.raises(Interrupted):
        saliency_scores(tiny_unet(), *inputs, batch, names, settings, progress)
    again = Progress.resumed(Meter(12), checkpoint, ALONE, "cpu")
    assert again.rows == 10 and torch.equal(again.meter.participants(), EVERYONE)
    settings.micro_batch = micro_batch
    (found,) = saliency_scores(tiny_unet(), *inputs, EVERYONE, names, settings, again).opened()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=12 * grid(0.1**2, 32))  # fp32 passes in other micro-batches
    measured = [dict(one.meter.measured(0.0)) for one in (whole, again)]
    largest = [one["largest_contribution"] for one in measured]
    assert all(0 < one <= 1 for one in largest) and (name == "signal" or largest[1] == pytest.approx(largest[0], rel=1e-3))
    assert again.rows == 12 and measured[1]["batches"] == (12,) and measured[1]["participation"] == (0, 12)


@pytest.mark.parametrize("noise", ["seed", "system"])
def test_an_interrupted_stage_keeps_its_batch_and_leaves_no_checkpoint(stage, tmp_path, monkeypatch, new_owner, noise):
    new_owner()
    batches, scored = [], score.saliency_scores

    def ended(*inputs):
        batches.append(inputs[3].tolist())
        if len(batches) == 1:
            progress = inputs[-1]
            progress.rows, progress.sums = 1, [torch.ones(2, dtype=torch.float64)]
            progress.checkpoint.save(*progress.state())
            raise Interrupted
        return scored(*inputs)

    monkeypatch.setattr(score, "saliency_scores", ended)
    with pytest.raises(Interrupted):
        stage("gaussian", "matrix", 0.3, 700, noise=noise)
    assert not (tmp_path / "spend.json").exists() and (tmp_path / "private.checkpoint.s.safetensors").exists()
    _, spend, _ = stage("gaussian", "matrix", 0.3, 700, noise=noise)
    measured = read_record(tmp_path / "private.json", Measured)
    assert batches[0] == batches[1] and measured.batches == (len(batches[0]),), "the batch that was drawn first, counted once"
    check_measures(spend, measured, tmp_path / "private.json")
    assert not list(tmp_path.glob("private.checkpoint*"))


def test_a_process_that_does_not_lead_releases_nothing(stage, tmp_path, monkeypatch):
    """Two releases of the same scores would cost twice."""

    class Follower(Processes):
        def largest(self, number):
            return number

        def check_equal(self, number, what):
            pass

        def check_same(self, numbers, what):
            pass

        def agree_on_generator(self, generator, device):
            return generator

    monkeypatch.setattr(score, "processes", lambda device: contextlib.nullcontext(Follower(1, 2)))
    with pytest.raises(FileNotFoundError):
        stage("gaussian", "matrix", 0.3, 700)
    assert not (tmp_path / "s.csv").exists() and not (tmp_path / "private.json").exists()


def test_a_refusal_leaves_no_checkpoint(stage, tmp_path, monkeypatch):
    scored = score.saliency_scores

    def kept(*inputs):
        found = scored(*inputs)
        progress = inputs[-1]
        progress.sums = found.opened()
        progress.checkpoint.save(*progress.state())
        return Private([found.opened()[0] * 0])

    monkeypatch.setattr(score, "saliency_scores", kept)
    with pytest.raises(Refused):
        stage("ptr", "matrix", 0.3, 700)
    assert (tmp_path / "refused.json").exists() and not list(tmp_path.glob("private.checkpoint*"))


def test_squared_norms_of_given_rows_and_of_none():
    unet, objective = tiny_unet(), tiny_objective()
    names, drawn = candidates(unet), draw_batch(tiny_latents(), EVERYONE, 1, 1000, torch_generator(0, "pairs"))
    whole = list(squared_gradient_norms(unet, objective, drawn, names, options()))
    assert [len(part) for part in whole] == [5, 5, 2]
    parts = list(squared_gradient_norms(unet, objective, drawn, names, options(), [range(2, 4), range(12, 12)]))
    assert [part.shape for part in parts] == [(2, len(names)), (0, len(names))]
    torch.testing.assert_close(parts[0], torch.cat(whole)[2:4], rtol=1e-4, atol=1e-9)  # fp32 passes in other micro-batches


@pytest.mark.parametrize("name", list(SCORES))
def test_scores_in_bf16_differ_by_rounding(name):
    unet = in_precision(tiny_unet(), "bf16")
    inputs = (tiny_objective(), tiny_latents(), EVERYONE, candidates(unet), options(score=name, votes=56))
    (found,) = saliency_scores(unet, *inputs, Progress(Meter(12))).opened()
    exact = scores(score=name, votes=56)
    assert found.dtype == torch.float64 and (name == "vote" or not torch.equal(found, exact))
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0.02 * exact.max().item())  # 8 bits, backwards through all layers


def test_a_pass_that_broke_off_is_done_again(monkeypatch):
    """As a GPU does a pass that it cannot record."""
    broken, right = [], GhostNorms._measure

    def breaks(self, name, *kept):
        if len(broken) < 3:
            broken.append(name)
            if len(broken) == 3:
                raise RuntimeError("operation not permitted when stream is capturing")
        right(self, name, *kept)

    class Again(Replay):
        def __call__(self, work, inputs, kind=()):
            try:
                return work(*inputs)
            except RuntimeError:
                return work(*inputs)

    expected = scores()
    monkeypatch.setattr(score, "Replay", Again)
    monkeypatch.setattr(GhostNorms, "_measure", breaks)
    torch.testing.assert_close(scores(), expected)
    assert len(broken) == 3


def test_the_models_precision_is_chosen_when_nothing_of_it_is_trained(stage, monkeypatch):
    """So that all of its layers are kept in bf16, if that is asked for."""
    trained = []

    def watched(denoiser, precision):
        trained.append((precision, any(parameter.requires_grad for parameter in denoiser.parameters())))
        return denoiser

    monkeypatch.setattr(score, "in_precision", watched)
    stage("gaussian", "matrix", 0.3, 700)
    assert trained == [("fp32", False)]


def test_threads_and_time_are_as_told(stage, tmp_path, monkeypatch):
    clock = iter((100.0, 100.0, 107.5))
    monkeypatch.setattr("dpsapf.support.checkpoint.time", SimpleNamespace(monotonic=lambda: next(clock)))
    stage("gaussian", "matrix", 0.3, 700, threads=2)
    assert read_record(tmp_path / "private.json", Measured).seconds == 7.5 and torch.get_num_threads() == 2


@pytest.mark.parametrize("level", ["matrix", "layer"])
def test_peeled_units_are_what_is_selected(stage, level):
    plan, _, released = stage("exponential", level, 0.5, 50000)
    table = released.assign(**{LAYER: [name.rpartition(".to_")[0] for name in released[MATRIX]]})
    marked = top_units(table, level, 0.5)
    assert (released.loc[marked, SCORE] > 0).all() and (released.loc[~marked, SCORE] == 0).all()
    assert plan.releases[0].mechanism == "exponential"


def test_a_mechanism_needs_its_noise(stage, tmp_path):
    stage("gaussian", "matrix", 0.3, 50000)
    files = {
        "dataset": tmp_path / "dataset.json",
        "candidate_table": tmp_path / "candidates.csv",
        "model": tmp_path / "model.json",
    }
    files |= {name: tmp_path / f"{name}.safetensors" for name in ("latents", "prompts")}
    files |= {"scores": tmp_path / "t.csv", "spend": tmp_path / "t.json"}
    files |= {"private": tmp_path / "p.json", "noise": "seed"}
    with pytest.raises(UserError, match="give it together with --mechanism"):
        score.score_saliency(ScoreSaliency(**files, mechanism="gaussian"))
    assert not (tmp_path / "t.csv").exists()


def test_a_refusal_is_accounted_and_not_drawn_again(stage, tmp_path, monkeypatch):
    """The scores of the fixture have a gap; with the noise turned against it the test fails, and epsilon is spent."""
    monkeypatch.setattr("dpsapf.privacy.meter.laplace_noise", lambda scale, source: Decimal("-1e9"))
    with pytest.raises(Refused, match="spent all the same"):
        stage("ptr", "matrix", 0.3, 50000)
    spend = read_record(tmp_path / "refused.json", Spend)
    plan = read_record(tmp_path / "plan.json", Plan)
    assert spend.release == plan.releases[0] and spend.digest == "" and not (tmp_path / "s.csv").exists()
    assert spend.private == sha256(tmp_path / "private.refused.json")
    monkeypatch.setattr("dpsapf.privacy.meter.laplace_noise", lambda scale, source: Decimal("1e9"))
    monkeypatch.setattr(score, "load_model", lambda *_: pytest.fail("computed again"))
    with pytest.raises(UserError, match=r"refused\.json.*refused before, and epsilon is spent.*--prior"):
        stage("ptr", "matrix", 0.3, 50000)
    assert not (tmp_path / "s.csv").exists()
