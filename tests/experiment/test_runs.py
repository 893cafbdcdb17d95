import pytest

from dpsapf.experiment.runs import RunSpec, Study, expand, normalise, number
from dpsapf.support.checked import parse, replace
from dpsapf.support.errors import UserError


def test_id_is_readable_and_stable(run):
    assert run.id == "mnist5k--public-mini--dp-sapf-matrix-r30-energy-s10--eps10--seed0"
    assert run.scores_id == "mnist5k--public-mini--attention-energy-s10--seed0"


@pytest.mark.parametrize(("value", "text"), [(10.0, "10"), (0.2, "0.2"), (30.000000000000004, "30"), (5, "5")])
def test_numbers_in_names(value, text):
    assert number(value) == text


def test_axes_that_a_method_ignores_are_dropped():
    spec = RunSpec(dataset="d", public_model="m", method="no-finetune", level="layer", ratio=0.1, sigma_s=1.0, epsilon=2.0)
    assert normalise(spec).id == "d--m--no-finetune--seed0"
    lora = normalise(RunSpec(dataset="d", public_model="m", method="dp-lora", level="layer", ratio=0.1, sigma_s=1.0, epsilon=2.0))
    assert lora.id == "d--m--dp-lora--eps2--seed0"


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("dp-sapf", "block-r30-share-ptr-s5-attention+ffn-dora--eps2"),
        ("dp-lora", "attention+ffn-dora--eps2"),
        ("dp-full", "-eps2"),
        ("dp-ldm", "-eps2"),
        ("random", "block-r30-attention+ffn-dora--eps2"),
        ("noisy", "block-r30-share-ptr-s5-attention+ffn-dora--eps2"),
        ("no-lora", "block-r30-share-ptr-s5-attention+ffn--eps2"),
        ("all-params", "block-r30-share-ptr-s5--eps2"),
        ("dp-bitfit", "-eps2"),
        ("clip-only", "block-r30-share-attention+ffn-dora"),
        ("no-dp", "block-r30-share-attention+ffn-dora"),
        ("no-finetune", ""),
    ],
)
def test_ids_name_what_changes_a_methods_result(name, axes):
    values = {"level": "block", "ratio": 0.3, "score": "share", "mechanism": "ptr", "sigma_s": 5.0, "epsilon": 2.0}
    spec = RunSpec(dataset="d", public_model="m", method=name, candidates="attention+ffn", adapter="dora", **values)
    assert normalise(spec).id == "--".join(filter(None, ["d", "m", f"{name}-{axes}".rstrip("-"), "seed0"]))


def test_scores_are_shared_by_what_they_depend_on():
    study = Study(dataset=("a",), method=("dp-sapf", "noisy", "no-lora"), ratio=(0.1, 0.5), level=("matrix", "block"))
    assert {run.scores_id for run in expand({"s": study})} == {"a--public-mini--attention-energy-s5--seed0"}
    peeled = expand({"s": replace(study, mechanism=("exponential",))})
    assert len({run.scores_id for run in peeled}) == 4  # what they release is a selection
    others = expand({"s": replace(study, method=("no-dp", "all-params"))})
    assert {run.scores_id for run in others} == {
        "a--public-mini--attention-energy--seed0",
        "a--public-mini--all-params-energy-s5--seed0",
    }


def test_studies_share_runs():
    main = Study(dataset=("a", "b"), method=("dp-sapf", "dp-lora", "no-finetune"))
    ratios = Study(dataset=("a",), method=("dp-sapf",), ratio=(0.1, 0.3))
    runs = expand({"main": main, "ratios": ratios})
    assert len(runs) == 7
    assert len({run.id for run in runs}) == 7


def test_methods_without_selection_do_not_multiply_over_ratios():
    study = Study(
        dataset=("a",), method=("dp-lora", "no-finetune"), ratio=(0.1, 0.2), level=("matrix", "layer"), epsilon=(1.0, 10.0)
    )
    assert [run.id for run in expand({"s": study})] == [
        "a--public-mini--dp-lora--eps1--seed0",
        "a--public-mini--dp-lora--eps10--seed0",
        "a--public-mini--no-finetune--seed0",
    ]


