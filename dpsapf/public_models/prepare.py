"""prepare-public-model: find or download a public model, check it, list its candidate matrices."""

import logging
import math
import re
from pathlib import Path

import pandas as pd

from dpsapf.experiment.columns import BLOCK, CANDIDATES, LAYER, LORA_PARAMETERS, MATRIX, PARAMETERS, PROJECTION
from dpsapf.experiment.methods import Candidates
from dpsapf.experiment.records import ModelRecord
from dpsapf.experiment.registries import ModelEntry, entry
from dpsapf.experiment.stages import PreparePublicModel
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic, sha256
from dpsapf.support.provenance import provenance
from dpsapf.support.records import write_record

LOG = logging.getLogger(__name__)
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
AROUND_ATTENTION = ("proj_in", "proj_out")  # of a transformer
FEED_FORWARD = ("net.0.proj", "net.2")  # of a transformer block's ff
FOLDERS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
ENDINGS = ("safetensors", "json", "txt")  # never pickles
DOWNLOADED = ("model_index.json", *(f"{folder}/*.{ending}" for folder in FOLDERS for ending in ENDINGS))
DOWNLOADED_VAE = ("config.json", "diffusion_pytorch_model*.safetensors")
SKIPPED = ("*.fp16.*", "*.non_ema.*")  # other variants of the same weights
BLOCKS = re.compile(r"(down_blocks|up_blocks)\.\d+|\w+")
COMMIT = re.compile(r"[0-9a-f]{40}")


def prepare_public_model(options: PreparePublicModel) -> None:
    """Write model.json and the table of candidate matrices.

    Raises:
        UserError: the folder is missing or incomplete, its digest differs, a download is not pinned or fails.
    """
    model = entry(options.registry, options.name, ModelEntry)
    path = resolve(options.name, model.path, model.hub_id, model.revision, DOWNLOADED)
    vae_path = path / "vae" if model.vae is None else _vae_path(options.name, model)
    check_folder(options.name, path, vae_path, model.sha256)
    table, parameters = candidate_table(path)
    with atomic(options.candidates) as temporary:
        table.to_csv(temporary, index=False)
    record = ModelRecord(
        name=options.name,
        path=str(path),
        vae_path=str(vae_path),
        resolution=model.resolution,
        licence=model.licence,
        sha256=model.sha256,
        unet_parameters=parameters,
        candidates=int((table[CANDIDATES] == "attention").sum()),
        provenance=provenance(),
    )
    write_record(options.record, record)


def resolve(name: str, path: str | None, hub_id: str | None, revision: str | None, files: tuple[str, ...]) -> Path:
    """Return the folder of a model: packaged, local, or downloaded from the hub at a pinned commit.

    Args:
        name: what errors call the model.
        path: folder, or ``package:NAME``.
        hub_id: repository on the Hugging Face hub, used if there is no path.
        revision: commit of the repository.
        files: patterns of what is downloaded.

    Raises:
        UserError: neither path nor hub_id is given, the revision is not a commit, or the download fails.
    """
    if path is not None and path.startswith("package:"):
        return Path(__file__).parent / path.removeprefix("package:")
    if path is not None:
        return Path(path).resolve()
    if hub_id is None:
        raise UserError(f"{name}: path", None, "give a path or a hub_id")
    if revision is None or not COMMIT.fullmatch(revision):
        remedy = f"must be a commit of {hub_id}, 40 hexadecimal digits, from its page on the hub; or set path to a local copy"
        raise UserError(f"{name}: revision", revision, remedy)
    return _download(name, hub_id, revision, files)


def _download(name: str, hub_id: str, revision: str, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(files), ignore_patterns=list(SKIPPED)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{name}: hub_id", hub_id, f"cannot be downloaded ({reason}); set path to a local copy") from error


def _vae_path(name: str, model: ModelEntry) -> Path:
    local = Path(model.vae)
    if local.is_dir():
        return local.resolve()
    return resolve(f"{name}: vae", None, model.vae, model.vae_revision, DOWNLOADED_VAE)


def check_folder(name: str, path: Path, vae_path: Path, digest: str | None) -> None:
    """Check that a model's folder has what the suite loads, as safetensors, and the expected digest.

    Raises:
        UserError: names the first missing file, or both digests.
    """
    needed = [path / "unet" / "config.json", path / "scheduler" / "scheduler_config.json", vae_path / "config.json"]
    needed += [path / "text_encoder" / "config.json", path / "tokenizer" / "vocab.json"]
    for file in needed:
        if not file.exists():
            raise UserError(f"{name}: path", str(path), f"lacks {file}: it must be a folder in diffusers layout")
    for folder in (path / "unet", path / "text_encoder", vae_path):
        if not list(folder.glob("*.safetensors")):
            raise UserError(f"{name}: path", str(folder), "has no .safetensors weights; convert them, pickles are never loaded")
    if digest is not None and sha256(path) != digest:
        raise UserError(f"{name}: sha256", digest, f"the folder {path} has digest {sha256(path)}: it is another model")


def candidate_table(path: Path) -> tuple[pd.DataFrame, int]:
    """List the weight matrices of a UNet in its own order; its weights are not loaded.

    Args:
        path: model in diffusers layout.

    Returns:
        One row per linear layer or convolution with the columns of `dpsapf.experiment.columns`, and the UNet's number of
        parameters.
    """
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(path, subfolder="unet"))
    matrices = [(name, module) for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
    rows = [_row(name, module.weight.shape) for name, module in matrices]
    return pd.DataFrame(rows), sum(parameter.numel() for parameter in unet.parameters())


def _row(name: str, shape: tuple[int, ...]) -> dict[str, str | int]:
    known = (*PROJECTIONS, *FEED_FORWARD)
    projection = next((end for end in known if name.endswith(f".{end}")), name.rpartition(".")[2])
    layer = name.removesuffix(projection).removesuffix(".") or name
    columns = math.prod(shape[1:])
    return {
        MATRIX: name,
        LAYER: layer,
        BLOCK: BLOCKS.match(name)[0],
        PROJECTION: projection,
        CANDIDATES: _smallest_set(projection),
        PARAMETERS: shape[0] * columns,
        LORA_PARAMETERS: shape[0] + columns,
    }


def _smallest_set(projection: str) -> Candidates:
    if projection in PROJECTIONS:
        return "attention"
    if projection in AROUND_ATTENTION:
        return "attention+proj"
    return "attention+ffn" if projection in FEED_FORWARD else "all-params"
