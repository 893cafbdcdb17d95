"""README.md of a release: what is in the folder, how it was made, and what it is not."""

from collections.abc import Sequence

from dpsapf.experiment.methods import method
from dpsapf.experiment.records import ModelRecord
from dpsapf.experiment.runs import Treatment
from dpsapf.experiment.settings import SamplingConfig
from dpsapf.release.found import Found
from dpsapf.release.images import ARCHIVE, Published
from dpsapf.release.records import PrivacyRecord
from dpsapf.release.statement import promise, table

OTHERWISE_TOLD = {"public_model", "method", "epsilon", "seed"}
WEIGHTS = "weights.safetensors"
CHECK = """## Check the files

`sha256sum --check SHA256SUMS` in this folder says whether a file was changed."""


def datasheet(found: Found, classes: Sequence[Published], record: PrivacyRecord, weights: str | None) -> str:
    """Write the datasheet.

    Args:
        found: the run.
        classes: what was written of each class.
        record: what privacy.json says.
        weights: SHA-256 of the published weights; None: not published.
    """
    described = [_beginning(found, classes, record, weights), _classes(classes), _made(found), *_weights(found, weights)]
    return "\n\n".join([*described, _limits(record), CHECK]) + "\n"


def _beginning(found: Found, classes: Sequence[Published], record: PrivacyRecord, weights: str | None) -> str:
    count, side = sum(row.count for row in classes), found.dataset.resolution
    colour = "grey (three equal channels)" if found.dataset.channels == 1 else "RGB"
    files = [
        ("`images/LABEL-CLASS/NUMBER.png`", f"one image each; the number is its place in `{ARCHIVE}`"),
        (f"`{ARCHIVE}`", "the same images for `numpy.load`: `images` uint8 [N, height, width, 3], `labels` int64 [N]"),
        ("`STATEMENT.md`", "the privacy statement, in plain language"),
        ("`privacy.json`", "the privacy statement, for machines"),
        *([(f"`{WEIGHTS}`", "what was trained")] if weights else []),
        ("`SHA256SUMS`", "digest of every other file"),
    ]
    return f"""# Synthetic images: {found.ledger.run.dataset}

{count:,} synthetic images of {len(classes)} classes, {side} x {side} pixels, {colour}. A computer drew all of them.
No private image was copied into this folder.

Privacy: {promise(record)}. What that means: [STATEMENT.md](STATEMENT.md).

{table(["file", "what is in it"], files)}"""


def _classes(classes: Sequence[Published]) -> str:
    rows = [[str(label), _cell(row.name), _cell(row.prompt), f"{row.count:,}"] for label, row in enumerate(classes)]
    return f"""## Classes

How many images a class has here was chosen. It says nothing about the private images.

{table(["label", "class", "prompt", "images"], rows)}"""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _made(found: Found) -> str:
    run = found.ledger.run
    axes = {name: getattr(run, name) for name in Treatment.model_fields if name not in OTHERWISE_TOLD}
    told = [(name, value, Treatment) for name, value in axes.items() if value is not None]
    told += [(name, value, SamplingConfig) for name, value in found.sampling]
    rows = [[name, str(value), kind.model_fields[name].description] for name, value, kind in told]
    return f"""## How they were made

{_model(found.model)}

Method: `{run.method}`, by dpsapf, the suite of [DP-SAPF](https://arxiv.org/abs/2605.30312).
{_method(run.method)}

{table(["setting", "value", "meaning"], rows)}"""


def _model(model: ModelRecord) -> str:
    told = [f"Public model: `{model.name}`, licence {model.licence}."]
    if model.hub_id:
        told.append(f"It is `{model.hub_id}` of the Hugging Face hub at revision `{model.revision}`.")
    if model.vae_hub_id:
        told.append(f"Its VAE is `{model.vae_hub_id}` at revision `{model.vae_revision}`.")
    if model.sha256:
        told.append(f"SHA-256 of its folder: `{model.sha256}`.")
    if not model.hub_id and not model.sha256:
        told.append("Its revision was not recorded.")
    told.append("That licence may bind what you do with the images. A licence of their own is up to their publisher.")
    return "\n".join(told)


def _method(name: str) -> str:
    row = method(name)
    if row.evolves:
        return "The model was not trained. Its images evolved by noisy votes of the private images."
    if not row.trains:
        return "The model was used as it is. No private image was used."
    trained = {
        "adapter": "Low-rank adapters of the model's matrices were trained by DP-SGD",
        "weights": "Matrices of the model were trained by DP-SGD",
        "attention": "All attention modules of the model were trained by DP-SGD",
        "biases": "All biases of the model were trained by DP-SGD",
        "unet": "The whole denoiser of the model was trained by DP-SGD",
    }[row.trained]
    chosen = {
        "saliency": "those that noisy scores of the private images chose",
        "proxy": "those that the public model, or public images, chose",
        "random": "some of them at random",
        "all": "all",
    }
    return f"{trained}." if row.trains_more else f"{trained}: {chosen[row.selection]}."


def _weights(found: Found, digest: str | None) -> list[str]:
    if digest is None:
        return []
    told = "the trained parameters"
    if found.trained and found.trained.adapter:
        told += f" of the {found.trained.adapter} adapters (rank {found.trained.lora_rank}, alpha {found.trained.lora_alpha:g})"
    return [
        f"""## Weights

`{WEIGHTS}` has {told}, by the names of the model's modules.
SHA-256: `{digest}`.
The promise holds for them as for the images: drawing more images with them tells nothing more."""
    ]


def _limits(record: PrivacyRecord) -> str:
    return f"""## What the images are not

- They are not photographs, and not real persons. One may still look like somebody: by chance, through the public model, or
  through a private image as far as STATEMENT.md allows.
- They were not looked at one by one. Some may be wrong, ugly, or of another class than their label says.
- They are no evidence about any single {"image" if record.unit == "image" else "person"} of the private collection.
- They may repeat prejudices of the public model and of the private images.
- How good they are is not told here. Who measures that on private images gets numbers that the promise does not cover.
- Nobody should decide about a person, or about health, by them alone."""
