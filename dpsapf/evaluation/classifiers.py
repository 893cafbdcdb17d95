"""Three small classifiers of timm's ResNet family, fitted to 32x32 images."""

from collections.abc import Callable

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from dpsapf.errors import UserError

DEPTH = (1, 1, 1, 1)


def resnet(classes: int) -> ResNet:
    """Build a ResNet (He et al. 2016)."""
    return _fitted(ResNet(BasicBlock, DEPTH, num_classes=classes, channels=(16, 24, 40, 64)))


def wideresnet(classes: int) -> ResNet:
    """Build a wide ResNet (Zagoruyko and Komodakis 2016): twice the channels of `resnet`."""
    return _fitted(ResNet(BasicBlock, DEPTH, num_classes=classes, channels=(32, 48, 80, 128)))


def resnext(classes: int) -> ResNet:
    """Build a ResNeXt (Xie et al. 2017): bottlenecks with four groups."""
    return _fitted(ResNet(Bottleneck, DEPTH, num_classes=classes, channels=(8, 16, 24, 32), cardinality=4, base_width=32))


def _fitted(model: ResNet) -> ResNet:
    """Replace the 7x7 stem and the pooling, made for 224 pixels, by one 3x3 convolution of stride 2."""
    model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, stride=2, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


CLASSIFIERS: dict[str, Callable[[int], ResNet]] = {"resnet": resnet, "wideresnet": wideresnet, "resnext": resnext}


def build_classifier(name: str, classes: int) -> ResNet:
    """Build a classifier from torch's current random state.

    Raises:
        UserError: the name is not registered.
    """
    if name not in CLASSIFIERS:
        raise UserError("classifiers", name, f"must be among {', '.join(CLASSIFIERS)}")
    return CLASSIFIERS[name](classes)
