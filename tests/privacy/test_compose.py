import pytest

from dpsapf.experiment.records import Composition, Ledger, Spend
from dpsapf.experiment.stages import ComposeReleases
from dpsapf.privacy.accounting import spent_epsilon
from dpsapf.privacy.compose import compose_releases, named_prior, prior_releases
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.records import read_record, write_record


@pytest.fixture
def ledgers(audited, tmp_path):
    """Two ledgers of one dataset: the second of another seed's weights, from the same scores."""
    audited.audit()
    first = read_record(audited.path("ledger.json"), Ledger)
    second = replace(first, run=replace(first.run, seed=1), weights_digest="f" * 64)
    write_record(tmp_path / "second.json", second)
    return audited.path("ledger.json"), tmp_path / "second.json"


def composed(tmp_path, *records, delta=3.5e-5):
    compose_releases(ComposeReleases(records=records, delta=delta, out=tmp_path / "composition.json"))
    return read_record(tmp_path / "composition.json", Composition)


def test_shared_scores_count_once_and_weights_each_time(ledgers, tmp_path, releases):
    found = composed(tmp_path, *ledgers)
    assert sorted(release.name for release in found.releases) == ["dp-sgd", "dp-sgd", "saliency"]
    assert found.spent_epsilon == spent_epsilon([releases[0], releases[1], releases[1]], 3.5e-5)
    alone = composed(tmp_path, ledgers[0]).spent_epsilon["pld"]
    assert alone < found.spent_epsilon["pld"] < 2 * alone


def test_other_scores_count(ledgers, tmp_path):
    second = read_record(ledgers[1], Ledger)
    write_record(ledgers[1], replace(second, digests=second.digests | {"scores": "0" * 64}))
    assert len(composed(tmp_path, *ledgers).releases) == 4


def test_votes_count_by_their_population(evolved, tmp_path):
    evolved.audit()
    first = read_record(evolved.path("ledger.json"), Ledger)
    assert composed(tmp_path, evolved.path("ledger.json"), evolved.path("pe-histogram.json")).releases == first.releases
    write_record(tmp_path / "second.json", replace(first, digests={"population": "0" * 64}))
    assert composed(tmp_path, evolved.path("ledger.json"), tmp_path / "second.json").releases == 2 * first.releases


def test_the_same_ledger_twice_counts_once(ledgers, tmp_path):
    assert composed(tmp_path, ledgers[0], ledgers[0]).releases == composed(tmp_path, ledgers[0]).releases


def test_what_is_released_without_a_guarantee_has_no_epsilon(ledgers, tmp_path):
    second = read_record(ledgers[1], Ledger)
    exact = replace(second.releases[1], mechanism="none", noise_multiplier=None, sensitivity=None, noise=None)
    write_record(ledgers[1], replace(second, releases=(second.releases[0], exact)))
    assert composed(tmp_path, *ledgers).spent_epsilon == {}


def test_what_a_ledger_held_before_counts(ledgers, tmp_path, releases):
    second = read_record(ledgers[1], Ledger)
    write_record(ledgers[1], replace(second, prior=releases))
    assert len(composed(tmp_path, ledgers[1]).releases) == 4


def test_what_a_ledger_held_before_is_known_again_by_its_digest(ledgers, tmp_path):
    named = named_prior(ledgers[:1], "d" * 64, "image")
    keys = tuple(key for key, _ in named)
    second = replace(read_record(ledgers[1], Ledger), prior=tuple(named.values()), prior_keys=keys)
    write_record(ledgers[1], replace(second, digests={}, releases=second.releases[1:]))
    assert len(composed(tmp_path, *ledgers).releases) == 3, "the first's two, and the second's own"
    assert len(composed(tmp_path, ledgers[1]).releases) == 3
    write_record(ledgers[1], replace(second, prior_keys=keys[:1]))
    with pytest.raises(ValueError, match="zip"):
        composed(tmp_path, ledgers[1])


def test_a_refusal_counts(audited, ledgers, tmp_path):
    refusal = replace(read_record(audited.path("saliency.json"), Spend), digest="", private="r" * 64)
    write_record(tmp_path / "refused.json", refusal)
    assert len(composed(tmp_path, ledgers[0], tmp_path / "refused.json").releases) == 3


def test_every_refusal_counts_and_a_spend_record_of_what_a_ledger_holds_does_not(audited, ledgers, tmp_path):
    spend = read_record(audited.path("saliency.json"), Spend)
    for name in "ab":
        write_record(tmp_path / f"{name}.json", replace(spend, digest="", private=name * 64))
    refused = [tmp_path / "a.json", tmp_path / "b.json"]
    assert len(composed(tmp_path, ledgers[0], *refused).releases) == 4
    assert len(composed(tmp_path, ledgers[0], audited.path("saliency.json")).releases) == 2


def test_another_dataset_is_refused(ledgers, tmp_path):
    write_record(ledgers[1], replace(read_record(ledgers[1], Ledger), dataset_id="0" * 64))
    with pytest.raises(UserError, match="is of another dataset"):
        composed(tmp_path, *ledgers)
    with pytest.raises(UserError, match="is of another dataset"):
        prior_releases(ledgers[:1], "1" * 64, "image")


def test_what_is_no_record_is_told(tmp_path):
    (tmp_path / "x.json").write_text("[")
    with pytest.raises(UserError, match="not JSON"):
        prior_releases([tmp_path / "x.json"], "d", "image")


def test_no_records_are_no_releases():
    assert prior_releases([], "d", "image") == []


def test_another_unit_is_refused(ledgers, tmp_path):
    write_record(ledgers[1], replace(read_record(ledgers[1], Ledger), unit="user"))
    with pytest.raises(UserError, match="user.*protects another unit than image"):
        composed(tmp_path, *ledgers)
