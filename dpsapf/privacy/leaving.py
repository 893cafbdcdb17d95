"""What leaves the private side, held against what plan, settings and public files imply: every column, tensor, digit, byte.

Nothing here is taken from a file that is checked, or from the code that wrote it. So a column, tensor, key or digit more than
the release is refused, whoever wrote it there. What this cannot see is a value of the right shape that is not what was
released, such as low bits of trained weights: the tests hold that (`tests/contracts/test_nothing_else_leaves.py`).
"""

import hashlib
import json
import math
import re
import tempfile
import typing
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from dpsapf.experiment.columns import BLOCK, LAYER, MATRIX, SCORE
from dpsapf.experiment.methods import FRAGILITY, method
from dpsapf.experiment.records import DatasetRecord, ModelRecord, Plan, Release, Spend, WeightsHeader
from dpsapf.experiment.settings import AuditConfig
from dpsapf.experiment.stages import AuditPrivacy
from dpsapf.privacy.selected import candidate_rows, check_selection, fragilities
from dpsapf.privacy.trained import trained_shapes
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.records import as_json, read_record

MADE_FROM = {  # what the spend record of a release names by digest, and nothing else
    "saliency": {"model", "latents", "candidate_table"},
    "dp-sgd": {"plan", "model", "latents", "selection"},
    "pe-histogram": {"plan", "model", "archive"},
}
DIGEST = re.compile(r"[0-9a-f]{64}")
UNITS = {"matrix": MATRIX, "layer": LAYER, "block": BLOCK}
SIZES = {"F32": 4, "U8": 1, "I64": 8}  # bytes
PLAIN_NAN = {0x7FC00000, 0xFFC00000}  # of 2^24 bit patterns that mean the same
Layout = Mapping[str, tuple[str, tuple[int, ...]]]


def check_leaving(plan: Plan, spends: Mapping[str, Spend], options: AuditPrivacy) -> None:
    """Check that every file of a run that later stages read holds what its release is, and nothing beside it.

    Args:
        plan: of the run.
        spends: its spend records, by the release's name.
        options: which files, and the settings that say with the plan what they hold.

    Raises:
        UserError: names the file, and what is in it that must not be.
    """
    for path in (options.plan, *options.spends, *filter(None, [options.selection_record])):
        check_text(path)
    for spend in spends.values():
        check_record(spend)
    if "dp-sgd" in spends:
        _check_trained(plan, spends, options)
    if "pe-histogram" in spends:
        _check_population(plan, spends["pe-histogram"], options)


def _check_trained(plan: Plan, spends: Mapping[str, Spend], options: AuditPrivacy) -> None:
    table, scores = candidate_rows(_given(options, "candidate_table"), plan.run.released_from), None
    if plan.run.scored_dataset:
        scores = check_scores(options.scores, table, plan)
    if "saliency" in spends:
        _check_numbers(spends["saliency"], len(table), 0)
    if plan.run.proxy == FRAGILITY:
        scores = fragilities(options.fragility, table)
    selected = check_selection(options.selection, table, scores, plan, options)
    model = read_record(_given(options, "model"), ModelRecord)
    shapes = trained_shapes(plan.run, options.lora_rank, selected, model)
    layout = {name: ("F32", shape) for name, shape in sorted(shapes.items())}
    check_tensors(options.weights, layout, {"dpsapf": json.dumps(as_json(_header(plan, options)), sort_keys=True)})
    numbers = sum(math.prod(shape) for _, shape in layout.values())
    _check_numbers(spends["dp-sgd"], numbers, numbers)


def _given(options: AuditPrivacy, name: str) -> Path:
    path = getattr(options, name)
    if path is None:
        raise UserError(f"--{name.replace('_', '-')}", None, "says what a run of this method may leave: give it")
    return path


