import pytest

from dpsapf.experiment.fields import READS, paths
from dpsapf.experiment.records import Ledger, Measured, ModelRecord, Release, Selection
from dpsapf.experiment.runs import normalise
from dpsapf.privacy import audit
from dpsapf.privacy.accounting import ACCOUNTANTS, spent_epsilon
from dpsapf.privacy.audit import check_target
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.records import read_record, write_record
from tests.privacy.conftest import Run
from tests.true_files import write_public


def noise_of(squares, steps=4):
    """Measures of noise on one tensor with the same sum of squares at every step."""
    return {"squares": (squares,) * steps, "parts": (squares * steps,)}


def ledger(run):
    return read_record(run.path("ledger.json"), Ledger)


def test_audit_passes_what_was_planned(audited):
    audited.audit()
    found = ledger(audited)
    assert found.releases == audited.plan.releases
    assert max(found.spent_epsilon[name] for name in ("pld", "prv")) <= 10
    assert found.weights_digest == sha256(audited.path("weights.safetensors"))
    assert found.digests["scores"] == sha256(audited.path("scores.csv"))
    assert found.digests["selection"] == sha256(audited.path("selection.csv"))


def write(name, text):
    return lambda run: run.path(name).write_text(text)


def selected_for(run):
    path = run.path("selection.json")
    write_record(path, replace(read_record(path, Selection), run=replace(run.plan.run, seed=7)))


def selected_from(run):
    path = run.path("selection.json")
    write_record(path, replace(read_record(path, Selection), scores="0" * 64))


def other_selection_with_its_record(run):
    run.path("selection.csv").write_text("other")
    path = run.path("selection.json")
    write_record(path, replace(read_record(path, Selection), digest=sha256(run.path("selection.csv"))))


def other_scores_with_their_record(run):
    run.path("scores.csv").write_text("other")
    run.change("saliency", digest=sha256(run.path("scores.csv")))


def other_measures(run):
    """True ones, but of another run."""
    path = run.path("dp-sgd.private.json")
    write_record(path, replace(read_record(path, Measured), seconds=2.0))


def other_run_spends(run):
    other = replace(run.plan.run, seed=7)
    run.change("dp-sgd", subject=other.id)


