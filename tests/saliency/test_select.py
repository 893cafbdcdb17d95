import typing

import pandas as pd
import pytest

from dpsapf.experiment.columns import (
    BLOCK,
    CANDIDATES,
    COLUMNS,
    FRAGILITY_SHRUNK,
    LAYER,
    LORA_PARAMETERS,
    MATRIX,
    NOISE_ENERGY,
    PARAMETERS,
    PREDICTED_RISE,
    RANK,
    SCALE,
    SCORE,
    SELECTED,
    SIGNAL_ENERGY,
)
from dpsapf.experiment.methods import TOLERATED_RISE, Candidates
from dpsapf.experiment.records import Plan, Selection
from dpsapf.experiment.runs import RunSpec
from dpsapf.experiment.stages import SelectMatrices
from dpsapf.optimization.noise_walk import noise_walk
from dpsapf.saliency.scores import Bounds
from dpsapf.saliency.select import candidates, kept, random_units, ranking, select_matrices, top_units
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.records import read_record, write_record


def table():
    rows = [(f"block.attn{layer}.{projection}", f"block.attn{layer}") for layer in range(3) for projection in ("to_q", "to_v")]
    frame = pd.DataFrame(rows, columns=[MATRIX, LAYER])
    blocks = ["down", "down", "down", "down", "up", "up"]
    return frame.assign(**{BLOCK: blocks, CANDIDATES: "attention", SCORE: [9.0, -8.0, 5.0, 4.0, 6.0, 0.0]})


@pytest.mark.parametrize(("ratio", "count"), [(0.01, 1), (0.3, 17), (0.5, 28), (0.9, 50), (1.0, 56), (0.1, 6)])
def test_how_many_are_kept(ratio, count):
    assert kept(ratio, 56) == count


def test_top_matrices_are_the_highest_scores():
    assert top_units(table(), "matrix", 0.5).tolist() == [True, False, True, False, True, False]


def test_top_layers_go_by_the_sum_and_keep_whole_layers():
    assert top_units(table(), "layer", 0.34).tolist() == [False, False, True, True, False, False]


def test_top_blocks_keep_whole_blocks():
    assert top_units(table(), "block", 0.5).tolist() == [True] * 4 + [False] * 2


@pytest.mark.parametrize(("level", "size"), [("matrix", 3), ("layer", 4), ("block", 4)])
def test_random_units_are_as_many_and_differ_between_seeds(level, size):
    runs = [RunSpec(dataset="a", public_model="m", method="random", level=level, ratio=0.5, seed=seed) for seed in range(20)]
    chosen = [random_units(table(), run) for run in runs]
    assert {int(draw.sum()) for draw in chosen} <= {size, 2 if level == "block" else size}
    assert len({tuple(draw) for draw in chosen}) > 1
    assert chosen[0].tolist() == random_units(table(), runs[0]).tolist()
    others = [random_units(table(), replace(run, dataset="b")) for run in runs]
    assert any(one.tolist() != other.tolist() for one, other in zip(chosen, others, strict=True))


def test_candidate_sets_are_nested(tmp_path):
    frame = table().assign(**{CANDIDATES: ["attention", "attention+ffn", "all-params"] * 2})
    frame.loc[5, CANDIDATES] = "attention+proj"
    frame.to_csv(tmp_path / "c.csv", index=False)
    sets = {names: candidates(tmp_path / "c.csv", names).index for names in typing.get_args(Candidates)}
    assert [len(sets[names]) for names in ("attention", "attention+proj", "attention+ffn", "all-params")] == [2, 3, 4, 6]
    assert "attention+proj" in candidates(tmp_path / "c.csv", "attention+proj")[CANDIDATES].tolist()


def test_ranking_states_units_and_sensitivities():
    described = ranking(table(), "block", 0.5, "norm", Bounds(clipping_norm=0.5, votes=3))
    assert described.unit_of.tolist() == [0, 0, 0, 0, 1, 1] and described.kept == 1
    assert (described.sensitivity, described.unit_sensitivity) == (0.5, 1.0)  # sqrt(4 matrices) C_s
    assert ranking(table(), None, None, "share", Bounds(clipping_norm=0.5, votes=3)).kept == 6


def test_ties_are_broken_by_position():
    frame = table().assign(**{SCORE: 1.0})
    assert top_units(frame, "matrix", 0.5).tolist() == [True] * 3 + [False] * 3


