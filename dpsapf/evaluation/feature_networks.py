"""The networks that features are taken from: the packaged one, Inception v3 in two forms, DINOv2."""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from torch import nn

from dpsapf.evaluation.network import load_feature_network
from dpsapf.evaluation.weights import CLEAN_FID, DINOV2, PUBLISHED, PYTORCH_FID, packaged, read_weights
from dpsapf.experiment.registries import PACKAGED, ProtocolEntry
from dpsapf.support.errors import UserError

INCEPTION_CLASSES = 1008  # of the TensorFlow graph of 2015 that both forms were made of
DINOV2_SIDE = 224
UNREADABLE = (RuntimeError, KeyError, ValueError, AttributeError, EOFError, UnpicklingError, SafetensorError)


@dataclass(frozen=True)
class Network:
    """A feature network on a device; it computes no gradients.

    Attributes:
        features: maps images [B, 3, H, W], with values in the protocol's range, to features [B, D].
        logits: maps features [B, D] to logits of classes [B, classes]; None: it tells no classes apart.
    """

    features: Callable[[torch.Tensor], torch.Tensor]
    logits: Callable[[torch.Tensor], torch.Tensor] | None = None


def load_network(protocol: ProtocolEntry, device: str) -> Network:
    """Load a protocol's feature network.

    Raises:
        UserError: the network is unknown, has another digest, cannot be had, or its file is not what it should be.
    """
    name = protocol.feature_network
    if name.startswith(PACKAGED):
        return _packaged(protocol, device)
    weights = read_weights(protocol)
    try:
        return BUILDERS[name](weights, device)
    except UNREADABLE as error:
        first = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise UserError(PUBLISHED[name].file, name, f"has the entry's feature_sha256 but is no such network: {first}") from error


def _packaged(protocol: ProtocolEntry, device: str) -> Network:
    network = load_feature_network(packaged(protocol), protocol.feature_sha256).to(device)
    return Network(network, network.head)


def clean_fid_inception(weights: bytes, device: str) -> Network:
    """Load Inception v3 as clean-fid does (`cleanfid.inception_torchscript.InceptionV3W` without resizing inside).

    Args:
        weights: NVIDIA's TorchScript file, already digested: loading it may run what is in it.
        device: ``cpu`` or ``cuda``.

    Returns:
        Maps 299x299 images with values (x - 128) / 128 to 2,048 features.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.load.*is deprecated", category=FutureWarning)
        layers = torch.jit.load(io.BytesIO(weights), map_location=device).eval().layers
    return Network(lambda images: layers(images).flatten(1))


def pytorch_fid_inception(weights: bytes, device: str) -> Network:
    """Load Inception v3 as pytorch-fid does: torchvision's, with four kinds of block as clean-fid keeps them from pytorch-fid.

    Args:
        weights: pytorch-fid's state dictionary, already digested, which no unpickler runs code from.
        device: ``cpu`` or ``cuda``.

    Returns:
        Maps 299x299 images with values in [-1, 1] to 2,048 features, and these to logits with bias of 1,008 classes.
    """
    network = inception()
    network.load_state_dict(torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True))
    network.eval().requires_grad_(False).to(device)
    head, network.fc = network.fc, nn.Identity()
    return Network(network, head)


def inception() -> nn.Module:
    """Build Inception v3 as FID's TensorFlow graph has it, with random weights (pytorch-fid's `fid_inception_v3`)."""
    from cleanfid import inception_pytorch as blocks
    from torchvision.models.inception import Inception3

    network = Inception3(INCEPTION_CLASSES, aux_logits=False, transform_input=False, init_weights=False)
    network.Mixed_5b = blocks.FIDInceptionA(192, pool_features=32)
    network.Mixed_5c = blocks.FIDInceptionA(256, pool_features=64)
    network.Mixed_5d = blocks.FIDInceptionA(288, pool_features=64)
    network.Mixed_6b = blocks.FIDInceptionC(768, channels_7x7=128)
    network.Mixed_6c = blocks.FIDInceptionC(768, channels_7x7=160)
    network.Mixed_6d = blocks.FIDInceptionC(768, channels_7x7=160)
    network.Mixed_6e = blocks.FIDInceptionC(768, channels_7x7=192)
    network.Mixed_7b = blocks.FIDInceptionE_1(1280)
    network.Mixed_7c = blocks.FIDInceptionE_2(2048)
    return network


def dinov2(weights: bytes, device: str) -> Network:
    """Load DINOv2's ViT-B/14 through timm, at 224x224: its features are the class token after the last norm.

    Args:
        weights: timm's safetensors file, whose position embedding is of 518x518 and is resampled as timm does.
        device: ``cpu`` or ``cuda``.

    Returns:
        Maps 224x224 images with ImageNet's normalisation to 768 features.
    """
    import timm
    from safetensors.torch import load
    from timm.models.vision_transformer import checkpoint_filter_fn

    model = DINOV2.removeprefix("timm:")
    network = timm.create_model(model, pretrained=False, num_classes=0, img_size=DINOV2_SIDE, global_pool="token")
    network.load_state_dict(checkpoint_filter_fn(load(weights), network))
    return Network(network.eval().requires_grad_(False).to(device))


BUILDERS: dict[str, Callable[[bytes, str], Network]] = {
    CLEAN_FID: clean_fid_inception,
    PYTORCH_FID: pytorch_fid_inception,
    DINOV2: dinov2,
}
