"""The workflow on a real Slurm of one node, through faults: ledger, weights and metrics are those of an undisturbed run.

``make test-slurm``; needs root, Debian's packages slurm-wlm and munge, and for accounting slurmdbd and mariadb-server.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from dpsapf.experiment.registries import load_yaml
from dpsapf.support.files import sha256
from tests.workflow import test_gpus
from tests.workflow.conftest import checkout

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("slurmctld"), reason="needs root and Debian's slurm-wlm and munge"),
]
ROOT = Path(__file__).parents[2]
NODE = Path(__file__).with_name("one_node.sh")
SOURCES = ("Snakefile", "workflow", "config", "slurm", "profiles", "dpsapf", "envs", "paper_figures")
RUN = "results/slurm/runs/digits--public-mini--dp-sapf-matrix-r30-share-s10--eps10--seed0"
STEPS = 60
PATIENCE = 600  # seconds
START = ["snakemake", "--cores", "all", "--configfile", "test.yaml", "--profile", "slurm"]


@pytest.fixture(scope="module", params=["off", "on"])
def slurm(request):
    """The environment of a running Slurm, with accounting off or on."""
    home = Path(tempfile.mkdtemp(prefix="slurm-"))
    home.chmod(0o755)  # everybody must reach munge's socket
    if request.param == "on" and not shutil.which("slurmdbd"):
        pytest.skip("accounting needs Debian's slurmdbd and mariadb-server")
    accounting = {"ACCOUNTING": "1"} if request.param == "on" else {}
    subprocess.run([NODE, "up", home], check=True, env=os.environ | accounting, timeout=120)
    yield os.environ | {
        "SLURM_CONF": f"{home}/etc/slurm.conf",
        "PATH": f"{home}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": ".",
    }
    subprocess.run([NODE, "down", home], check=True, timeout=120)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """A folder in which everything up to fine-tuning is done, without Slurm."""
    folder = tmp_path_factory.mktemp("prefix") / "work"
    folder.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    config = load_yaml(ROOT / "config" / "ci.yaml")
    config |= {"name": "slurm", "privacy": config["privacy"] | {"steps": STEPS, "expected_batch_size": 64}}
    config["studies"]["main"]["method"] = ["dp-sapf"]
    config["finetune"] |= {"checkpoint_every": 10}
    (folder / "test.yaml").write_text(yaml.safe_dump(config))
    cache = "results/slurm/cache"
    targets = [f"{RUN}/selection.csv", f"{cache}/reference/digits--probe-v1/ceiling.json"]
    targets += [f"{cache}/latents/digits--public-mini/{name}.safetensors" for name in ("latents", "prompts")]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": "."}
    command = ["snakemake", "--cores", "2", "--configfile", "test.yaml", "--quiet", "all", "--", *targets]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=PATIENCE)
    return folder


@pytest.fixture
def work(prefix, tmp_path):
    return shutil.copytree(prefix, tmp_path / "work")


@pytest.fixture(scope="module")
def calm(prefix, tmp_path_factory):
    """What an undisturbed run without Slurm leaves."""
    folder = shutil.copytree(prefix, tmp_path_factory.mktemp("calm") / "work")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": "."}
    command = ["snakemake", "--cores", "2", "--configfile", "test.yaml", "--quiet", "all"]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=PATIENCE)
    return left(folder)


def left(folder):
    """What must not depend on faults: what was released and spent, weights, images, metrics."""
    run = folder / RUN
    ledger = json.loads((run / "ledger.json").read_text())
    found = {name: ledger[name] for name in ledger if name != "provenance"}
    found |= {name: sha256(run / name) for name in ("weights.safetensors", "samples.npz", "selection.csv")}
    for name in ("fidelity", "utility"):
        record = json.loads((run / f"{name}.json").read_text())
        found[name] = {key: value for key, value in record.items() if key != "provenance"}
    return found


def start(folder, slurm, *words):
    log, heeds = (folder / "snakemake.log").open("a"), lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # as in a terminal
    return subprocess.Popen([*START, *words], cwd=folder, env=slurm, stdout=log, stderr=log, preexec_fn=heeds)


def finished(process, folder, calm):
    """It ends well, and left what an undisturbed run leaves."""
    assert process.wait(PATIENCE) == 0, (folder / "snakemake.log").read_text()[-3000:]
    assert left(folder) == calm
    assert not list((folder / RUN).glob("private.checkpoint*")), "checkpoints are gone"


def run(slurm, *command):
    return subprocess.run(command, env=slurm, capture_output=True, text=True, check=True, timeout=60).stdout


def node(slurm, action):
    """Let the controller go, or come back."""
    subprocess.run([NODE, action, Path(slurm["SLURM_CONF"]).parents[1]], check=True, env=slurm, timeout=60)


def heard(folder, words, patience=PATIENCE):
    """Wait until Snakemake has said something."""
    end = time.monotonic() + patience
    while words not in (folder / "snakemake.log").read_text():
        assert time.monotonic() < end, (folder / "snakemake.log").read_text()[-3000:]
        time.sleep(0.2)


def training(folder, slurm):
    """Wait until fine-tuning has kept its first steps; return the id of its job."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if list((folder / RUN).glob("private.checkpoint*")):
            jobs = [line.split("|") for line in run(slurm, "squeue", "--noheader", "--format=%i|%k|%T").splitlines()]
            running = [job for job, comment, state in jobs if "finetune" in comment and state == "RUNNING"]
            if running:
                return running[0]
        time.sleep(0.2)
    raise AssertionError((folder / "snakemake.log").read_text()[-3000:])