TAMPERINGS = {
    # records: what was released is not what was planned
    "noise multiplier": (lambda run: run.change_release("dp-sgd", noise_multiplier=0.5), r"dp-sgd\.json: noise_multiplier"),
    "steps": (lambda run: run.change_release("dp-sgd", steps=5), r"dp-sgd\.json: steps = 5: the plan has 4"),
    "rate": (lambda run: run.change_release("dp-sgd", sampling_rate=0.2), r"dp-sgd\.json: sampling_rate"),
    "sensitivity": (lambda run: run.change_release("saliency", sensitivity=0.5), r"saliency\.json: sensitivity"),
    "seeded noise for a system plan": (lambda run: run.change_release("saliency", noise="system"), r"saliency\.json: noise"),
    "exact release": (
        lambda run: run.change_release("dp-sgd", mechanism="none", noise_multiplier=None, noise=None),
        r"dp-sgd\.json: mechanism",
    ),
    "spend of another run": (other_run_spends, r"dp-sgd\.json: subject.*the plan is of"),
    "scores of another release": (lambda run: run.change("saliency", subject="x"), r"saliency\.json: subject"),
    "other dataset": (lambda run: run.change("dp-sgd", dataset_id="f" * 64), "made on other data"),
    "scores of another dataset": (lambda run: run.change("saliency", dataset_id="f" * 64), "made on other data"),
    "other N": (lambda run: run.change("dp-sgd", population=100), "made on other data"),
    "other unit": (lambda run: run.change("dp-sgd", unit="user"), "made on other data"),
    # files: what stands there is not what was made
    "weights": (write("weights.safetensors", "other"), r"weights\.safetensors = .*is not the file that was recorded"),
    "scores": (write("scores.csv", "other"), r"scores\.csv = .*is not the file"),
    "selection": (write("selection.csv", "other"), r"selection\.csv = .*is not the file"),
    "scores and their spend": (other_scores_with_their_record, "--selection-record: scores"),
    "selection and its record": (other_selection_with_its_record, "--selection ="),
    "selection of another run": (selected_for, "is of another run"),
    "selection from other scores": (selected_from, "--selection-record: scores"),
    "latents between scores and training": (
        lambda run: run.change("saliency", made_from=run.spent("saliency").made_from | {"latents": "0" * 64}),
        "latents of the scores",
    ),
    "model between scores and training": (
        lambda run: run.change("saliency", made_from=run.spent("saliency").made_from | {"model": "n"}),
        "model of the scores",
    ),
    "plan after training": (
        lambda run: write_record(run.path("plan.json"), replace(run.plan, delta=3.6e-5)),
        "--plan",
    ),
    "measures after the fact": (other_measures, r"dp-sgd\.private\.json = .*is not the file"),
    "measures that are none": (write("dp-sgd.private.json", "{}"), r"dp-sgd\.private\.json"),
    # measures: what was done is not what the record says
    "noise of a third": (lambda run: run.change_measures("dp-sgd", **noise_of(900 / 9)), r"the noise was 0\.333 times"),
    "noise of nine tenths": (lambda run: run.change_measures("dp-sgd", **noise_of(900 * 0.81)), r"the noise was 0\.9 times"),
    "noise too large": (lambda run: run.change_measures("dp-sgd", **noise_of(900 * 1.5)), r"the noise was 1\.22 times"),
    "no noise": (lambda run: run.change_measures("dp-sgd", **noise_of(0.0)), "the noise was 0 times"),
    "no noise on scores": (lambda run: run.change_measures("saliency", **noise_of(0.0, 1)), "the noise was 0 times"),
    "noise on some numbers": (lambda run: run.change_measures("dp-sgd", sizes=(675,)), "sizes = 675: must be 900"),
    "noise drawn again": (lambda run: run.change_measures("dp-sgd", repetition=0.0), "like another step's"),
    "unmeasured contribution": (
        lambda run: run.change_measures("dp-sgd", largest_contribution=0.0),
        "what a unit adds was not measured",
    ),
    "unclipped image": (lambda run: run.change_measures("dp-sgd", largest_contribution=1.01), "exceeds the sensitivity 1.0"),
    "unbounded scores": (lambda run: run.change_measures("saliency", largest_contribution=2.0), "exceeds the sensitivity 1.0"),
    "step without a batch": (lambda run: run.change_measures("dp-sgd", batches=(350, 340, 360)), "must be the 4"),
    "too few in a batch of all": (lambda run: run.change_measures("saliency", batches=(3499,)), "rate 1 takes all 3500"),
    "batches too large": (lambda run: run.change_measures("dp-sgd", batches=(500, 490, 510, 505)), "no Poisson samples"),
    "batch drawn once": (
        lambda run: run.change_measures("dp-sgd", batches=(350,) * 4, participation=(3150, 0, 0, 0, 350)),
        "do not take part independently",
    ),
    "batches that nobody was in": (
        lambda run: run.change_measures("dp-sgd", participation=(3500,)),
        "must count 3500 images and agree with the batches",
    ),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_audit_refuses_by_name(audited, name):
    tamper, message = TAMPERINGS[name]
    tamper(audited)
    with pytest.raises(UserError, match=message):
        audited.audit()
    assert not audited.path("ledger.json").exists()


def test_audit_passes_votes_and_names_their_population(evolved):
    evolved.audit()
    found = ledger(evolved)
    assert found.releases == evolved.plan.releases and max(found.spent_epsilon[name] for name in ("pld", "prv")) <= 10
    assert found.digests == {"population": sha256(evolved.path("population.safetensors"))}
    assert found.weights_digest is None and found.released_digest == found.digests["population"]


TAMPERED_VOTES = {
    "population": (write("population.safetensors", "other"), r"population\.safetensors = .*is not the file"),
    "plan": (lambda run: write_record(run.path("plan.json"), replace(run.plan, delta=3.6e-5)), "--plan"),
    "votes of another run": (lambda run: run.change("pe-histogram", subject="x"), r"pe-histogram\.json: subject"),
    "a round less": (lambda run: run.change_release("pe-histogram", steps=2), "steps = 2: the plan has 3"),
    "two votes": (lambda run: run.change_measures("pe-histogram", largest_contribution=2**0.5), "exceeds the sensitivity 1.0"),
    "an absent voter": (lambda run: run.change_measures("pe-histogram", batches=(3500, 3499, 3500)), "rate 1 takes all 3500"),
    "no noise": (lambda run: run.change_measures("pe-histogram", **noise_of(0.0, 3)), "the noise was 0 times"),
    "bins without noise": (lambda run: run.change_measures("pe-histogram", sizes=(4,)), "sizes = 4: must be 6"),
}


@pytest.mark.parametrize("name", TAMPERED_VOTES)
def test_audit_refuses_tampered_votes_by_name(evolved, name):
    tamper, message = TAMPERED_VOTES[name]
    tamper(evolved)
    with pytest.raises(UserError, match=message):
        evolved.audit()
    assert not evolved.path("ledger.json").exists()


@pytest.mark.parametrize(
    ("name", "told"), [("plan.json", "the records say"), ("population.safetensors", "is not the file that was recorded,")]
)
def test_audit_tells_which_file_stands_there_and_which_was_recorded(evolved, name, told):
    path = evolved.path(name)
    recorded = sha256(path)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match=f"{path.stem}.* = '{sha256(path)[:12]}': {told} {recorded[:12]}"):
        evolved.audit()


