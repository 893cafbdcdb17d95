"""What must not leave beside a release, put into a file with its record: each is refused by name, and right files pass."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dpsapf.experiment.columns import MATRIX, SCORE, SELECTED
from dpsapf.experiment.methods import Adapter
from dpsapf.experiment.records import Selection, Spend, WeightsHeader
from dpsapf.experiment.runs import RunSpec
from dpsapf.finetune.adapters import trainable
from dpsapf.finetune.weights import write_weights
from dpsapf.privacy.leaving import check_samples, check_scores, expected_labels, number
from dpsapf.privacy.trained import denoiser_shapes, trained_shapes
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError, UserErrors
from dpsapf.support.files import sha256
from dpsapf.support.records import read_record, write_record
from tests.tiny import tiny_unet, write_tiny_model
from tests.true_files import COUNT, NAMES, SETTINGS, SIDE

SECRET = 0.7531902468  # what somebody lets out


def scores(run, change):
    """Change scores.csv and everything that names it: as if score-saliency had written it."""
    path = run.path("scores.csv")
    path.write_text(change(path.read_text()))
    run.change("saliency", digest=sha256(path))
    write_record(run.path("selection.json"), replace(run.selection(), scores=sha256(path)))


def selection(run, change):
    """Likewise of selection.csv."""
    path = run.path("selection.csv")
    path.write_text(change(path.read_text()))
    write_record(run.path("selection.json"), replace(run.selection(), digest=sha256(path)))
    run.change("dp-sgd", made_from=run.spent("dp-sgd").made_from | {"selection": sha256(path)})


def weights(run, **changes):
    """Likewise of the weights; numbers of the record may change with them."""
    run.change("dp-sgd", digest=sha256(run.path("weights.safetensors")), **changes)


def saved(run, change, header=None, **told):
    path = run.path("weights.safetensors")
    header = header or WeightsHeader(adapter="lora", **SETTINGS)
    write_weights(path, change(load_file(path)), header)
    weights(run, **told)


def metadata(run):
    path = run.path("weights.safetensors")
    with safe_open(path, "pt") as file:
        told = file.metadata()
    save_file(load_file(path), path, told | {"note": str(SECRET)})
    weights(run)


def raw(run, name, change):
    """Change the bytes of a released file."""
    path = run.path(name)
    path.write_bytes(change(path.read_bytes()))
    run.change("dp-sgd" if name.startswith("weights") else "pe-histogram", digest=sha256(path))


def padded_header(content):
    """Eight more spaces after the header, which a reader passes over: tensors begin later."""
    length = int.from_bytes(content[:8], "little")
    return (length + 8).to_bytes(8, "little") + content[8 : 8 + length] + b" " * 8 + content[8 + length :]


def gap(content):
    """Eight bytes that no tensor has, between two tensors."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    *_, last = header
    start, end = header[last]["data_offsets"]
    header[last]["data_offsets"] = [start + 8, end + 8]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[:start] + b"pixels!!" + data[start:]


