"""fetch-public-model, prepare-public-model: find or download a public model, check it, list its candidate matrices."""

import logging
import re
from pathlib import Path

from dpsapf.experiment.columns import CANDIDATES
from dpsapf.experiment.records import ModelRecord
from dpsapf.experiment.registries import PACKAGED, ModelEntry, entry
from dpsapf.experiment.stages import FetchPublicModel, PreparePublicModel
from dpsapf.public_models.check import check_is_folder, has_weights
from dpsapf.public_models.families import find_family
from dpsapf.public_models.load import folder_of
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic, copied, sha256, write_text
from dpsapf.support.provenance import provenance
from dpsapf.support.records import lasting

LOG = logging.getLogger(__name__)
FOLDERS = ("unet", "transformer", "vae", "text_encoder", "tokenizer", "scheduler")
ENDINGS = ("safetensors", "json", "txt", "jinja")  # never pickles
DOWNLOADED = ("model_index.json", *(f"{folder}/*.{ending}" for folder in FOLDERS for ending in ENDINGS))
DOWNLOADED_VAE = ("config.json", "diffusion_pytorch_model*.safetensors", "*.index*.json")
HALF = "*.fp16*"  # a variant of the same weights, downloaded where there are no others
SKIPPED = ("*.non_ema*",)
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def prepare_public_model(options: PreparePublicModel) -> None:
    """Write model.json and the table of candidate matrices.

    A model.json that was made before and says the same is written again as it was, so that what names its digest still holds.

    Raises:
        UserError: the folder is missing or incomplete, or of no family or what its family does not know; its digest differs;
            a download is not pinned or fails.
    """
    model = entry(options.registry, options.name, ModelEntry)
    path, vae_path = _found(options.name, model)
    check_is_folder(f"{options.name}: path", path, "StableDiffusionPipeline")
    check_is_folder(f"{options.name}: vae", vae_path, "AutoencoderKL")
    family = find_family(options.name, path)
    family.check(options.name, path, vae_path, model.resolution)
    check_digest(options.name, path, model.sha256)
    table, parameters = family.candidate_table(path)
    with atomic(options.candidates) as temporary:
        table.to_csv(temporary, index=False)
    recorded = model.path if (model.path or "").startswith(PACKAGED) else str(path)
    record = ModelRecord(
        name=options.name,
        family=family.name,
        path=recorded,
        vae_path=f"{recorded}/vae" if model.vae is None else str(vae_path),
        resolution=model.resolution,
        licence=model.licence,
        sha256=model.sha256,
        denoiser_parameters=parameters,
        candidates=int((table[CANDIDATES] == "attention").sum()),
        **_downloaded(model),
        provenance=provenance(),
    )
    copied(lasting(options.record.parent / "first_made", options.record.stem, record), options.record)


def _downloaded(model: ModelEntry) -> dict[str, str | None]:
    """Name the hub's repositories and commits that a model and its VAE come from."""
    names = {"hub_id": model.hub_id, "revision": model.revision} if model.path is None else {}
    if model.vae is not None and not Path(model.vae).exists():
        names |= {"vae_hub_id": model.vae, "vae_revision": model.vae_revision}
    return names


def fetch_public_model(options: FetchPublicModel) -> None:
    """Download a model, and the VAE that replaces its own, to the hub's cache; what is there already stays.

    An access token comes from the environment variable ``HF_TOKEN``. Nodes without network then find the model in the cache.

    Raises:
        UserError: see `resolve`.
    """
    there = _found(options.name, entry(options.registry, options.name, ModelEntry))
    LOG.info("there: %s", ", ".join(map(str, there)))
    if options.out:
        write_text(options.out, "".join(f"{path}\n" for path in there))


def _found(name: str, model: ModelEntry) -> tuple[Path, Path]:
    """Return the folders of a model and of its VAE."""
    path = resolve(name, model.path, model.hub_id, model.revision, DOWNLOADED)
    return path, path / "vae" if model.vae is None else _vae_path(name, model)


def check_source(name: str, model: ModelEntry) -> None:
    """Check where a model, and the VAE that replaces its own, come from; of what lies here the configs. Nothing is fetched.

    Raises:
        UserError: a download is not pinned; or a folder is missing or incomplete, or of no family or what its family does not
            know.
    """
    path, vae = _local(model.path), _local_vae(model)
    if path is None:
        check_pinned(name, model.hub_id, model.revision)
    if model.vae is not None and vae is None:
        check_pinned(f"{name}: vae", model.vae, model.vae_revision)
    if path is not None:
        check_is_folder(f"{name}: path", path, "StableDiffusionPipeline")
        family = find_family(name, path)
        if model.vae is None or vae is not None:
            family.check(name, path, vae or path / "vae", model.resolution)


def _local(path: str | None) -> Path | None:
    """Return the folder of a packaged or a local model, whether or not it is there; None for one of the hub."""
    if path is None:
        return None
    return folder_of(path) if path.startswith(PACKAGED) else Path(path).resolve()


def _local_vae(model: ModelEntry) -> Path | None:
    return Path(model.vae).resolve() if model.vae is not None and Path(model.vae).exists() else None


def check_pinned(name: str, hub_id: str | None, revision: str | None) -> None:
    """Check that a repository of the hub is named, and pinned to a commit.

    Raises:
        UserError: it is not.
    """
    if hub_id is None:
        raise UserError(f"{name}: path", None, "give a path or a hub_id")
    if not HUB_ID.fullmatch(hub_id):
        raise UserError(f"{name}: hub_id", hub_id, "must be OWNER/NAME, a repository on the hub; set path to a local copy")
    if revision is None or not COMMIT.fullmatch(revision):
        remedy = f"must be a commit of {hub_id}, 40 hexadecimal digits, from its page on the hub; or set path to a local copy"
        raise UserError(f"{name}: revision", revision, remedy)


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
    if (local := _local(path)) is not None:
        return local
    check_pinned(name, hub_id, revision)
    return _download(name, hub_id, revision, files)


def _download(name: str, hub_id: str, revision: str, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    def snapshot(*skipped: str) -> Path:
        return Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=list(files), ignore_patterns=[*SKIPPED, *skipped])
        )

    try:
        path = snapshot(HALF)
        weighed = [config.parent for config in path.glob("**/config.json")]
        return path if all(map(has_weights, weighed)) else snapshot()
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{name}: hub_id",
            hub_id,
            f"cannot be downloaded ({reason}); set path to a local copy, or run fetch-public-model where a network is",
        ) from error


def _vae_path(name: str, model: ModelEntry) -> Path:
    if (local := _local_vae(model)) is not None:
        return local
    return resolve(f"{name}: vae", None, model.vae, model.vae_revision, DOWNLOADED_VAE)


def check_digest(name: str, path: Path, digest: str | None) -> None:
    """Check that a model's folder has the expected digest, if there is one.

    Raises:
        UserError: names both digests.
    """
    if digest is not None and sha256(path) != digest:
        raise UserError(f"{name}: sha256", digest, f"the folder {path} has digest {sha256(path)}: it is another model")