def test_audit_refuses_votes_without_their_population(evolved):
    with pytest.raises(UserError, match="--population = None"):
        evolved.audit(population=None)


def sha(run, name):
    return sha256(run.path(name))


DISAGREEING = {  # tampering -> what is named, what is there, what the records say
    "scores and their spend": lambda run: ("--selection-record: scores", run.selection().scores, sha(run, "scores.csv")),
    "selection and its record": lambda run: (
        "--selection",
        run.selection().digest,
        run.spent("dp-sgd").made_from["selection"],
    ),
    "plan after training": lambda run: ("--plan", sha(run, "plan.json"), run.spent("dp-sgd").made_from["plan"]),
    "model between scores and training": lambda run: ("model of the scores", "n", sha(run, "model.json")),
}


@pytest.mark.parametrize("name", DISAGREEING)
def test_a_refusal_says_what_is_there_and_what_the_records_say(audited, name):
    TAMPERINGS[name][0](audited)
    named, found, recorded = DISAGREEING[name](audited)
    with pytest.raises(UserError) as refusal:
        audited.audit()
    assert f"{named} = {found[:12]!r}: the records say {recorded[:12]}: run the stages after it again" in str(refusal.value)


def release_again(name):
    """Delete nothing more: the stage makes the release, its measures and its record again."""

    def stage(run):
        run.write(name)
        run.spend({release.name: release for release in run.plan.releases}[name])

    return stage


def select_again(run):
    run.select()


TRAINED = {  # each file of the chain that an audit reads -> what makes it, and what else it makes
    "plan.json": lambda run: write_record(run.path("plan.json"), run.plan),
    "scores.csv": release_again("saliency"),
    "saliency.json": release_again("saliency"),
    "saliency.private.json": release_again("saliency"),
    "selection.csv": select_again,
    "selection.json": select_again,
    "weights.safetensors": release_again("dp-sgd"),
    "dp-sgd.json": release_again("dp-sgd"),
    "dp-sgd.private.json": release_again("dp-sgd"),
    "model.json": lambda run: write_record(run.path("model.json"), run.model),
    "candidates.csv": lambda run: write_public(run.path("model"), run.path("candidates.csv")),
}
EVOLVED = {
    "plan.json": lambda run: write_record(run.path("plan.json"), run.plan),
    "population.safetensors": release_again("pe-histogram"),
    "pe-histogram.json": release_again("pe-histogram"),
    "pe-histogram.private.json": release_again("pe-histogram"),
    "dataset.json": lambda run: write_record(run.path("dataset.json"), run.dataset),
}


def read_by(options):
    return {path.name for files in paths(options, READS).values() for path in files}


def test_every_file_that_an_audit_reads_is_cut_below(audited, evolved):
    assert (read_by(audited.options()), read_by(evolved.options())) == (TRAINED.keys(), EVOLVED.keys())


@pytest.mark.parametrize(("kind", "name"), [*(("audited", name) for name in TRAINED), *(("evolved", name) for name in EVOLVED)])
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_a_file_that_was_cut_off_is_named_and_the_remedy_works(kind, name, share, request):
    """Deleting it and running its stage again, as the line says, or putting it back."""
    run = request.getfixturevalue(kind)
    run.model = read_record(run.path("model.json"), ModelRecord)
    run.audit()
    path, before = run.path(name), ledger(run)
    whole, stage = path.read_bytes(), (TRAINED | EVOLVED)[name]
    for mend in (lambda: path.write_bytes(whole), lambda: stage(run)):
        path.write_bytes(whole[: int(share * len(whole))])
        run.path("ledger.json").unlink()  # as Snakemake does before a job
        with pytest.raises(UserError) as refusal:
            run.audit()
        assert refusal.value.key == str(path) and "delete it and run" in str(refusal.value)
        assert not run.path("ledger.json").exists()
        assert read_record(run.path("ledgers") / f"{before.released_digest[:12]}.json", Ledger) == before
        path.unlink()
        mend()
        run.audit()
        assert ledger(run) == before


