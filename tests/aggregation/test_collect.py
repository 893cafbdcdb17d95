import pandas as pd
import pytest

from dpsapf.aggregation.collect import collect_metrics
from dpsapf.experiment.columns import COLUMNS, FIDELITY, FRAGILITY_SHRUNK, MATRIX, SCALE
from dpsapf.experiment.layout import Layout
from dpsapf.experiment.records import Ledger, Metrics, Plan, Spend, Timing, Utility
from dpsapf.experiment.runs import RunSpec
from dpsapf.experiment.settings import UpdateConfig
from dpsapf.optimization.noise_walk import noise_walk
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.records import read_record, write_record
from tests.fake_results import PROTOCOL_DIGEST, candidate_table, weights, write_run

SAPF = RunSpec(dataset="digits", public_model="m", method="dp-sapf", level="matrix", ratio=0.3, sigma_s=5.0, epsilon=10.0)
LORA = RunSpec(dataset="digits", public_model="m", method="dp-lora", epsilon=10.0)
EVOLVED = RunSpec(dataset="digits", public_model="m", method="pe", epsilon=10.0)
FLOOR = RunSpec(dataset="digits", public_model="m", method="no-finetune")


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path)


def rewrite(path, cls, **changes):
    write_record(path, replace(read_record(path, cls), **changes))


def collected(layout, run, **changes):
    options = write_run(layout, run, candidate_table(), **changes)
    collect_metrics(options)
    return read_record(options.out, Metrics)


def collected_utility(layout):
    return read_record(layout.run(SAPF.id, "utility.json"), Utility)


def test_a_run_that_selects_and_trains(layout):
    metrics = collected(layout, SAPF, accuracy=0.625, fid=12.5, per_classifier={"cnn": 0.6, "mlp": 0.65})
    assert metrics.run_id == SAPF.id
    assert metrics.run == SAPF
    assert (metrics.accuracy, metrics.fid, metrics.ceiling_accuracy) == (0.625, 12.5, 0.93)
    assert metrics.per_classifier == {"cnn": 0.6, "mlp": 0.65}
    assert (metrics.macro_f1, metrics.calibration_error) == (collected_utility(layout).macro_f1, 0.1)
    assert (metrics.noise_multiplier, metrics.noise_multiplier_without_selection) == (0.83, 0.8)
    assert (metrics.target_epsilon, metrics.delta, metrics.selection_epsilon) == (10.0, 3.5e-5, 0.4)
    assert metrics.selected_matrices == round(0.3 * len(candidate_table()))
    assert metrics.trainable_parameters == 256 * metrics.selected_matrices
    assert (metrics.finetune_seconds, metrics.sample_seconds) == (95.0, 40.0)


@pytest.mark.parametrize(("changes", "rate"), [({}, 0.02), ({"learning_rate": 0.07}, 0.07), ({"adapter": None}, 0.001)])
def test_what_was_used_is_told_where_the_axis_is_null(layout, changes, rate):
    metrics = collected(layout, replace(LORA, **({"adapter": "lora"} | changes)))
    assert metrics.used_learning_rate == rate, "the peak, not a later step's"
    assert (metrics.used_steps, metrics.used_batch) == (3, 350)


def test_what_noise_is_predicted_to_break_is_told_where_it_was_measured(layout, tmp_path):
    names = candidate_table()[MATRIX]
    pd.DataFrame({MATRIX: names, FRAGILITY_SHRUNK: 1e-5, COLUMNS: 32, SCALE: 1.0}).to_csv(tmp_path / "fragility.csv", index=False)
    options = write_run(layout, replace(SAPF, adapter="lora"), candidate_table())
    collect_metrics(options)
    rises, measured = [read_record(options.out, Metrics).predicted_rise], replace(options, fragility=tmp_path / "fragility.csv")
    for rank in (4, 8):
        options.weights.write_bytes(weights(SAPF, adapter="lora", lora_rank=rank, lora_alpha=rank))
        for path, cls, key in ((options.ledger, Ledger, "weights_digest"), (options.spend, Spend, "digest")):
            rewrite(path, cls, **{key: sha256(options.weights)})
        rewrite(options.timing, Timing, ledger=sha256(options.ledger))
        collect_metrics(measured)
        rises.append(read_record(options.out, Metrics).predicted_rise)
    walk = noise_walk(tmp_path / "fragility.csv", candidate_table(), read_record(options.plan, Plan), UpdateConfig())
    count = round(0.3 * len(names))
    assert rises[0] is None and rises[1] == pytest.approx(count * walk.rises(0.02)[0]) and rises[2] == pytest.approx(2 * rises[1])
    options.weights.write_bytes(weights(SAPF, adapter="lora", lora_rank=2))
    for given in (options.weights, None):
        with pytest.raises(UserError, match="--weights = .*must be the weights that the audit of"):
            collect_metrics(replace(measured, weights=given))


def test_without_selection_every_matrix_counts_and_no_epsilon_goes_to_it(layout):
    metrics = collected(layout, LORA)
    assert metrics.selected_matrices == len(candidate_table())
    assert metrics.selection_epsilon is None


