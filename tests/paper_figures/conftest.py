import pytest

from dpsapf.experiment.runs import Study, expand
from paper_figures.draw import draw_all
from paper_figures.results import load_results
from tests.fake_results import collapsing, demo_runs, stability_runs, write_results


@pytest.fixture(scope="session")
def undrawn(tmp_path_factory):
    """The demo's studies on two of its datasets, two seeds."""
    return write_results(tmp_path_factory.mktemp("results") / "demo", demo_runs(("mnist5k", "oct-mini"), seeds=(0, 1)))


@pytest.fixture(scope="session")
def demo(undrawn):
    """The same with every table and figure drawn."""
    draw_all(undrawn, undrawn / "figures")
    return undrawn


@pytest.fixture(scope="session")
def results(undrawn):
    return load_results(undrawn)


@pytest.fixture(scope="session")
def smallest(tmp_path_factory):
    """One dataset, two methods, one seed, no images."""
    runs = expand({"main": Study(dataset=("digits",), method=("dp-lora", "no-finetune"))})
    return write_results(tmp_path_factory.mktemp("results") / "smallest", runs, images=False)


@pytest.fixture(scope="session")
def swept(tmp_path_factory):
    """Learning rates against ratios on two datasets, collapsing as `collapsing` says; the first rate is the config's own."""
    runs = stability_runs(("mnist5k", "histo-mini"), epsilons=(10,), ratios=(0.1, 0.5), rates=(0.02, 0.07, 0.2), seeds=(0, 1, 2))
    root = write_results(tmp_path_factory.mktemp("results") / "swept", runs, images=False, changes=collapsing)
    return load_results(root)