@pytest.mark.parametrize(
    ("noise", "told"),
    [("seed", "noise from a seed comes out the same"), ("system", "was released with real noise is kept, and not made again")],
)
def test_a_changed_file_says_what_a_second_start_does(audited, noise, told):
    recorded = audited.spent("dp-sgd").digest
    audited.change_plan(noise=noise)
    audited.path("weights.safetensors").write_text("wei")
    with pytest.raises(UserError) as refusal:
        audited.audit()
    found = sha(audited, "weights.safetensors")
    line = f"weights.safetensors = {found[:12]!r}: is not the file that was recorded, {recorded[:12]}: it was changed or cut off"
    assert line in str(refusal.value) and told in str(refusal.value)


def test_what_was_spent_on_other_weights_stays_on_record(audited):
    """Weights that are made again are another release: a ledger for each."""
    audited.audit()
    first = ledger(audited)
    audited.write("dp-sgd", seed=1)
    audited.spend(audited.plan.releases[1], seed=1)
    audited.audit()
    kept = [read_record(path, Ledger) for path in audited.path("ledgers").iterdir()]
    assert len(kept) == 2 and first in kept and ledger(audited) in kept


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spends": (0,), "privates": (0,)}, "every release once"),
        ({"spends": (1,), "privates": (1,)}, "every release once"),
        ({"spends": (0, 1, 1), "privates": (0, 1, 1)}, "every release once"),
        ({"privates": (1, 0)}, r"dp-sgd\.private\.json"),
        ({"privates": (0,)}, "one for each of the 2 spend records"),
        ({"scores": None}, "--scores"),
        ({"weights": None}, "--weights"),
        ({"selection": None}, "--selection"),
        ({"selection_record": None}, "--selection-record"),
    ],
)
def test_missing_doubled_and_swapped_records_are_refused(audited, changes, message):
    options = audited.options()
    chosen = {
        key: tuple(getattr(options, key)[index] for index in value) if isinstance(value, tuple) else value
        for key, value in changes.items()
    }
    with pytest.raises(UserError, match=message):
        audited.audit(**chosen)
    assert not audited.path("ledger.json").exists()


def test_audit_without_a_guarantee_certifies_nothing(tmp_path, plan, small_dataset):
    exact = [replace(r, mechanism="none", noise_multiplier=None, sensitivity=None, noise=None) for r in plan.releases]
    run = Run(tmp_path, replace(plan, target_epsilon=None, releases=tuple(exact)), small_dataset).make()
    run.audit()
    assert ledger(run).spent_epsilon == {} and ledger(run).not_for_release == "no guarantee: epsilon is infinite"
    run.change_plan(target_epsilon=10.0)
    with pytest.raises(UserError, match="exceeds the target"):
        run.audit()


def test_audit_refuses_a_spend_above_the_target_even_if_planned(audited):
    audited.change_plan(target_epsilon=2.0)
    with pytest.raises(UserError, match="exceeds the target 2.0"):
        audited.audit()
    assert not audited.path("ledger.json").exists()


def test_earlier_releases_are_composed(audited):
    """What was released of the dataset before counts: the same run twice costs more than once."""
    audited.audit()
    once = ledger(audited).spent_epsilon["pld"]
    audited.change_plan(prior=audited.plan.releases, target_epsilon=30.0)
    audited.audit()
    twice = ledger(audited).spent_epsilon["pld"]
    assert once < twice < 2 * once
    assert twice == spent_epsilon(audited.plan.releases * 2, audited.plan.delta)["pld"]
    audited.change_plan(target_epsilon=(once + twice) / 2)
    with pytest.raises(UserError, match="exceeds the target"):
        audited.audit()


def test_the_ledger_says_what_was_promised_and_what_was_spent(audited):
    """Whatever the order of the records: the weights' digest is DP-SGD's."""
    audited.change_plan(prior=audited.plan.releases[:1], prior_keys=("earlier",))
    options = audited.options()
    audited.audit(spends=options.spends[::-1], privates=options.privates[::-1])
    found, plan = ledger(audited), audited.plan
    for key in ("run", "target_epsilon", "delta", "relation", "unit", "noise", "dataset_id", "prior", "prior_keys"):
        assert getattr(found, key) == getattr(plan, key), key
    assert set(found.releases) == set(plan.releases) and found.weights_digest == sha256(audited.path("weights.safetensors"))
    assert found.spent_epsilon == spent_epsilon((*plan.prior, *plan.releases), plan.delta)


