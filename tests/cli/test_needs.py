import re
from pathlib import Path

import pandas as pd
import pytest

from dpsapf.cli.needs import Needs, gpus_here
from dpsapf.cli.slurm import Site
from dpsapf.experiment.cost import HEAVY, TRIES, overlong
from dpsapf.experiment.registries import load_yaml
from dpsapf.experiment.settings import parse_config
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError

ROOT = Path(__file__).parents[2]
RUN = "camelyon17--sd-v1-5--dp-lora--eps10--seed0"


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def needs(site=None, **resources):
    config = parse_config(load_yaml("config/paper.yaml"))
    return Needs(replace(config, resources=replace(config.resources, **resources)), site or Site())


def asked(needs, rule, *wildcards, attempt=1):
    found = needs.resources(rule)
    return {name: value(wildcards, attempt=attempt) if callable(value) else value for name, value in found.items()}


def test_gpus_only_for_rules_that_use_them_and_several_only_for_those_that_share():
    several = needs(gpus=4)
    shares = {
        rule: several.resources(rule)["gpu"] for rule in ("finetune", "sample", "score_saliency", "evaluate", "encode_dataset")
    }
    assert shares == {"finetune": 4, "sample": 4, "score_saliency": 4, "evaluate": 1, "encode_dataset": 1}
    assert "gpu" not in several.light(2000, 60) and "gpu" not in needs(gpus=0).resources("finetune")


def test_time_and_memory_grow_with_each_attempt_up_to_a_limit():
    made = needs(tflops=400.0, runtime_min=1440, memory_mb=30000)
    tries = [asked(made, "finetune", RUN, attempt=attempt) for attempt in (1, 2, 3)]
    assert tries[1]["runtime"] == pytest.approx(2 * tries[0]["runtime"], abs=1) and tries[1]["mem_mb"] == pytest.approx(
        2 * tries[0]["mem_mb"], abs=1
    )
    assert tries[2]["mem_mb"] == 30000
    assert asked(needs(tflops=1.0, runtime_min=1440), "finetune", RUN)["runtime"] == 1440


def test_time_follows_the_work():
    """A fine-tuning is 4,096 x 1,000 images through a frozen Stable Diffusion: 0.364861 TFLOP each, by torch's counter."""
    seconds = 4096 * 1000 * 0.364861 / 400
    assert asked(needs(tflops=400.0), "finetune", RUN)["runtime"] == pytest.approx(5 + 2 * seconds / 60, abs=1)
    assert asked(needs(tflops=400.0, gpus=2), "finetune", RUN)["runtime"] == pytest.approx(5 + seconds / 60, abs=1)
    assert asked(needs(tflops=400.0), "finetune", RUN.replace("dp-lora", "dp-full"))["runtime"] > 1.4 * 2 * seconds / 60
    assert asked(needs(tflops=400.0), "encode_dataset", "camelyon17", "sd-v1-5")["runtime"] < 60


def test_memory_follows_model_and_dataset():
    small, large = (asked(needs(), "evaluate", RUN.replace("camelyon17", name))["mem_mb"] for name in ("cifar10", "celeba"))
    assert small < large <= 64000
    assert asked(needs(), "finetune", RUN)["mem_mb"] < 16000, "not all that is allowed"


@pytest.mark.parametrize(("rule", "wildcards"), [("compare_scores", ("celeba", "sd-v1-5")), ("finetune", ("unheard-of",))])
def test_what_is_not_known_asks_for_all_that_is_allowed(rule, wildcards):
    allowed = needs(tflops=400.0)
    limit = {"mem_mb": allowed.config.resources.memory_mb, "runtime": allowed.config.resources.runtime_min}
    assert asked(allowed, rule, *wildcards) == limit | {"gpu": 1}


def test_without_a_speed_or_a_gpu_jobs_ask_for_what_the_config_says():
    assert asked(needs(tflops=None, runtime_min=77), "finetune", RUN)["runtime"] == 77
    assert asked(needs(gpus=0, memory_mb=4000), "finetune", RUN)["mem_mb"] == 4000


def test_the_site_says_where():
    assert needs(Site(gpu_partition="g")).resources("sample")["slurm_partition"] == "g"
    assert needs(Site(partition="p", gpu_partition="g")).light(500, 5) == {"mem_mb": 500, "runtime": 5, "slurm_partition": "p"}


