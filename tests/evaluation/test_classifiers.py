import pytest
import torch
from torch import nn

from dpsapf.evaluation.classifiers import CLASSIFIERS, build_classifier, resnet, resnext, wideresnet
from dpsapf.support.errors import UserError


def built(name, classes=3, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_classifier(name, classes)


def pixels(count=4, side=32):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def convolutions(model):
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize("side", [28, 32, 64])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_images_of_any_size_have_a_logit_for_every_class(name, side):
    with torch.no_grad():
        logits = built(name, 7).eval()(pixels(2, side))
    assert logits.shape == (2, 7) and torch.isfinite(logits).all()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_initial_weights_come_from_torchs_random_state(name):
    first, again, other = (built(name, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not torch.equal(first["fc.weight"], other["fc.weight"])
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])  # also of the stem, which is replaced


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_parameter_is_used_and_learns(name):
    """The stem that was replaced is gone: nothing is left without a gradient."""
    model = built(name).train()
    nn.functional.cross_entropy(model(pixels()), torch.tensor([0, 1, 2, 0])).backward()
    assert [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_blocks_do_not_start_as_the_identity(name):
    """timm's default sets the last norm of each block to 0, which costs accuracy in some hundred steps."""
    norms = [module for module in built(name).modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all((norm.weight == 1).all() for norm in norms)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_an_image_is_judged_alone_and_always_the_same(name):
    model, images = built(name).eval(), pixels()
    with torch.no_grad():
        whole = model(images)
        assert torch.equal(model(images), whole)  # no dropout
        torch.testing.assert_close(torch.cat([model(image[None]) for image in images]), whole, rtol=1e-4, atol=1e-5)  # fp32
    assert not torch.allclose(whole[0], whole[1], atol=1e-4)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_stem_is_one_convolution_of_stride_2_without_pooling(name):
    model, sizes = built(name).eval(), []
    model.layer1.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(inputs[0].shape[2:])))
    with torch.no_grad():
        model(pixels(1))
    assert sizes == [(16, 16)]
    assert (model.conv1.kernel_size, model.conv1.stride, model.conv1.bias) == ((3, 3), (2, 2), None)


def test_the_three_are_what_their_names_say():
    narrow, wide, grouped = resnet(3), wideresnet(3), resnext(3)
    for ours, theirs in zip(convolutions(wide), convolutions(narrow), strict=True):
        assert ours.out_channels == 2 * theirs.out_channels
    assert {convolution.groups for convolution in convolutions(narrow) + convolutions(wide)} == {1}
    assert [convolution.groups for convolution in convolutions(grouped)].count(4) == 4  # one in each stage's bottleneck
    assert all(convolution.kernel_size == (3, 3) for convolution in convolutions(grouped) if convolution.groups == 4)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_they_are_small_and_grow_by_the_head_alone(name):
    two, ten = built(name, 2), built(name, 10)
    assert parameters(two) < 1e6
    assert parameters(ten) - parameters(two) == 8 * (two.fc.in_features + 1)


@pytest.mark.parametrize("name", ["vit", "ResNet", ""])
def test_unknown_classifiers_are_refused(name):
    with pytest.raises(UserError, match=f"classifiers = '{name}': must be among resnet, wideresnet, resnext, probe"):
        build_classifier(name, 2)
