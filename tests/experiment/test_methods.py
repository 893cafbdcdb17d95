import dataclasses
import itertools
import typing
from pathlib import Path

import pytest

from dpsapf.experiment.methods import AXES, METHODS, Candidates, Method, MethodName, method
from dpsapf.experiment.runs import Study, Treatment, expand
from dpsapf.support.errors import UserError

README = Path(__file__).parents[2] / "README.md"
KINDS = [
    Method(selection=selection, trained=trained, private=private, candidates=candidates, evolves=evolves)
    for selection, trained, private, candidates, evolves in itertools.product(
        ("saliency", "proxy", "random", "all"),
        ("adapter", "weights", "attention", "biases", "unet", "nothing"),
        (True, False),
        (None, *typing.get_args(Candidates)),
        (None, "drawn"),
    )
]


def test_unknown_method_is_refused():
    with pytest.raises(UserError, match="must be one of " + ", ".join(METHODS)):
        method("pea")
    with pytest.raises(UserError, match="method = 'dp-lara': .*did you mean dp-lora\\?"):
        method("dp-lara")
    with pytest.raises(UserError, match="method = 'DP-LoRA'"):
        method("DP-LoRA")


def test_every_name_of_the_type_is_a_method_and_the_reverse():
    assert set(typing.get_args(MethodName)) == set(METHODS)
    for name in METHODS:
        assert Treatment(public_model="m", method=name).method == name


def test_every_method_is_named_in_the_readme():
    row = next(line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| methods"))
    assert {name for name in METHODS if f"`{name}`" in row} == set(METHODS)


def test_no_two_methods_are_the_same():
    assert len({dataclasses.astuple(row) for row in METHODS.values()}) == len(METHODS)


def test_a_method_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        method("dp-sapf").private = False
    with pytest.raises(TypeError):
        Method("saliency", "adapter")


def test_scores_of_private_images_are_released_with_a_mechanism_or_under_no_guarantee():
    for row in KINDS:
        assert ("score" in row.uses) == (row.selects or row.selection == "proxy")
        assert row.uses >= {"mechanism", "sigma_s"} or not (row.selects and row.private)
        assert row.uses.isdisjoint({"mechanism", "sigma_s", "epsilon"}) or row.private, "without a guarantee there is no noise"
        assert ("epsilon" in row.uses) == (row.spends and row.private)
        assert ("ratio" in row.uses) == ("level" in row.uses) == (row.selection != "all"), "a share of something, or neither"
        assert "candidates" not in row.uses or row.candidates is None, "a method's own set is no axis of its runs"


def axes_that_change(name):
    """Axes whose second value gives another run."""
    one = Study(dataset=("d",), method=(name,), proxy=("e",))
    other = {"level": "block", "ratio": 0.9, "score": "vote", "mechanism": "ptr", "sigma_s": 9.0}
    other |= {"candidates": "all-params", "adapter": "dora", "epsilon": 3.0, "rule": "least", "proxy": "f"}
    other |= {"learning_rate": 0.1, "training_steps": 9, "batch_size": 9, "lora_rank": 2, "optimizer": "adamw-8bit"}
    assert set(other) == AXES
    studies = {axis: one.model_copy(update={axis: (*getattr(one, axis), value)}) for axis, value in other.items()}
    return {axis for axis, study in studies.items() if len(expand({"s": study})) == 2}


@pytest.mark.parametrize("name", METHODS)
def test_runs_multiply_over_the_axes_that_a_method_uses(name):
    assert axes_that_change(name) == method(name).uses


def test_what_the_methods_differ_in():
    """The paper's variants: each leaves one thing of dp-sapf out, or changes one."""
    ours = method("dp-sapf").uses
    assert ours - method("dp-lora").uses == {"level", "ratio", "score", "mechanism", "sigma_s", "rule"}, "the selection"
    assert ours - method("random").uses == {"score", "mechanism", "sigma_s", "rule"}, "data-free"
    assert ours - method("proxy").uses == {"mechanism", "sigma_s", "rule"}, "nothing is released"
    assert method("proxy").uses - ours == {"proxy"}
    assert ours - method("no-lora").uses == {"adapter", "lora_rank"}
    assert ours - method("no-dp").uses == {"mechanism", "sigma_s", "epsilon"}
    assert method("noisy").uses == ours and method("noisy").randomises_rest
    assert [name for name, row in METHODS.items() if not row.trains] == ["pe", "aug-pe", "no-finetune"]
    assert [name for name, row in METHODS.items() if not row.spends] == ["no-finetune"] and not method("no-finetune").uses
    assert method("pe").uses == method("aug-pe").uses == {"epsilon"}, "votes are all that is released"
    assert [name for name, row in METHODS.items() if not row.private] == ["clip-only", "no-dp"]
