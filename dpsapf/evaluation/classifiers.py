"""The utility's classifiers: three small ones of timm's ResNet family, and those of the paper, in pytorchcv's CIFAR forms."""

from collections.abc import Callable

from pytorchcv.models.preresnet import PreResBlock
from pytorchcv.models.resnet_cifar import CIFARResNet
from pytorchcv.models.resnext_cifar import CIFARResNeXt, get_resnext_cifar
from pytorchcv.models.wrn_cifar import get_wrn_cifar
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from dpsapf.experiment.registries import PROBE
from dpsapf.support.errors import UserError

DEPTH = (1, 1, 1, 1)  # blocks of each stage of the small ones


def resnet(classes: int) -> ResNet:
    """Build a small ResNet (He et al. 2016)."""
    return _small(BasicBlock, (16, 24, 40, 64), classes)


def wideresnet(classes: int) -> ResNet:
    """Build a small wide ResNet (Zagoruyko and Komodakis 2016): twice the channels of `resnet`."""
    return _small(BasicBlock, (32, 48, 80, 128), classes)


def resnext(classes: int) -> ResNet:
    """Build a small ResNeXt (Xie et al. 2017): bottlenecks with four groups."""
    return _small(Bottleneck, (8, 16, 24, 32), classes, cardinality=4, base_width=32)


def _small(block: type[nn.Module], channels: tuple[int, ...], classes: int, **groups: int) -> ResNet:
    """Build a ResNet whose stem, instead of 7x7 and pooling, is one 3x3 convolution of stride 2.

    timm takes the stem's width from ``stem_width`` only for a deep stem, which is then replaced. The last norm of a
    block does not start at 0, as timm's does by default: in some hundred steps that costs 2 to 6 % of accuracy.
    """
    stem = channels[0] * block.expansion
    widths = {"channels": channels, "stem_type": "deep", "stem_width": stem // 2}
    model = ResNet(block, DEPTH, num_classes=classes, zero_init_last=False, **widths, **groups)
    model.conv1 = nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def resnet164(classes: int) -> nn.Module:
    """Build ResNet-164: bottlenecks, activation after addition (He et al. 2016, arXiv 1603.05027, Table 4, original unit)."""
    return _resnet(classes, 164, bottleneck=True)


def resnet164_basic(classes: int) -> nn.Module:
    """Build a ResNet of 164 layers in basic blocks, which the paper's code trains by the name of ResNet-164."""
    return _resnet(classes, 164, bottleneck=False)


def _resnet(classes: int, layers: int, *, bottleneck: bool) -> nn.Module:
    blocks, expansion = (layers - 2) // (9 if bottleneck else 6), 4 if bottleneck else 1
    channels = [[expansion * width] * blocks for width in (16, 32, 64)]
    return _of_any_size(CIFARResNet(channels, 16, bottleneck=bottleneck, num_classes=classes))


def wrn28_10(classes: int, dropout: float = 0.0) -> nn.Module:
    """Build WRN-28-10 (Zagoruyko and Komodakis 2016, arXiv 1605.07146), maybe with dropout between a block's convolutions."""
    return _wide(classes, 28, 10, dropout)


def wrn40_4(classes: int, dropout: float = 0.0) -> nn.Module:
    """Build WRN-40-4, the default form of the paper's code, which trains it on all images above 32 x 32."""
    return _wide(classes, 40, 4, dropout)


def _wide(classes: int, layers: int, width: int, dropout: float) -> nn.Module:
    model = _of_any_size(get_wrn_cifar(classes, layers, width))
    for block in model.modules():
        if dropout and isinstance(block, PreResBlock):
            block.conv2.activ = nn.Sequential(block.conv2.activ, nn.Dropout(dropout))
    return model


def resnext29_8x64d(classes: int) -> nn.Module:
    """Build ResNeXt-29, 8 x 64d (Xie et al. 2017, arXiv 1611.05431, section 5.2)."""
    return _of_any_size(get_resnext_cifar(classes, blocks=29, cardinality=8, bottleneck_width=64))


def resnext28_8x(classes: int) -> nn.Module:
    """Build what the paper's code trains as ResNeXt-28: two bottlenecks a stage, 640 to 2,560 channels, 8 groups of 64 to 256."""
    channels = [[640] * 2, [1280] * 2, [2560] * 2]
    return _of_any_size(CIFARResNeXt(channels, 64, cardinality=8, bottleneck_width=64 * 4 / 10, num_classes=classes))


def _of_any_size(model: nn.Module) -> nn.Module:
    """Average features over all positions, of which there are 8 x 8 in images of 32 x 32."""
    model.features.final_pool = nn.AdaptiveAvgPool2d(1)
    return model


CLASSIFIERS: dict[str, Callable[[int], nn.Module]] = {
    "resnet": resnet,
    "wideresnet": wideresnet,
    "resnext": resnext,
    "resnet-164": resnet164,
    "resnet-164-basic": resnet164_basic,
    "wrn-28-10": wrn28_10,
    "wrn-28-10-dropout": lambda classes: wrn28_10(classes, 0.3),
    "wrn-40-4-dropout": lambda classes: wrn40_4(classes, 0.3),
    "resnext-29-8x64d": resnext29_8x64d,
    "resnext-28-8x": resnext28_8x,
}


def build_classifier(name: str, classes: int) -> nn.Module:
    """Build a classifier from torch's current random state; it maps images [N, 3, H, W] to logits [N, classes].

    No pretrained weights: what it knows, it learns from the images that it is given.

    Raises:
        UserError: the name is not registered.
    """
    if name not in CLASSIFIERS:
        raise UserError("classifiers", name, f"must be among {', '.join(CLASSIFIERS)}, {PROBE}")
    return CLASSIFIERS[name](classes)
