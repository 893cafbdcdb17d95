import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dpsapf.datasets.preview import COLUMNS
from dpsapf.experiment.stages import PretrainPublicModel
from dpsapf.pretraining import card
from dpsapf.pretraining.card import PartLog, card_text, write_card, write_samples
from dpsapf.support.checked import replace
from dpsapf.support.files import sha256

LOG = {
    "vae": PartLog(steps=250, seconds=61.4, losses=[0.5, 0.25, 0.125]),
    "unet": PartLog(steps=1200, seconds=3600.7, losses=[9.0, 0.1, 0.2, 0.3, 0.4, 0.5]),
}


@pytest.fixture
def options(tmp_path):
    return PretrainPublicModel(
        out=tmp_path / "model", feature_network=tmp_path / "f.safetensors", images=150000, batch=512, seed=7, threads=3
    )


@pytest.fixture
def text(options):
    return card_text(options, LOG, 12345, 3723.6, "abc123")


def table(text):
    """Cells of the rows of all tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_the_card_tells_what_the_model_was_trained_on(text):
    rows = {row[0]: row[1] for row in table(text) if len(row) == 2}
    assert rows["images"] == "150,000, drawn by `dpsapf.pretraining.public_data` with seed 7"
    assert rows["prompts"] == "12,345 different ones"
    assert rows["batch"] == "512"
    assert rows["training"].startswith("3724 s on 3 CPU threads, Python 3.")
    assert f"torch {torch.__version__.split('+')[0]}" in rows["libraries"]
    assert rows["UNet weights"] == "SHA-256 abc123"


def test_the_card_has_a_row_for_every_part(text):
    rows = [row for row in table(text) if len(row) == 4]
    assert rows[2:] == [["vae", "250", "61", "0.2917"], ["unet", "1,200", "3601", "0.3000"]], "the mean of the last five losses"


def test_the_card_says_on_which_gpu(options, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    gpu = card_text(replace(options, device="cuda"), LOG, 1, 1.0, "d")
    assert "1 s on Some GPU, Python" in gpu and "CPU threads" not in gpu


def test_the_head_is_read_by_the_hub(text):
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {"license": "mit", "library_name": "diffusers", "pipeline_tag": "text-to-image"}
    assert body.startswith("# public-mini\n")
    assert re.findall(r"!\[.*?\]\((.*?)\)", body) == ["samples.png"]


@pytest.fixture
def written(options, monkeypatch):
    """A card in a folder that has a UNet of a few bytes; nothing is drawn."""
    (options.out / "unet").mkdir(parents=True)
    (options.out / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    asked = []
    monkeypatch.setattr(card, "write_samples", lambda *arguments: asked.append(arguments))
    write_card(options.out, options, LOG, ["", "a cat", "a dog"], 60.0)
    return options.out, asked


def test_the_log_has_every_hundredth_step_and_the_last(written):
    folder, _ = written
    assert (folder / "training_log.csv").read_text().splitlines() == [
        "part,step,loss",
        *("vae,100,0.500000", "vae,200,0.250000", "vae,250,0.125000"),
        *("unet,100,9.000000", "unet,200,0.100000", "unet,300,0.200000"),
        *("unet,400,0.300000", "unet,500,0.400000", "unet,600,0.500000"),
    ]


def test_the_card_is_of_the_saved_weights_and_the_prompts_with_words(written):
    folder, asked = written
    text = (folder / "README.md").read_text()
    assert f"SHA-256 {sha256(folder / 'unet' / 'diffusion_pytorch_model.safetensors')} " in text
    assert "| prompts | 2 different ones |" in text, "the empty prompt is none"
    assert asked == [(folder, "cpu")]


@pytest.fixture(scope="module")
def model(mini, tmp_path_factory):
    """A copy of the untrained model, with samples of two prompts."""
    folder = shutil.copytree(mini, tmp_path_factory.mktemp("card") / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card, "SHOWN", ("a handwritten digit 7", "a photo of a cat"))
        patch.setattr(card, "SHOWN_STEPS", 1)
        state = torch.get_rng_state()
        write_samples(folder, "cpu")
        assert torch.equal(state, torch.get_rng_state())
        first = (folder / "samples.png").read_bytes()
        write_samples(folder, "cpu")
    return folder, first


def test_samples_are_twelve_of_each_prompt(model):
    folder, _ = model
    sheet = np.asarray(Image.open(folder / "samples.png"))
    rows = np.flatnonzero((sheet < 255).any(-1)[:, -COLUMNS * 68 :].mean(1) > 0.8)
    assert len(rows) == 2 * 64, "two rows of tiles, 32 pixels enlarged twice"
    tiles = sheet[rows.min() : rows.min() + 64, -COLUMNS * 68 :].reshape(64, COLUMNS, 68, 3)[:, :, :64]
    assert len({tile.tobytes() for tile in tiles.transpose(1, 0, 2, 3)}) == COLUMNS


def test_samples_are_the_same_each_time_and_nothing_else_is_left(model, mini):
    folder, first = model
    assert (folder / "samples.png").read_bytes() == first
    names = {path.relative_to(mini) for path in mini.rglob("*")}
    assert {path.relative_to(folder).name for path in folder.rglob("*") if path.relative_to(folder) not in names} == {
        "samples.png"
    }


def test_shown_prompts_are_of_the_categories_that_it_knows():
    assert len(set(card.SHOWN)) == len(card.SHOWN)
    assert {f"a handwritten digit {digit}" for digit in range(10)} <= set(card.SHOWN)