def _header(plan: Plan, settings: AuditConfig) -> WeightsHeader:
    """Return what weights may say of their training."""
    told = {key: getattr(settings, key) for key in WeightsHeader.model_fields if key != "adapter"}
    own = {"optimizer": plan.run.optimizer, "lora_rank": plan.run.lora_rank if plan.run.lora_rank != "auto" else None}
    return WeightsHeader(**told | {key: value for key, value in own.items() if value is not None}, adapter=plan.run.adapter)


def _check_numbers(spend: Spend, numbers: int, parameters: int) -> None:
    told = (spend.numbers, spend.trainable_parameters)
    if told != (numbers, parameters):
        _refuse(f"{spend.release.name}: numbers, trainable_parameters", told, f"must be {numbers} and {parameters}")


def _refuse(key: str, value: object, told: str) -> typing.NoReturn:
    remedy = "something leaves that is no part of the release, or the file is of other settings: do not publish, report it"
    raise UserError(key, value, f"{told}; {remedy}")


# ---- Records.


def check_text(path: Path) -> None:
    """Check that a record is written as the suite writes JSON: no digit, key or space more than its values need.

    Raises:
        UserError: reading and writing it again gives other bytes.
    """
    text = path.read_bytes().decode("utf-8", "replace")
    if json.dumps(json.loads(text), indent=2) + "\n" != text:
        _refuse(str(path), f"{len(text)} characters", "is not written as this suite writes JSON: a digit, key or space too many")


def check_record(spend: Spend) -> None:
    """Check that a spend record names what its stage reads, by digests, and nothing else.

    Raises:
        UserError: names what is there too many, missing or no digest.
    """
    if set(spend.made_from) != MADE_FROM[spend.release.name]:
        _refuse(f"{spend.release.name}: made_from", sorted(spend.made_from), f"must be {sorted(MADE_FROM[spend.release.name])}")
    for name, digest in {**spend.made_from, "digest": spend.digest, "private": spend.private}.items():
        if not DIGEST.fullmatch(digest):
            _refuse(f"{spend.release.name}: {name}", digest[:80], "must be a SHA-256 digest")


# ---- Scores.


def check_scores(path: Path, table: pd.DataFrame, plan: Plan) -> list[float]:
    """Read scores.csv: one row for each candidate, its name and what the mechanism can give.

    Args:
        path: scores.csv.
        table: the candidates.
        plan: says how scores are released, if they are the private images'.

    Raises:
        UserError: a column, a row, a name, a digit or a value is not that of the release.
    """
    first, *rows = path.read_bytes().decode("utf-8", "replace").split("\n")
    if first != f"{MATRIX},{SCORE}":
        _refuse(f"{path}: columns", first[:80], f"must be {MATRIX},{SCORE}")
    names = [row.rpartition(",")[0] for row in rows]
    if names != [*table[MATRIX], ""]:
        _refuse(f"{path}: {MATRIX}", len(rows) - 1, f"must be the {len(table)} candidates, in the order of their table")
    scores = [number(f"{path}: {name}", row.rpartition(",")[2]) for name, row in zip(names[:-1], rows, strict=False)]
    if rows[-1]:
        _refuse(str(path), rows[-1][:80], "must end with its last row")
    release = next((release for release in plan.releases if release.name == "saliency"), None)
    if release is None:
        return scores
    (_check_ranks if release.mechanism in ("exponential", "ptr") else _check_noisy)(path, scores, table, release, plan)
    return scores


def number(key: str, text: str) -> float:
    """Read a finite number that is written in the fewest digits that give it back.

    Raises:
        UserError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or repr(value) != text:
        _refuse(key, text[:80], "must be a finite number in the fewest digits that give it back")
    return value


def _check_noisy(path: Path, scores: list[float], table: pd.DataFrame, release: Release, plan: Plan) -> None:
    """Check that noisy scores lie on the release's grid, whose steps are no finer than 2^-15 C / sqrt(M)."""
    if release.mechanism != "gaussian":
        return
    spacing = 2.0 ** math.floor(math.log2(2.0**-14 * release.sensitivity / math.sqrt(len(scores))))
    off = [score for score in scores if score % spacing]
    if off:
        _refuse(f"{path}: {SCORE}", off[0], f"must be a multiple of {spacing}, the grid of the release")