def options(tmp_path, plan, **changes):
    write_record(tmp_path / "plan.json", plan)
    table().drop(columns=SCORE).to_csv(tmp_path / "candidates.csv", index=False)
    table()[[MATRIX, SCORE]].to_csv(tmp_path / "scores.csv", index=False)
    values = {"plan": "plan.json", "candidate_table": "candidates.csv", "scores": "scores.csv", "out": "selection.csv"}
    values |= {"record": "selection.json"} | changes
    return SelectMatrices(**{key: value and tmp_path / value for key, value in values.items()})


def test_selection_file(tmp_path, plan):
    select_matrices(options(tmp_path, plan))
    written = pd.read_csv(tmp_path / "selection.csv")
    assert written[SCORE].tolist() == table()[SCORE].tolist()
    record = read_record(tmp_path / "selection.json", Selection)
    assert record.run == plan.run and record.digest == sha256(tmp_path / "selection.csv")
    assert record.scores == sha256(tmp_path / "scores.csv")
    assert written.loc[written[SELECTED], MATRIX].tolist() == ["block.attn0.to_q", "block.attn2.to_q"]


def test_dp_lora_selects_everything_without_scores(tmp_path, plan):
    run = replace(plan.run, method="dp-lora", level=None, ratio=None, score=None, mechanism=None, sigma_s=None)
    select_matrices(options(tmp_path, replace(plan, run=run), scores=None))
    written = pd.read_csv(tmp_path / "selection.csv")
    assert written[SELECTED].all() and written[SCORE].isna().all()
    assert read_record(tmp_path / "selection.json", Selection).scores is None


def test_missing_or_foreign_scores_are_refused(tmp_path, plan):
    with pytest.raises(UserError, match="run score-saliency first"):
        select_matrices(options(tmp_path, plan, scores=None))
    setting = options(tmp_path, plan)
    pd.DataFrame({MATRIX: ["other"], SCORE: [1.0]}).to_csv(tmp_path / "scores.csv", index=False)
    with pytest.raises(UserError, match="other matrices"):
        select_matrices(setting)
    assert not (tmp_path / "selection.csv").exists()


def test_rule_random_does_not_look_at_the_scores(tmp_path, plan):
    run = replace(plan.run, rule="random", ratio=0.5)
    setting = options(tmp_path, replace(plan, run=run))
    select_matrices(setting)
    written = pd.read_csv(tmp_path / "selection.csv")
    assert written[SELECTED].tolist() == random_units(table(), run).tolist()


def test_the_least_salient_are_as_many_from_the_other_end(tmp_path, plan):
    for rule, expected in (("top", [0, 2, 4]), ("least", [1, 3, 5])):
        run = replace(plan.run, rule=rule, ratio=0.5)
        select_matrices(options(tmp_path, replace(plan, run=run)))
        written = pd.read_csv(tmp_path / "selection.csv")
        assert written.index[written[SELECTED]].tolist() == expected, rule
        assert written[SCORE].tolist() == table()[SCORE].tolist(), "scores are shown as they were released"


def weighing(tmp_path, plan, rule):
    """Six matrices of signal 9, 0 (by noise), 5, 4, 6, 0; the first breaks a thousand times sooner."""
    run = replace(plan.run, rule=rule, ratio=None, score="signal")
    chosen = options(tmp_path, replace(plan, run=run, population=100))
    frame = table().assign(**{PARAMETERS: 64, LORA_PARAMETERS: 16}).drop(columns=SCORE)
    frame.to_csv(tmp_path / "candidates.csv", index=False)
    scores = table()[[MATRIX]].assign(**{SCORE: [90.0, -8.0, 50.0, 40.0, 60.0, 0.0]})
    scores.to_csv(tmp_path / "scores.csv", index=False)
    frame[[MATRIX]].assign(**{FRAGILITY_SHRUNK: [1000.0, 1, 1, 1, 1, 1], SCALE: 1.0}).to_csv(
        tmp_path / "fragility.csv", index=False
    )
    return replace(chosen, fragility=tmp_path / "fragility.csv" if rule == "noise-aware" else None)


