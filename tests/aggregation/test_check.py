import fcntl
import json
import re
import shutil

import pandas as pd
import pytest
import yaml

from dpsapf.aggregation.check import check
from dpsapf.cli import alone
from dpsapf.cli.main import main
from dpsapf.experiment.registries import load_yaml
from dpsapf.experiment.stages import Check
from dpsapf.support.errors import UserErrors
from dpsapf.support.files import sha256
from tests.sealed_results import runs_of, sealed_results, theirs

SAPF, LORA, PE, FLOOR = (
    f"runs/mnist5k--public-mini--{name}--seed0"
    for name in ("dp-sapf-matrix-r30-energy-s5--eps10", "dp-lora--eps10", "pe--eps10", "no-finetune")
)
THEIRS = "runs/mnist5k--public-mini--external-theirs--eps10--seed0"
SCORES = "cache/scores/mnist5k--public-mini--attention-energy-s5--seed0"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder without a flaw; tests must not change it."""
    return sealed_results(tmp_path_factory.mktemp("sound") / "results", external=[theirs()])


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "results")


@pytest.fixture
def config(tmp_path):
    """A config whose runs are those of the folder."""
    data = load_yaml("config/config.yaml") | {"compare_scores": [], "measure_fragility": [], "name": "sound"}
    data["studies"] = {"s": {"dataset": ["mnist5k"], "method": ["dp-sapf", "dp-lora", "pe", "no-finetune"], "seed": [0, 1]}}
    data["external"] = {
        "theirs": {"label": "Their method (2025)", "runs": [{"dataset": "mnist5k", "images": "theirs.zip", "epsilon": 10}]}
    }
    data["protocols_file"] = str(tmp_path / "protocols.yaml")
    known = load_yaml("config/protocols.yaml")
    (tmp_path / "protocols.yaml").write_text(yaml.safe_dump({"test-v1": next(iter(known.values()))}))
    data["evaluation"] = data["evaluation"] | {"protocol": "test-v1"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
    return tmp_path / "config.yaml"


def edit(path, **changes):
    """Change fields of a JSON record, as somebody with an editor would."""
    data = json.loads(path.read_text())
    assert changes.keys() <= data.keys()
    path.write_text(json.dumps(data | changes, indent=2) + "\n")


def swap(one, other):
    one_bytes, other_bytes = one.read_bytes(), other.read_bytes()
    one.write_bytes(other_bytes)
    other.write_bytes(one_bytes)


def change_line(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def dataset_of_another_machine(folder):
    """The dataset is prepared again, with another secret."""
    path = folder / "cache/datasets/mnist5k/dataset.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    edit(path.with_name("dataset.json"), id=sha256(path))


DAMAGES = {
    "truncated JSON": (
        lambda folder: (folder / SAPF / "utility.json").write_text((folder / SAPF / "utility.json").read_text()[:40]),
        [f"{SAPF}/utility.json = 'not JSON'"],
    ),
    "a number changed in metrics.json": (
        lambda folder: edit(folder / SAPF / "metrics.json", fid=1.0),
        [f"{SAPF}/metrics.json: fid = 1.0: fidelity.json has", r"tables/runs.csv: fid = 'mnist5k--public-mini--dp-sapf"],
    ),
    "a number changed in fidelity.json": (
        lambda folder: edit(folder / LORA / "fidelity.json", fid=1.0),
        [f"{LORA}/metrics.json: fid = .*: fidelity.json has 1.0"],
    ),
    "a number changed in the ledger": (
        lambda folder: edit(folder / LORA / "ledger.json", delta=1e-9),
        [f"{LORA}/ledger.json: SHA-256 = .*timing.json names", f"{LORA}/metrics.json: delta = .*ledger.json has 1e-09"],
    ),
    "a number changed in the plan": (
        lambda folder: edit(folder / LORA / "plan.json", population=9),
        [f"{LORA}/plan.json: SHA-256 = .*spend.json names"],
    ),
    "ledgers of two runs swapped": (
        lambda folder: swap(folder / SAPF / "ledger.json", folder / LORA / "ledger.json"),
        [f"{SAPF}/ledger.json: run = .*dp-lora", f"{LORA}/ledger.json: run = .*dp-sapf", f"{LORA}/ledger.json: SHA-256"],
    ),
    "weights replaced": (
        lambda folder: (folder / LORA / "weights.safetensors").write_bytes(b"others"),
        [f"{LORA}/weights.safetensors: SHA-256 = .*spend.json and ledger.json name "],
    ),
    "population replaced": (
        lambda folder: (folder / PE / "population.safetensors").write_bytes(b"others"),
        [f"{PE}/population.safetensors: SHA-256"],
    ),
    "selection changed": (
        lambda folder: change_line(folder / SAPF / "selection.csv", "False", "True"),
        [f"{SAPF}/selection.csv: SHA-256 = .*selection.json and spend.json and ledger.json"],
    ),
    "images of another run": (
        lambda folder: shutil.copy(folder / LORA / "samples.npz", folder / SAPF / "samples.npz"),
        [f"{SAPF}/samples.npz: SHA-256 = .*timing.json names"],
    ),
    "images made elsewhere replaced": (
        lambda folder: shutil.copy(folder / LORA / "samples.npz", folder / THEIRS / "samples.npz"),
        [f"{THEIRS}/samples.npz: SHA-256 = .*external.json names"],
    ),
    "scores changed": (
        lambda folder: (folder / SCORES / "scores.csv").write_text("others"),
        [f"{SCORES}/scores.csv: SHA-256 = .*selection.json and ledger.json", f"{SCORES}/scores.csv: SHA-256 = .*spend.json"],
    ),
    "record missing": (
        lambda folder: (folder / SAPF / "timing.json").unlink(),
        [f"{SAPF}/timing.json = 'missing'"],
    ),
    "run missing": (
        lambda folder: shutil.rmtree(folder / LORA),
        [f"{LORA}/? = 'missing run': the config sound has it", r"tables/runs.csv: run_id = \['mnist5k--public-mini--dp-lora"],
    ),
    "another protocol": (
        lambda folder: [edit(folder / FLOOR / name, protocol="x") for name in ("fidelity.json", "utility.json", "metrics.json")],
        [f"{FLOOR}/{name}.json: protocol = 'x': the others have test-v1" for name in ("fidelity", "utility", "metrics")],
    ),
    "another dataset id": (
        lambda folder: edit(folder / LORA / "spend.json", dataset_id="f" * 64),
        [f"{LORA}/spend.json: dataset_id = 'ffffffffffff'"],
    ),
    "dataset prepared anew": (
        dataset_of_another_machine,
        [f"{LORA}/plan.json: dataset_id = ", f"{THEIRS}/external.json: dataset_id = ", f"{SCORES}/spend.json: dataset_id = "],
    ),
    "checkpoint left over": (
        lambda folder: (folder / SAPF / "private.checkpoint.weights.safetensors").write_bytes(b""),
        [f"{SAPF}/private.checkpoint.weights.safetensors = 'left over'"],
    ),
    "temporary file left over": (
        lambda folder: (folder / SAPF / ".plan.123.tmp.json").write_bytes(b""),
        [f"{SAPF}/.plan.123.tmp.json = 'left over'"],
    ),
    "metric that is not finite": (
        lambda folder: change_line(folder / SAPF / "fidelity.json", '"kid": 0.', '"kid": NaN, "x": 0.'),
        [f"{SAPF}/fidelity.json: kid = nan: must be a finite number"],
    ),
    "unknown key": (
        lambda folder: change_line(folder / SAPF / "timing.json", "{", '{"x": 1,'),
        [f"{SAPF}/timing.json: x = 1: unknown key"],
    ),
    "another version of the package": (
        lambda folder: edit(folder / THEIRS / "external.json", provenance={"versions": {"dpsapf": "0.0.9"}}),
        [f"{THEIRS}/external.json: version of dpsapf = '0.0.9': most records have 0.1.0"],
    ),
    "a ledger beside images made elsewhere": (
        lambda folder: shutil.copy(folder / FLOOR / "ledger.json", folder / THEIRS / "ledger.json"),
        [f"{THEIRS}/ledger.json = 'there': nothing made elsewhere was", f"{THEIRS}/ledger.json: run = .*no-finetune"],
    ),
    "claim taken out": (
        lambda folder: edit(folder / THEIRS / "metrics.json", claim=None, not_for_release=None, spent_epsilon={"pld": 9.9}),
        [f"{THEIRS}/metrics.json: .*claimed, not audited by this suite"],
    ),
    "table changed": (
        lambda folder: edit_table(folder),
        [r"tables/runs.csv: recall = 'mnist5k--public-mini--dp-sapf"],
    ),
    "spend record of another release": (
        lambda folder: swap_releases(folder),
        [f"{LORA}/spend.json: release = 'dp-sgd': is not what ledger.json audited"],
    ),
    "a file that nobody knows": (
        lambda folder: edit(folder / LORA / "ledger.json", digests={"x": "f" * 64}),
        [f"{LORA}/ledger.json: digests = 'x': must be one of", f"{LORA}/ledger.json: SHA-256"],
    ),
    "ceiling changed": (
        lambda folder: edit(folder / "cache/reference/mnist5k--test-v1/ceiling.json", accuracy=0.5),
        [f"{SAPF}/metrics.json: ceiling_accuracy = 0.93: .*ceiling.json has 0.5"],
    ),
}


def edit_table(folder):
    table = pd.read_csv(folder / "tables/runs.csv")
    table.loc[0, "recall"] = 0.99
    table.to_csv(folder / "tables/runs.csv", index=False)


def swap_releases(folder):
    path = folder / LORA / "spend.json"
    edit(path, release=json.loads(path.read_text())["release"] | {"noise_multiplier": 99.0})


def told(folder, config):
    with pytest.raises(UserErrors) as raised:
        check(Check(results=folder, configfile=config))
    return [str(error) for error in raised.value.errors]


def test_a_folder_without_a_flaw_has_no_findings(sound, config):
    check(Check(results=sound, configfile=config))
    check(Check(results=sound))


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_named(folder, config, damage):
    break_it, expected = DAMAGES[damage]
    break_it(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    lines = told(folder, config)
    for pattern in expected:
        assert any(re.search(pattern, line) for line in lines), (pattern, lines)
    assert all("\n" not in line for line in lines)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_record_of_another_run_says_nothing_of_the_files(folder, config):
    """A swapped ledger is told as such; weights, selection and numbers, which are right, are not."""
    DAMAGES["ledgers of two runs swapped"][0](folder)
    lines = told(folder, config)
    assert len(lines) == 4 and all("/ledger.json: " in line for line in lines), lines


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name not in ("run missing",)])
def test_damage_of_one_run_does_not_hide_that_of_another(folder, config, damage):
    DAMAGES[damage][0](folder)
    (folder / SAPF.replace("seed0", "seed1") / "weights.safetensors").write_bytes(b"others")
    assert any("seed1/weights.safetensors: SHA-256" in line for line in told(folder, config))


def test_a_missing_run_needs_the_config(folder):
    shutil.rmtree(folder / LORA)
    shutil.rmtree(folder / "tables")
    check(Check(results=folder))


def test_a_folder_without_runs_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    assert told(tmp_path / "empty", None) == [f"{tmp_path}/empty/runs = 'no runs': give the folder of one config's results"]


def test_results_at_which_somebody_works_are_told(folder):
    with alone.hold(folder) as held:
        (line,) = told(folder, None)
        assert ".one-snakemake = 'process " in line and "works on these results" in line
        fcntl.flock(held, fcntl.LOCK_UN)
    check(Check(results=folder))  # the file stays, the lock does not


def test_other_commits_are_told_but_nothing_is_wrong(folder, caplog):
    edit(folder / THEIRS / "external.json", provenance={"versions": {"dpsapf": "0.1.0"}, "git_commit": "fff"})
    check(Check(results=folder))
    assert "records come from several commits: abc" in caplog.text and "fff (1)" in caplog.text


def test_the_command_ends_with_0_or_another_code(sound, folder, config, capsys):
    assert main(["check", "--results", str(sound), "--configfile", str(config)]) == 0
    (folder / SAPF / "timing.json").unlink()
    assert main(["check", str(folder)]) == 2
    assert "timing.json = 'missing'" in capsys.readouterr().err


def test_runs_are_those_of_the_study(sound):
    assert {path.name for path in (sound / "runs").iterdir()} == {run.id for run in [*runs_of(), theirs()]}


def test_a_run_that_was_sampled_and_not_evaluated_lacks_nothing(folder, config, caplog):
    """A release needs no evaluation; what was begun of one must be whole, and other groups' images are there for nothing else."""
    shutil.rmtree(folder / "tables")
    for name in ("fidelity.json", "utility.json", "metrics.json"):
        (folder / LORA / name).unlink()
    caplog.set_level("INFO")
    check(Check(results=folder))
    assert f"not evaluated, which a release does not need: {LORA.removeprefix('runs/')}" in caplog.text
    with pytest.raises(UserErrors) as caught:
        check(Check(results=folder, configfile=config))
    asked = [error.key for error in caught.value.errors if error.value == "not evaluated"]
    assert asked == [str(folder / LORA / "metrics.json")], "the config has it"
    (folder / SAPF / "fidelity.json").unlink()
    for name in ("fidelity.json", "utility.json", "metrics.json"):
        (folder / THEIRS / name).unlink()
    with pytest.raises(UserErrors) as caught:
        check(Check(results=folder))
    missing = {error.key for error in caught.value.errors if error.value == "missing"}
    assert missing == {
        str(folder / SAPF / "fidelity.json"),
        *(str(folder / THEIRS / name) for name in ("fidelity.json", "utility.json", "metrics.json")),
    }