def test_a_ratio_sweep_shares_one_release():
    runs = expand({"s": Study(dataset=("a",), method=("dp-sapf",), ratio=(0.1, 0.5), epsilon=(1.0, 10.0))})
    assert len(runs) == 4 and len({run.scores_id for run in runs}) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": ()}, r"studies.s: dataset = \[\]: needs at least one value"),
        ({"ratio": (0.0,)}, "ratio.0 = 0.0: must be greater than 0"),
        ({"ratio": (1.5,)}, "ratio.0 = 1.5: must be at most 1"),
        ({"epsilon": (-1.0,)}, "epsilon.0 = -1.0: must be greater than 0"),
        ({"method": ("dp-lara",)}, "method.0 = 'dp-lara': must be one of dp-sapf"),
        ({"level": ("head",)}, "level.0 = 'head': must be one of matrix, layer, block"),
    ],
)
def test_bad_axes_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        parse(Study, {"dataset": ("a",), "method": ("dp-sapf",)} | changes, "studies.s")


def selecting(**axes):
    return parse(Study, {"dataset": ["a"], "method": ["dp-sapf"], "score": ["signal"]} | axes, "studies.s")


def test_a_rule_may_find_the_ratio():
    (run,) = expand({"s": selecting(ratio=["auto"], rule=["noise-aware"])})
    assert run.ratio is None and run.id == "a--public-mini--dp-sapf-matrix-auto-noise-aware-signal-s5--eps10--seed0"
    assert [run.ratio for run in expand({"s": selecting(ratio=["auto", 0.2], rule=["gap"])})] == [None, 0.2]


def test_noise_may_find_the_learning_rate():
    axes = {"learning_rate": ["auto", 0.5], "rule": ["noise-budget"], "ratio": [0.3]}
    assert [run.learning_rate for run in expand({"s": selecting(**axes)})] == ["auto", 0.5]
    (run,) = expand({"s": selecting(learning_rate=["auto"], method=["dp-lora"], adapter=["ffa-lora"])})
    assert run.learning_rate == "auto" and run.id == "a--public-mini--dp-lora-ffa-lora--lrauto--eps10--seed0"


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"ratio": ["auto"]}, "ratio = 'auto': needs a rule that finds it, of gap, noise-aware, equal-curvature, noise-budget"),
        ({"ratio": ["auto"], "method": ["random"]}, "ratio = 'auto': needs a rule that finds it"),
        ({"ratio": ["auto"], "rule": ["gap"], "mechanism": ["ptr"]}, r"ratio = .auto.: needs a rule .*mechanism gaussian"),
        ({"rule": ["noise-aware"], "score": ["share"]}, "rule = 'noise-aware': needs score signal, .* has share"),
        (
            {"rule": ["noise-aware"], "method": ["no-lora"]},
            "rule = 'noise-aware': needs a method that trains an adapter.*no-lora",
        ),
        ({"rule": ["equal-curvature"], "mechanism": ["exponential"]}, "rule = 'equal-curvature': needs score signal"),
        ({"rule": ["noise-budget"], "adapter": ["dora"]}, "rule = 'noise-budget': needs adapter lora or ffa-lora .* has dora"),
        ({"rule": ["noise-budget"], "lora_rank": [8]}, "rule = 'noise-budget': .* of the config's rank.* rank 8"),
        ({"lora_rank": ["auto"], "adapter": ["dora"]}, "lora_rank = 'auto': needs adapter lora or ffa-lora.*has dora"),
        ({"lora_rank": ["auto"], "learning_rate": ["auto"]}, "learning_rate = 'auto': .* of the config's rank.* rank auto"),
        ({"learning_rate": ["auto"], "method": ["dp-full"]}, "learning_rate = 'auto': needs adapter .*dp-full has None"),
        (
            {"learning_rate": ["auto"], "rule": ["noise-budget"], "ratio": ["auto"]},
            "learning_rate = 'auto': needs a ratio: rule noise-budget finds it from the learning rate",
        ),
    ],
)
def test_a_rule_that_cannot_do_it_is_refused(axes, message):
    with pytest.raises(UserError, match=message):
        expand({"s": selecting(**axes)})
