import pytest
import torch
from torch import nn

from dpsapf.evaluation.classifiers import CLASSIFIERS, build_classifier, resnet, resnext, wideresnet, wrn28_10
from dpsapf.support.errors import UserError

SMALL = ("resnet", "wideresnet", "resnext")
PAPER = tuple(name for name in CLASSIFIERS if name not in SMALL)
# of 10 classes: what is published [million], rounded as there, and to the number what follows from the layers
PUBLISHED = {
    "resnet-164": (1.7, 1_704_154),  # Huang et al. 2017 (arXiv 1608.06993), Table 2; Zagoruyko and Komodakis 2016, Table 5
    "wrn-28-10": (36.5, 36_479_194),  # Zagoruyko and Komodakis 2016 (arXiv 1605.07146), Table 5
    "resnext-29-8x64d": (34.4, 34_426_698),  # Xie et al. 2017 (arXiv 1611.05431), Table 7
    "wrn-40-4-dropout": (8.9, 8_949_210),  # Zagoruyko and Komodakis 2016, Table 5
}


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
@pytest.mark.parametrize("name", SMALL)
def test_images_of_any_size_have_a_logit_for_every_class(name, side):
    with torch.no_grad():
        logits = built(name, 7).eval()(pixels(2, side))
    assert logits.shape == (2, 7) and torch.isfinite(logits).all()


@pytest.mark.parametrize("name", SMALL)
def test_initial_weights_come_from_torchs_random_state(name):
    first, again, other = (built(name, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not torch.equal(first["fc.weight"], other["fc.weight"])
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])  # also of the stem, which is replaced


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_is_used_and_learns(name):
    """The stem that was replaced is gone: nothing is left without a gradient."""
    model = built(name).train()
    nn.functional.cross_entropy(model(pixels()), torch.tensor([0, 1, 2, 0])).backward()
    assert [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


@pytest.mark.parametrize("name", SMALL)
def test_blocks_do_not_start_as_the_identity(name):
    """timm's default sets the last norm of each block to 0, which costs accuracy in some hundred steps."""
    norms = [module for module in built(name).modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all((norm.weight == 1).all() for norm in norms)


@pytest.mark.parametrize("name", SMALL)
def test_an_image_is_judged_alone_and_always_the_same(name):
    model, images = built(name).eval(), pixels()
    with torch.no_grad():
        whole = model(images)
        assert torch.equal(model(images), whole)  # no dropout
        torch.testing.assert_close(torch.cat([model(image[None]) for image in images]), whole, rtol=1e-4, atol=1e-5)  # fp32
    assert not torch.allclose(whole[0], whole[1], atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
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


@pytest.mark.parametrize("name", SMALL)
def test_they_are_small_and_grow_by_the_head_alone(name):
    two, ten = built(name, 2), built(name, 10)
    assert parameters(two) < 1e6
    assert parameters(ten) - parameters(two) == 8 * (two.fc.in_features + 1)


@pytest.mark.parametrize("name", ["vit", "ResNet", ""])
def test_unknown_classifiers_are_refused(name):
    with pytest.raises(UserError, match=f"classifiers = '{name}': must be among resnet, wideresnet, resnext, .*, probe"):
        build_classifier(name, 2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_papers_classifiers_have_the_published_number_of_parameters(name):
    million, exact = PUBLISHED[name]
    assert parameters(built(name, 10)) == exact and round(exact / 1e6, 1) == pytest.approx(million, abs=0.051)


def test_what_the_papers_code_trains_is_counted_by_hand():
    """Its ResNet of 164 layers has basic blocks, its ResNeXt two bottlenecks a stage; sums of its layers, one by one."""

    def convolution(inputs, outputs, side=3, groups=1):
        return inputs * outputs * side**2 // groups + 2 * outputs  # with the batch norm after it

    basic, before = convolution(3, 16), 16
    for width in (16, 32, 64):
        for _ in range(27):
            basic += convolution(before, width) + convolution(width, width)
            basic += convolution(before, width, 1) if before != width else 0
            before = width
    grouped, before = convolution(3, 64), 64
    for width in (640, 1280, 2560):
        for _ in range(2):
            inner = 8 * width // 10
            grouped += convolution(before, inner, 1) + convolution(inner, inner, 3, 8) + convolution(inner, width, 1)
            grouped += convolution(before, width, 1) if before != width else 0
            before = width
    assert parameters(built("resnet-164-basic", 10)) == basic + 64 * 10 + 10
    assert parameters(built("resnext-28-8x", 10)) == grouped + 2560 * 10 + 10


def test_the_papers_names_say_what_they_are():
    layers = {"resnet-164": 164, "resnet-164-basic": 164, "wrn-28-10": 28, "wrn-40-4-dropout": 40, "resnext-29-8x64d": 29}
    layers |= {"resnext-28-8x": 20}  # what the paper's code makes of 28, (28 - 2) // 9 bottlenecks a stage
    for name, depth in layers.items():
        model = built(name, 10)
        shortcuts = sum("identity_conv" in key and isinstance(module, nn.Conv2d) for key, module in model.named_modules())
        assert shortcuts == (2 if name == "resnet-164-basic" else 3)
        # with the linear layer, without shortcuts; wide ResNets are counted the other way round: 6 n + 4
        assert len(convolutions(model)) + (0 if name.startswith("wrn") else 1 - shortcuts) == depth, name
    assert {convolution.groups for convolution in convolutions(built("resnext-29-8x64d"))} == {1, 8}


@pytest.mark.parametrize("name", ["resnet-164", "wrn-40-4-dropout"])
def test_the_papers_classifiers_take_images_of_any_size(name):
    model = built(name, 7).eval()
    with torch.no_grad():
        assert model(pixels(2, 16)).shape == model(pixels(2, 40)).shape == (2, 7)


def test_averaging_over_all_positions_changes_nothing_at_32_pixels():
    """The library's own pooling is over 8 x 8 positions, which is all of them there."""
    model, images = built("wrn-40-4-dropout").eval(), pixels(2)
    with torch.no_grad():
        ours = model(images)
        model.features.final_pool = nn.AvgPool2d(8, stride=1)
        torch.testing.assert_close(model(images), ours, rtol=1e-4, atol=1e-4)  # fp32, another order of the sum


def test_dropout_stands_between_a_blocks_convolutions():
    """One in each of the 18 blocks, on what the second convolution reads, and none when an image is judged."""
    model = built("wrn-40-4-dropout")
    drops = [key for key, module in model.named_modules() if isinstance(module, nn.Dropout)]
    assert len(drops) == 18 and all(".conv2.activ." in key for key in drops)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.3}
    assert not any(isinstance(module, nn.Dropout) for module in wrn28_10(2).modules())
    with torch.no_grad():
        images = pixels(2)
        assert torch.equal(model.eval()(images), model(images)) and not torch.equal(model.train()(images), model(images))


def test_no_weights_are_downloaded(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)  # calling it would fail
    for name in PAPER:
        first, second = (built(name, 2, seed).output.weight for seed in (0, 1))
        assert not torch.equal(first, second)