def test_on_one_machine_each_job_of_a_gpu_takes_one_and_no_more_processes_start_than_there_are():
    gres = Site(gpus_as="gres", gpu_partition="g")
    for gpus, expected in ((0, 1), (1, 1), (2, 2)):
        local = Needs(needs(gpus=gpus).config, gres, local=True)
        assert (local.resources("finetune")["gpu"], local.resources("evaluate")["gpu"]) == (expected, 1)
        assert "slurm_partition" not in local.resources("finetune"), "the cluster's names do not count"
        local.check_gpus(2)
    with pytest.raises(UserError, match=r"resources.gpus = 2: .* this machine has 1"):
        local.check_gpus(1)


@pytest.mark.parametrize(
    ("driver", "visible", "expected"),
    [
        ("echo 'GPU 0: a'; echo '  MIG 1g: b'; echo 'GPU 1: c'", None, 2),
        ("echo 'GPU 0: a'; echo 'GPU 1: c'", "1", 1),
        ("echo 'GPU 0: a'", "0,1,2", 3),
        ("echo no devices were found", None, 1),
        ("exit 9", None, 1),
    ],
)
def test_this_machines_gpus_are_those_of_its_driver_that_may_be_used(tmp_path, monkeypatch, driver, visible, expected):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{driver}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus_here() == expected


def test_every_rule_that_runs_on_a_device_asks_for_it():
    for path in Path("workflow/rules").glob("*.smk"):
        for rule in re.split(r"^rule ", path.read_text(), flags=re.MULTILINE)[1:]:
            if "$DEVICE" in rule or "$SPEED" in rule or "$LAUNCH" in rule:
                assert "**NEEDS.resources(" in rule, rule.split(":")[0]


CONFIGS = sorted(path.stem for path in (ROOT / "config").glob("*.yaml") if "studies" in load_yaml(path))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_job_of_a_shipped_config_can_end(name):
    """Its tries together have time for twice the estimate. Without a speed, that of a measured step of two cores."""
    config = parse_config(load_yaml(f"config/{name}.yaml"))
    timed = pd.read_csv("results/reference/bench.csv").dropna(subset=["tflop"])
    speed = config.resources.tflops or (timed.tflop / timed.seconds).min()
    made, tries = Needs(config, Site()), 1 + load_yaml("slurm/config.yaml")["retries"]
    for (rule, subject), job in made.jobs.items():
        if rule in HEAVY and job.tflop:
            granted = sum(made.resources(rule)["runtime"]((subject,), attempt=number) - 5 for number in range(1, tries + 1))
            needed = 2 * job.tflop / speed / 60
            assert granted >= needed, f"{rule} of {subject}: {granted} of {needed:.0f} minutes"


@pytest.mark.parametrize("name", CONFIGS)
def test_no_shipped_config_has_jobs_that_cannot_end(name):
    config = parse_config(load_yaml(f"config/{name}.yaml"))
    assert bool(config.resources.tflops) == (config.compute.device == "cuda"), "what runs on GPUs says how fast they are"
    assert all(found.ends for found in overlong(config, config.resources.tflops))


@pytest.mark.parametrize("tflops", [None, 1.0, 27.0, 1e6])
def test_the_two_rules_of_one_job_together_ask_for_no_more_than_a_job_may_take(tflops):
    made, evolved = needs(tflops=tflops), RUN.replace("dp-lora", "pe")
    for attempt in (1, 2, 3):
        both = [asked(made, rule, RUN, attempt=attempt)["runtime"] for rule in ("sample", "evaluate")]
        assert sum(both) <= made.config.resources.runtime_min and min(both) >= 1
    alone = asked(made, "evaluate", evolved)["runtime"]
    assert alone == made.config.resources.runtime_min or tflops, "evolved images are evaluated by a job of their own"


def test_as_many_tries_are_made_as_are_counted_on():
    assert load_yaml("slurm/config.yaml")["retries"] + 1 == TRIES


@pytest.mark.parametrize(("limit", "level", "words"), [(1440, "WARNING", "12 tries are needed"), (5400, "INFO", "3 of 3 tries")])
def test_no_time_is_cut_without_a_word(limit, level, words, caplog):
    caplog.set_level("INFO", "snakemake.logging")
    needs(runtime_min=limit).tell_overlong()
    (record,) = [record for record in caplog.records if record.message.startswith("evolve: 48 jobs take 73 to 133 hours")]
    assert record.levelname == level and words in record.message
