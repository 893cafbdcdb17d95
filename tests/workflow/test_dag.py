import re
import subprocess
import sys
from pathlib import Path

import yaml
from PIL import Image

from dpsapf.experiment.registries import load_yaml
from dpsapf.experiment.settings import parse_config

ROOT = Path(__file__).parents[2]


def dry_run(*words):
    command = [sys.executable, "-m", "snakemake", "-n", "--cores", "2", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def counts(text):
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", text, re.MULTILINE)}


def test_demo_expands_to_twenty_trained_runs(tmp_path):
    data = load_yaml(ROOT / "config" / "config.yaml") | {"name": "never-run"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
    result = dry_run("--configfile", str(tmp_path / "config.yaml"))
    jobs = counts(result.stdout)
    assert result.returncode == 0, result.stderr
    assert "fetch_evaluation_weights" not in jobs, "the demo's network is packaged"
    assert jobs["finetune"] == 20 and jobs["sample"] == jobs["evaluate"] == jobs["audit_privacy"] == 24
    assert jobs["score_saliency"] == jobs["encode_dataset"] == 4 and jobs["aggregate"] == 1 and jobs["compare_scores"] == 2


def test_a_rule_that_weighs_noise_measures_what_noise_breaks_once_for_each_candidate_set(tmp_path):
    study = {"dataset": ["mnist5k"], "method": ["dp-sapf"], "rule": ["noise-aware"], "ratio": ["auto"], "score": ["signal"]}
    study |= {"candidates": ["attention", "attention+ffn"], "seed": [0, 1]}
    data = load_yaml(ROOT / "config" / "config.yaml") | {"name": "never-run", "studies": {"s": study}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
    result = dry_run("--configfile", str(tmp_path / "config.yaml"))
    jobs = counts(result.stdout)
    assert result.returncode == 0, result.stderr
    assert jobs["measure_fragility"] == 2 and jobs["finetune"] == 4


def test_a_selection_that_costs_nothing_makes_what_it_selects_by(tmp_path):
    """Scores of another dataset, which has no run of its own, and the private one's; what noise breaks instead of scores."""
    study = {"dataset": ["mnist5k"], "method": ["proxy"], "proxy": ["fragility", "digits", "mnist5k"], "score": ["energy"]}
    data = load_yaml(ROOT / "config" / "config.yaml") | {"name": "never-run", "studies": {"s": study}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data | {"compare_scores": [], "measure_fragility": []}))
    result = dry_run("--configfile", str(tmp_path / "config.yaml"), "--printshellcmds")
    jobs = counts(result.stdout)
    assert result.returncode == 0, result.stderr
    assert jobs["finetune"] == 3 and jobs["prepare_dataset"] == jobs["encode_dataset"] == jobs["score_saliency"] == 2
    assert jobs["measure_fragility"] == jobs["reference_features"] == 1
    audits = re.findall(r"dpsapf audit-privacy .*", result.stdout)
    assert sum("--proxy-spend" in command for command in audits) == 1, "private scores are a release of the run itself"
    wrong = study | {"proxy": ["digit"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data | {"studies": {"s": wrong}}))
    refused = dry_run("--configfile", str(tmp_path / "config.yaml"))
    assert "studies.s.proxy.0 = 'digit': " in refused.stdout + refused.stderr
    system = data["privacy"] | {"noise": "system"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data | {"privacy": system}))
    refused = dry_run("--configfile", str(tmp_path / "config.yaml"))
    assert "proxy = 'mnist5k': is the private dataset of mnist5k" in refused.stdout + refused.stderr


def test_an_automatic_learning_rate_and_a_prediction_measure_what_noise_breaks(tmp_path):
    """Training at a fixed rate does not wait for it; collecting does, on the datasets that are named."""
    study = {"dataset": ["mnist5k", "digits"], "method": ["dp-lora", "dp-full"]}
    for learning_rate, predicted, expected in (([None], [], 0), (["auto"], [], 2), ([None], ["digits"], 1)):
        lora = study | {"method": ["dp-lora"], "learning_rate": learning_rate}
        data = load_yaml(ROOT / "config" / "config.yaml") | {"name": "never-run", "studies": {"a": study, "b": lora}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(data | {"measure_fragility": predicted}))
        result = dry_run("--configfile", str(tmp_path / "config.yaml"))
        assert result.returncode == 0, result.stderr
        assert counts(result.stdout).get("measure_fragility", 0) == expected


def test_plans_read_images_only_where_what_is_spent_stays_on_record(tmp_path):
    data = load_yaml(ROOT / "config" / "config.yaml") | {"name": "never-run"}
    data["studies"] = {"s": {"dataset": ["mnist5k"], "method": ["dp-lora"]}}
    for noise in ("seed", "system"):
        data["privacy"] = data["privacy"] | {"noise": noise}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
        result = dry_run("--configfile", str(tmp_path / "config.yaml"), "--printshellcmds")
        assert result.returncode == 0, result.stderr
        (command,) = re.findall(r".*dpsapf plan-privacy .*", result.stdout)
        assert ("--archive results/never-run/cache/datasets/mnist5k/dataset.safetensors" in command) == (noise == "system")


def test_runs_whose_images_evolve_and_runs_that_sample_go_their_own_ways(tmp_path):
    """Rules of both kinds write files of the same names; latents of private images are made only where something trains."""
    study = {"dataset": ["mnist5k"], "method": ["pe", "aug-pe", "no-finetune"], "epsilon": [1, 10]}
    for methods, trained in (
        (["pe", "aug-pe", "no-finetune"], 0),
        (["pe", "aug-pe", "no-finetune", "dp-lora"], 2),
        (["dp-lora"], 2),
    ):
        data = load_yaml(ROOT / "config" / "config.yaml") | {"name": "never-run", "studies": {"s": study | {"method": methods}}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(data | {"measure_fragility": [], "compare_scores": []}))
        result = dry_run("--configfile", str(tmp_path / "config.yaml"))
        assert result.returncode == 0, result.stderr
        jobs, evolved = counts(result.stdout), 4 if "pe" in methods else 0
        assert jobs.get("evolve", 0) == jobs.get("publish_population", 0) == evolved
        assert jobs.get("finetune", 0) == trained and jobs.get("encode_dataset", 0) == bool(trained)
        assert jobs.get("sample", 0) == trained + ("no-finetune" in methods)


def test_a_dataset_that_holds_nothing_out_is_sampled_and_not_evaluated(tmp_path):
    """The documented stop before the evaluation passes; what would be evaluated is refused before the first job."""
    for name in ("airplane/0.png", "truck/0.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / name)
    mine = load_yaml(ROOT / "config" / "my-datasets.yaml")["my-images"]
    mine |= {"source": str(tmp_path / "images"), "classes": ["airplane", "truck"], "prompts": ["one", "two"]}
    mine |= {"validation": 0, "test": 0}
    (tmp_path / "datasets.yaml").write_text(yaml.safe_dump({"mine": mine}))
    study = {"dataset": ["mine"], "method": ["dp-lora"]}
    data = load_yaml(ROOT / "config" / "image-folder.yaml") | {"name": "never-run", "studies": {"s": study}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data | {"datasets_file": str(tmp_path / "datasets.yaml")}))
    refused = dry_run("--configfile", str(tmp_path / "config.yaml"))
    assert refused.returncode
    assert "datasets.yaml: mine.test = 0: protocol demo-v1 needs images that are held out" in refused.stdout + refused.stderr
    (run,) = parse_config(load_yaml(tmp_path / "config.yaml")).runs
    passed = dry_run("--configfile", str(tmp_path / "config.yaml"), "--", f"results/never-run/runs/{run.id}/samples.npz")
    assert passed.returncode == 0, passed.stderr
    assert counts(passed.stdout)["sample"] == 1


def test_paper_expands(tmp_path):
    """Once its models are pinned and its files are there."""
    models = load_yaml(ROOT / "config" / "public_models.yaml")
    pinned = {name: model if "path" in model else model | {"revision": "0" * 40} for name, model in models.items()}
    pinned["realistic-vision-v6"]["vae_revision"] = "0" * 40
    datasets = load_yaml(ROOT / "config" / "datasets.yaml")
    datasets["celeba"] |= {"source": str(tmp_path)}
    for name, entries in (("public_models", pinned), ("datasets", datasets)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(entries))
    files = [f"{name}_file={tmp_path}/{name}.yaml" for name in ("public_models", "datasets")]
    result = dry_run("--configfile", "config/paper.yaml", "--profile", "slurm", "--config", *files)
    jobs = counts(result.stdout)
    assert result.returncode == 0, result.stderr
    assert jobs["prepare_dataset"] == 4 and jobs["prepare_public_model"] == 4
    assert jobs["fetch_evaluation_weights"] == 1 and jobs["reference_features"] == 4, "weights are fetched once"
    assert jobs["finetune"] < jobs["sample"] and jobs["finetune"] > 150


def test_a_dry_run_says_which_jobs_their_limit_of_time_ends(tmp_path):
    data = load_yaml(ROOT / "config" / "ci.yaml") | {"name": "never-run"}
    data["resources"] |= {"tflops": 1e-6, "runtime_min": 60}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
    result = dry_run("--configfile", str(tmp_path / "config.yaml"))
    assert result.returncode == 0, result.stderr
    told = re.findall(
        r"^([\w+]+): (\d+) jobs take .* hours by estimate.*Set runtime_min to \d+ or more", result.stdout, re.MULTILINE
    )
    assert told == [("finetune", "1"), ("sample+evaluate", "2")]


def test_a_bad_config_ends_in_one_line_before_any_rule(tmp_path):
    data = load_yaml(ROOT / "config" / "config.yaml") | {"name": "never-run"}
    data["privacy"]["step"] = 3
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
    result = dry_run("--configfile", str(tmp_path / "config.yaml"))
    assert result.returncode != 0
    assert "privacy.step = 3: unknown key" in result.stdout + result.stderr
    assert not (ROOT / "results" / "never-run").exists()


def test_every_rule_file_is_short_and_has_a_log():
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        for rule in re.split(r"^rule ", path.read_text(), flags=re.MULTILINE)[1:]:
            assert "log:" in rule and "benchmark:" in rule and "threads:" in rule and "resources:" in rule, rule[:40]


def test_images_made_elsewhere_are_taken_in_evaluated_and_collected_and_nothing_else(tmp_path):
    """No plan, no training, no audit and no sampling is theirs; in a config of its own, or beside studies."""
    theirs = {
        "label": "Their method (2025)",
        "runs": [{"dataset": "digits", "images": str(tmp_path / "theirs.zip"), "epsilon": 10}],
    }
    (tmp_path / "theirs.zip").write_bytes(b"")
    ci = load_yaml(ROOT / "config" / "ci.yaml") | {"name": "never-run"}
    for studies in ({}, ci["studies"]):
        both = []
        for external in ({"their-method": theirs}, {}):
            if not (studies or external):
                continue
            (tmp_path / "config.yaml").write_text(yaml.safe_dump(ci | {"studies": studies, "external": external}))
            result = dry_run("--configfile", str(tmp_path / "config.yaml"))
            assert result.returncode == 0, result.stderr + result.stdout
            both.append(counts(result.stdout))
        without = (
            both[1]
            if studies
            else dict.fromkeys(("prepare_dataset", "reference_features", "all", "aggregate", "draw_figures", "write_report"), 1)
        )
        more = {"import_images": 1, "evaluate": 1, "collect_external": 1}
        expected = {name: without.get(name, 0) + more.get(name, 0) for name in without | more}
        assert {name: count for name, count in both[0].items() if name != "total"} == {
            name: count for name, count in expected.items() if name != "total"
        }
