import shutil
from pathlib import Path

import pytest
import torch
import yaml

from dpsapf.experiment.columns import BLOCK, CANDIDATES, LAYER, LORA_PARAMETERS, MATRIX, PARAMETERS, PROJECTION
from dpsapf.experiment.registries import ModelEntry, load_registry
from dpsapf.experiment.stages import FetchPublicModel
from dpsapf.pretraining.architecture import build_unet
from dpsapf.public_models.prepare import (
    DOWNLOADED,
    DOWNLOADED_VAE,
    HALF,
    SKIPPED,
    fetch_public_model,
    resolve,
)
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256

COMMIT = "0123456789" * 4
REGISTRY = Path(__file__).parents[2] / "config" / "public_models.yaml"


def test_table_lists_every_weight_matrix_in_the_order_of_the_unet(prepare, mini):
    record, table = prepare(path=str(mini), sha256=sha256(mini))
    unet = build_unet()
    matrices = (torch.nn.Linear, torch.nn.Conv2d)
    assert table[MATRIX].tolist() == [name for name, module in unet.named_modules() if isinstance(module, matrices)]
    for row in table.to_dict("records"):
        weight = unet.get_submodule(row[MATRIX]).weight
        assert row[PARAMETERS] == weight.numel()
        assert row[LORA_PARAMETERS] == weight.flatten(1).shape[0] + weight.flatten(1).shape[1]
        assert row[MATRIX] in (row[LAYER], f"{row[LAYER]}.{row[PROJECTION]}")
        assert row[LAYER].startswith(row[BLOCK])
    assert record.family == "stable-diffusion" and record.denoiser_parameters == sum(
        parameter.numel() for parameter in unet.parameters()
    )
    assert record.vae_path == str(mini / "vae")


def test_attention_candidates_are_the_four_projections_of_every_attention_module(prepare, mini):
    record, table = prepare(path=str(mini), sha256=sha256(mini))
    attention = table[table[CANDIDATES] == "attention"]
    assert set(attention[PROJECTION]) == {"to_q", "to_k", "to_v", "to_out.0"}
    assert (attention.groupby(LAYER).size() == 4).all() and record.candidates == len(attention) == 56
    feed_forward = table[table[CANDIDATES] == "attention+ffn"]
    assert feed_forward[LAYER].str.endswith(".ff").all() and len(feed_forward) == 14
    around = table[table[CANDIDATES] == "attention+proj"]
    assert set(around[PROJECTION]) == {"proj_in", "proj_out"} and len(around) == 14
    assert set(table[CANDIDATES]) == {"attention", "attention+proj", "attention+ffn", "all-params"}


def test_a_local_vae_replaces_the_models_own(prepare, mini, tmp_path):
    shutil.copytree(mini / "vae", tmp_path / "other")
    record, _ = prepare(path=str(mini), vae=str(tmp_path / "other"))
    assert record.vae_path == str(tmp_path / "other")
    assert record.path == str(mini)


def test_other_digest_is_refused(prepare, mini):
    with pytest.raises(UserError, match=r"sha256.*another model"):
        prepare(path=str(mini), sha256="0" * 64)


@pytest.mark.parametrize(
    "missing",
    [
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "model_index.json",
    ],
)
def test_incomplete_folder_is_named(prepare, mini, tmp_path, missing):
    folder = tmp_path / "copy"
    shutil.copytree(mini, folder)
    (folder / missing).unlink()
    with pytest.raises(UserError, match=missing):
        prepare(path=str(folder))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_pickled_weights_are_refused(prepare, mini, tmp_path, part):
    folder = tmp_path / "copy"
    shutil.copytree(mini, folder)
    (weights,) = (folder / part).glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match=f"{part}.*never loaded"):
        prepare(path=str(folder))
    assert not (tmp_path / "model.json").exists() and not (tmp_path / "candidates.csv").exists()


def test_a_relative_path_is_resolved(prepare, mini, monkeypatch):
    """Later stages may run in another folder."""
    monkeypatch.chdir(mini.parent)
    assert prepare(path=mini.name)[0].path == str(mini)


def test_a_vae_from_the_hub_has_a_pinned_commit_of_its_own(prepare, mini, monkeypatch):
    asked = {}

    def download(hub_id, revision, **keywords):
        asked.update(keywords, hub_id=hub_id, revision=revision)
        return str(mini / "vae")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    record, _ = prepare(path=str(mini), vae="someone/vae", vae_revision=COMMIT)
    assert record.vae_path == str(mini / "vae") and (asked["hub_id"], asked["revision"]) == ("someone/vae", COMMIT)
    assert asked["allow_patterns"] == list(DOWNLOADED_VAE)
    assert (record.hub_id, record.revision, record.vae_hub_id, record.vae_revision) == (None, None, "someone/vae", COMMIT)
    with pytest.raises(UserError, match=r"mini: vae: revision = None: must be a commit of someone/vae"):
        prepare(path=str(mini), vae="someone/vae")


