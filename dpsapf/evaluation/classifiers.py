"""Three small classifiers of timm's ResNet family, fitted to 32x32 images."""

from collections.abc import Callable

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from dpsapf.evaluation.probe import PROBE
from dpsapf.support.errors import UserError

DEPTH = (1, 1, 1, 1)  # blocks of each stage


def resnet(classes: int) -> ResNet:
    """Build a ResNet (He et al. 2016)."""
    return _small(BasicBlock, (16, 24, 40, 64), classes)


def wideresnet(classes: int) -> ResNet:
    """Build a wide ResNet (Zagoruyko and Komodakis 2016): twice the channels of `resnet`."""
    return _small(BasicBlock, (32, 48, 80, 128), classes)


def resnext(classes: int) -> ResNet:
    """Build a ResNeXt (Xie et al. 2017): bottlenecks with four groups."""
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


CLASSIFIERS: dict[str, Callable[[int], ResNet]] = {"resnet": resnet, "wideresnet": wideresnet, "resnext": resnext}


def build_classifier(name: str, classes: int) -> ResNet:
    """Build a classifier from torch's current random state; it maps images [N, 3, H, W] to logits [N, classes].

    Raises:
        UserError: the name is not registered.
    """
    if name not in CLASSIFIERS:
        raise UserError("classifiers", name, f"must be among {', '.join(CLASSIFIERS)}, {PROBE}")
    return CLASSIFIERS[name](classes)
