"""What classifiers say of each real test image, on request: private, and named so."""

import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic

if typing.TYPE_CHECKING:
    from dpsapf.evaluation.scores import Predictions


def check_private_name(path: Path | None) -> None:
    """Check that a file that shows private images, or tells of each, has a name that says so.

    Raises:
        UserError: its name does not begin with ``private``.
    """
    if path is not None and not path.name.startswith("private"):
        raise UserError("output", str(path), f"tells of private images: let its name begin with private, as private_{path.name}")


def write_predictions(
    path: Path, predictions: Mapping[str, "Sequence[Predictions]"], labels: np.ndarray, classes: tuple[str, ...]
) -> None:
    """Write one row per test image, classifier and training.

    Args:
        path: the .csv.
        predictions: by classifier, those of each training.
        labels: true classes of the test images, int64 [n].
        classes: names of the classes.
    """
    names, tables = np.array(classes), []
    for classifier, trainings in predictions.items():
        for repeat, found in enumerate(trainings):
            table = {
                "image": np.arange(len(labels)),  # its position among the dataset's test images
                "class": names[labels],
                "classifier": classifier,
                "repeat": repeat,
                "predicted": names[found.classes],
                "confidence": found.confidences,  # empty: the classifier gives none
                "outside_the_guarantee": True,
            }
            tables.append(pd.DataFrame(table))
    with atomic(path) as temporary:
        pd.concat(tables, ignore_index=True).to_csv(temporary, index=False)
