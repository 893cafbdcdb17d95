import re
import shlex
from pathlib import Path

import pytest
import yaml
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from dpsapf.cli.main import application
from dpsapf.cli.rules import (
    flags,
    given,
    run_pattern,
    score_flags,
    selection_files,
)
from dpsapf.experiment.layout import Layout
from dpsapf.experiment.methods import METHODS, method
from dpsapf.experiment.registries import ProtocolEntry, entry_digest, load_yaml
from dpsapf.experiment.run_files import audit_files, own_files
from dpsapf.experiment.runs import Study, expand, normalise
from dpsapf.experiment.settings import ComputeConfig, FinetuneConfig, PrivacyConfig, SamplingConfig
from dpsapf.experiment.stages import Finetune
from dpsapf.support.checked import replace

ROOT = Path(__file__).parents[2]
APP = application()
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=("Cs",)), min_size=1)
STUDY = Study(dataset=("d",), method=tuple(METHODS), ratio=(0.1, 0.5), level=("matrix", "block"), seed=(0, 1))
WIDE = replace(STUDY, mechanism=("gaussian", "exponential"), score=("energy", "vote"), sigma_s=(5.0, 0.25), epsilon=(1.0, 10.0))
WIDE = replace(WIDE, candidates=("attention", "attention+ffn"))


def test_flags_leave_nulls_out():
    assert flags(SamplingConfig(count=10)) == "--count 10 --steps 25 --sampler model --guidance-scale 7.0"
    text = flags(PrivacyConfig(steps=1, expected_batch_size=2), only=("steps", "delta"), prefix="x.")
    assert text == "--x.steps 1"


@pytest.mark.parametrize(("value", "flag"), [(True, "--gradient-checkpointing"), (False, "--no-gradient-checkpointing")])
def test_truth_values_are_flags_without_a_value(value, flag):
    section = FinetuneConfig(learning_rate_lora=1e-3, learning_rate_full=1e-4, gradient_checkpointing=value)
    assert flags(section, only=("gradient_checkpointing",)) == flag


@settings(max_examples=40, deadline=None)
@for_all(
    st.builds(
        FinetuneConfig,
        learning_rate_lora=st.floats(1e-300, 1e300),
        learning_rate_full=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
        lora_rank=st.integers(1, 10**6),
        ema_decay=st.floats(0, 0.9999),
        gradient_checkpointing=st.booleans(),
    ),
    st.builds(ComputeConfig, threads=st.integers(1, 64)),
    st.lists(NAMES.map("folder/{}".format), min_size=9, max_size=9),
)
def test_the_command_line_reads_what_a_rule_writes(finetune, compute, files):
    names = ("plan", "model", "selection", "latents", "prompts", "weights", "training_log", "spend", "private")
    paths = dict(zip(names, files, strict=True))
    words = shlex.split(f"finetune {given(paths)} {flags(finetune, compute)}")
    _, bound, *_ = APP.parse_args(words, exit_on_error=False, print_error=False)
    assert bound.kwargs["options"] == Finetune(**paths, **dict(finetune), **dict(compute))


def test_given_writes_lists_as_several_values_and_skips_empty_ones():
    files = {"plan": "p.json", "spends": ["a b.json", "c.json"], "scores": []}
    assert given(files) == "--plan p.json --spends 'a b.json' c.json"
    assert given({"training_log": Path("it's").parts}) == "--training-log 'it'\"'\"'s'"
    assert given({}) == ""


def test_flags_of_scores_are_those_of_the_release(run):
    assert score_flags(run) == "--candidates attention --score energy --mechanism gaussian --sigma-s 10.0 --seed 0"
    peeled = replace(run, mechanism="exponential", candidates="attention+ffn")
    assert score_flags(peeled).startswith("--candidates attention+ffn ")
    assert "--level matrix --ratio 0.3" in score_flags(peeled), "what it releases is a selection"
    exact = normalise(replace(run, method="no-dp"))
    assert score_flags(exact) == "--candidates attention --score energy --seed 0"
    assert score_flags(normalise(replace(run, method="all-params"))).startswith("--candidates all-params ")


def test_runs_share_scores_if_and_only_if_the_stage_is_given_the_same():
    selecting = [run for run in expand({"wide": WIDE}) if method(run.method).selects]
    pairs = {(run.scores_id, score_flags(run)) for run in selecting}
    ids, words = zip(*pairs, strict=True)
    assert len(pairs) == len(set(ids)) == len(set(words)) > 50


