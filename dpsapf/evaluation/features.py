"""Features of images under an evaluation protocol."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from dpsapf.datasets.prepared import Part
from dpsapf.evaluation.network import load_feature_network
from dpsapf.experiment.registries import ProtocolEntry
from dpsapf.support.errors import UserError
from dpsapf.support.progress import track

BATCH = 250
Extractor = Callable[[torch.Tensor], torch.Tensor]
Pixels = np.ndarray | Part


def extract_features(images: Pixels, protocol: ProtocolEntry, device: str) -> np.ndarray:
    """Compute the protocol's features, float64 [N, D]; see `feature_batches`."""
    return np.concatenate(list(feature_batches(images, protocol, device))).astype(np.float64)


def feature_batches(images: Pixels, protocol: ProtocolEntry, device: str) -> Iterator[np.ndarray]:
    """Compute the protocol's features, `BATCH` images at a time.

    Args:
        images: uint8 [N, H, W, 3], in memory or in a file.
        protocol: names the network, its resolution and the resize filter.
        device: ``cpu`` or ``cuda``.

    Yields:
        float32 [b, D].

    Raises:
        UserError: the network is unknown, has another digest, or cannot be had.
    """
    extractor = build_extractor(protocol, device)
    for start in track(range(0, len(images), BATCH), "features", "batch"):
        batch = _resized(images[start : start + BATCH], protocol)
        with torch.inference_mode():
            yield extractor(torch.from_numpy(batch).permute(0, 3, 1, 2).to(device)).cpu().float().numpy()


def build_extractor(protocol: ProtocolEntry, device: str) -> Extractor:
    """Return a function from images [B, 3, H, W] with values 0 to 255 to features [B, D]."""
    if protocol.feature_network == "clean-fid:inception":
        return _inception(device)
    package, _, name = protocol.feature_network.partition(":")
    path = Path(__file__).parent / "networks" / f"{name}.safetensors"
    if package != "package" or not path.exists():
        raise UserError("feature_network", protocol.feature_network, "must be clean-fid:inception or a packaged network")
    network = load_feature_network(path, protocol.feature_sha256).to(device)
    return lambda images: network(images.float() / 127.5 - 1)


def _inception(device: str) -> Extractor:
    """Load Inception-v3 as clean-fid does; it downloads the weights to a temporary folder on first use.

    Raises:
        UserError: the weights cannot be downloaded, or are broken (an earlier download was cut off).
    """
    from cleanfid.features import build_feature_extractor

    try:
        return build_feature_extractor("clean", torch.device(device), use_dataparallel=False)
    except OSError as error:
        raise UserError("feature_network", "clean-fid:inception", f"its weights cannot be downloaded: {error}") from error
    except RuntimeError as error:
        remedy = f"the file of weights is broken, delete it: {str(error).splitlines()[0]}"
        raise UserError("feature_network", "clean-fid:inception", remedy) from error


def _resized(images: np.ndarray, protocol: ProtocolEntry) -> np.ndarray:
    """Resize with clean-fid's own filters; float32 [B, h, w, 3], values 0 to 255."""
    side = protocol.feature_resolution
    if images.shape[1] == side:
        return images.astype(np.float32)
    from cleanfid.resize import make_resizer

    resize = make_resizer("PIL", False, protocol.resize, (side, side))
    return np.stack([resize(image) for image in images]).astype(np.float32)
