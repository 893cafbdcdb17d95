"""What was spent stays on record: by dataset, whatever becomes of results folders, salts, names and clones."""

import json
import multiprocessing
import stat
from contextlib import nullcontext

import numpy as np
import pytest

from dpsapf.experiment.records import Spend
from dpsapf.privacy import spends
from dpsapf.privacy.spend_record import Again, Record
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def know(dataset_record):
    """Put a dataset on record."""

    def put(letter, images=PIXELS, name="mine"):
        dataset = replace(dataset_record, id=letter * 64, name=name)
        spends.know(dataset, lambda: (images[start : start + 16] for start in range(0, len(images), 16)))
        return dataset.id

    return put


@pytest.fixture
def spend(run, releases):
    """What a stage's record says of a run's training."""
    release = replace(releases[1], noise="system")
    fixed = {"unit": "image", "population": 40, "made_from": {}, "numbers": 1, "trainable_parameters": 1, "private": "p" * 64}
    return Spend(provenance={}, subject=run.id, release=release, dataset_id="a" * 64, digest="w" * 64, **fixed)


@pytest.fixture
def scored(run, spend, releases):
    """What a stage's record says of the scores that the run uses."""
    return replace(spend, subject=run.scores_id, release=replace(releases[0], noise="system"), digest="s" * 64)


def other(run, **changes):
    return replace(run, **({"ratio": 0.5} | changes))


def plan_of(*run):
    """Plan a run; what its plan counts."""
    with spends.planning(*run) as found:
        return found


def lines(folder):
    return (folder / "spends.jsonl").read_bytes().splitlines()


def test_nobody_but_the_owner_reads_the_record(know, spends_folder):
    know("a")
    modes = {
        path.relative_to(spends_folder).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in [spends_folder, *spends_folder.rglob("*")]
    }
    assert modes.pop(".") == modes.pop("images") == 0o700
    assert set(modes) == {"key", "spends.jsonl", f"images/{'a' * 64}.npy"} and set(modes.values()) == {0o600}


SAME = {
    "another salt": (PIXELS, "mine"),
    "another name": (PIXELS, "theirs"),
    "another order": (PIXELS[::-1], "theirs"),
    "one image less": (PIXELS[1:], "theirs"),
    "one image alone": (PIXELS[:1], "theirs"),
    "more images": (np.concatenate([255 - PIXELS, PIXELS[:1]]), "theirs"),
    "the same name": (255 - PIXELS, "mine"),
}


@pytest.mark.parametrize(("images", "name"), SAME.values(), ids=list(SAME))
def test_the_same_images_are_known_again(know, spend, run, images, name):
    know("a")
    spends.record(spend)
    again = know("b", images, name)
    assert [spent.key for spent in spends.released(run.id, again)] == [spend.digest]
    assert list(plan_of(other(run), again, "image", {})) == [(spend.digest, spend.release)]


def test_other_images_are_others(know, spend, run):
    know("a")
    spends.record(spend)
    elsewhere = know("b", 255 - PIXELS, "theirs")
    assert spends.released(run.id, elsewhere) == [] and plan_of(other(run), elsewhere, "image", {}) == {}


def test_what_shares_images_with_what_shares_images_is_the_same(know, spend, run):
    """a and c have no image in common and other names, but b has images of both: one image may have been in all three."""
    know("a", PIXELS[:20])
    spends.record(spend)
    c = know("c", PIXELS[20:], "theirs")
    assert spends.released(run.id, c) == []
    know("b", PIXELS[10:30], "ours")
    assert len(spends.released(run.id, c)) == 1


def test_digests_tell_nothing_without_the_key(know, spends_folder, monkeypatch, tmp_path):
    know("a")
    first = np.load(spends_folder / "images" / f"{'a' * 64}.npy")
    monkeypatch.setenv("DPSAPF_SPENDS", str(tmp_path / "another"))
    know("a")
    second = np.load(tmp_path / "another" / "images" / f"{'a' * 64}.npy")
    assert first.shape == second.shape == (40, 16) and not set(map(bytes, first)) & set(map(bytes, second))


def test_a_dataset_is_looked_at_once(know, dataset_record, spends_folder):
    know("a")
    before = lines(spends_folder)
    spends.know(replace(dataset_record, id="a" * 64), lambda: pytest.fail("the images were read again"))
    assert lines(spends_folder) == before


