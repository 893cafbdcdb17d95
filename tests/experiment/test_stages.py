import typing
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from dpsapf.cli.commands import MODULES
from dpsapf.experiment.fields import READS, WRITES
from dpsapf.experiment.settings import Config, FinetuneConfig, PrivacyConfig, SaliencyConfig, SamplingConfig
from dpsapf.experiment.stages import (
    Aggregate,
    AuditPrivacy,
    Bench,
    Check,
    CollectMetrics,
    CompareScores,
    ComposeReleases,
    Evaluate,
    Evolve,
    Finetune,
    PlanPrivacy,
    PretrainPublicModel,
    Sample,
    ScoreSaliency,
    SpendAgain,
)
from dpsapf.support.checked import Checked

STAGES = list(MODULES)
SECTIONS = [field.annotation for field in Config.model_fields.values() if isinstance(field.annotation, type)]
FIELDS = [item for kind in SECTIONS if issubclass(kind, Checked) for item in kind.model_fields.items()]
COUNTS = Counter(name for name, _ in FIELDS)
KEYS = {name: field for name, field in FIELDS if COUNTS[name] == 1}  # steps, for one, has two meanings
# no config sets them; and nothing is scored without being told where its noise comes from
BY_HAND = {(Bench, "threads"), (PretrainPublicModel, "threads"), (ComposeReleases, "delta"), (ScoreSaliency, "noise")}
BY_HAND |= {(PlanPrivacy, axis) for axis in ("lora_rank", "optimizer")}  # axes of a run: null is the section's
BY_HAND |= {(AuditPrivacy, "count")}  # of methods that let images evolve: null is any other
BY_HAND |= {(PlanPrivacy, "protocol")}  # of a protocol that releases something: null is any other


def required(stage):
    """Options of a stage: of its required fields those that are paths, by their own names, and the source of noise."""
    needed = {name: field for name, field in stage.model_fields.items() if field.is_required()}
    return {
        name: "seed" if name == "noise" else f"{name}.x" for name in needed if name == "noise" or needed[name].json_schema_extra
    }


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_files_and_only_files_say_whether_they_are_read_or_written(stage):
    """An output without its role would be missing from dry runs; an input would not be checked."""
    for name, field in stage.model_fields.items():
        holds_paths = field.annotation is Path or Path in typing.get_args(field.annotation)
        assert holds_paths == (field.json_schema_extra in (READS, WRITES)), name
    writes = any(field.json_schema_extra == WRITES for field in stage.model_fields.values())
    assert writes == (stage not in (Check, SpendAgain)), "they change no file that is named"


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_every_option_has_its_help_in_one_line(stage):
    for name, field in stage.model_fields.items():
        assert field.description and "\n" not in field.description and not field.description.endswith("."), name


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_a_stage_declares_a_config_key_as_the_config_does(stage):
    """Type, range and default are the section's, also where a stage takes some keys only."""
    for name in set(stage.model_fields) & set(KEYS):
        fields = [stage.model_fields[name], KEYS[name]]
        if (stage, name) not in BY_HAND:
            assert len({(repr(field.annotation), repr(field.metadata), repr(field.default)) for field in fields}) == 1, name


SETS = set(SaliencyConfig.model_fields) | set(FinetuneConfig.model_fields) | set(PrivacyConfig.model_fields)
TOLD_TWICE = {  # what a stage is told of another one's work, and who finds a contradiction
    "ScoreSaliency": "the audit compares its spend record with the plan, key by key",
    "CompareScores": "nothing is released or trained from it",
    "CompareRankings": "nothing is released or trained from it",
    "SelectMatrices": "it says what is going to be trained, and what was measured at another scale is refused",
    "MeasureFragility": "its file says the scale alpha/rank, and whoever reads it compares",
    "ComposeReleases": "its delta is the one that epsilon is asked for",
    "ImportImages": "its delta is what another group claims",
    "PlanPrivacy": "it is the first that is told",
    "Finetune": "it is the first that is told",
    "AuditPrivacy": "it compares what was written with what the config says",
}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_no_option_describes_what_another_stage_has_written(stage):
    """It stands in what was written: an option could say something else, and the result would be wrong without a word."""
    told = {name for name, field in stage.model_fields.items() if field.json_schema_extra not in (READS, WRITES)}
    own = set(PretrainPublicModel.model_fields) | set(SamplingConfig.model_fields)  # steps, batch: words with other meanings
    assert bool(told & SETS - own) == (stage.__name__ in TOLD_TWICE)


BAD = [
    (Bench, {"batch": 0}, "batch"),
    (Bench, {"architecture": "sd-v2"}, "architecture"),
    (PretrainPublicModel, {"images": 63}, "images"),
    (PretrainPublicModel, {"batch": 1}, "batch"),
    (PretrainPublicModel, {"minutes": 0}, "minutes"),
    (PretrainPublicModel, {"seed": -1}, "seed"),
    (ScoreSaliency, {"delta": 0.2}, "delta"),
    (ScoreSaliency, {"sigma_s": 0}, "sigma_s"),
    (ScoreSaliency, {"ratio": 1.01}, "ratio"),
    (ScoreSaliency, {"mechanism": "laplace"}, "mechanism"),
    (CompareScores, {"sigma_s": (1.0, -1.0)}, "sigma_s"),
    (CompareScores, {"draws": 0}, "draws"),
    (Evaluate, {"protocol": "p", "what": ("fid",)}, "what"),
    (Evolve, {"count": 2, "protocol": "p", "first_degree": 1.01}, "first_degree"),
    (Evolve, {"count": 2, "protocol": "p", "last_degree": 0.0}, "last_degree"),
    (Evolve, {"count": 2, "protocol": "p", "lookahead": -1}, "lookahead"),
    (Evolve, {"count": 2, "protocol": "p", "variants": 1}, "variants"),
    (Evolve, {"count": 2, "protocol": "p", "threshold": -0.1}, "threshold"),
    (Sample, {"count": 2, "guidance_scale": 0.9}, "guidance_scale"),
    (Finetune, {"learning_rate_lora": 1e-3, "learning_rate_full": 1e-3, "ema_decay": 1.0}, "ema_decay"),
    (CollectMetrics, {"images": 3}, "images"),
]


@pytest.mark.parametrize(("stage", "changes", "name"), BAD, ids=lambda value: getattr(value, "__name__", None))
def test_a_value_out_of_range_is_refused_by_its_name(stage, changes, name):
    good = {key: value for key, value in changes.items() if key != name}
    with pytest.raises(ValidationError) as caught:
        stage(**required(stage), **changes)
    (error,) = caught.value.errors()
    assert error["loc"][0] == name
    assert stage(**required(stage), **good), "and nothing else is wrong"


def test_an_omitted_file_is_named():
    for name in required(Aggregate):
        files = {key: value if key != "metrics" else (value,) for key, value in required(Aggregate).items() if key != name}
        with pytest.raises(ValidationError, match=f"{name}\n  Field required"):
            Aggregate(**files)
