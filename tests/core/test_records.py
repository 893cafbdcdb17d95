import dataclasses
import subprocess
import sys

import pytest

from dpsapf.errors import UserError
from dpsapf.fields import check, schema_of, setting
from dpsapf.formats import Plan
from dpsapf.randomness import child_seed, numpy_generator, torch_generator
from dpsapf.records import atomic, git_commit, provenance, read_record, sha256, write_record


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_records_survive_the_round_trip(tmp_path, plan):
    write_record(tmp_path / "plan.json", plan)
    assert read_record(tmp_path / "plan.json", Plan) == plan


def test_unknown_missing_and_wrong_keys_are_refused(tmp_path, plan):
    write_record(tmp_path / "plan.json", plan)
    text = (tmp_path / "plan.json").read_text()
    for old, new in (('"images"', '"imagez"'), ('"images": 3500', '"images": "many"'), ('"steps": 4', '"steps": 0')):
        assert old in text
        (tmp_path / "bad.json").write_text(text.replace(old, new))
        with pytest.raises(UserError):
            read_record(tmp_path / "bad.json", Plan)


def test_a_record_that_breaks_its_schema_is_not_written(tmp_path, plan):
    bad = dataclasses.replace(plan, images="many")
    with pytest.raises(UserError, match="images = 'many'"):
        write_record(tmp_path / "plan.json", bad)
    assert not list(tmp_path.iterdir())


def test_digest_of_a_folder_sees_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    first = sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert sha256(tmp_path) != first
    (tmp_path / "b").write_text("2")
    assert sha256(tmp_path) != first


def test_provenance_names_versions():
    record = provenance()
    assert record["versions"]["opacus"] and record["python"].startswith("3.")
    assert git_commit() is None or len(git_commit()) >= 12


def test_child_seeds_depend_on_every_name():
    seeds = {child_seed(0), child_seed(1), child_seed(0, "a"), child_seed(0, "a", 1), child_seed(0, "a", 2), child_seed(0, "b")}
    assert len(seeds) == 6 and all(0 <= seed < 2**63 for seed in seeds)
    assert child_seed(0, "a", 1) == child_seed(0, "a", 1)


def test_generators_leave_the_global_state_alone():
    import numpy
    import torch

    before = torch.get_rng_state(), numpy.random.get_state()[1].copy()  # noqa: NPY002
    torch.randn(3, generator=torch_generator(0, "x"))
    numpy_generator(0, "x").normal(size=3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == numpy.random.get_state()[1]).all()  # noqa: NPY002


@dataclasses.dataclass(frozen=True)
class Sized:
    size: int = setting("a size", 1, unit="pixels", low=1, high=8)
    names: tuple[str, ...] = setting("names", ())


def test_schema_carries_help_unit_and_range():
    size = schema_of(Sized)["properties"]["size"]
    assert size == {"type": "integer", "minimum": 1, "maximum": 8, "description": "a size [pixels]", "default": 1}


def test_check_names_key_value_and_remedy():
    with pytest.raises(UserError, match="size = 9: must be at most 8"):
        check(Sized(size=9))


def test_commands_that_need_no_torch_do_not_import_it():
    code = (
        "import sys, dpsapf.cli, dpsapf.privacy.plan, dpsapf.saliency.select, "
        "dpsapf.datasets.prepare, dpsapf.aggregation.collect, "
        "dpsapf.aggregation.aggregate, dpsapf.workflow, paper_figures.draw; assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
