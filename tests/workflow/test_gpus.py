"""Jobs on a GPU, run by Snakemake itself on one machine; a stage is a stub that takes a second, the driver is one, too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dpsapf.experiment.registries import load_yaml

ROOT = Path(__file__).parents[2]


def start(work, gpus_here, *words, environment=os.environ, **resources):
    """Encode two datasets on a machine with so many GPUs."""
    driver = work / "bin" / "nvidia-smi"
    driver.write_text("#!/bin/sh\n" + "".join(f"echo 'GPU {number}: a card'\n" for number in range(gpus_here)))
    driver.chmod(0o755)
    config = load_yaml(ROOT / "config" / "ci.yaml") | {"name": "gpus"}
    config["studies"]["main"]["dataset"] = ["digits", "mnist5k"]
    config |= {"compute": {"device": "cuda"}, "resources": config["resources"] | resources}
    (work / "test.yaml").write_text(yaml.safe_dump(config))
    targets = [f"results/gpus/cache/latents/{name}--public-mini/latents.safetensors" for name in ("digits", "mnist5k")]
    command = [Path(sys.executable).with_name("snakemake"), "--cores", "8", "--configfile", "test.yaml", *words, "--", *targets]
    environment = {name: value for name, value in environment.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment |= {"PATH": f"{work / 'bin'}:{environment['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)


def overlap(work):
    """Whether the two jobs that encode ran at the same time."""
    jobs = [json.loads(line) for line in (work / "jobs.jsonl").read_text().splitlines()]
    (_, ended), (second, _) = sorted((began, end) for rule, began, end in jobs if rule == "encode-dataset")
    return second < ended


@pytest.mark.slow
@pytest.mark.parametrize(("gpus_here", "words", "together"), [(1, [], False), (2, [], True), (1, ["--resources", "gpu=2"], True)])
@pytest.mark.parametrize("gpus", [0, 1])
def test_jobs_wait_for_a_gpu_of_this_machine(work, gpus_here, words, together, gpus):
    made = start(work, gpus_here, *words, gpus=gpus)
    assert made.returncode == 0, made.stderr
    assert overlap(work) is together


@pytest.mark.slow
def test_more_processes_than_gpus_do_not_start(work):
    for words in ([], ["--dry-run"]):
        refused = start(work, 1, *words, gpus=2)
        assert refused.returncode != 0 and not (work / "jobs.jsonl").exists()
        told = refused.stdout + refused.stderr
        assert "resources.gpus = 2: each process needs a GPU of its own, and this machine has 1" in told
    assert start(work, 2, "--dry-run", gpus=2).returncode == 0