def test_a_spend_is_on_record_once_and_whole(know, spend, run, spends_folder):
    know("a")
    for _ in range(2):
        spends.record(spend)
    (line,) = [json.loads(line) for line in lines(spends_folder) if b'"spent"' in line]
    assert Spend(**line["told"]["record"]) == spend


def test_a_spend_on_unknown_images_is_refused(know, spend, run):
    with pytest.raises(UserError, match="does not know these images: plan the run here first"):
        spends.record(spend)
    with pytest.raises(UserError, match="does not know these images"):
        spends.released(run.id, spend.dataset_id)
    with pytest.raises(UserError, match="does not know these images"):
        plan_of(run, spend.dataset_id, "image", {})


@pytest.mark.parametrize("changes", [{"noise": "seed"}, {"noise": None, "mechanism": "none", "noise_multiplier": None}])
def test_what_has_no_guarantee_has_no_place_on_record(spend, changes, spends_folder):
    spends.record(replace(spend, release=replace(spend.release, **changes)))
    assert not spends_folder.exists()


def test_a_second_release_of_a_run_by_another_process_is_refused(know, spend, run):
    know("a")
    spends.record(spend)
    with pytest.raises(UserError, match="was released meanwhile by another process"):
        spends.record(replace(spend, digest="x" * 64))
    spends.record(replace(spend, digest="v" * 64, release=replace(spend.release, name="pe-histogram")))
    assert [spent.release.name for spent in spends.released(run.id, spend.dataset_id)] == ["dp-sgd", "pe-histogram"]


def test_runs_that_are_planned_together_stand_alone_and_later_ones_count_them(know, spend, run):
    know("a")
    first, sibling, later = run, other(run), other(run, ratio=0.7)
    assert plan_of(first, spend.dataset_id, "image", {}) == plan_of(sibling, spend.dataset_id, "image", {}) == {}
    spends.record(spend)
    assert plan_of(sibling, spend.dataset_id, "image", {}) == {}, "planned again, an unfinished run keeps its plan"
    assert list(plan_of(later, spend.dataset_id, "image", {})) == [(spend.digest, spend.release)]
    assert list(spends.priors(other(run, ratio=0.9), spend.dataset_id, "image", {})) == [(spend.digest, spend.release)]


@pytest.mark.parametrize("counts_all", [True, False])
def test_earlier_releases_of_equal_settings_all_count(know, spend, run, plan, counts_all):
    """A plan that counts one of two is refused before its run releases anything, also where what it is compared with does so."""
    know("a")
    earlier = [replace(spend, subject=f"mine--{letter}", digest=letter * 64) for letter in "xy"]
    for each in earlier:
        spends.record(each)
    prior = plan_of(run, spend.dataset_id, "image", {})
    assert list(prior) == [(each.digest, spend.release) for each in earlier]
    made = {"noise": "system", "dataset_id": spend.dataset_id}
    made |= {"prior": tuple(prior.values()), "prior_keys": tuple(key for key, _ in prior)}
    with pytest.MonkeyPatch.context() as patch:
        if not counts_all:
            made |= {"prior": made["prior"][1:], "prior_keys": made["prior_keys"][1:]}
            patch.setattr(Record, "priors", lambda *_: dict([*prior.items()][1:]))
        with nullcontext() if counts_all else pytest.raises(UserError, match="does not count what was spent"):
            spends.check_planned(replace(plan, **made))


def test_a_plan_that_was_not_made_has_no_place_on_record(know, spend, run):
    """It counts what is spent until it is made; what is spent while it is made counts for others only."""
    know("a")
    with pytest.raises(RuntimeError), spends.planning(run, spend.dataset_id, "image", {}):
        raise RuntimeError
    spends.record(spend)
    later = other(run)
    with spends.planning(later, spend.dataset_id, "image", {}) as found:
        spends.record(replace(spend, subject="mine--x", digest="x" * 64))
    assert [key for key, _ in found] == [key for key, _ in plan_of(later, spend.dataset_id, "image", {})] == [spend.digest]


def test_a_look_at_what_was_spent_writes_nothing(run, spends_folder):
    assert spends.priors(run, "a" * 64, "image", {}) == {} and not spends_folder.exists()


def test_scores_that_a_run_uses_are_its_own_and_others_are_earlier(know, spend, scored, run):
    know("a")
    spends.record(scored)
    spends.record(replace(scored, subject=other(run, sigma_s=5.0).scores_id, digest="t" * 64))
    assert [key for key, _ in plan_of(run, spend.dataset_id, "image", {})] == ["t" * 64]
    elsewhere = know("b")
    assert {key for key, _ in plan_of(run, elsewhere, "image", {})} == {"s" * 64, "t" * 64}, "drawn anew, they are two releases"