def test_a_seeded_ledger_is_not_for_release(audited):
    audited.audit()
    assert "noise from a seed" in ledger(audited).not_for_release


def system_run(folder, plan, dataset):
    """A run whose batches and noise come from the operating system."""
    system = tuple(replace(release, noise="system") for release in plan.releases)
    return Run(folder, replace(plan, releases=system, noise="system"), dataset).make()


def test_a_system_ledger_is(tmp_path, plan, small_dataset):
    run = system_run(tmp_path, plan, small_dataset)
    assert {read_record(run.path(f"{release.name}.private.json"), Measured).secret for release in plan.releases} == {"system"}
    run.audit()
    assert ledger(run).not_for_release is None


@pytest.mark.parametrize("name", ["saliency", "dp-sgd"])
def test_a_system_plan_whose_batches_came_from_a_seed_is_refused(tmp_path, plan, small_dataset, name):
    run = system_run(tmp_path, plan, small_dataset)
    run.change_measures(name, secret="seed")
    with pytest.raises(UserError, match=rf"{name}\.private\.json: secret = 'seed': batches or pairs came from a seed"):
        run.audit()
    assert not run.path("ledger.json").exists()


def test_a_run_that_selects_without_scores_passes(tmp_path, plan, small_dataset):
    random = normalise(replace(plan.run, method="random"))
    run = Run(tmp_path, replace(plan, run=random, releases=plan.releases[1:]), small_dataset).make()
    run.audit()
    assert set(ledger(run).digests) == {"model", "latents", "selection"}
    selected_from(run)
    with pytest.raises(UserError, match="--selection-record: scores = '000000000000': the records say None"):
        run.audit()


def test_a_run_that_releases_nothing_has_an_empty_ledger(tmp_path, plan, small_dataset):
    run = Run(tmp_path, replace(plan, target_epsilon=None, releases=()), small_dataset).make()
    run.audit()
    found = ledger(run)
    assert found.releases == () and found.spent_epsilon == {} and found.weights_digest is None
    assert found.not_for_release is None


OTHER = {
    "mechanism": "none",
    "noise_multiplier": 0.6999,
    "sensitivity": 1.001,
    "sampling_rate": 0.1001,
    "steps": 3,
    "noise": "system",
    "epsilon": 1.0,
    "delta": 1e-6,
}


@pytest.mark.parametrize("key", sorted(set(Release.model_fields) - {"name"}))
def test_every_key_of_a_release_is_compared(audited, key):
    audited.change_release("dp-sgd", **{key: OTHER[key]})
    with pytest.raises(UserError, match=rf"dp-sgd\.json: {key} = .*; run the stage again"):
        audited.audit()


@pytest.mark.parametrize(("accountant", "certifies"), [("pld", True), ("prv", True), ("rdp", False), ("gdp", False)])
@pytest.mark.parametrize("beyond", [10.0 + 1e-9, float("nan"), float("inf"), float("-inf")])
def test_either_certifier_refuses_and_the_other_accountants_do_not(plan, accountant, certifies, beyond):
    spent = dict.fromkeys(ACCOUNTANTS, plan.target_epsilon)
    check_target(plan, spent)  # the target itself is within it
    if certifies:
        with pytest.raises(UserError, match=rf"{accountant} epsilon = .*: exceeds the target 10\.0 of mnist5k--"):
            check_target(plan, spent | {accountant: beyond})
    else:
        check_target(plan, spent | {accountant: beyond})


LEDGER_FAULTS = {
    "delta": ("_ledger", lambda ledger: replace(ledger, delta=ledger.delta / 10)),
    "releases before it": ("_ledger", lambda ledger: replace(ledger, prior=ledger.releases)),
    "epsilon": ("_ledger", lambda ledger: replace(ledger, spent_epsilon={k: v - 0.1 for k, v in ledger.spent_epsilon.items()})),
    "epsilon at another delta": ("spent_epsilon", None),
}


@pytest.mark.parametrize("name", LEDGER_FAULTS)
def test_a_ledger_that_is_not_what_was_planned_is_not_written(audited, monkeypatch, name):
    """Whatever puts it together: it is compared with the plan, whose epsilon was composed before."""
    function, change = LEDGER_FAULTS[name]
    right = getattr(audit, function)
    if change is None:
        monkeypatch.setattr(audit, function, lambda releases, delta: right(releases, 10 * delta))
    else:
        monkeypatch.setattr(audit, function, lambda *arguments: change(right(*arguments)))
    with pytest.raises(UserError, match="ledger: "):
        audited.audit()
    assert not audited.path("ledger.json").exists()