def _check_ranks(path: Path, scores: list[float], table: pd.DataFrame, release: Release, plan: Plan) -> None:
    """Check that units have the ranks k to 1 once each, or k of them 1 (ptr), and else 0, spread over a unit's matrices."""
    units = pd.Series(scores).groupby(table[UNITS[plan.run.level]].to_numpy(), sort=False)
    count = max(1, math.floor(plan.run.ratio * units.ngroups + 0.5 + 1e-9))
    winners = range(1, count + 1) if release.mechanism == "exponential" else [1] * count
    ranks = []
    for _, values in units:
        rank = round(values.iloc[0] * len(values))
        if set(values) != {rank / len(values)}:
            _refuse(f"{path}: {SCORE}", values.tolist()[:3], "must be a unit's rank over the number of its matrices")
        ranks.append(rank)
    if sorted(ranks) != [0] * (len(ranks) - count) + list(winners):
        _refuse(f"{path}: {SCORE}", sorted(ranks)[-5:], f"must be ranks of {count} units, and 0 for the others")


# ---- Tensors.


def check_tensors(path: Path, layout: Layout, metadata: Mapping[str, str]) -> int:
    """Check that a safetensors file has exactly these tensors, in this order, and no byte beside them.

    Args:
        path: the file.
        layout: name -> dtype and shape.
        metadata: all of it.

    Returns:
        Where the first tensor begins [bytes].

    Raises:
        UserError: names the first tensor, key or byte that is too many, missing or another.
    """
    head, size = _head(layout, metadata)
    with path.open("rb") as file:
        found = file.read(len(head))
    if found != head:
        _tell(path, layout, metadata)
    if path.stat().st_size != len(head) + size:
        _refuse(str(path), path.stat().st_size, f"must have {len(head) + size} bytes")
    position = len(head)
    for name, (dtype, shape) in layout.items():
        if dtype == "F32":
            _check_plain(path, name, np.memmap(path, "<u4", "r", position, (math.prod(shape),)))
        position += math.prod(shape) * SIZES[dtype]
    return len(head)


def _head(layout: Layout, metadata: Mapping[str, str]) -> tuple[bytes, int]:
    """Return the bytes before the tensors, and how many bytes the tensors have."""
    header, end = {"__metadata__": dict(metadata)} if metadata else {}, 0
    for name, (dtype, shape) in layout.items():
        start, end = end, end + math.prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, end


def _tell(path: Path, layout: Layout, metadata: Mapping[str, str]) -> typing.NoReturn:
    """Refuse a header, by what is another in it."""
    with path.open("rb") as file:
        text = file.read(min(int.from_bytes(file.read(8), "little"), 2**27))
    try:
        header = json.loads(text)
        found = {name: (told["dtype"], tuple(told["shape"])) for name, told in header.items() if name != "__metadata__"}
        facts = header.get("__metadata__", {})
    except (ValueError, KeyError, TypeError, AttributeError):
        _refuse(str(path), "no header", "must be a safetensors file")
    if facts != metadata:
        told = {key: value for key, value in facts.items() if metadata.get(key) != value}
        _refuse(f"{path}: metadata", str(told)[:200], f"must be {dict(metadata)}")
    for name in [*found, *layout]:
        if found.get(name) != layout.get(name):
            _refuse(f"{path}: {name}", found.get(name), f"must be {layout.get(name) or 'absent'}")
    _refuse(f"{path}: header", f"{len(text)} bytes", "has other bytes than these tensors, in their order, need")


def _check_plain(path: Path, name: str, bits: np.ndarray) -> None:
    """Refuse numbers that are none in any but the usual way: what else their bits say would be hidden."""
    for start in range(0, len(bits), 2**22):
        part = bits[start : start + 2**22]
        none = part[(part & 0x7FFFFFFF) > 0x7F800000]
        if len(none) and not set(np.unique(none).tolist()) <= PLAIN_NAN:
            _refuse(f"{path}: {name}", "nan", "has bits that no computation gives")


