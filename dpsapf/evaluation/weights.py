"""Weights of published feature networks: fetched once, and read only if their digest is the protocol's."""

import hashlib
import logging
import shutil
from pathlib import Path

from dpsapf.experiment.registries import PACKAGED, ProtocolEntry, entry
from dpsapf.experiment.stages import FetchEvaluationWeights
from dpsapf.support.download import Download, by_hand, download
from dpsapf.support.errors import UserError
from dpsapf.support.files import exclusive, sha256, write_text

LOG = logging.getLogger(__name__)
CLEAN_FID, PYTORCH_FID, DINOV2 = "clean-fid:inception", "pytorch-fid:inception", "timm:vit_base_patch14_dinov2.lvd142m"
DINOV2_REPOSITORY, DINOV2_REVISION = "timm/vit_base_patch14_dinov2.lvd142m", "4685c99dabffe5affac90bd99dbffd25801ae58d"
TORCH_FID_NAMES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
PUBLISHED: dict[str, Download] = {
    CLEAN_FID: Download(
        file="data/networks/inception-2015-12-05.pt",
        urls=("https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",),
        page="https://github.com/GaParmar/clean-fid",
    ),
    PYTORCH_FID: Download(
        file=f"data/networks/{TORCH_FID_NAMES[0]}",
        urls=(
            f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{TORCH_FID_NAMES[0]}",
            f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{TORCH_FID_NAMES[1]}",  # the same bytes
        ),
        page="https://github.com/mseitzer/pytorch-fid",
    ),
    DINOV2: Download(
        file="data/networks/vit_base_patch14_dinov2.lvd142m.safetensors",
        urls=(f"https://huggingface.co/{DINOV2_REPOSITORY}/resolve/{DINOV2_REVISION}/model.safetensors",),
        page=f"https://huggingface.co/{DINOV2_REPOSITORY}",
    ),
}


def fetch_evaluation_weights(options: FetchEvaluationWeights) -> None:
    """Fetch the weights of a protocol's feature network, for nodes without network; what is there already stays.

    Raises:
        UserError: the network is packaged, or see `obtain`.
    """
    protocol = entry(options.registry, options.protocol, ProtocolEntry)
    if protocol.feature_network.startswith(PACKAGED):
        raise UserError("--protocol", options.protocol, f"its network {protocol.feature_network} is packaged: nothing to fetch")
    path = obtain(protocol)
    LOG.info("there: %s", path)
    if options.out:
        write_text(options.out, f"{path}\n")


def read_weights(protocol: ProtocolEntry) -> bytes:
    """Return the weights of a published network, fetched if they are not there; the bytes returned are those that were digested.

    Raises:
        UserError: see `obtain`.
    """
    data = obtain(protocol).read_bytes()
    _check(hashlib.sha256(data).hexdigest(), protocol)
    return data


def obtain(protocol: ProtocolEntry) -> Path:
    """Find a published network's weights, copy them from where a library put them, or download them; one process at a time.

    Returns:
        The file, whose digest is the protocol's.

    Raises:
        UserError: the network is unknown, its entry pins no digest, the weights have another, or they cannot be had.
    """
    wanted = published(protocol)
    path = Path(wanted.file)
    with exclusive(path.with_name(f".{path.name}.lock")):
        if not path.exists() and not _copied(path, protocol):
            download(wanted)
            try:
                _check(sha256(path), protocol)
            except UserError:
                path.unlink()
                raise
        _check(sha256(path), protocol)
    return path


def check_network(protocol: ProtocolEntry) -> None:
    """Check that a protocol's feature network is known, without reading it.

    Raises:
        UserError: see `packaged` and `published`.
    """
    (packaged if protocol.feature_network.startswith(PACKAGED) else published)(protocol)


def packaged(protocol: ProtocolEntry) -> Path:
    """Return the file of a network that ships with dpsapf.

    Raises:
        UserError: there is none of that name.
    """
    path = Path(__file__).parent / "networks" / f"{protocol.feature_network.removeprefix(PACKAGED)}.safetensors"
    if not path.exists():
        known = ", ".join(f"{PACKAGED}{file.stem}" for file in sorted(path.parent.glob("*.safetensors")))
        raise UserError("feature_network", protocol.feature_network, f"no such packaged network: there is {known}")
    return path


def published(protocol: ProtocolEntry) -> Download:
    """Return where a network's weights are published.

    Raises:
        UserError: the network is unknown, or its entry pins no digest.
    """
    name = protocol.feature_network
    if name not in PUBLISHED:
        raise UserError("feature_network", name, f"must be {PACKAGED}NAME or one of {', '.join(PUBLISHED)}")
    if protocol.feature_sha256 is None:
        raise UserError("feature_sha256", None, f"{name} is read by its digest alone: pin the SHA-256 of its weights")
    return PUBLISHED[name]


def library_copies(name: str) -> list[Path]:
    """List where the libraries that use a network keep its weights, whether or not they are there."""
    import torch
    from huggingface_hub import try_to_load_from_cache

    if name == CLEAN_FID:
        return [Path("/tmp/inception-2015-12-05.pt")]  # whatever TMPDIR says
    if name == PYTORCH_FID:
        return [Path(torch.hub.get_dir()) / "checkpoints" / file for file in TORCH_FID_NAMES]
    found = try_to_load_from_cache(DINOV2_REPOSITORY, "model.safetensors", revision=DINOV2_REVISION)
    return [Path(found)] if isinstance(found, str) else []


def _copied(path: Path, protocol: ProtocolEntry) -> bool:
    """Copy a library's file of the right digest; the copy is digested, not a file that others may write to."""
    part = path.with_name(f"{path.name}.copy")
    try:
        for source in filter(Path.is_file, library_copies(protocol.feature_network)):
            shutil.copyfile(source, part)
            if sha256(part) == protocol.feature_sha256:
                part.replace(path)
                LOG.info("copied from %s", source)
                return True
            LOG.warning("%s has another digest than the protocol's: left alone", source)
    finally:
        part.unlink(missing_ok=True)
    return False


def _check(found: str, protocol: ProtocolEntry) -> None:
    wanted = PUBLISHED[protocol.feature_network]
    if found != protocol.feature_sha256:
        remedy = f"must be {protocol.feature_sha256}: delete it; then run fetch-evaluation-weights, or {by_hand(wanted)}"
        raise UserError(wanted.file, f"SHA-256 {found}", remedy)
