import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from dpsapf.datasets import camelyon17, celeba, cifar10, octmnist
from dpsapf.experiment import cost
from dpsapf.experiment.registries import DatasetEntry, ModelEntry, load_registry, load_yaml
from dpsapf.experiment.settings import parse_config
from dpsapf.experiment.work import Work, architectures
from dpsapf.support.checked import replace

ROOT = Path(__file__).parents[2]
WORK = Work(resolution=256, parameters=10**9, forward=1.0, frozen=2.0, full=3.0, encode=0.5, decode=0.25)


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def config():
    return parse_config(load_yaml("config/paper.yaml"))


@pytest.fixture
def run(config):
    return next(run for run in config.runs if run.method == "dp-lora")


def sizes(config, run):
    return replace_dataclass(cost.Sizes.of(config, run), images=1000, work=WORK)


def replace_dataclass(value, **changes):
    return type(value)(**(vars(value) | changes))


def test_every_job_of_the_dag_is_counted_once(config, tmp_path):
    """Against Snakemake's own list."""
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "-n",
        "--cores",
        "2",
        "--quiet",
        "rules",
        "--configfile",
        "config/variants.yaml",
    ]
    told = subprocess.run([*command, "--forceall"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    expected = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", told, re.MULTILINE)}
    jobs = list(cost.jobs(parse_config(load_yaml("config/variants.yaml"))))
    found = Counter(job.rule for job in jobs)
    assert {rule: expected[rule] for rule in found} == dict(found)
    others = expected.keys() - found.keys()
    drawn, own = {"aggregate", "draw_figures", "write_report"}, {"measure_gradients", "measure_fragility"}
    assert others <= {"all", "total", "plans_made", *drawn, *own, "compare_scores", "compare_rankings"}
    assert len({(job.rule, job.subject) for job in jobs}) == len(jobs)


def test_operations_of_each_stage(config, run):
    small = replace(config, privacy=replace(config.privacy, steps=3, expected_batch_size=5))
    small = replace(small, saliency=replace(small.saliency, expected_batch_size=400))
    small = replace(small, sampling=replace(small.sampling, count=7, steps=4, guidance_scale=2.0))
    assert cost.finetune(small, run, sizes(config, run)) == 3 * 5 * 2.0
    assert cost.finetune(small, replace(run, method="dp-full", adapter=None), sizes(config, run)) == 3 * 5 * 3.0
    assert cost.finetune(small, replace(run, training_steps=10, batch_size=2), sizes(config, run)) == 10 * 2 * 2.0
    assert cost.score(small, sizes(config, run)) == 400 * 2.0
    assert cost.sample(small, sizes(config, run)) == 7 * (4 * 2 * 1.0 + 0.25)
    unguided = replace(small, sampling=replace(small.sampling, guidance_scale=1.0))
    assert cost.sample(unguided, sizes(config, run)) == 7 * (4 * 1.0 + 0.25)


@pytest.mark.parametrize(("method", "voted"), [("pe", 6), ("aug-pe", 12)])
def test_operations_of_evolution(config, method, voted):
    """First generation of 6; in each of 2 rounds 3 variations of what is voted on, and 6; 4 more; at half the steps."""
    run = next(run for run in config.runs if run.method == method)
    settings = {"generation": 6, "iterations": 2, "lookahead": 3, "variants": 2, "first_degree": 0.6, "last_degree": 0.4}
    small = replace(config, evolution=replace(config.evolution, **settings))
    small = replace(small, sampling=replace(small.sampling, count=10, steps=4, guidance_scale=2.0))
    varied = 2 * (voted * 3 + 6) + 4
    expected = 6 * (4 * 2 + 0.25) + varied * (2 * 2 + 0.25 + 0.5)
    assert cost.evolve(small, run, sizes(config, run)) == pytest.approx(expected)


def test_what_is_not_told_is_not_guessed(config, run):
    unknown = replace_dataclass(sizes(config, run), work=None)
    assert cost.finetune(config, run, unknown) is None and cost.sample(config, unknown) is None
    assert cost.score(config, replace_dataclass(sizes(config, run), images=None)) is None


def test_the_registry_tells_the_published_numbers_of_images():
    entries = load_registry("config/datasets.yaml", DatasetEntry)
    for name, counts in {"octmnist": octmnist.COUNTS, "celeba": celeba.COUNTS, "camelyon17": camelyon17.COUNTS}.items():
        assert entries[name].images == counts["train"]
    assert entries["cifar10"].images == cifar10.COUNTS["train"] - entries["cifar10"].validation


def test_every_model_of_the_registry_names_an_architecture_that_was_counted():
    assert {entry.architecture for entry in load_registry("config/public_models.yaml", ModelEntry).values()} <= set(
        architectures()
    )


def test_another_resolution_is_counted_by_its_pixels():
    assert WORK.at(512) == Work(resolution=512, parameters=10**9, forward=4.0, frozen=8.0, full=12.0, encode=2.0, decode=1.0)
