import contextlib
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.numpy import load_file
from safetensors.torch import save_file

from dpsapf.experiment.records import Ledger, Timing, WeightsHeader
from dpsapf.experiment.runs import normalise
from dpsapf.experiment.stages import Sample
from dpsapf.finetune.adapters import trainable
from dpsapf.finetune.weights import write_weights
from dpsapf.sampling import sample as stage
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.interruption import Interrupted, listening
from dpsapf.support.parallel import Processes
from dpsapf.support.records import read_record, write_record
from tests.tiny import TinyModel, candidates, tiny_latents, tiny_record, tiny_unet, write_latents


@pytest.fixture
def options(tmp_path, plan, dataset_record, monkeypatch):
    monkeypatch.setattr(stage, "load_model", TinyModel)
    write_latents(tmp_path, tiny_latents(), "d")
    write_record(tmp_path / "model.json", tiny_record())
    write_record(tmp_path / "dataset.json", replace(dataset_record, resolution=8, id="d"))
    write_record(tmp_path / "ledger.json", ledger(plan, None))
    names = {"ledger": "ledger.json", "dataset": "dataset.json", "model": "model.json", "prompts": "prompts.safetensors"}
    names |= {"archive": "samples.npz", "contact_sheet": "sheet.png", "timing": "timing.json"}
    return Sample(count=6, steps=2, guidance_scale=2.0, micro_batch=4, **{key: tmp_path / name for key, name in names.items()})


def ledger(plan, digest):
    run = normalise(replace(plan.run, method="dp-full"))
    return Ledger(
        run=run,
        target_epsilon=10.0,
        delta=1e-5,
        relation="r",
        unit="image",
        noise="seed",
        not_for_release=None,
        dataset_id="d",
        prior=(),
        digests={},
        releases=(),
        spent_epsilon={},
        weights_digest=digest,
        provenance={},
    )


def images(options):
    with np.load(options.archive, allow_pickle=False) as archive:
        return archive["images"], archive["labels"]


def test_writes_balanced_grey_images_at_the_datasets_resolution(options):
    stage.sample(options)
    pixels, labels = images(options)
    assert pixels.shape == (6, 8, 8, 3) and pixels.dtype == np.uint8
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert options.contact_sheet.stat().st_size > 0
    timing = read_record(options.timing, Timing)
    assert timing.seconds > 0
    assert (timing.ledger, timing.samples) == (sha256(options.ledger), sha256(options.archive))


def test_batch_size_does_not_change_an_image(options):
    stage.sample(options)
    expected, _ = images(options)
    stage.sample(replace(options, micro_batch=1))
    assert np.abs(images(options)[0].astype(int) - expected).max() <= 1  # fp32 sums may round a pixel the other way


def test_guidance_and_prompt_change_the_images(options):
    stage.sample(options)
    expected, _ = images(options)
    stage.sample(replace(options, guidance_scale=7.0))
    assert (images(options)[0] != expected).any()
    assert (expected[0] != expected[3]).any()


def test_images_in_bf16_differ_by_rounding(options):
    stage.sample(options)
    expected, _ = images(options)
    stage.sample(replace(options, precision="bf16"))
    found, _ = images(options)
    assert (found != expected).any() and np.abs(found.astype(int) - expected).mean() < 2  # of 255


