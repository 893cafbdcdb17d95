"""A dataset that holds nothing out: each stage that needs held-out images says so, in one line, and writes nothing."""

import ast
from pathlib import Path

import numpy as np
import pytest
import yaml

import dpsapf
from dpsapf.datasets.prepared import read_part
from dpsapf.evaluation.diagnostics import diagnose
from dpsapf.evaluation.evaluate import evaluate
from dpsapf.support.errors import UserError
from tests.evaluation.test_diagnostics import options as diagnosis
from tests.evaluation.test_evaluate import options, reference
from tests.prepared_dataset import write_dataset


@pytest.fixture
def trained_on_all(folder):
    """The folder's dataset without its held-out images."""
    part = read_part(folder / "dataset.safetensors", "train")
    write_dataset(folder / "dataset.safetensors", {"train": (part[:], part.labels)})
    return folder


def refused(call, needed_for):
    with pytest.raises(
        UserError, match=f"has no test images, which {needed_for} needs: test is 0 in the dataset's entry"
    ) as error:
        call()
    assert "\n" not in str(error.value)


def test_reference_features_need_test_images(trained_on_all):
    refused(lambda: reference(trained_on_all), "the accuracy of classifiers")
    assert not (trained_on_all / "features.safetensors").exists() and not (trained_on_all / "ceiling.json").exists()


def test_evaluate_needs_test_images_and_says_so_before_it_measures(trained_on_all):
    (trained_on_all / "features.safetensors").write_bytes(b"never read")
    refused(lambda: evaluate(options(trained_on_all)), "the accuracy of classifiers")
    assert not (trained_on_all / "fidelity.json").exists()


def test_diagnose_needs_test_images(trained_on_all):
    refused(lambda: diagnose(diagnosis(trained_on_all)), "diagnose")


@pytest.mark.parametrize("key", [{"reference_split": "test"}, {"metrics": ["fld"]}])
def test_a_protocol_that_compares_with_test_images_needs_them(trained_on_all, key):
    protocols = yaml.safe_load((trained_on_all / "protocols.yaml").read_text())
    (trained_on_all / "protocols.yaml").write_text(yaml.safe_dump({"tiny-v1": protocols["tiny-v1"] | key}))
    refused(lambda: reference(trained_on_all), "(protocol tiny-v1|the accuracy of classifiers)")


def test_training_images_are_there(trained_on_all):
    assert np.array_equal(read_part(trained_on_all / "dataset.safetensors", "train").labels, np.arange(60) % 2)


def test_no_code_reads_a_split_that_may_be_empty_without_saying_what_it_needs():
    """`read_held_out` refuses an empty split; `read_part` of a held-out split by its name does not."""
    calls = [
        (path.name, node)
        for path in Path(dpsapf.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "read_part"
    ]
    splits = [(name, ast.unparse(call.args[1])) for name, call in calls]
    assert {("prepare.py", "'train'"), ("encode.py", "'train'")} <= set(splits), "what is looked at"
    assert {told for _, told in splits} <= {"'train'", "name", "split"}, "literals of held-out splits"
    assert {name for name, told in splits if told in ("name", "split")} == {"plan.py", "prepare.py", "prepared.py"}, (
        "plan.py digests images, maybe none"
    )
