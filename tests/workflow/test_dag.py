import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dpsapf.cli.rules import code_digest, entry_digest, flags, given, spend_records, trained_files
from dpsapf.experiment.layout import Layout
from dpsapf.experiment.registries import load_yaml
from dpsapf.experiment.runs import normalise
from dpsapf.experiment.settings import PrivacyConfig, SamplingConfig
from dpsapf.support.checked import replace

ROOT = Path(__file__).parents[2]


def dry_run(*words):
    command = [sys.executable, "-m", "snakemake", "-n", "--cores", "2", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def counts(text):
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", text, re.MULTILINE)}


def test_demo_expands_to_fifteen_trained_runs(tmp_path):
    data = load_yaml(ROOT / "config" / "config.yaml") | {"name": "never-run"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
    result = dry_run("--configfile", str(tmp_path / "config.yaml"))
    jobs = counts(result.stdout)
    assert result.returncode == 0, result.stderr
    assert jobs["finetune"] == 15 and jobs["sample"] == jobs["evaluate"] == jobs["audit_privacy"] == 19
    assert jobs["score_saliency"] == jobs["encode_dataset"] == 4 and jobs["aggregate"] == 1


def test_paper_expands():
    result = dry_run("--configfile", "config/paper.yaml")
    jobs = counts(result.stdout)
    assert result.returncode == 0, result.stderr
    assert jobs["prepare_dataset"] == 4 and jobs["prepare_public_model"] == 4
    assert jobs["finetune"] < jobs["sample"] and jobs["finetune"] > 150


def test_a_bad_config_ends_in_one_line_before_any_rule(tmp_path):
    data = load_yaml(ROOT / "config" / "config.yaml") | {"name": "never-run"}
    data["privacy"]["step"] = 3
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
    result = dry_run("--configfile", str(tmp_path / "config.yaml"))
    assert result.returncode != 0
    assert "privacy.step = 3: unknown key" in result.stdout + result.stderr
    assert not (ROOT / "results" / "never-run").exists()


def test_flags_leave_nulls_out():
    assert flags(SamplingConfig(count=10)) == "--count 10 --steps 25 --guidance-scale 7.0"
    text = flags(PrivacyConfig(steps=1, expected_batch_size=2), only=("steps", "delta"), prefix="x.")
    assert text == "--x.steps 1"


def test_inputs_of_a_run_depend_on_its_method(run):

    layout = Layout(Path("r"))
    assert spend_records(layout, run) == [f"r/cache/scores/{run.scores_id}/spend.json", f"r/runs/{run.id}/spend.json"]
    lora = normalise(replace(run, method="dp-lora"))
    assert spend_records(layout, lora) == [f"r/runs/{lora.id}/spend.json"]
    public = normalise(replace(run, method="no-finetune"))
    assert spend_records(layout, public) == [] and trained_files(layout, public, "weights") == {}
    assert trained_files(layout, lora, "weights") == {"weights": f"r/runs/{lora.id}/weights.safetensors"}


def test_an_entrys_digest_ignores_other_entries(tmp_path):
    from dpsapf.experiment.registries import ProtocolEntry

    data = load_yaml(ROOT / "config" / "protocols.yaml")
    file = tmp_path / "protocols.yaml"
    digests = []
    for neighbours in (5, 6):
        data["paper-v1"]["neighbours"] = neighbours
        file.write_text(yaml.safe_dump(data))
        digests.append((entry_digest(file, "demo-v1", ProtocolEntry), entry_digest(file, "paper-v1", ProtocolEntry)))
    assert digests[0][0] == digests[1][0] and digests[0][1] != digests[1][1]


@pytest.mark.parametrize("stage", ["datasets", "finetune", "paper_figures"])
def test_code_digest_is_stable(stage):
    assert code_digest(stage) == code_digest(stage)


def test_every_rule_file_is_short_and_has_a_log():
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        for rule in re.split(r"^rule ", path.read_text(), flags=re.MULTILINE)[1:]:
            assert "log:" in rule and "benchmark:" in rule and "threads:" in rule and "resources:" in rule, rule[:40]


def test_given_writes_lists_as_several_values_and_skips_empty_ones():
    files = {"plan": "p.json", "spends": ["a b.json", "c.json"], "scores": []}
    assert given(files) == "--plan p.json --spends 'a b.json' c.json"