def log(folder):
    """What all jobs of fine-tuning said: the rule's own log is of the last."""
    return "\n".join(path.read_text() for path in sorted((folder / "logs/slurm/rule_finetune").rglob("*.log")))


def resumed(folder):
    """Whether fine-tuning went on from a step after the first."""
    return [int(step) for step in re.findall(rf"resuming at step (\d+) of {STEPS}", log(folder))]


def test_as_it_is_typed(work, slurm, calm):
    finished(start(work, slurm), work, calm)
    told = (work / "snakemake.log").read_text()
    assert told.count("has been submitted with SLURM jobid") == 2, "fine-tuning; sampling with evaluation"
    assert len(re.findall(r"States of jobs are asked of (sacct|squeue)", told)) == 1 and "invalid option" not in told


def test_a_cancelled_job(work, slurm, calm):
    process = start(work, slurm)
    run(slurm, "scancel", training(work, slurm))
    finished(process, work, calm)
    assert resumed(work) and "asked to end by SIGTERM: the same command goes on from" in log(work)


def test_a_job_put_back_into_the_queue(work, slurm, calm):
    process = start(work, slurm)
    run(slurm, "scontrol", "requeue", training(work, slurm))
    finished(process, work, calm)
    assert resumed(work)


def test_a_job_whose_time_is_up(work, slurm, calm):
    """Slurm looks every half minute; fine-tuning stands still until it does."""
    process, job = start(work, slurm), training(work, slurm)
    run(slurm, "pkill", "-STOP", "-f", "dpsapf finetune --plan results/slurm")
    run(slurm, "scontrol", "update", f"jobid={job}", "timelimit=0-00:00:01")
    finished(process, work, calm)
    assert resumed(work)


def test_a_preempted_job(work, slurm, calm):
    process = start(work, slurm)
    training(work, slurm)
    run(slurm, "sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")
    finished(process, work, calm)
    assert resumed(work)


def test_an_early_warning(work, slurm, calm):
    """Slurm's --signal=USR1@60."""
    process = start(work, slurm)
    run(slurm, "scancel", "--signal=USR1", training(work, slurm))
    finished(process, work, calm)
    assert resumed(work) and "asked to end by SIGUSR1" in log(work)