def test_scores_that_were_refused_are_nobodys_own(know, spend, scored, run):
    know("a")
    spends.record(replace(scored, digest=""))
    assert [key for key, _ in plan_of(run, spend.dataset_id, "image", {})] == [scored.private]


def say_again(subject):
    with spends.opened() as book:
        book.add(Again(subject=subject))


def test_the_owners_word_sets_a_run_free_and_its_next_plan_counts_what_it_spent(know, spend, run):
    know("a")
    plan_of(run, spend.dataset_id, "image", {})
    spends.record(spend)
    say_again(run.id)
    assert spends.released(run.id, spend.dataset_id) == []
    assert list(plan_of(run, spend.dataset_id, "image", {})) == [(spend.digest, spend.release)]
    spends.record(replace(spend, digest="x" * 64))
    assert [spent.key for spent in spends.released(run.id, spend.dataset_id)] == ["x" * 64]
    assert len(plan_of(other(run), spend.dataset_id, "image", {})) == 2, "both stay on record"


def planned_as(plan, run, found):
    keys = [key for key, _ in found]
    return replace(plan, run=run, noise="system", dataset_id="a" * 64, prior=tuple(found.values()), prior_keys=tuple(keys))


def test_a_plan_from_before_the_owners_word_is_refused(know, spend, scored, run, plan):
    know("a")
    spends.record(scored)
    made = planned_as(plan, run, plan_of(run, spend.dataset_id, "image", {}))
    spends.check_planned(made)
    say_again(run.scores_id)
    with pytest.raises(UserError, match="does not count what was spent: delete it, and plan the run again"):
        spends.check_planned(made)
    made = planned_as(plan, run, plan_of(run, spend.dataset_id, "image", {}))
    assert made.prior_keys == (scored.digest,)
    spends.check_planned(made)
    spends.record(spend)
    spends.check_planned(made)
    say_again(run.id)
    with pytest.raises(UserError, match="does not count what was spent"):
        spends.check_planned(made)


def test_units_do_not_add_up(know, spend, run):
    know("a")
    spends.record(spend)
    with pytest.raises(UserError, match="unit = 'image': was released on these images, and this run protects one user"):
        plan_of(other(run), spend.dataset_id, "user", {})


DAMAGE = {
    "a line changed": lambda folder: edit(folder, lambda text: text.replace("mine", "other")),
    "a line removed": lambda folder: edit(folder, lambda text: text.split("\n", 1)[1]),
    "the key removed": lambda folder: (folder / "key").unlink(),
    "the key cut off": lambda folder: (folder / "key").write_bytes(b"short"),
    "digests removed": lambda folder: (folder / "images" / f"{'a' * 64}.npy").unlink(),
    "digests damaged": lambda folder: (folder / "images" / f"{'a' * 64}.npy").write_bytes(b"nothing"),
}


def edit(folder, change):
    path = folder / "spends.jsonl"
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_a_record_that_lost_something_is_refused(know, spend, spends_folder, damage):
    know("a")
    spends.record(spend)
    damage(spends_folder)
    before = lines(spends_folder)
    with pytest.raises(UserError, match="restore the whole folder from a copy"):
        know("b", name="theirs")
    assert lines(spends_folder) == before


def put_many(know, spend, number):
    know("abcd"[number], PIXELS[10 * number :][:10], "theirs")
    for place in range(5):
        spends.record(replace(spend, subject=f"{number}-{place}", dataset_id="abcd"[number] * 64, digest=f"{number}-{place}"))


def test_processes_at_once_lose_nothing(know, spend):
    """The folder, its key and its lines are made by several processes at the same time."""
    made = [multiprocessing.get_context("fork").Process(target=put_many, args=(know, spend, number)) for number in range(4)]
    for process in made:
        process.start()
    for process in made:
        process.join(60)
    assert [process.exitcode for process in made] == [0] * 4
    with spends.opened() as book:
        assert len(book.of(spends.Spent)) == 20 and len(book.of(spends.Known)) == 4
    know("e", PIXELS[35:], "ours")
    with spends.opened() as book:
        assert book.same_images("e" * 64) == {letter * 64 for letter in "abcde"}, "one key made all digests"