def test_the_public_model_as_it_is_spends_and_trains_nothing(layout):
    metrics = collected(layout, FLOOR)
    assert metrics.spent_epsilon["pld"] == 0
    assert (metrics.trainable_parameters, metrics.selected_matrices) == (0, 0)
    assert (metrics.target_epsilon, metrics.delta, metrics.noise_multiplier, metrics.finetune_seconds) == (None,) * 4
    assert (metrics.used_learning_rate, metrics.used_steps, metrics.used_batch) == (None,) * 3


def test_a_run_whose_images_evolve_spends_and_trains_nothing(layout):
    metrics = collected(layout, EVOLVED)
    assert (metrics.noise_multiplier, metrics.used_steps, metrics.used_batch) == (1.1, 3, 3500)
    assert (metrics.target_epsilon, metrics.finetune_seconds, metrics.peak_memory_mb) == (10.0, 95.0, 1400.0)
    assert (metrics.trainable_parameters, metrics.selected_matrices, metrics.used_learning_rate) == (0, 0, None)
    assert metrics.noise_multiplier_without_selection is None


@pytest.mark.parametrize(("sampling", "peak"), [(900.0, 1400.0), (2000.0, 2000.0)])
def test_peak_memory_is_the_larger_of_training_and_sampling(layout, sampling, peak):
    options = write_run(layout, LORA, candidate_table())
    rewrite(options.timing, Timing, peak_memory_mb=sampling)
    collect_metrics(options)
    assert read_record(options.out, Metrics).peak_memory_mb == peak


def refused(options, match):
    with pytest.raises(UserError, match=match):
        collect_metrics(options)
    assert not options.out.exists()


@pytest.mark.parametrize("record", ["utility", "ceiling"])
def test_mixed_protocols_are_refused(layout, record):
    options = write_run(layout, LORA, candidate_table())
    rewrite(getattr(options, record), Utility, protocol="other-v1")
    refused(options, f"--{record} = 'other-v1': the protocol of --fidelity is test-v1")


def test_ceiling_and_utility_swapped_are_refused(layout):
    options = write_run(layout, LORA, candidate_table())
    refused(replace(options, utility=options.ceiling, ceiling=options.utility), "trained on synthetic images")


def test_ledger_of_another_run_is_refused(layout):
    options = write_run(layout, LORA, candidate_table())
    rewrite(options.ledger, Ledger, run=replace(LORA, seed=1))
    refused(options, "is another run than the plan's")


@pytest.mark.parametrize("change", [{"digest": "f" * 64}, {"release": "noisier"}])
def test_spend_that_was_not_audited_is_refused(layout, change):
    options = write_run(layout, LORA, candidate_table())
    if "release" in change:
        release = read_record(options.spend, Spend).release
        change = {"release": replace(release, noise_multiplier=0.5)}
    rewrite(options.spend, Spend, **change)
    refused(options, "is not what the ledger of .* audited")


@pytest.mark.parametrize("missing", ["spend", "private", "training_log"])
def test_missing_record_of_training_is_refused(layout, missing):
    options = write_run(layout, LORA, candidate_table())
    refused(replace(options, **{missing: None}), "method dp-lora trains")


@pytest.mark.parametrize("missing", ["spend", "private"])
def test_missing_record_of_votes_is_refused(layout, missing):
    options = write_run(layout, EVOLVED, candidate_table())
    refused(replace(options, **{missing: None}), f"--{missing} = None: method pe evolves images")


def test_votes_that_were_not_audited_are_refused(layout):
    options = write_run(layout, EVOLVED, candidate_table())
    rewrite(options.ledger, Ledger, digests={"population": "f" * 64})
    refused(options, "is not what the ledger of .* audited")


def test_images_of_another_ledger_are_refused(layout):
    options = write_run(layout, LORA, candidate_table())
    rewrite(options.timing, Timing, ledger="0" * 64)
    refused(options, "was drawn under another ledger")


def test_unfinished_training_log_is_refused(layout):
    options = write_run(layout, LORA, candidate_table())
    pd.read_csv(options.training_log).iloc[:-1].to_csv(options.training_log, index=False)
    refused(options, "has 2 steps, the spend record 3")


def test_selection_of_another_model_is_refused(layout):
    options = write_run(layout, LORA, candidate_table())
    candidate_table(layers_per_block=1).to_csv(options.candidate_table, index=False)
    refused(options, "holds other matrices than --candidate-table")


def test_every_metric_of_the_fidelity_record_is_collected(layout):
    scores = {name: number / 10 for number, name in enumerate(FIDELITY, 1)}
    metrics = collected(layout, SAPF, **scores)
    assert {name: getattr(metrics, name) for name in FIDELITY} == scores
    assert (metrics.protocol_digest, metrics.synthetic_images, metrics.real_images) == (PROTOCOL_DIGEST, 800, 3500)
    assert metrics.reference == "digest of the real side"


@pytest.mark.parametrize("name", ["utility", "ceiling"])
@pytest.mark.parametrize("digest", [None, "another"])
def test_a_record_of_another_meaning_of_the_protocol_is_refused(layout, name, digest):
    options = write_run(layout, SAPF, candidate_table())
    rewrite(getattr(options, name), Utility, protocol_digest=digest)
    with pytest.raises(UserError, match=f"--{name}: protocol_digest = .*meaning {PROTOCOL_DIGEST} for --fidelity"):
        collect_metrics(options)
    assert not options.out.exists()