def reordered(content):
    """The tensors in another order, which is a message, too."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    facts, parts = {"__metadata__": header.pop("__metadata__")}, []
    for name, told in [*header.items()][::-1]:
        start, end = told["data_offsets"]
        at = sum(map(len, parts))
        facts[name] = told | {"data_offsets": [at, at + end - start]}
        parts.append(data[start:end])
    text = json.dumps(facts, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(parts)


def marked_nan(content):
    """A number that is none, with a message in its bits."""
    return content[:-4] + (0x7FC0BEEF).to_bytes(4, "little")


def column(text):
    first, *rows = text.splitlines()
    return "\n".join([f"{first},x", *(f"{row},{SECRET}" for row in rows)]) + "\n"


def half(values):
    return {name: value.double() for name, value in values.items()}


def record(run, name, change):
    path = run.path(name)
    path.write_text(change(path.read_text()))


def more_digits(text):
    rate = f'"sampling_rate": {json.loads(text)["release"]["sampling_rate"]}'
    return text.replace(rate, rate + "000000000000000000007531902468")


BESIDE_THE_SCORES_AND_WEIGHTS = {
    "a column of scores.csv": (lambda run: scores(run, column), r"scores\.csv: columns = .*must be matrix,noisy_score"),
    "a row of scores.csv": (lambda run: scores(run, lambda text: f"{text}x,{SECRET}\n"), "must be the 40 candidates"),
    "a row less": (lambda run: scores(run, lambda text: text.rpartition("blocks")[0]), "must be the 40 candidates"),
    "no end of a line": (lambda run: scores(run, lambda text: text[:-1]), "must be the 40 candidates"),
    "other matrices": (lambda run: scores(run, lambda text: text.replace("m7.", "x.")), "must be the 40 candidates"),
    "another order": (
        lambda run: scores(run, lambda text: "\n".join([text.split("\n")[0], *sorted(text.split("\n")[1:-1])[::-1], ""])),
        "in the order of their table",
    ),
    "digits behind a score": (lambda run: scores(run, lambda text: text[:-1] + "0000007\n"), "fewest digits"),
    "a low bit of a score": (
        lambda run: scores(
            run, lambda text: text.replace(f"{read_scores(run)[3]!r}", f"{float(np.nextafter(read_scores(run)[3], 9))!r}")
        ),
        "must be a multiple of .*, the grid of the release",
    ),
    "a score that is no number": (
        lambda run: scores(run, lambda text: text[: text.rindex(",") + 1] + "nan\n"),
        "must be a finite number",
    ),
    "a column of selection.csv": (lambda run: selection(run, column), r"selection\.csv: line 1 = .*must be"),
    "a row of selection.csv": (lambda run: selection(run, lambda text: text + text.splitlines()[-1] + "\n"), "line 42"),
    "another score in selection.csv": (
        lambda run: selection(
            run, lambda text: text.replace(f"{read_scores(run)[3]!r}", f"{float(np.nextafter(read_scores(run)[3], 9))!r}")
        ),
        "line 5",
    ),
    "another selection": (lambda run: selection(run, lambda text: text.replace("False", "True", 1)), r"selection\.csv: line"),
    "metadata": (metadata, r"weights\.safetensors: metadata = .*note"),
    "an alpha that is a pixel": (
        lambda run: saved(run, dict, WeightsHeader(adapter="lora", lora_rank=5, lora_alpha=SECRET)),
        r"weights\.safetensors: metadata",
    ),
    "another decay": (
        lambda run: saved(run, dict, WeightsHeader(adapter="lora", ema_decay=SECRET, **SETTINGS)),
        r"weights\.safetensors: metadata",
    ),
    "an extra tensor": (
        lambda run: saved(run, lambda found: found | {"x": torch.full((3,), SECRET)}),
        r"weights\.safetensors: x = .*must be absent",
    ),
    "an extra tensor that is counted": (
        lambda run: saved(
            run, lambda found: found | {f"{NAMES[0]}.weight": torch.full((8, 7), SECRET)}, numbers=956, trainable_parameters=956
        ),
        r"weight = .*must be absent",
    ),
    "a tensor less": (lambda run: saved(run, lambda found: dict([*found.items()][1:])), "= None: must be"),
    "a larger tensor": (
        lambda run: saved(run, lambda found: {name: torch.cat([value, value]) for name, value in found.items()}),
        r"must be \('F32', \(5, 7\)\)",
    ),
    "longer numbers": (
        lambda run: (
            save_file(half(load_file(run.path("weights.safetensors"))), run.path("weights.safetensors"), header_of(run)),
            weights(run),
        ),
        "must be .'F32'",
    ),
    "bytes behind the tensors": (
        lambda run: raw(run, "weights.safetensors", lambda found: found + b"pixel"),
        "must have .* bytes",
    ),
    "bytes between tensors": (lambda run: raw(run, "weights.safetensors", gap), "has other bytes than these tensors"),
    "bytes behind the header": (lambda run: raw(run, "weights.safetensors", padded_header), "has other bytes|must have"),
    "an order of tensors": (lambda run: raw(run, "weights.safetensors", reordered), "in their order"),
    "bits of what is no number": (lambda run: raw(run, "weights.safetensors", marked_nan), "has bits that no computation gives"),
    "other numbers in the record": (lambda run: run.change("dp-sgd", trainable_parameters=7), "must be 900 and 900"),
    "numbers of the scores": (lambda run: run.change("saliency", trainable_parameters=7), "must be 40 and 0"),
    "a digest too many": (
        lambda run: run.change("dp-sgd", made_from=run.spent("dp-sgd").made_from | {"x": "a" * 64}),
        "dp-sgd: made_from = .*'x'",
    ),
    "text in the place of a digest": (
        lambda run: [
            run.change(name, made_from=run.spent(name).made_from | {"latents": str(SECRET)}) for name in ("saliency", "dp-sgd")
        ],
        "saliency: latents = .*must be a SHA-256 digest",
    ),
    "digits in a record": (lambda run: record(run, "dp-sgd.json", more_digits), "is not written as this suite writes JSON"),
    "a key twice": (
        lambda run: record(run, "selection.json", lambda text: text.replace("{", f'{{\n  "digest": "{SECRET}",', 1)),
        "is not written as this suite writes JSON",
    ),
    "spaces in a record": (lambda run: record(run, "saliency.json", lambda text: text + " "), "is not written as this suite"),
}


def read_scores(run):
    return [float(row.split(",")[1]) for row in run.path("scores.csv").read_text().splitlines()[1:]]


def header_of(run):
    with safe_open(run.path("weights.safetensors"), "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("name", BESIDE_THE_SCORES_AND_WEIGHTS)
def test_what_leaves_beside_scores_selection_and_weights_is_refused(audited, name):
    spoil, message = BESIDE_THE_SCORES_AND_WEIGHTS[name]
    spoil(audited)
    with pytest.raises(UserError, match=message):
        audited.audit()
    assert not audited.path("ledger.json").exists()


def of_population(run, change):
    raw(run, "population.safetensors", change)


BESIDE_THE_VOTES = {
    "bytes behind the images": (lambda run: of_population(run, lambda found: found + b"pixel"), "must have .* bytes"),
    "other labels": (lambda run: of_population(run, lambda found: found[:-8] + bytes(8)), "labels = .*must be those"),
    "a colour in a grey image": (
        lambda run: of_population(
            run, lambda found: found[: -8 * COUNT - 1] + bytes([found[-8 * COUNT - 1] ^ 1]) + found[-8 * COUNT :]
        ),
        "images = 'colours': mnist5k is grey",
    ),
    "metadata": (
        lambda run: (
            save_file(load_file(run.path("population.safetensors")), run.path("population.safetensors"), {"x": str(SECRET)}),
            run.change("pe-histogram", digest=sha256(run.path("population.safetensors"))),
        ),
        "metadata = .*x",
    ),
    "more images": (lambda run: None, "images = .*must be .'U8', .7, 8"),
    "other numbers in the record": (lambda run: run.change("pe-histogram", trainable_parameters=1), "must be 6 and 0"),
}


@pytest.mark.parametrize("name", BESIDE_THE_VOTES)
def test_what_leaves_beside_votes_is_refused(evolved, name):
    spoil, message = BESIDE_THE_VOTES[name]
    spoil(evolved)
    with pytest.raises(UserError, match=message):
        evolved.audit(**{"count": 7, "generation": COUNT} if name == "more images" else {})
    assert not evolved.path("ledger.json").exists()


@pytest.mark.parametrize("option", ["model", "candidate_table"])
def test_what_says_what_may_leave_has_to_be_given(audited, option):
    with pytest.raises(UserError, match=f"--{option.replace('_', '-')} = None"):
        audited.audit(**{option: None})


@pytest.mark.parametrize("option", ["dataset", "count"])
def test_what_says_which_images_may_leave_has_to_be_given(evolved, option):
    with pytest.raises(UserError, match=f"--{option} = None"):
        evolved.audit(**{option: None})


@pytest.mark.parametrize("changes", [{"lora_rank": 4}, {"lora_alpha": 4.0}, {"ema_decay": 0.5}, {"optimizer": "sgd"}])
def test_files_of_other_settings_are_refused(audited, changes):
    with pytest.raises(UserError, match=r"weights\.safetensors: "):
        audited.audit(**changes)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("0.1", True),
        ("-3.0", True),
        ("1e+22", True),
        ("5e-324", True),
        ("0.10", False),
        ("3", False),
        ("0.1000000000000000055", False),
        *((text, False) for text in ("1E5", " 1.0", "inf", "nan", "", "1_0.0")),
    ],
)
def test_a_number_has_the_fewest_digits(text, fits):
    if fits:
        assert number("x", text) == float(text)
    else:
        with pytest.raises(UserError, match="fewest digits"):
            number("x", text)


def ranked(tmp_path, plan, mechanism, values):
    """Check scores of three layers of two matrices each, of which two are kept."""
    table = pd.DataFrame({MATRIX: list("abcdef"), "layer": list("xxyyzz")})
    pd.DataFrame({MATRIX: list("abcdef"), SCORE: values}).to_csv(tmp_path / "scores.csv", index=False)
    run = replace(plan.run, mechanism=mechanism, level="layer", ratio=0.5)
    release = replace(plan.releases[0], mechanism=mechanism, epsilon=1.0, delta=1e-6)
    return check_scores(tmp_path / "scores.csv", table, replace(plan, run=run, releases=(release, plan.releases[1])))


@pytest.mark.parametrize(
    ("mechanism", "values", "fits"),
    [
        ("exponential", [1.0, 1.0, 0.0, 0.0, 0.5, 0.5], True),
        ("exponential", [1.0, 1.0, 0.5, 0.5, 0.5, 0.5], False),
        ("exponential", [1.0, 1.0, 1e-9, 1e-9, 0.5, 0.5], False),
        ("exponential", [1.5, 0.5, 0.0, 0.0, 0.5, 0.5], False),
        ("exponential", [1.0, 1.0, 1.5, 1.5, 0.5, 0.5], False),
        ("exponential", [1.0, 1.0, -0.5, -0.5, 0.5, 0.5], False),
        ("ptr", [0.5, 0.5, 0.0, 0.0, 0.5, 0.5], True),
        ("ptr", [1.0, 1.0, 0.0, 0.0, 0.5, 0.5], False),
        ("ptr", [0.5, 0.5, 0.5, 0.5, 0.5, 0.5], False),
    ],
)
def test_a_ranking_has_the_ranks_that_its_mechanism_gives(tmp_path, plan, mechanism, values, fits):
    if fits:
        assert ranked(tmp_path, plan, mechanism, values) == values
    else:
        with pytest.raises(UserError, match="rank"):
            ranked(tmp_path, plan, mechanism, values)


EVERY_KIND = [
    "conv_in",
    "down_blocks.0.downsamplers.0.conv",
    "down_blocks.0.resnets.0.time_emb_proj",
    "mid_block.resnets.0.conv1",
]


@pytest.mark.parametrize("rank", [1, 3, 40])
@pytest.mark.parametrize("adapter", Adapter.__args__)
def test_adapters_have_the_parameters_that_peft_gives_them(tmp_path, adapter, rank):
    """Linear layers and convolutions; the names and shapes of the audit are its own."""
    model, unet = write_tiny_model(tmp_path / "model"), tiny_unet()
    names = [*EVERY_KIND, *(name for name in dict(unet.named_modules()) if name.endswith("attn2.to_k"))]
    run = RunSpec(dataset="d", public_model="m", method="dp-lora", adapter=adapter)
    selected = pd.DataFrame({MATRIX: names, SELECTED: True})
    found = {name: tuple(value.shape) for name, value in trainable(unet, run, selected, rank, 4.0).items()}
    assert trained_shapes(run, rank, selected, model) == found


def test_the_packaged_models_files_name_its_parameters(model_record, mini):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(mini, subfolder="unet")
    assert denoiser_shapes(model_record) == {name: tuple(value.shape) for name, value in unet.named_parameters()}


def test_a_model_that_is_packaged_is_found_wherever_the_checkout_is(model_record):
    assert denoiser_shapes(replace(model_record, path="package:public-mini"))["conv_in.weight"][1] == 4


def test_a_transformers_files_name_its_parameters(model_record, z_image):
    from diffusers import ZImageTransformer2DModel

    model = ZImageTransformer2DModel.from_pretrained(z_image, subfolder="transformer")
    found = denoiser_shapes(replace(model_record, path=str(z_image)))
    assert found == {name: tuple(value.shape) for name, value in model.named_parameters()}


def test_a_public_model_that_is_gone_is_named(audited):
    (audited.path("model") / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="has no denoiser in it: put the public model where its record says"):
        audited.audit()


@pytest.mark.parametrize(
    "changes", [{"platform": "a b"}, {"versions": {"torch": "x" * 99}}, {"x": "1"}, {"versions": {"x": "1"}}]
)
def test_what_made_a_record_has_no_room_for_more(audited, changes):
    text = json.loads(audited.path("dp-sgd.json").read_text())
    audited.path("dp-sgd.json").write_text(json.dumps(text | {"provenance": changes}, indent=2) + "\n")
    with pytest.raises(UserErrors, match="provenance"):
        read_record(audited.path("dp-sgd.json"), Spend)
    assert read_record(audited.path("selection.json"), Selection).provenance == {}


def samples(path, labels=None, colour=0, **more):
    images = np.full((COUNT, SIDE, SIDE, 3), 7, np.uint8)
    images[0, 0, 0, 0] ^= colour
    np.savez(path, images=images, labels=np.sort(np.arange(COUNT) % 2) if labels is None else labels, **more)


@pytest.mark.parametrize(
    ("changes", "tail", "message"),
    [
        ({}, b"", None),
        ({"x": np.array([SECRET])}, b"", "members = .*must be images and labels"),
        ({"labels": np.zeros(COUNT, np.int64)}, b"", "labels = "),
        ({"labels": np.sort(np.arange(COUNT) % 2).astype(np.float64) + 1e-9}, b"", "arrays = "),
        ({"colour": 1}, b"", "mnist5k is grey"),
        ({}, b"pixels", "has other bytes"),
    ],
)
def test_an_archive_of_images_has_nothing_else(tmp_path, small_dataset, changes, tail, message):
    path = tmp_path / "samples.npz"
    samples(path, **changes)
    if tail:  # as the comment of a .zip, which every reader passes over
        content = path.read_bytes()
        path.write_bytes(content[:-2] + len(tail).to_bytes(2, "little") + tail)
    if message is None:
        check_samples(path, None, COUNT, small_dataset)
    else:
        with pytest.raises(UserError, match=message):
            check_samples(path, None, COUNT, small_dataset)


@pytest.mark.parametrize(("generation", "count", "classes"), [(6, 6, 2), (4, 10, 2), (5, 17, 3), (3, 4, 3)])
def test_labels_of_a_generation_and_its_copies(generation, count, classes):
    """By a plain loop over classes: in each copy as many as the generation has, until a class has what it should."""
    wanted = [sum(place % classes == label for place in range(count)) for label in range(classes)]
    sizes = [sum(place % classes == label for place in range(generation)) for label in range(classes)]
    due = []
    while len(due) < count:
        for label in range(classes):
            due += [label] * min(sizes[label], wanted[label])
            wanted[label] -= min(sizes[label], wanted[label])
    assert expected_labels(generation, count, classes).tolist() == due
