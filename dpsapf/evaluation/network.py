"""The demo protocol's feature network: a small classifier of public images, packaged with its weights."""

from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256

FEATURES = 64


class FeatureNetwork(nn.Module):
    """Convolutions over 32x32 RGB images; features are averaged over positions.

    Args:
        classes: public classes that it is trained to tell apart.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (3, 32, 48, 64)
        stages = [_stage(*pair) for pair in pairwise(widths)]
        self.body = nn.Sequential(*stages, nn.Conv2d(widths[-1], FEATURES, 3, padding=1))
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images [N, 3, 32, 32] in [-1, 1] to features [N, 64]."""
        return self.body(images).mean((2, 3))

    def classify(self, images: torch.Tensor) -> torch.Tensor:
        """Map images [N, 3, 32, 32] in [-1, 1] to logits [N, classes]."""
        return self.head(self(images))


@torch.no_grad()
def standardise(network: FeatureNetwork, images: torch.Tensor) -> None:
    """Rescale the last convolution so that each feature has mean 0 and variance 1 over some public images.

    Distances between features then have a scale of their own, and no feature outweighs another. The head is undone
    accordingly: predictions stay the same.

    Args:
        network: changed in place.
        images: [N, 3, 32, 32] in [-1, 1].
    """
    features = torch.cat([network(chunk) for chunk in images.split(512)])
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    last, head = network.body[-1], network.head
    head.bias += head.weight @ mean
    head.weight *= std
    last.weight /= std[:, None, None, None]
    last.bias.sub_(mean).div_(std)


def _stage(inputs: int, outputs: int) -> nn.Sequential:
    first, second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, stride=2, padding=1)
    return nn.Sequential(first, nn.GroupNorm(8, outputs), nn.ReLU(), second, nn.GroupNorm(8, outputs), nn.ReLU())


def load_feature_network(path: Path, digest: str | None) -> FeatureNetwork:
    """Load the network in evaluation mode.

    Args:
        path: safetensors file that `pretrain-public-model` wrote.
        digest: expected SHA-256 of the file; None: not checked.

    Raises:
        UserError: the digest differs: scores of another network are not comparable.
    """
    if digest is not None and sha256(path) != digest:
        raise UserError(str(path), sha256(path), f"must have SHA-256 {digest}: reinstall, or name the protocol anew")
    weights = load_file(path)
    network = FeatureNetwork(len(weights["head.bias"]))
    network.load_state_dict(weights)
    return network.eval()