def test_the_record_of_a_download_names_it(prepare, mini, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(mini))
    record, _ = prepare(hub_id="someone/something", revision=COMMIT)
    assert (record.hub_id, record.revision, record.vae_hub_id) == ("someone/something", COMMIT, None)
    local, _ = prepare(path=str(mini), hub_id="someone/something", revision=COMMIT, vae=str(mini / "vae"), vae_revision=COMMIT)
    assert (local.hub_id, local.revision, local.vae_hub_id, local.vae_revision) == (None, None, None, None)


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:12], COMMIT.upper() + "z"])
def test_download_without_a_pinned_commit_is_refused(prepare, revision):
    with pytest.raises(UserError, match=r"revision.*40 hexadecimal digits"):
        prepare(hub_id="someone/something", revision=revision)


def test_entry_with_neither_path_nor_hub_id_is_refused(prepare):
    with pytest.raises(UserError, match="give a path or a hub_id"):
        prepare()


def test_packaged_model_is_in_the_package():
    folder = resolve("x", "package:public-mini", None, None, DOWNLOADED)
    assert folder.name == "public-mini"
    assert folder.parent.name == "public_models"


def test_a_repository_with_fp16_weights_alone_is_downloaded_with_them(monkeypatch, tmp_path):
    """Where there are others, the fp16 ones are left on the hub."""
    published, asked = ["model.fp16.safetensors"], []

    def download(hub_id, allow_patterns, ignore_patterns, **keywords):
        from huggingface_hub.utils import filter_repo_objects

        asked.append(ignore_patterns)
        (tmp_path / "text_encoder").mkdir(exist_ok=True)
        (tmp_path / "text_encoder" / "config.json").write_text("{}")
        files = [f"text_encoder/{name}" for name in published]
        for name in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    resolve("x", None, "someone/something", COMMIT, DOWNLOADED)
    assert len(asked) == 2 and (tmp_path / "text_encoder" / "model.fp16.safetensors").exists()
    published.append("model.safetensors")
    (tmp_path / "text_encoder" / "model.fp16.safetensors").unlink()
    resolve("x", None, "someone/something", COMMIT, DOWNLOADED)
    assert len(asked) == 3 and not (tmp_path / "text_encoder" / "model.fp16.safetensors").exists()


def test_pinned_download_asks_for_safetensors_and_text_alone(monkeypatch, tmp_path):
    asked = {}

    def download(hub_id, **keywords):
        asked.update(keywords, hub_id=hub_id)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve("x", None, "someone/something", COMMIT, DOWNLOADED) == tmp_path
    assert asked["revision"] == COMMIT
    assert asked["hub_id"] == "someone/something"
    assert {pattern.rsplit(".", 1)[1] for pattern in asked["allow_patterns"]} == {"safetensors", "json", "txt", "jinja"}


def test_patterns_leave_out_pickles_single_files_and_other_variants():
    from huggingface_hub.utils import filter_repo_objects

    files = [
        "model_index.json",
        "v1-5-pruned.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "safety_checker/model.safetensors",
        "tokenizer/merges.txt",
    ]
    kept = list(filter_repo_objects(files, allow_patterns=list(DOWNLOADED), ignore_patterns=[*SKIPPED, HALF]))
    assert kept == [files[0], files[2], files[3], files[8]]
    vae = ["config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"]
    assert list(filter_repo_objects(vae, allow_patterns=list(DOWNLOADED_VAE))) == vae[:2]


def test_download_that_fails_is_a_one_line_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"someone/absent.*set path to a local copy") as caught:
        resolve("x", None, "someone/absent", COMMIT, DOWNLOADED)
    assert "\n" not in str(caught.value)


def test_registry_pins_or_refuses_every_download(request):
    registry = load_registry(request.config.rootpath / "config" / "public_models.yaml", ModelEntry)
    assert registry["public-mini"].path == "package:public-mini"
    for name, entry in registry.items():
        if entry.path is None and entry.revision is None:
            with pytest.raises(UserError, match="revision"):
                resolve(name, entry.path, entry.hub_id, entry.revision, DOWNLOADED)


def test_a_packaged_model_is_there(tmp_path):
    fetch_public_model(FetchPublicModel(name="public-mini", registry=REGISTRY, out=tmp_path / "there.txt"))
    folder, vae = map(Path, (tmp_path / "there.txt").read_text().splitlines())
    assert (folder / "model_index.json").is_file() and vae == folder / "vae"


def test_a_model_and_its_vae_are_fetched_at_their_commits(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda hub_id, **rest: asked.append((hub_id, rest["revision"])) or tmp_path
    )
    registry = tmp_path / "models.yaml"
    pinned = {"hub_id": "a/b", "revision": COMMIT, "vae": "c/d", "vae_revision": "f" * 40, "resolution": 64, "licence": "x"}
    registry.write_text(yaml.safe_dump({"mine": pinned}))
    fetch_public_model(FetchPublicModel(name="mine", registry=registry))
    assert set(asked) == {("a/b", COMMIT), ("c/d", "f" * 40)}
    registry.write_text(yaml.safe_dump({"mine": pinned | {"revision": None}}))
    with pytest.raises(UserError, match="mine: revision = None: must be a commit of a/b"):
        fetch_public_model(FetchPublicModel(name="mine", registry=registry))
