"""Every plan of a config is made before images are computed with; and that order makes nothing again."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dpsapf.experiment.registries import load_yaml
from tests.beforehand import Work

ROOT = Path(__file__).parents[2]
COMPUTING = {"encode-dataset", "score-saliency", "finetune", "evolve"}
RUN = "digits--public-mini--dp-sapf-matrix-r30-share-s10--eps10--seed0"


@pytest.fixture
def snakemake(work):
    """Run it on a config of two datasets, changed; return what it said."""
    prepared = Work(work / "prepared")
    prepared.prepared("digits")
    (work / "given").mkdir()
    for file in (prepared.layout.dataset("digits", "dataset.json"), prepared.layout.model("public-mini", "candidates.csv")):
        shutil.copy(work / "prepared" / file, work / "given")

    def start(*words, main=None, **changes):
        config = load_yaml(ROOT / "config" / "ci.yaml") | {"name": "plans"}
        study = {"dataset": ["digits", "mnist5k"], "method": ["dp-sapf", "pe"]} | (main or {})
        config["studies"] = {"main": config["studies"]["main"] | study}
        (work / "test.yaml").write_text(yaml.safe_dump(config | changes))
        command = [Path(sys.executable).with_name("snakemake"), "--cores", "4", "--configfile", "test.yaml", *words]
        made = subprocess.run(
            command,
            cwd=work,
            env=os.environ | {"PYTHONPATH": str(ROOT), "STUB_SECONDS": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        return made.stdout + made.stderr

    return start


def jobs(said):
    """How many of each rule a dry run lists."""
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", said.split("job ", 1)[-1], re.MULTILINE)}


@pytest.mark.slow
def test_plans_come_first_and_nothing_is_made_again(work, snakemake):
    assert jobs(snakemake("-n"))["plans_made"] == 4, "one for the latents of each dataset, one for each run that evolves"
    snakemake()
    done = [json.loads(line) for line in (work / "jobs.jsonl").read_text().splitlines()]
    planned = max(end for rule, _, end in done if rule == "plan-privacy")
    assert {rule for rule, _, _ in done} >= COMPUTING
    assert planned <= min(began for rule, began, _ in done if rule in COMPUTING)
    assert jobs(snakemake("-n")) == {}

    more = jobs(snakemake("-n", main={"method": ["dp-sapf", "pe", "dp-lora"]}))
    assert {name: more.get(name, 0) for name in ("plan_privacy", "finetune", "evolve", "score_saliency", "encode_dataset")} == {
        "plan_privacy": 2,
        "finetune": 2,
        "evolve": 0,
        "score_saliency": 0,
        "encode_dataset": 0,
    }, "a new run makes its own jobs only"

    both = jobs(snakemake("-n", main={"epsilon": [1, 10]}, sampling={"count": 61, "steps": 4, "guidance_scale": 2.0}))
    assert both["sample"] == 4, "beside new runs, what has changed of others is not passed over"
    assert both["finetune"] == 2 and both["evolve"] == 4 and "score_saliency" not in both

    again = jobs(snakemake("-n", "--forcerun", f"results/plans/runs/{RUN}/plan.json"))
    assert again["plan_privacy"] == again["finetune"] == 1
    assert not {"score_saliency", "evolve", "encode_dataset"} & set(again), "a plan that is made again is of its run alone"
