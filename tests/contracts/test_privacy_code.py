"""What a reviewer would grep for."""

import ast
import functools
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dpsapf"
SOURCES = sorted(PACKAGE.rglob("*.py"))
NOISE = {"add_gaussian_noise", "gumbel_noise", "laplace_noise"}
RELEASES = ("finetune/train.py", "finetune/dp_sgd.py", "saliency/score.py", "evolution/votes.py")
SECRET_DRAWS = {"torch_generator", "SystemNoise", "SeededNoise", "_system_generator"}
NORMALS = {"randn", "randn_like", "normal", "normal_", "standard_normal", "ndtri", "log_normal_", "NormalDistribution", "Normal"}
# privacy noise and what measures it; the diffusion's own draws; random weights; public training; a benchmark's data
DRAWN = {"privacy/noise.py", "public_models/latents.py", "public_models/encode.py"}
DRAWN |= {"finetune/adapters.py", "pretraining/pretrain.py", "pretraining/public_data.py", "bench/steps.py"}
DRAWN |= {"saliency/fragility.py", "saliency/expected.py", "optimization/noise_walk.py"}  # what noise would do in public
MEASURED = {"privacy/meter.py"}
TEXTURES = "datasets/"  # procedural images, drawn before anything is private


@functools.cache
def parsed(path):
    return ast.parse(path.read_text())


def calls(path):
    """Dotted names of everything that a file calls."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def named(tree):
    """Every name that code uses, however it is reached: attributes, names, imports, and strings given to getattr."""
    yield from reached(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.alias):
            yield node.name.rpartition(".")[2]


def reached(tree):
    """Names that are reached through something else: attributes, and strings given to getattr."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            yield from (word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str))


def aliases(path):
    """What a file imports, and the names that it gives it."""
    return [node for node in ast.walk(parsed(path)) if isinstance(node, ast.alias)]


def users_of(names):
    """Files below the package that use one of the names."""
    return {path.relative_to(PACKAGE).as_posix() for path in SOURCES if names & set(named(parsed(path)))}


@pytest.mark.parametrize(
    "code",
    [
        "torch.randn(3)",
        "torch.randn_like(x)",
        "x.normal_()",
        "from torch import randn as r",
        "f = torch.randn",
        "getattr(torch, 'randn')(3)",
        "np.random.default_rng(0).standard_normal(3)",
        "torch.distributions.Normal(0, 1)",
    ],
)
def test_a_draw_is_seen_however_it_is_written(code):
    assert NORMALS & set(named(ast.parse(code)))


def test_privacy_noise_is_added_by_the_meter_alone():
    assert users_of(NOISE) == {"privacy/meter.py"}
    assert {user for user in users_of({"Meter"}) if not user.startswith("bench/")} == {
        "privacy/mechanisms.py",
        "saliency/score.py",
        "saliency/agreement.py",
        "saliency/ranking_stability.py",
        "saliency/progress.py",
        "finetune/dp_sgd.py",
        "finetune/train.py",
        "finetune/checkpoint.py",
        "evolution/checkpoint.py",
        "evolution/votes.py",
        "evolution/evolve.py",
    }


def test_what_is_called_noise_is_drawn_by_these_functions_alone():
    tree = ast.parse((PACKAGE / "privacy/noise.py").read_text())
    assert {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and "noise" in node.name} == NOISE


@pytest.mark.parametrize("file", RELEASES)
def test_what_releases_draws_in_one_way_alone(file):
    """By `Draws`, which knows the plan's mode: no draw of a release in mode ``system`` can come from a seed."""
    assert not SECRET_DRAWS & set(named(ast.parse((PACKAGE / file).read_text())))


def test_draws_of_a_release_are_made_by_what_releases():
    assert users_of({"Draws"}) == set(RELEASES) - {"finetune/dp_sgd.py"}  # is given its noise


def test_private_sums_are_opened_where_noise_is_added_alone():
    openers = {path.relative_to(PACKAGE).as_posix() for path in SOURCES if "opened" in set(reached(ast.parse(path.read_text())))}
    assert {"privacy/meter.py"} <= openers and {opener.partition("/")[0] for opener in openers} == {"privacy"}
    assert users_of({"_parts"}) == {"privacy/values.py"}


