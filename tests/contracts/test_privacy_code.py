"""What a reviewer would grep for."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dpsapf"
SOURCES = sorted(PACKAGE.rglob("*.py"))
# draws that are not privacy noise: the diffusion's own, and public training
DRAWS = {"privacy/noise.py", "public_models/latents.py", "pretraining/pretrain.py", "public_models/encode.py"}


def calls(path):
    """Dotted names of everything that a file calls."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_privacy_noise_is_added_in_two_stages_only():
    users = {path.relative_to(PACKAGE).as_posix() for path in SOURCES if "add_gaussian_noise" in set(calls(path))}
    assert users == {"privacy/mechanisms.py", "finetune/dp_sgd.py"}


def test_normal_draws_are_where_they_belong():
    users = {path.relative_to(PACKAGE).as_posix() for path in SOURCES if "torch.randn" in set(calls(path))}
    assert users <= DRAWS


def test_clipping_is_computed_in_one_module():
    pattern = re.compile(r"\.clamp\(.*max=1|bound / ")
    users = {path.relative_to(PACKAGE).as_posix() for path in SOURCES if pattern.search(path.read_text())}
    assert users == {"privacy/clipping.py"}


@pytest.mark.parametrize(
    "forbidden", ["torch.load", "pickle.load", "pickle.loads", "np.random.seed", "torch.manual_seed", "eval"]
)
def test_what_must_not_be_called(forbidden):
    users = {path.relative_to(PACKAGE).as_posix() for path in SOURCES if forbidden in set(calls(path))}
    forked = {
        "finetune/adapters.py",
        "pretraining/pretrain.py",
        "evaluation/utility.py",
        "bench/compare.py",
    }  # inside torch.random.fork_rng
    lent = {"evaluation/fidelity.py"}  # clean-fid's global draws: seeded for the call, then given back
    allowed = {"torch.manual_seed": forked, "np.random.seed": lent}
    assert users <= allowed.get(forbidden, set())
    for user in users - lent:
        assert "torch.random.fork_rng(" in (PACKAGE / user).read_text()


def test_no_array_is_read_with_pickles():
    for path in SOURCES:
        for line in path.read_text().splitlines():
            assert "np.load(" not in line or "allow_pickle=False" in line


def test_no_image_without_an_audit():
    """The only way to sampling is a ledger, and the only writer of ledgers is the audit."""
    writers = [path for path in SOURCES if "Ledger" in set(calls(path))]
    assert [path.name for path in writers] == ["audit.py"]
    rule = (PACKAGE.parent / "workflow" / "rules" / "common.smk").read_text()
    assert '"ledger": LAYOUT.run(run.id, "ledger.json")' in rule
