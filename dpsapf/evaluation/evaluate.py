"""evaluate: fidelity and utility of synthetic images, on private images and so outside the guarantee."""

import numpy as np
import torch

from dpsapf.datasets.prepared import read_part
from dpsapf.evaluation.external import labelled_images
from dpsapf.experiment.fields import settings
from dpsapf.experiment.records import DatasetRecord, Fidelity, Utility
from dpsapf.experiment.registries import ProtocolEntry, entry
from dpsapf.experiment.stages import Evaluate
from dpsapf.support.arrays import open_arrays
from dpsapf.support.checkpoint import Checkpoint
from dpsapf.support.errors import UserError
from dpsapf.support.provenance import provenance
from dpsapf.support.randomness import child_seed
from dpsapf.support.records import read_record, write_record


def evaluate(options: Evaluate) -> None:
    """Write fidelity.json, utility.json or both, of images that any method made.

    Raises:
        UserError: an output is not named, the reference features are of another protocol, or the images are not the dataset's
            classes and resolution (`dpsapf.evaluation.external.labelled_images`).
    """
    for what in options.what:
        if getattr(options, what) is None:
            raise UserError(f"--{what}", None, f"name a file for the {what} record, or leave {what} out of --what")
    torch.set_num_threads(options.threads)
    protocol = entry(options.registry, options.protocol, ProtocolEntry)
    synthetic = labelled_images(options.synthetic, read_record(options.dataset, DatasetRecord), options.threads)
    if "fidelity" in options.what:
        write_record(options.fidelity, measure_fidelity(synthetic[0], protocol, options))
    if "utility" in options.what:
        checkpoint = Checkpoint.beside(options.utility, settings(options))
        write_record(options.utility, measure_utility(synthetic, protocol, options, checkpoint))
        checkpoint.remove()


def measure_fidelity(synthetic: np.ndarray, protocol: ProtocolEntry, options: Evaluate) -> Fidelity:
    """Compare synthetic images, uint8 [M, H, W, 3], with the real training images' features.

    Raises:
        UserError: the reference features are of another protocol, or there are too few images for its ``neighbours``.
    """
    from dpsapf.evaluation.features import extract_features
    from dpsapf.evaluation.fidelity import frechet, kernel, precision_recall

    arrays, facts = open_arrays(options.features)
    real, name = arrays["features"][:].astype(np.float64), facts["protocol"]
    if name != options.protocol:
        raise UserError("--features", name, f"made under another protocol than {options.protocol}: run reference-features")
    if min(len(real), len(synthetic)) <= protocol.neighbours:
        counts = f"{len(real)} real, {len(synthetic)} synthetic"
        raise UserError("images", counts, f"{options.protocol} needs more than {protocol.neighbours} of each")
    features = extract_features(synthetic, protocol, options.device)
    precision, recall = precision_recall(real, features, protocol.neighbours, options.device)
    return Fidelity(
        protocol=options.protocol,
        fid=frechet(real, features),
        kid=kernel(real, features, protocol.kid_subsets, protocol.kid_subset_size, child_seed(options.seed, "kid") % 2**32),
        precision=precision,
        recall=recall,
        synthetic_images=len(features),
        real_images=len(real),
        outside_the_guarantee=True,
        provenance=provenance(),
    )


def measure_utility(
    synthetic: tuple[np.ndarray, np.ndarray], protocol: ProtocolEntry, options: Evaluate, checkpoint: Checkpoint | None = None
) -> Utility:
    """Train classifiers on synthetic images and labels alone; test them on the real test images."""
    from dpsapf.evaluation.utility import accuracies

    classes = len(read_record(options.dataset, DatasetRecord).classes)
    test = read_part(options.archive, "test")
    scores = accuracies(synthetic, (test, test.labels), classes, protocol, options.seed, options.device, checkpoint)
    return Utility(
        protocol=options.protocol,
        trained_on="synthetic",
        accuracy=float(np.mean(list(scores.values()))),
        per_classifier=scores,
        train_images=len(synthetic[1]),
        test_images=len(test),
        outside_the_guarantee=True,
        provenance=provenance(),
    )
