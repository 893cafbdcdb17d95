from pathlib import Path

from dpsapf.experiment.fields import READS, WRITES, paths
from dpsapf.experiment.stages import AuditPrivacy, Evaluate, SelectMatrices
from dpsapf.support.checked import replace


def test_paths_are_those_of_a_role_and_given():
    options = SelectMatrices(plan="p", candidate_table="c", out="o", record="r")
    assert paths(options, READS) == {"plan": [Path("p")], "candidate_table": [Path("c")]}
    assert paths(replace(options, scores="s"), READS)["scores"] == [Path("s")]
    assert paths(options, WRITES) == {"out": [Path("o")], "record": [Path("r")]}


def test_several_files_are_a_list_and_none_are_an_empty_one():
    assert paths(AuditPrivacy(plan="p", spends=("a", "b"), out="o"), READS)["spends"] == [Path("a"), Path("b")]
    assert paths(AuditPrivacy(plan="p", out="o"), READS)["spends"] == []


def test_a_default_file_is_read_too():
    options = Evaluate(synthetic="s", archive="a", dataset="d", features="f", protocol="demo-v1")
    assert paths(options, READS)["registry"] == [Path("config/protocols.yaml")]
    assert paths(options, WRITES) == {}, "one may ask for neither"
    assert list(paths(replace(options, utility="u"), WRITES)) == ["utility"]
