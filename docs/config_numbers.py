"""What the documentation says of shipped configs: how many runs they train."""

from records import Records, pipes, with_code

from dpsapf.experiment.methods import METHODS
from dpsapf.experiment.runs import Study, expand

FEWER = {  # axis to how many of its values are left, and what is lost by that
    "dataset": (1, "`tuned_and_shared`, which chooses on other datasets"),
    "epsilon": (1, "how the edge moves with noise"),
    "ratio": (2, "the shape of the edge"),
    "seed": (1, "every interval"),
}


def trained_runs(config: str, records: Records) -> str:
    """Count the runs of a config that train something."""
    return f"{_trained(records.config(config)['studies'])}"


def cuts(records: Records) -> str:
    """Lay out how many trained runs of config/stability.yaml are left where its studies have fewer values of an axis."""
    studies = records.config("stability")["studies"]
    rows = [[f"`{axis}` to {values}", f"{_trained(_cut(studies, axis, values))}", lost] for axis, (values, lost) in FEWER.items()]
    return with_code(pipes(["cut", "trained runs left", "what you lose"], rows))


def _cut(studies: dict[str, dict], axis: str, values: int) -> dict[str, dict]:
    return {name: study | {axis: study[axis][:values]} if axis in study else study for name, study in studies.items()}


def _trained(studies: dict[str, dict]) -> int:
    return sum(METHODS[run.method].trains for run in expand({name: Study(**study) for name, study in studies.items()}))