def test_released_numbers_are_made_where_noise_is_added_alone():
    makers = {path.relative_to(PACKAGE).as_posix() for path in SOURCES if {"Released", "values.Released"} & set(calls(path))}
    assert makers == {"privacy/meter.py", "privacy/mechanisms.py"}
    renamed = [alias for path in SOURCES for alias in aliases(path) if alias.name in ("Released", "Private") and alias.asname]
    assert renamed == []


def test_batches_are_drawn_by_the_meter_alone():
    assert users_of({"poisson_batch"}) == {"privacy/meter.py"}


def test_a_batch_is_the_first_that_is_drawn():
    """It is drawn once and in no loop: an empty one is not drawn again."""
    tree = ast.parse((PACKAGE / "privacy/meter.py").read_text())
    (batch,) = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "batch")
    assert not any(isinstance(node, ast.For | ast.While | ast.If | ast.IfExp | ast.Try) for node in ast.walk(batch))
    assert list(calls(PACKAGE / "privacy/meter.py")).count("poisson_batch") == 1


def test_keys_and_counters_are_whole_draws_of_the_operating_system():
    tree = ast.parse((PACKAGE / "privacy/noise.py").read_text())
    made = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in ("AES256", "CTR")]
    assert sorted(map(ast.unparse, made)) == ["AES256(os.urandom(32))", "CTR(os.urandom(16))"]


def test_normal_draws_are_where_they_belong():
    assert {user for user in users_of(NORMALS) if not user.startswith(TEXTURES)} <= DRAWN | MEASURED


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
        "bench/steps.py",
    }  # inside torch.random.fork_rng
    digested = {"evaluation/feature_networks.py"}  # see below
    allowed = {"torch.manual_seed": forked, "torch.load": digested}
    assert users <= allowed.get(forbidden, set())
    for user in users - digested:
        assert "torch.random.fork_rng(" in (PACKAGE / user).read_text()


def test_published_weights_are_loaded_from_digested_bytes_without_unpickling():
    """`read_weights` returns bytes that it has digested; state dictionaries are read without running code."""
    loaders = {"torch.load", "torch.jit.load"}
    users = {path.relative_to(PACKAGE).as_posix() for path in SOURCES if loaders & set(calls(path))}
    assert users == {"evaluation/feature_networks.py"}
    text = (PACKAGE / "evaluation" / "feature_networks.py").read_text()
    lines = [line for line in text.splitlines() if "torch.load(" in line or "torch.jit.load(io" in line]
    assert len(lines) == 2 and all("io.BytesIO(weights)" in line for line in lines)
    assert all("weights_only=True" in line for line in lines if "torch.load(" in line)


def test_no_array_is_read_with_pickles():
    for path in SOURCES:
        for line in path.read_text().splitlines():
            assert "np.load(" not in line or "allow_pickle=False" in line


def test_what_has_spent_and_refused_is_not_tried_again():
    """The Slurm profile retries failed jobs, and Snakemake deletes their outputs first: a refusal must not be among them.

    With its file there, nothing is drawn anew: test_a_refusal_is_accounted_and_not_drawn_again.
    """
    rules = (PACKAGE.parent / "workflow" / "rules" / "saliency.smk").read_text()
    outputs = rules.split("rule ")[1].split("output:")[1].split("log:")[0]
    assert set(re.findall(r'"([a-z_.]+\.(?:csv|json))"', outputs)) == {"scores.csv", "spend.json", "private.json"}


def test_no_image_without_an_audit():
    """The only way to sampling is a ledger, and the only writer of ledgers is the audit."""
    writers = [path for path in SOURCES if "Ledger" in set(calls(path))]
    assert [path.name for path in writers] == ["audit.py"]
    rule = (PACKAGE.parent / "workflow" / "rules" / "common.smk").read_text()
    assert '"ledger": LAYOUT.run(run.id, "ledger.json")' in rule