def test_inputs_of_a_run_depend_on_its_method(run):
    layout = Layout(Path("r"))
    both = [f"r/cache/scores/{run.scores_id}", f"r/runs/{run.id}"]
    assert audit_files(layout, run) == {
        "plan": f"{both[1]}/plan.json",
        "spends": [f"{place}/spend.json" for place in both],
        "privates": [f"{place}/private.json" for place in both],
        "scores": f"{both[0]}/scores.csv",
        "selection": f"{both[1]}/selection.csv",
        "selection_record": f"{both[1]}/selection.json",
        "weights": f"{both[1]}/weights.safetensors",
        "model": "r/cache/public_models/public-mini/model.json",
        "candidate_table": "r/cache/public_models/public-mini/candidates.csv",
    }
    assert "fragility" in audit_files(layout, replace(run, score="signal", rule="noise-aware"))
    lora = normalise(replace(run, method="dp-lora"))
    assert audit_files(layout, lora)["spends"] == [f"r/runs/{lora.id}/spend.json"] and "scores" not in audit_files(layout, lora)
    public = normalise(replace(run, method="no-finetune"))
    assert audit_files(layout, public) == {"plan": f"r/runs/{public.id}/plan.json", "spends": [], "privates": []}
    assert own_files(layout, public, "weights", "spend") == {}
    evolved = normalise(replace(run, method="pe"))
    assert audit_files(layout, evolved) == {
        "plan": f"r/runs/{evolved.id}/plan.json",
        "spends": [f"r/runs/{evolved.id}/spend.json"],
        "privates": [f"r/runs/{evolved.id}/private.json"],
        "population": f"r/runs/{evolved.id}/population.safetensors",
        "dataset": "r/cache/datasets/mnist5k/dataset.json",
    }
    assert set(own_files(layout, evolved, "selection", "spend", "private", "training_log")) == {"spend", "private"}
    assert own_files(layout, lora, "weights") == {"weights": f"r/runs/{lora.id}/weights.safetensors"}


def test_files_of_training_are_the_named_ones_in_their_order(run):
    found = own_files(Layout("r"), run, "training_log", "spend")
    assert list(found.items()) == [("training_log", f"r/runs/{run.id}/private_log.csv"), ("spend", f"r/runs/{run.id}/spend.json")]
    with pytest.raises(KeyError, match="ledger"):
        own_files(Layout("r"), run, "ledger")


def test_a_pattern_matches_the_ids_of_its_runs_alone():
    runs = expand({"s": Study(dataset=("a.b",), method=("pe", "dp-lora", "no-finetune"), seed=(1, 11))})
    evolved = [run for run in runs if method(run.method).evolves]
    found = [run for run in runs if re.fullmatch(run_pattern(evolved), run.id)]
    assert found == evolved and len(found) == 2
    assert not re.fullmatch(run_pattern(evolved), evolved[0].id.replace("a.b", "axb"))
    assert not re.fullmatch(run_pattern([]), "") and not re.fullmatch(run_pattern([]), runs[0].id)


def test_inputs_that_a_command_does_not_take_are_left_out():
    assert given({"fetched": "a.txt", "features": "b"}, besides=("fetched",)) == "--features b"
    assert given({"fetched": "a.txt", "features": "b"}) == "--fetched a.txt --features b"


def protocols(tmp_path, **changes):
    """Digests of the two protocols, after changes to the second."""
    data = load_yaml(ROOT / "config" / "protocols.yaml")
    data["demo-v2"] |= changes
    (tmp_path / "protocols.yaml").write_text(yaml.safe_dump(data))
    return [entry_digest(tmp_path / "protocols.yaml", name, ProtocolEntry) for name in ("demo-v1", "demo-v2")]


def test_an_entrys_digest_ignores_other_entries(tmp_path):
    first, second = protocols(tmp_path, neighbours=5), protocols(tmp_path, neighbours=6)
    assert first[0] == second[0] and first[1] != second[1]


def test_an_entrys_digest_is_of_what_it_means_not_of_how_it_is_written(tmp_path):
    fields, data = ProtocolEntry.model_fields, load_yaml(ROOT / "config" / "protocols.yaml")["demo-v2"]
    defaults = {name: field.default for name, field in fields.items() if not field.is_required() and name not in data}
    assert defaults and protocols(tmp_path) == protocols(tmp_path, **defaults)


def test_a_selection_reads_what_its_rule_needs(run):
    layout = Layout(Path("results/x"))
    assert set(selection_files(layout, run)) == {"plan", "candidate_table", "scores"}
    assert set(selection_files(layout, normalise(replace(run, method="random")))) == {"plan", "candidate_table"}
    weighing = replace(run, rule="noise-aware", score="signal")
    assert selection_files(layout, weighing)["fragility"] == "results/x/cache/fragility/mnist5k--public-mini--attention.csv"
    assert "signal" in selection_files(layout, weighing)["scores"]
    assert "fragility" in selection_files(layout, replace(weighing, rule="noise-budget"))
    assert "fragility" in selection_files(layout, replace(weighing, rule="top", lora_rank="auto"))
    assert "fragility" not in selection_files(layout, replace(weighing, rule="top", lora_rank=4))
