import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dpsapf.experiment.records import Ledger, Timing
from dpsapf.experiment.runs import normalise
from dpsapf.experiment.stages import Sample
from dpsapf.sampling import sample as stage
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.records import read_record, write_record
from tests.tiny import TinyModel, candidates, tiny_latents, tiny_record, tiny_unet, write_latents


def tiny_vae():
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 4),
            latent_channels=4,
            norm_num_groups=2,
            sample_size=8,
        ).eval()


@pytest.fixture
def options(tmp_path, plan, dataset_record, monkeypatch):
    monkeypatch.setattr(stage, "load_model", TinyModel)
    monkeypatch.setattr(TinyModel, "vae", lambda model, device: tiny_vae())
    write_latents(tmp_path, tiny_latents())
    write_record(tmp_path / "model.json", tiny_record())
    write_record(tmp_path / "dataset.json", replace(dataset_record, resolution=8))
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


def test_unaudited_weights_are_refused(options, tmp_path, plan):
    save_file({"x": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="--weights.*audit again"):
        stage.sample(replace(options, weights=tmp_path / "weights.safetensors"))
    assert not options.archive.exists()


def test_audited_weights_of_another_selection_are_refused(options, tmp_path, plan):
    save_file({"x": torch.zeros(1)}, tmp_path / "weights.safetensors")
    digest = hashlib.sha256((tmp_path / "weights.safetensors").read_bytes()).hexdigest()
    write_record(tmp_path / "ledger.json", ledger(plan, digest))
    (tmp_path / "selection.csv").write_text(f"matrix,selected\n{candidates(tiny_unet())[0]},True\n")
    changed = replace(options, weights=tmp_path / "weights.safetensors", selection=tmp_path / "selection.csv")
    with pytest.raises(UserError, match="of different runs"):
        stage.sample(changed)


def test_trained_weights_change_the_images(options, tmp_path, plan):
    stage.sample(options)
    expected, _ = images(options)
    weights = {name: value.detach() + 0.05 for name, value in tiny_unet().named_parameters()}
    save_file(weights, tmp_path / "weights.safetensors")
    digest = hashlib.sha256((tmp_path / "weights.safetensors").read_bytes()).hexdigest()
    write_record(tmp_path / "ledger.json", ledger(plan, digest))
    (tmp_path / "selection.csv").write_text(f"matrix,selected\n{candidates(tiny_unet())[0]},True\n")
    stage.sample(replace(options, weights=tmp_path / "weights.safetensors", selection=tmp_path / "selection.csv"))
    assert (images(options)[0] != expected).any()
