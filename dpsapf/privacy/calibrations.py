"""Noise multipliers that were found before: plans of equal releases, target and delta look for theirs once."""

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from dpsapf.experiment.records import Calibration, Release
from dpsapf.privacy import accounting
from dpsapf.privacy.accounting import calibrate
from dpsapf.support.files import sha256
from dpsapf.support.provenance import provenance
from dpsapf.support.records import as_json, read_record, write_record

LIBRARIES = ("dp-accounting", "opacus", "scipy")  # that find it


def calibrated(folder: Path | None, target: float, delta: float, build: Callable[[float], Sequence[Release]]) -> float:
    """Calibrate, or take what an equal calibration found; it is named by a digest of all that it depends on.

    Args:
        folder: of what was found, one file each; None: calibrate.
        target: see `dpsapf.privacy.accounting.calibrate`.
        delta: likewise.
        build: likewise.

    Returns:
        The noise multiplier. The caller checks what it costs: a file may be anybody's.

    Raises:
        UserError: no noise is enough, or a file is no record.
    """
    if folder is None:
        return calibrate(target, delta, build)
    asked = [target, delta, [as_json(release) for release in build(1.0)], sha256(accounting.__file__)]
    asked += [[name, version(name)] for name in LIBRARIES]
    path = folder / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()}.json"
    if path.exists():
        return read_record(path, Calibration).noise_multiplier
    found = calibrate(target, delta, build)
    write_record(path, Calibration(noise_multiplier=found, provenance=provenance()))
    return found
