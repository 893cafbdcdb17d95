"""README.md of a release: what is in the folder, how it was made, and what it is not."""

from collections.abc import Sequence

from dpsapf.experiment.methods import method
from dpsapf.experiment.records import ModelRecord
from dpsapf.experiment.runs import Treatment
from dpsapf.release.found import Found
from dpsapf.release.images import ARCHIVE, Published
from dpsapf.release.records import PrivacyRecord
from dpsapf.release.statement import UNITS, certified, up

OTHERWISE_TOLD = {"public_model", "method", "epsilon", "seed"}
WEIGHTS = "weights.safetensors"


def datasheet(found: Found, classes: Sequence[Published], record: PrivacyRecord, weights: str | None) -> str:
    """Write the datasheet.

    Args:
        found: the run.
        classes: what was written of each class.
        record: what privacy.json says.
        weights: SHA-256 of the published weights; None: not published.
    """
    sections = [
        _beginning(found, classes, record),
        _classes(classes),
        _made(found),
        *_weights(found, weights),
        _limits(record),
        _check(),
    ]
    return "\n\n".join(sections) + "\n"


def _beginning(found: Found, classes: Sequence[Published], record: PrivacyRecord) -> str:
    count, side = sum(row.count for row in classes), found.dataset.resolution
    colour = "grey (three equal channels)" if found.dataset.channels == 1 else "RGB"
    private = f"epsilon = {up(certified(record.together))}, delta = {up(record.delta)}, for {UNITS[record.unit][0]}"
    return f"""# Synthetic images: {found.ledger.run.dataset}

{count:,} synthetic images of {len(classes)} classes, {side} x {side} pixels, {colour}. A computer drew all of them.
No image of the private collection is in this folder.

Privacy: {private}. What that means: [STATEMENT.md](STATEMENT.md).

| file | what is in it |
| --- | --- |
| `images/LABEL-CLASS/NUMBER.png` | one image each; the number is its place in `{ARCHIVE}` |
| `{ARCHIVE}` | the same images, `images` uint8 [N, height, width, 3], and `labels` int64 [N]; for `numpy.load` |
| `STATEMENT.md` | the privacy statement, in plain language |
| `privacy.json` | the privacy statement, for machines |
| `SHA256SUMS` | digest of every file |"""


def _classes(classes: Sequence[Published]) -> str:
    rows = [f"| {label} | {_cell(row.name)} | {_cell(row.prompt)} | {row.count:,} |" for label, row in enumerate(classes)]
    return f"""## Classes

The number of images of a class was chosen. It says nothing about the private collection.

| label | class | prompt | images |
| --: | --- | --- | --: |
{chr(10).join(rows)}"""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _made(found: Found) -> str:
    run, sampling = found.ledger.run, found.sampling
    axes = {name: getattr(run, name) for name in Treatment.model_fields if name not in OTHERWISE_TOLD}
    rows = [
        f"| {name} | {value} | {Treatment.model_fields[name].description} |" for name, value in axes.items() if value is not None
    ]
    settings = {name: getattr(sampling, name) for name in type(sampling).model_fields}
    rows += [f"| {name} | {value} | {type(sampling).model_fields[name].description} |" for name, value in settings.items()]
    return f"""## How they were made

{_model(found.model)}
Method: `{run.method}` of [dpsapf](https://arxiv.org/abs/2605.30312). {_method(run.method)}

| setting | value | meaning |
| --- | --- | --- |
{chr(10).join(rows)}"""


def _model(model: ModelRecord) -> str:
    told = [f"Public model: `{model.name}`, licence {model.licence}."]
    if model.hub_id:
        told.append(f"From the Hugging Face hub: `{model.hub_id}` at revision `{model.revision}`.")
    if model.sha256:
        told.append(f"SHA-256 of its folder: `{model.sha256}`.")
    if not model.hub_id and not model.sha256:
        told.append("Its revision was not recorded.")
    return "\n".join([*told, "Its licence may bind what you do with the images."])


def _method(name: str) -> str:
    row = method(name)
    if row.evolves:
        return "The model was not trained. Its images evolved by noisy votes of the private images."
    if not row.trains:
        return "The model was used as it is. No private image was used."
    chosen = {"saliency": "that noisy scores of the private images chose", "random": "chosen at random", "all": "all of them"}
    trained = {
        "adapter": "Low-rank adapters of the model's matrices were trained by DP-SGD",
        "weights": "Matrices of the model were trained by DP-SGD",
        "attention": "All attention modules of the model were trained by DP-SGD",
        "biases": "All biases of the model were trained by DP-SGD",
        "unet": "The whole denoiser of the model was trained by DP-SGD",
    }[row.trained]
    return f"{trained}." if row.trains_more else f"{trained}: matrices {chosen[row.selection]}."


def _weights(found: Found, digest: str | None) -> list[str]:
    if digest is None:
        return []
    adapter = "".join(f" {name} {value:g}," for name, value in found.adapter.items()).rstrip(",")
    told = f" of the {found.ledger.run.adapter} adapters,{adapter}" if adapter else ""
    return [
        f"""## Weights

`{WEIGHTS}` has the trained parameters{told}, by the names of diffusers' modules. SHA-256: `{digest}`.
They keep the same promise as the images: whoever draws more images with them learns nothing more."""
    ]


def _limits(record: PrivacyRecord) -> str:
    return f"""## What the images are not

- They are not photographs, and not real persons. Likeness to one is chance, or comes from the public model.
- They are not checked one by one. Some may be wrong, ugly, or of another class than their label says.
- They are no evidence about any single {"image" if record.unit == "image" else "person"} of the private collection.
- They may repeat prejudices of the public model and of the private collection.
- Their quality is not told here. Measuring it needs private images, and such numbers are outside the promise.
- Nobody should decide about a person, or about health, by them alone."""


def _check() -> str:
    return """## Check the files

`sha256sum --check SHA256SUMS` in this folder says whether a file was changed."""