@pytest.mark.parametrize("state", ["drain", "down"])
def test_a_node_that_goes_and_comes_back(work, slurm, calm, state):
    process, node = start(work, slurm), run(slurm, "hostname", "-s").strip()
    training(work, slurm)
    run(slurm, "scontrol", "update", f"nodename={node}", f"state={state}", "reason=test")
    time.sleep(5)
    back = ["scontrol", "update", f"nodename={node}", "state=resume"]
    subprocess.run(back, env=slurm, check=False, timeout=60)  # refused if it is back already
    finished(process, work, calm)


@pytest.mark.parametrize("number", range(5))
def test_a_killed_snakemake_and_the_same_command_again(work, slurm, calm, number):
    process = start(work, slurm)
    if number:
        training(work, slurm)
    time.sleep(random.Random(number).uniform(0, 15))
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished(start(work, slurm), work, calm)


def test_an_interrupted_snakemake_and_the_same_command_again(work, slurm, calm):
    process = start(work, slurm)
    training(work, slurm)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) != 0
    finished(start(work, slurm), work, calm)
    assert resumed(work)


def test_a_full_disk_and_the_same_command_again(work, slurm, calm):
    folder, kept = work / RUN, work / "kept"
    shutil.move(folder, kept)
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    try:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        (folder / "filler").write_bytes(b"x" * (shutil.disk_usage(folder).free - 2**15))
        process = start(work, slurm, "--retries", "0")
        assert process.wait(PATIENCE) != 0
        assert "the disk is full: make room, then run the same command" in log(work) and "Traceback" not in log(work)
        assert not (folder / "weights.safetensors").exists() and not list(folder.glob(".*.tmp*"))
        (folder / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=100m", folder], check=True)
        finished(start(work, slurm), work, calm)
    finally:
        subprocess.run(["umount", folder], check=False)


@pytest.fixture
def disk(work):
    """The run's folder, on a file system of its own."""
    folder, kept = work / RUN, work / "kept"
    shutil.move(folder, kept)
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", folder], check=True)
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def remount(folder, how):
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


def evaluating():
    """Wait until the evaluation has begun."""
    end = time.monotonic() + PATIENCE
    while subprocess.run(
        ["pgrep", "-f", "dpsapf evaluate --synthetic results/slurm"], capture_output=True, check=False
    ).returncode:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_run_cannot_be_written_while_its_evaluation_ends(work, slurm, calm, disk):
    process = start(work, slurm)
    evaluating()
    remount(disk, "ro")
    time.sleep(30)
    remount(disk, "rw")
    finished(process, work, calm)
    said = (work / "snakemake.log").read_text()
    assert "Traceback" not in said and "Trying to restart" not in said


def test_a_run_cannot_be_written_for_longer_than_a_stage_waits(work, slurm, calm, disk):
    """Snakemake itself cannot remove what the failed job left, and ends; the same command goes on."""
    stage = work / "dpsapf" / "cli" / "nodes.py"
    stage.write_text(re.sub(r"^PATIENCE = [\d.]+", "PATIENCE = 1.0", stage.read_text(), flags=re.MULTILINE))
    process = start(work, slurm)
    evaluating()
    remount(disk, "ro")
    assert process.wait(PATIENCE) != 0
    said = (work / "snakemake.log").read_text()
    assert "Traceback" not in said and f"Read-only file system: '{RUN}/samples.npz'" in said
    remount(disk, "rw")
    finished(start(work, slurm), work, calm)


def test_a_second_snakemake_is_refused(work, slurm, calm):
    process = start(work, slurm)
    training(work, slurm)
    second = subprocess.run(START, cwd=work, env=slurm, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert second.returncode != 0 and f"process {process.pid} of" in second.stderr
    finished(process, work, calm)


def test_slurm_is_away_while_a_job_is_submitted(work, slurm, calm):
    """As long as three tries take, and longer."""
    node(slurm, "away")
    try:
        process = start(work, slurm)
        heard(work, "Execute 1 jobs...")
        time.sleep(50)
    finally:
        node(slurm, "back")
    finished(process, work, calm)
    said = (work / "snakemake.log").read_text()
    assert said.count("Slurm does not answer: waiting for it, for 120 minutes at most") == 1
    assert "Trying to restart" not in said and "Exception" not in said


def test_slurm_is_away_for_longer_than_the_site_allows(work, slurm, calm):
    site = work / "slurm" / "site.yaml"
    site.write_text(site.read_text().replace("away_min: 120", "away_min: 0.1"))
    node(slurm, "away")
    try:
        assert start(work, slurm).wait(PATIENCE) != 0
    finally:
        node(slurm, "back")
    finished(start(work, slurm), work, calm)


def test_slurm_is_away_while_a_job_runs(work, slurm, calm):
    process = start(work, slurm)
    training(work, slurm)
    node(slurm, "away")
    time.sleep(50)
    node(slurm, "back")
    finished(process, work, calm)


def test_jobs_of_another_user_are_neither_forgotten_nor_joined(work, slurm, calm):
    """Root may write everywhere, and is the second user here."""
    note, theirs = work / "results/slurm/slurm-starts.txt", "first-start"
    asked = ["runuser", "-u", "nobody", "--", "sbatch", "--parsable", "--chdir=/", "--output=/dev/null", f"--job-name={theirs}"]
    job = run(slurm, *asked, "--wrap=sleep 600").strip()
    note.write_text(f"{theirs}\n")
    try:
        assert start(work, slurm).wait(PATIENCE) != 0
        assert f"user nobody still makes them with job {job}: wait for its end" in (work / "snakemake.log").read_text()
        assert note.read_text() == f"{theirs}\n" and not list((work / RUN).glob("private.checkpoint*"))
    finally:
        run(slurm, "scancel", job)
    finished(start(work, slurm), work, calm)


def test_all_jobs_are_cancelled(work, slurm, calm):
    process = start(work, slurm)
    training(work, slurm)
    run(slurm, "scancel", "--user=root")
    finished(process, work, calm)
    assert resumed(work)


@pytest.mark.parametrize(("stop", "go"), [("hold", "release"), ("suspend", "resume")])
def test_a_job_that_is_stopped_and_goes_on(work, slurm, calm, stop, go):
    process, job = start(work, slurm), training(work, slurm)
    if stop == "hold":
        run(slurm, "scontrol", "requeuehold", job)
    else:
        run(slurm, "scontrol", stop, job)
    time.sleep(15)
    run(slurm, "scontrol", go, job)
    finished(process, work, calm)


def test_a_stage_that_is_killed(work, slurm, calm):
    process = start(work, slurm)
    training(work, slurm)
    run(slurm, "pkill", "-KILL", "-f", "dpsapf finetune --plan results/slurm")
    finished(process, work, calm)
    assert resumed(work)


def test_a_checkpoint_that_is_deleted_before_the_job_is_put_back_into_the_queue(work, slurm, calm):
    process, job = start(work, slurm), training(work, slurm)
    run(slurm, "scontrol", "requeuehold", job)
    while run(slurm, "squeue", "--noheader", f"--jobs={job}", "--format=%T").strip() != "PENDING":
        time.sleep(0.5)  # it keeps what it has when it is asked to end
    for path in (work / RUN).glob("private.checkpoint*"):
        path.unlink()
    run(slurm, "scontrol", "release", job)
    finished(process, work, calm)
    assert not resumed(work)


def test_a_second_working_copy_whose_first_is_killed(work, slurm, calm, tmp_path):
    """Two copies do not know of each other, and do not need to."""
    copy = shutil.copytree(work, tmp_path / "copy")
    first = start(work, slurm)
    training(work, slurm)
    second = start(copy, slurm)
    first.send_signal(signal.SIGKILL)
    first.wait()
    finished(second, copy, calm)
    finished(start(work, slurm), work, calm)


def test_jobs_on_a_gpu_each_run_beside_each_other(slurm, tmp_path):
    """The limit of one machine's GPUs is not a cluster's: this node has two, the submitting host one."""
    folder = checkout(tmp_path)
    ran = test_gpus.start(folder, 1, "--profile", "slurm", environment=slurm | {"STUB_SECONDS": "20"}, gpus=1)
    assert ran.returncode == 0, ran.stderr
    assert test_gpus.overlap(folder)
