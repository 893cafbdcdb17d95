"""evaluate: fidelity and utility of synthetic images, on private images and so outside the guarantee."""

import numpy as np
import torch

from dpsapf.datasets.prepared import Part, read_held_out
from dpsapf.evaluation.external import labelled_images
from dpsapf.evaluation.feature_networks import load_network
from dpsapf.evaluation.features import Pixels, all_features, class_probabilities
from dpsapf.evaluation.predictions import check_private_name, write_predictions
from dpsapf.evaluation.real import check_count, read_reference
from dpsapf.experiment.fields import settings
from dpsapf.experiment.records import DatasetRecord, Fidelity, Utility
from dpsapf.experiment.registries import ProtocolEntry, digest, entry
from dpsapf.experiment.stages import Evaluate
from dpsapf.support.checked import replace
from dpsapf.support.checkpoint import Checkpoint
from dpsapf.support.errors import UserError
from dpsapf.support.provenance import provenance
from dpsapf.support.records import read_record, write_record


def evaluate(options: Evaluate) -> None:
    """Write fidelity.json, utility.json or both, of images that any method made.

    Raises:
        UserError: an output is not named, the reference features are of another protocol, or the images are not the dataset's
            classes and resolution (`dpsapf.evaluation.external.labelled_images`); nothing is written then.
    """
    check_private_name(options.predictions)
    for what in options.what:
        if getattr(options, what) is None:
            raise UserError(f"--{what}", None, f"name a file for the {what} record, or leave {what} out of --what")
    torch.set_num_threads(options.threads)
    protocol = entry(options.registry, options.protocol, ProtocolEntry)
    dataset = read_record(options.dataset, DatasetRecord)
    if "utility" in options.what:
        _test_images(options)
        protocol.recipe(dataset.resolution)
    synthetic = labelled_images(options.synthetic, dataset, options.threads)
    checkpoint = Checkpoint.beside(options.utility, settings(options)) if "utility" in options.what else None
    if "fidelity" in options.what:
        write_record(options.fidelity, measure_fidelity(synthetic[0], protocol, options))
    if "utility" in options.what:
        utility = measure_utility(synthetic, protocol, options, checkpoint)
        write_record(options.utility, replace(utility, protocol_digest=digest(protocol)))
    if checkpoint:
        checkpoint.remove()


def measure_fidelity(synthetic: Pixels, protocol: ProtocolEntry, options: Evaluate) -> Fidelity:
    """Compare synthetic images, uint8 [M, H, W, 3], with the real images' features.

    Raises:
        UserError: the reference features are of another dataset or protocol, or there are too few images for it.
    """
    from dpsapf.evaluation.fidelity import fidelity_scores

    dataset = read_record(options.dataset, DatasetRecord)
    reference = read_reference(options.features, dataset.id, options.protocol, protocol)
    for kind, count in (("real", len(reference.features)), ("synthetic", len(synthetic))):
        check_count(kind, count, options.protocol, protocol)
    network = load_network(protocol, options.device)
    features = all_features(synthetic, protocol, options.device, network)
    scores = class_probabilities(features, network, protocol, options.device)
    return Fidelity(
        protocol=options.protocol,
        protocol_digest=digest(protocol),
        reference=reference.digest,
        **fidelity_scores(reference, features, scores, protocol, options.seed, options.device),
        synthetic_images=len(features),
        real_images=len(reference.features),
        test_images=None if reference.test is None else len(reference.test),
        outside_the_guarantee=True,
        provenance=provenance(),
    )


def _test_images(options: Evaluate) -> Part:
    return read_held_out(options.archive, "test", "the accuracy of classifiers")


def measure_utility(
    synthetic: tuple[np.ndarray, np.ndarray],
    protocol: ProtocolEntry,
    options: Evaluate,
    checkpoint: Checkpoint | None = None,
) -> Utility:
    """Train classifiers on synthetic images and labels alone; test them on the real test images.

    What they say of each test image goes to ``options.predictions``, if that is given.
    """
    from dpsapf.evaluation.utility import judge, side, utility_record

    dataset = read_record(options.dataset, DatasetRecord)
    test, classes = _test_images(options), len(dataset.classes)
    recipe = protocol.recipe(side(synthetic))
    found = judge(synthetic, (test, test.labels), classes, protocol, options.seed, options.device, checkpoint)
    told = {"protocol": options.protocol, "trained_on": "synthetic", "selection": recipe.selection}
    if options.predictions:
        write_predictions(options.predictions, found, test.labels, dataset.classes)
    return utility_record(found, synthetic, test, classes, **told)
