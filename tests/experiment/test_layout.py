import itertools
from pathlib import Path, PurePosixPath

import pytest

from dpsapf.experiment.layout import Layout
from dpsapf.experiment.methods import METHODS, method
from dpsapf.experiment.runs import Study, expand

KINDS = {"dataset": 2, "model": 2, "latents": 3, "scores": 2, "reference": 3, "run": 2, "table": 1, "log": 2, "benchmark": 2}
NAMES = ("a", "b", "a-a", "a-b", "b-a", "a-b-a")  # -- stands between two names
CALLS = [(kind, names) for kind, count in KINDS.items() for names in itertools.product(NAMES, repeat=count)]


def path(call, root="results/x"):
    kind, names = call
    return getattr(Layout(root), kind)(*names)


def test_layout_keys_by_what_a_file_depends_on():
    layout = Layout("results/x")
    assert layout.latents("d", "m", "f") == "results/x/cache/latents/d--m/f"
    assert layout.reference("d", "p", "f") == "results/x/cache/reference/d--p/f"


def test_no_two_files_share_a_path():
    assert len({path(call) for call in CALLS}) == len(CALLS) > 600


def test_everything_lies_below_the_root():
    for call in CALLS:
        assert PurePosixPath(path(call)).is_relative_to("results/x")
        assert path(call, Path("results/x")) == path(call), "a path does as well as text"
        assert path(call, "/elsewhere") == "/elsewhere" + path(call).removeprefix("results/x")


def test_files_of_the_demos_stages_do_not_meet():
    """No two stages write one file, and none of a run's folders lies in another's."""
    layout = Layout("r")
    runs = expand({"all": Study(dataset=("a", "b"), method=tuple(METHODS), ratio=(0.1, 0.3), epsilon=(1.0, 10.0), seed=(0, 1))})
    folders = [PurePosixPath(layout.run(run.id, "plan.json")).parent for run in runs]
    folders += [
        PurePosixPath(layout.scores(name, "x")).parent for name in {r.scores_id for r in runs if method(r.method).selects}
    ]
    assert len(folders) == len(set(folders))
    assert not any(a.is_relative_to(b) for a, b in itertools.permutations(folders, 2))


def test_figures_and_tables_are_apart_from_the_cache():
    layout = Layout("r")
    assert layout.figures == "r/figures"
    assert layout.table("runs.csv") == "r/tables/runs.csv"


@pytest.mark.parametrize(("kind", "ending"), [("log", ".log"), ("benchmark", ".tsv")])
def test_logs_and_benchmarks_are_named_by_stage_and_key(kind, ending):
    file = PurePosixPath(path((kind, ("finetune", "d--m--dp-lora--eps0.5--seed0"))))
    assert file.name == f"d--m--dp-lora--eps0.5--seed0{ending}", "a point in the name stays"
    assert file.parent.name == "finetune"
