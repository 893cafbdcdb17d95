"""Features of images under an evaluation protocol."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.nn import functional

from dpsapf.datasets.prepared import Part
from dpsapf.evaluation.feature_networks import Network, load_network
from dpsapf.experiment.registries import ProtocolEntry
from dpsapf.support.arrays import Rows
from dpsapf.support.errors import UserError
from dpsapf.support.progress import track

BATCH = 250  # images at a time, as far as they are small
ROWS = 4096  # features at a time
PIXELS = 64 * 299**2  # of a batch, at most
IMAGENET_MEAN, IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Pixels = np.ndarray | Part | Rows
"""Images, uint8 [N, H, W, 3], in memory or in a file."""


def extract_features(images: Pixels, protocol: ProtocolEntry, device: str) -> np.ndarray:
    """Compute the protocol's features, float64 [N, D]; see `feature_batches`."""
    return np.concatenate(list(feature_batches(images, protocol, device))).astype(np.float64)


def feature_batches(images: Pixels, protocol: ProtocolEntry, device: str, network: Network | None = None) -> Iterator[np.ndarray]:
    """Compute the protocol's features, some images at a time, in their order.

    torch's threads read and resize the next images while the network works on these. Two batches of pixels are in memory.

    Args:
        images: uint8 [N, H, W, 3], in memory or in a file.
        protocol: names the network, its resolution, the resize filter and the range of values.
        device: ``cpu`` or ``cuda``.
        network: the protocol's, if it is loaded already.

    Yields:
        float32 [b, D].

    Raises:
        UserError: the network is unknown, has another digest, or cannot be had.
    """
    network = network or load_network(protocol, device)
    size = max(1, min(BATCH, PIXELS // protocol.feature_resolution**2))
    batches = _resized(images, protocol, size)
    for batch in track(batches, "features", "batch", total=-(-len(images) // size)):
        with torch.inference_mode():
            yield network.features(prepared(batch, protocol, device)).cpu().float().numpy()


def all_features(images: Pixels, protocol: ProtocolEntry, device: str, network: Network | None = None) -> np.ndarray:
    """Collect `feature_batches` in one array, float32 [N, D]."""
    features, done = None, 0
    for batch in feature_batches(images, protocol, device, network):
        if features is None:
            features = np.empty((len(images), batch.shape[1]), np.float32)
        features[done : done + len(batch)] = batch
        done += len(batch)
    return features


def class_probabilities(features: np.ndarray, network: Network, protocol: ProtocolEntry, device: str) -> np.ndarray | None:
    """Return what the network takes images for, float32 [N, classes]; None where the protocol has no Inception Score.

    Args:
        features: of the images, float32 [N, D].
        network: that they were computed by.
        protocol: that names the network.
        device: ``cpu`` or ``cuda``.

    Raises:
        UserError: the network tells no classes apart.
    """
    if "inception_score" not in protocol.metrics:
        return None
    if network.logits is None:
        raise UserError("metrics", "inception_score", f"{protocol.feature_network} tells no classes apart: leave it out")
    with torch.inference_mode():
        chunks = (network.logits(rows.to(device)).softmax(1).cpu() for rows in torch.from_numpy(features).split(ROWS))
        return torch.cat(list(chunks)).numpy()


def _resized(images: Pixels, protocol: ProtocolEntry, size: int) -> Iterator[np.ndarray]:
    """Read and resize on all threads, one batch ahead; batches [b, h, w, 3] of values 0 to 255."""
    resize = _resizer(protocol)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        ahead: Iterator[np.ndarray] | None = None
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            started = pool.map(resize, batch)  # starts all of them
            if ahead is not None:
                yield np.stack(list(ahead))
            ahead = started
        if ahead is not None:
            yield np.stack(list(ahead))


def _resizer(protocol: ProtocolEntry) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that resizes an image uint8 [H, W, 3] with clean-fid's own filters (Pillow's, antialiased)."""
    if protocol.resize == "torch-bilinear":
        return lambda image: image  # a batch is resized on the device, see `prepared`
    from cleanfid.resize import make_resizer

    side = protocol.feature_resolution
    resize = make_resizer("PIL", protocol.quantise, protocol.resize, (side, side))
    return lambda image: image if image.shape[:2] == (side, side) else resize(image)


def prepared(batch: np.ndarray, protocol: ProtocolEntry, device: str) -> torch.Tensor:
    """Put a batch into the network's range of values.

    Args:
        batch: [b, h, w, 3] with values 0 to 255.
        protocol: its ``torch-bilinear`` resizes here, as pytorch-fid does inside its network: without antialiasing.
        device: ``cpu`` or ``cuda``.

    Returns:
        fp32 [b, 3, side, side].
    """
    images, side = torch.from_numpy(batch).permute(0, 3, 1, 2).to(device).float(), protocol.feature_resolution
    if protocol.resize == "torch-bilinear" and images.shape[-2:] != (side, side):
        images = functional.interpolate(images, (side, side), mode="bilinear", align_corners=False)
    if protocol.value_range == "tensorflow":
        return (images - 128) / 128
    if protocol.value_range == "imagenet":
        mean, deviation = (torch.tensor(values, device=device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_SD))
        return (images / 255 - mean) / deviation
    return images / 127.5 - 1