@pytest.mark.parametrize(("rule", "expected"), [("noise-aware", [2, 3, 4]), ("equal-curvature", [0, 2, 3, 4])])
def test_rules_that_weigh_noise(tmp_path, plan, rule, expected):
    select_matrices(weighing(tmp_path, plan, rule))
    written = pd.read_csv(tmp_path / "selection.csv")
    assert written.index[written[SELECTED]].tolist() == expected
    release = plan.releases[1]
    noise = (release.noise_multiplier / (release.sampling_rate * 100)) ** 2
    assert written[NOISE_ENERGY].tolist() == pytest.approx([noise * 4 * 16] * 6), "rank 4"
    assert written[SIGNAL_ENERGY].tolist() == pytest.approx([(s**2 - 100) / 1e4 if s > 10 else 0 for s in (90, 0, 50, 40, 60, 0)])


@pytest.mark.parametrize("rule", ["noise-aware", "noise-budget"])
def test_rules_that_weigh_what_noise_breaks_need_fragilities(tmp_path, plan, rule):
    with pytest.raises(UserError, match="--fragility = None: .*run measure-fragility first"):
        select_matrices(replace(weighing(tmp_path, plan, rule), fragility=None, learning_rate=0.1))


def test_a_noise_budget_is_spent_at_the_runs_learning_rate(tmp_path, plan):
    """Of six matrices of signal 9, 0, 5, 4, 6, 0 the first breaks a thousand times sooner, the others alike."""
    run = replace(plan.run, rule="noise-budget", ratio=None, score="signal")
    base = replace(weighing(tmp_path, plan, "noise-budget"), fragility=tmp_path / "fragility.csv", learning_rate=1e-4)
    frame = pd.read_csv(base.fragility).assign(**{COLUMNS: 8})
    frame.assign(**{FRAGILITY_SHRUNK: 1e-6 * frame[FRAGILITY_SHRUNK]}).to_csv(base.fragility, index=False)

    def selected(**changes):
        select_matrices(replace(base, **changes))
        written = pd.read_csv(tmp_path / "selection.csv")
        return written.index[written[SELECTED]].tolist(), written[PREDICTED_RISE].to_numpy()

    few = selected()
    assert few[0] == [0, 1, 2, 3, 4, 5], "nothing breaks at a small rate"
    walk = noise_walk(base.fragility, pd.read_csv(base.candidate_table), read_record(base.plan, Plan), base)
    assert few[1] == pytest.approx(walk.rises(1e-4))
    rate = walk.largest_rate()
    chosen, rises = selected(learning_rate=rate / 0.9)
    assert rises.sum() > TOLERATED_RISE and chosen == [2, 3, 4], (
        "the fragile one does not fit, and what has no signal comes after"
    )
    write_record(base.plan, replace(read_record(base.plan, Plan), run=replace(run, learning_rate=rate / 0.9)))
    assert selected()[0] == [2, 3, 4], "the run's own rate comes before the config's"
    write_record(base.plan, replace(read_record(base.plan, Plan), run=run))
    with pytest.raises(UserError, match="--learning-rate = None: .*at a learning rate: give one"):
        selected(learning_rate=None)


def test_each_matrix_gets_the_rank_that_noise_allows(tmp_path, plan):
    """Of six matrices the first breaks a thousand times sooner: it gets rank 1, the others more; what rests gets none."""
    run = replace(plan.run, lora_rank="auto", ratio=0.5)
    base = replace(weighing(tmp_path, plan, "noise-aware"), learning_rate=1e-4)
    pd.read_csv(base.fragility).assign(**{COLUMNS: 8}).to_csv(base.fragility, index=False)
    write_record(base.plan, replace(read_record(base.plan, Plan), run=run))
    select_matrices(base)
    written = pd.read_csv(tmp_path / "selection.csv")
    assert written.index[written[SELECTED]].tolist() == [0, 2, 4]
    assert written[RANK].tolist() == [3, 0, 16, 0, 16, 0], "four times the common rank at most, the budget being the first's"
    with pytest.raises(UserError, match="--learning-rate = None: rank auto asks"):
        select_matrices(replace(base, learning_rate=None))


def test_a_gap_decides_where_no_ratio_does(tmp_path, plan):
    select_matrices(options(tmp_path, replace(plan, run=replace(plan.run, rule="gap", ratio=None))))
    assert pd.read_csv(tmp_path / "selection.csv")[SELECTED].tolist() == [True, False, True, True, True, True]