# ---- Images that evolved, and images that are published.


def _check_population(plan: Plan, spend: Spend, options: AuditPrivacy) -> None:
    dataset = read_record(_given(options, "dataset"), DatasetRecord)
    if dataset.id != plan.dataset_id:
        raise UserError("--dataset", dataset.id[:12], f"the plan is of {plan.dataset_id[:12]}: give its dataset's record")
    if options.count is None:
        raise UserError("--count", None, "says how many images a run of this method leaves: give it")
    generation = options.generation or options.count
    bins = generation * (options.variants if method(plan.run.method).evolves == "first" else 1)
    images = (options.count, dataset.resolution, dataset.resolution, 3)
    layout = {
        "votes": ("F32", (spend.release.steps, bins)),
        "images": ("U8", images),
        "labels": ("I64", (options.count,)),
    }
    start = check_tensors(options.population, layout, {})
    _check_numbers(spend, bins, 0)
    pixels = start + 4 * spend.release.steps * bins
    votes = np.memmap(options.population, "<f4", "r", start, layout["votes"][1])
    if not np.isfinite(votes).all():
        _refuse(f"{options.population}: votes", "nan", "must be finite numbers")
    found = np.memmap(options.population, "<i8", "r", pixels + math.prod(images), (options.count,))
    _check_images(options.population, np.memmap(options.population, "u1", "r", pixels, images), found, generation, dataset)


def _check_images(path: Path, images: np.ndarray, labels: np.ndarray, generation: int, dataset: DatasetRecord) -> None:
    """Check that labels are those that the settings imply, and that images of a grey dataset are grey."""
    if not np.array_equal(labels, expected_labels(generation, len(labels), len(dataset.classes))):
        _refuse(f"{path}: labels", labels[:10].tolist(), "must be those of the generation, and of its copies")
    if dataset.channels == 1 and not all((image == image[..., :1]).all() for image in images):
        _refuse(f"{path}: images", "colours", f"{dataset.name} is grey")


def expected_labels(generation: int, count: int, classes: int) -> np.ndarray:
    """Return the labels of published images, int64 [count]: class by class in the generation, and again in each of its copies."""
    sizes, wanted = (np.bincount(np.arange(images) % classes, minlength=classes) for images in (generation, count))
    copies = math.ceil((wanted / sizes).max())
    each = [np.clip(wanted - copy * sizes, 0, sizes) for copy in range(copies)]
    return np.concatenate([np.repeat(np.arange(classes), numbers) for numbers in each])


def check_samples(path: Path, generation: int | None, count: int, dataset: DatasetRecord) -> None:
    """Check that an archive has the images and labels that are published, and no member or byte beside them.

    Args:
        path: samples.npz.
        generation: images that evolved; None: all, or none did.
        count: images that are published.
        dataset: says their classes, resolution and channels.

    Raises:
        UserError: names what is in it too many, missing or of another shape.
    """
    side = dataset.resolution
    with np.load(path, allow_pickle=False) as archive:
        if archive.files != ["images", "labels"]:
            _refuse(f"{path}: members", archive.files, "must be images and labels")
        images, labels = archive["images"], archive["labels"]
    shapes = {"images": (images.dtype, images.shape), "labels": (labels.dtype, labels.shape)}
    due = {"images": (np.dtype("u1"), (count, side, side, 3)), "labels": (np.dtype("i8"), (count,))}
    if shapes != due:
        _refuse(f"{path}: arrays", shapes, f"must be {due}")
    _check_images(path, images, labels, generation or count, dataset)
    with tempfile.TemporaryFile() as again:
        np.savez(again, images=images, labels=labels)
        again.seek(0)
        same = hashlib.file_digest(again, "sha256").hexdigest()
    if sha256(path) != same:
        _refuse(str(path), path.stat().st_size, "has other bytes than these images and labels need")