def test_unaudited_weights_are_refused(options, tmp_path, plan):
    save_file({"x": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="--weights.*audit again"):
        stage.sample(replace(options, weights=tmp_path / "weights.safetensors"))
    assert not options.archive.exists()


def test_audited_weights_of_another_selection_are_refused(options, tmp_path, plan):
    write_weights(tmp_path / "weights.safetensors", {"x": torch.zeros(1)}, WeightsHeader(adapter=None))
    digest = sha256(tmp_path / "weights.safetensors")
    write_record(tmp_path / "ledger.json", ledger(plan, digest))
    (tmp_path / "selection.csv").write_text(f"matrix,selected\n{candidates(tiny_unet())[0]},True\n")
    changed = replace(options, weights=tmp_path / "weights.safetensors", selection=tmp_path / "selection.csv")
    with pytest.raises(UserError, match="of different runs"):
        stage.sample(changed)


def test_trained_weights_change_the_images(options, tmp_path, plan):
    stage.sample(options)
    expected, _ = images(options)
    weights = {name: value.detach() + 0.05 for name, value in tiny_unet().named_parameters()}
    write_weights(tmp_path / "weights.safetensors", weights, WeightsHeader(adapter=None))
    write_record(tmp_path / "ledger.json", ledger(plan, sha256(tmp_path / "weights.safetensors")))
    (tmp_path / "selection.csv").write_text(f"matrix,selected\n{candidates(tiny_unet())[0]},True\n")
    stage.sample(replace(options, weights=tmp_path / "weights.safetensors", selection=tmp_path / "selection.csv"))
    assert (images(options)[0] != expected).any()


@pytest.fixture
def adapted(options, tmp_path, plan):
    """Options of a run whose audited weights are LoRA of rank 2 and alpha 6 on one matrix, far from their start."""
    run = normalise(replace(plan.run, method="dp-lora", adapter="lora"))
    selection = pd.DataFrame({"matrix": candidates(tiny_unet())[:1], "selected": True})
    selection.to_csv(tmp_path / "selection.csv", index=False)
    parameters = trainable(tiny_unet(), run, selection, 2, 6.0)
    weights = {name: torch.ones_like(value) for name, value in parameters.items()}
    write_weights(tmp_path / "weights.safetensors", weights, WeightsHeader(adapter="lora", lora_rank=2, lora_alpha=6.0))
    digests = {"selection": sha256(tmp_path / "selection.csv"), "model": sha256(options.model)}
    record = replace(ledger(plan, sha256(tmp_path / "weights.safetensors")), run=run, digests=digests)
    write_record(tmp_path / "ledger.json", record)
    return replace(options, weights=tmp_path / "weights.safetensors", selection=tmp_path / "selection.csv")


def test_rank_and_alpha_come_from_the_weights_alone(adapted, monkeypatch):
    scales = []

    def merged(denoiser):
        scales.extend(layer.scaling["default"] for layer in denoiser.modules() if isinstance(layer, LoraLayer))

    monkeypatch.setattr(stage, "merge", merged)
    stage.sample(adapted)
    assert scales == [3.0] and not {"lora_rank", "lora_alpha", "adapter"} & set(Sample.model_fields)


@pytest.mark.parametrize("name", ["selection", "model", "dataset"])
def test_another_runs_files_beside_audited_weights_are_refused(adapted, name):
    path = getattr(adapted, name)
    changed = {"selection": "matrix,selected\nother,True\n", "model": path.read_text() + " "}
    changed["dataset"] = path.read_text().replace('"id": "d"', '"id": "e"')
    path.write_text(changed[name])
    with pytest.raises(UserError, match=f"--{name} = .*audit"):
        stage.sample(adapted)
    assert not adapted.archive.exists()


def asked_to_end_after(monkeypatch, batches):
    """A signal comes while a batch is drawn; returns the sizes of all batches that are drawn."""
    sizes, right = [], stage._drawn

    def drawn(drawing, prompts, rows):
        sizes.append(len(rows))
        if len(sizes) == batches:
            signal.raise_signal(signal.SIGTERM)
        return right(drawing, prompts, rows)

    monkeypatch.setattr(stage, "_drawn", drawn)
    return sizes


def test_an_interrupted_stage_goes_on_to_the_same_images(options, monkeypatch):
    stage.sample(options)
    expected = options.archive.read_bytes()
    options.archive.unlink()
    options.timing.unlink()
    sizes = asked_to_end_after(monkeypatch, 1)
    with listening(), pytest.raises(Interrupted, match="the same command goes on from"):
        stage.sample(options)
    assert not options.archive.exists() and not options.timing.exists()
    stage.sample(options)
    assert sizes == [4, 2] and options.archive.read_bytes() == expected
    assert not list(options.archive.parent.glob("private.*"))


def test_it_goes_on_with_another_micro_batch(options, monkeypatch):
    sizes = asked_to_end_after(monkeypatch, 2)
    with listening(), pytest.raises(Interrupted):
        stage.sample(replace(options, micro_batch=2))
    stage.sample(replace(options, micro_batch=1))
    assert sizes == [2, 2, 1, 1] and len(images(options)[0]) == 6


@pytest.mark.parametrize("left", ["nothing", "another number of images"])
def test_without_its_images_a_checkpoint_is_not_believed(options, monkeypatch, left):
    sizes = asked_to_end_after(monkeypatch, 1)
    with listening(), pytest.raises(Interrupted):
        stage.sample(options)
    (partial,) = options.archive.parent.glob("private.partial.*")
    partial.unlink() if left == "nothing" else partial.write_bytes(partial.read_bytes()[:-1])
    stage.sample(options)
    assert sizes == [4, 4, 2]


def test_images_of_other_settings_are_refused(options, monkeypatch):
    asked_to_end_after(monkeypatch, 1)
    with listening(), pytest.raises(Interrupted):
        stage.sample(options)
    with pytest.raises(UserError, match=r"--guidance-scale = 7.0: .* was made with 2.0"):
        stage.sample(replace(options, guidance_scale=7.0))


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_draw_what_one_does(options, monkeypatch, count):
    """One after the other here; how they wait for each other is tested under torchrun."""
    stage.sample(options)
    expected = options.archive.read_bytes()

    class Beside(Processes):
        def largest(self, number):
            return number

        def check_equal(self, number, what):
            assert (number, what) == (0, "images that a process goes on after")

    for rank in range(count):
        joined = Beside(rank, count)
        monkeypatch.setattr(stage, "processes", lambda device, joined=joined: contextlib.nullcontext(joined))
        if rank == 0:
            monkeypatch.setattr(stage, "write_samples", lambda *_: None)
            monkeypatch.setattr(type(options.archive), "unlink", lambda *_, **__: None)
        stage.sample(replace(options, micro_batch=1))
    monkeypatch.undo()
    (partial,) = options.archive.parent.glob("private.partial.*")
    with np.load(options.archive) as archive:
        assert np.abs(load_file(partial)["images"].astype(int) - archive["images"]).max() <= 1  # as above
    assert expected == options.archive.read_bytes()
