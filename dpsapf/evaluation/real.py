"""The real side of fidelity: features, moments and radii of real images, computed once per dataset and protocol.

The file is private: features of private images. Its digest says nothing to whoever lacks the dataset, because ``salt`` in it
comes from the dataset's secret bytes.
"""

import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpsapf.datasets.prepared import Part, read_held_out, read_salt
from dpsapf.evaluation.feature_networks import load_network
from dpsapf.evaluation.features import feature_batches
from dpsapf.evaluation.gaussians import Moments, moments
from dpsapf.evaluation.likelihood import MOST_CENTRES, baseline
from dpsapf.evaluation.neighbours import radii
from dpsapf.experiment.registries import ProtocolEntry, digest
from dpsapf.support.arrays import Rows, Writer, open_arrays, writing
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.randomness import numpy_generator

DRAWN = 0  # seed of what is drawn of real images: the same for every run, so that it is made once


@dataclass(frozen=True)
class Reference:
    """Real images as a protocol sees them.

    Attributes:
        features: fp32 [N, D], read from the file when they are asked for.
        moments: of the features.
        precision_radii: distance of each image to its k-th nearest, as precision counts, fp32 [N].
        density_radii: as density and coverage count; that of precision where the protocol has neither.
        test: features of the real test images, fp32 [T, D]; None where the protocol has no FLD.
        baseline: what FLD subtracts where there are enough synthetic images; None where the protocol has no FLD.
        digest: SHA-256 of the file.
    """

    features: Rows
    moments: Moments
    precision_radii: np.ndarray
    density_radii: np.ndarray
    test: Rows | None
    baseline: float | None
    digest: str


def write_reference(path: Path, archive: Path, dataset: str, name: str, protocol: ProtocolEntry, device: str) -> None:
    """Write features of real images, and what of them every run needs; neither all pixels nor all features are in memory.

    Args:
        path: what is written (.safetensors).
        archive: dataset.safetensors.
        dataset: id of the dataset's record.
        name: of the protocol.
        protocol: says which images, which network and which k.
        device: ``cpu`` or ``cuda``.

    Raises:
        UserError: there are too few images, or the network cannot be had.
    """
    real = real_images(archive, name, protocol)
    test = read_held_out(archive, "test", f"FLD of protocol {name}") if "fld" in protocol.metrics else None
    network = load_network(protocol, device)
    batches = feature_batches(real, protocol, device, network)
    first = next(batches)
    salt = hashlib.sha256(read_salt(archive) + b"reference features").hexdigest()
    facts = {"protocol": name, "protocol_digest": digest(protocol), "dataset": dataset, "salt": salt}
    with writing(path, _layout(len(real), first.shape[1], 0 if test is None else len(test), protocol), facts) as writer:
        _put(writer, "features", itertools.chain([first], batches))
        if test is not None:
            _put(writer, "test", feature_batches(test, protocol, device, network))
        features = writer.rows("features")
        of_all = moments(features)
        writer.put("mean", 0, of_all.mean[None])
        writer.put("covariance", 0, of_all.covariance)
        writer.put("precision_radii", 0, radii(features, precision_neighbours(protocol), device, protocol.counts_itself))
        if _has_density(protocol):
            writer.put("density_radii", 0, radii(features, protocol.neighbours, device))
        if test is not None:
            subtracted = baseline(features, writer.rows("test"), MOST_CENTRES, device, DRAWN)
            writer.put("baseline", 0, np.array([subtracted]))


def read_reference(path: Path, dataset: str, name: str, protocol: ProtocolEntry) -> Reference:
    """Open what `write_reference` left.

    Raises:
        UserError: it is of another dataset or protocol, or of another meaning of this one.
    """
    arrays, facts = open_arrays(path)
    for key, wanted, what in (
        ("protocol", name, "protocol"),
        ("protocol_digest", digest(protocol), f"meaning of {name}"),
        ("dataset", dataset, "dataset"),
    ):
        if facts.get(key) != wanted:
            remedy = f"made under another {what} than {wanted}: run reference-features"
            raise UserError("--features", facts.get(key), remedy)
    of_precision = arrays["precision_radii"][:]
    return Reference(
        arrays["features"],
        Moments(len(arrays["features"]), arrays["mean"][:][0], arrays["covariance"][:]),
        of_precision,
        arrays["density_radii"][:] if "density_radii" in arrays else of_precision,
        arrays.get("test"),
        float(arrays["baseline"][:][0]) if "baseline" in arrays else None,
        sha256(path),
    )


def real_images(archive: Path, name: str, protocol: ProtocolEntry) -> Part:
    """Return the images of a split that a protocol compares with: all, or a draw of ``reference_images``, in their order.

    Raises:
        UserError: there are too few.
    """
    part = read_held_out(archive, protocol.reference_split, f"protocol {name}")
    check_count("real", min(len(part), protocol.reference_images or len(part)), name, protocol)
    if protocol.reference_images is None or protocol.reference_images >= len(part):
        return part
    generator = numpy_generator(DRAWN, "reference images")
    rows = np.sort(generator.choice(len(part), protocol.reference_images, replace=False))
    users = None if part.users is None else part.users[rows]
    return Part(part.labels[rows], users, part.positions[rows], part.stored)


def precision_neighbours(protocol: ProtocolEntry) -> int:
    """Return k of precision."""
    return protocol.precision_neighbours or protocol.neighbours


def check_count(kind: str, count: int, name: str, protocol: ProtocolEntry) -> None:
    """Check that there are enough images, and of synthetic ones as many as the protocol says.

    Args:
        kind: ``real`` or ``synthetic``.
        count: how many there are.
        name: of the protocol.
        protocol: its neighbours and counts.

    Raises:
        UserError: there are too few, or too many.
    """
    least = protocol.fewest_synthetic if kind == "synthetic" else protocol.fewest
    if kind == "synthetic" and protocol.synthetic_images not in (None, count):
        raise UserError("images", f"{count} {kind}", f"{name} compares exactly {protocol.synthetic_images}: evaluate so many")
    if count < least:
        raise UserError("images", f"{count} {kind}", f"{name} needs at least {least}")


def _has_density(protocol: ProtocolEntry) -> bool:
    return bool({"density", "coverage"} & set(protocol.metrics))


def _layout(count: int, dimensions: int, tested: int, protocol: ProtocolEntry) -> dict[str, tuple[str, tuple[int, ...]]]:
    layout = {
        "features": ("F32", (count, dimensions)),
        "mean": ("F64", (1, dimensions)),
        "covariance": ("F64", (dimensions, dimensions)),
        "precision_radii": ("F32", (count,)),
    }
    layout |= {"density_radii": ("F32", (count,))} if _has_density(protocol) else {}
    return layout | ({"test": ("F32", (tested, dimensions)), "baseline": ("F64", (1,))} if tested else {})


def _put(writer: Writer, name: str, batches: Iterable[np.ndarray]) -> None:
    done = 0
    for batch in batches:
        writer.put(name, done, batch)
        done += len(batch)
