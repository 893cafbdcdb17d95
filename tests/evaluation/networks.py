"""Files of published feature networks in their real formats, with random weights."""

import torch
from torch import nn

from dpsapf.evaluation.feature_networks import inception
from dpsapf.evaluation.weights import DINOV2


def strong(network):
    """Draw weights that keep activations from vanishing through many layers."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return network.eval()


class Small(nn.Module):
    """Of the form of NVIDIA's TorchScript file: ``layers`` maps normalised images to features [N, 2048, 1, 1]."""

    def __init__(self):
        super().__init__()
        body = nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2048, 1)
        self.layers = nn.Sequential(*body)

    def forward(self, images):
        return self.layers((images - 128) / 128)


def torchscript(path, network=None):
    """Write a TorchScript file as clean-fid downloads it."""
    torch.manual_seed(0)
    torch.jit.script((network or Small()).eval()).save(str(path))
    return path


def state_dictionary(path):
    """Write a state dictionary of Inception v3 as pytorch-fid downloads it."""
    torch.save(strong(inception()).state_dict(), path)
    return path


def dinov2_safetensors(path):
    """Write ViT-B/14 as timm publishes it: no head, a position embedding of 518x518."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model(DINOV2.removeprefix("timm:"), num_classes=0).state_dict(), path)
    return path
