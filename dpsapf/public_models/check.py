"""What a model's folder must hold before any of it is loaded: every refusal is one line."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dpsapf.support.errors import UserError

Settings = Mapping[str, tuple[object, ...]]  # key of a config -> values that are known; None: the key may be absent
STEMS = ("diffusion_pytorch_model", "model")  # names of weights, as diffusers and transformers write them
SINGLE_FILE = "convert it once with diffusers: {}.from_single_file(FILE, config=FOLDER).save_pretrained(OUT); give OUT"


def check_is_folder(key: str, path: Path, cls: str) -> None:
    """Check that a model, or a part of one, is a folder.

    Args:
        key: what errors call it.
        path: where it should be.
        cls: diffusers' class that reads it from a single file.

    Raises:
        UserError: it is a single file, a pickle, or is not there.
    """
    if path.is_dir():
        return
    if not path.exists():
        raise UserError(key, str(path), "does not exist: give a folder in diffusers layout")
    if path.suffix == ".safetensors":
        raise UserError(key, str(path), f"is a single file, not a folder in diffusers layout: {SINGLE_FILE.format(cls)}")
    raise UserError(key, str(path), "pickles are never loaded: get it as a folder of safetensors in diffusers layout")


def read_config(name: str, file: Path) -> dict:
    """Read a JSON file of a model's folder.

    Raises:
        UserError: it is not there, or is no JSON object.
    """
    if not file.is_file():
        raise UserError(f"{name}: path", str(file.parent), f"lacks {file}: it must be a folder in diffusers layout")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{name}: path", str(file), f"is not JSON ({error}): get the model again") from error
    if not isinstance(config, dict):
        raise UserError(f"{name}: path", str(file), "must be a JSON object: get the model again")
    return config


def check_settings(name: str, part: str, config: Mapping[str, object], settings: Settings) -> None:
    """Check that a part's config says nothing that its family would ignore.

    Raises:
        UserError: names the first key with another value than the known ones.
    """
    for key, known in settings.items():
        if config.get(key) not in known:
            values = ", ".join(str(value) for value in known if value is not None) or "none"
            raise UserError(f"{name}: {part}: {key}", config[key], f"its family knows {values}: choose another model")


def check_keys(name: str, part: str, config: Mapping[str, object], keys: Sequence[str]) -> None:
    """Check that a part's config says what its family reads.

    Raises:
        UserError: names the first key that is missing.
    """
    for key in keys:
        if config.get(key) is None:
            raise UserError(f"{name}: {part}: {key}", None, "is not in its config: get the model again")


def check_fits(name: str, key: str, value: object, needed: object, other: str) -> None:
    """Check that a part of a model fits another one.

    Args:
        name: what errors call the model.
        key: part and key, e.g. ``unet: in_channels``.
        value: what is there.
        needed: what the other part has.
        other: the other part, e.g. ``VAE``.

    Raises:
        UserError: they differ.
    """
    if value != needed:
        raise UserError(f"{name}: {key}", value, f"its {other} has {needed}: give the {other} that it was trained with")


def check_resolution(name: str, resolution: int, multiple: int) -> None:
    """Check that latents of a resolution can be made and decoded.

    Raises:
        UserError: it is no multiple of what the pipeline divides sides by.
    """
    if resolution % multiple:
        raise UserError(f"{name}: resolution", resolution, f"must be a multiple of {multiple}")


def check_vocabulary(name: str, folder: Path) -> None:
    """Check that a byte-pair tokenizer has its vocabulary; transformers 5 would make an empty one.

    Raises:
        UserError: there is neither vocab.json with merges.txt nor tokenizer.json.
    """
    if not (folder / "tokenizer.json").is_file() and not all((folder / file).is_file() for file in ("vocab.json", "merges.txt")):
        raise UserError(f"{name}: path", str(folder), "lacks vocab.json and merges.txt, or else tokenizer.json: get them again")


def variant(folder: Path) -> str | None:
    """Return the variant of a part's weights that is to be loaded: ``fp16`` if there are no others, else None."""
    plain, half = (any(_is_complete(folder, stem, infix) for stem in STEMS) for infix in ("", ".fp16"))
    return "fp16" if half and not plain else None


def has_weights(folder: Path) -> bool:
    """Whether a part has safetensors under the names that diffusers or transformers know, with all shards."""
    return any(_is_complete(folder, stem, infix) for stem in STEMS for infix in ("", ".fp16"))


def check_weights(name: str, folder: Path) -> None:
    """Check that a part has its weights as safetensors.

    Raises:
        UserError: there are none, or a shard is missing.
    """
    if not has_weights(folder):
        wanted = " or ".join(f"{stem}.safetensors" for stem in STEMS)
        remedy = f"has no .safetensors weights ({wanted}, or all shards of its index); convert them, pickles are never loaded"
        raise UserError(f"{name}: path", str(folder), remedy)


def _is_complete(folder: Path, stem: str, infix: str) -> bool:
    """Whether weights are there in one file, or in all shards that their index names."""
    if (folder / f"{stem}{infix}.safetensors").is_file():
        return True
    index = folder / f"{stem}.safetensors.index{infix}.json"
    if not index.is_file():
        return False
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((folder / shard).is_file() for shard in shards)
