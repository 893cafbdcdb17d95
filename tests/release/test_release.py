"""A folder to publish: what is in it, what is not, and when there is none."""

import json
import re
import subprocess
import zipfile

import numpy as np
import pytest
from PIL import Image

from dpsapf.cli.main import main
from dpsapf.experiment.layout import Layout
from dpsapf.experiment.records import DatasetRecord, Ledger, ModelRecord, Spend
from dpsapf.privacy.accounting import spent_epsilon
from dpsapf.release.records import PrivacyRecord
from dpsapf.release.statement import certified, up
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.records import read_record, write_record
from tests.published_run import (
    DP_SGD,
    SALIENCY,
    VOTES,
    leaks,
    put_on_record,
    secrets_of,
    spec,
    write_run,
    write_samples,
)


def told(out):
    return read_record(out / "privacy.json", PrivacyRecord)


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_has_images_statement_datasheet_and_digests(folder, publish):
    out = publish(folder)
    images = [f"images/0-ring/{row:06d}.png" for row in range(3)]
    images += [f"images/1-..-cross-plus/{row:06d}.png" for row in range(3, 6)]
    assert set(files(out)) == {*images, "images.npz", "README.md", "STATEMENT.md", "privacy.json", "SHA256SUMS"}
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=out, check=True)
    assert len((out / "SHA256SUMS").read_text().splitlines()) == len(files(out)) - 1
    with np.load(out / "images.npz", allow_pickle=False) as arrays, np.load(folder / "samples.npz") as drawn:
        assert (arrays["images"] == drawn["images"]).all() and (arrays["labels"] == drawn["labels"]).all()
        assert all((np.asarray(Image.open(out / name)) == arrays["images"][row]).all() for row, name in enumerate(images))


def test_nothing_private_is_in_it(folder, publish, root):
    out = publish(folder, weights=True)
    secrets = secrets_of(root, folder)
    assert len(secrets) > 30
    assert leaks(out, secrets) == []


def test_the_search_finds_what_would_be_private(folder, publish, root):
    """The same search, where each kind of secret was put somewhere."""
    out = publish(folder)
    secrets = secrets_of(root, folder)
    measured = json.loads((folder / "private.json").read_text())
    (out / "STATEMENT.md").write_text(f"batches of {measured['batches'][0]} images")
    (out / "privacy.json").write_text(json.dumps({"salt": measured["salt"], "run": folder.name}))
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    from PIL.PngImagePlugin import PngInfo

    note = PngInfo()
    note.add_text("source", str(root))
    image.save(out / "images" / "0-ring" / "000000.png", pnginfo=note)
    found = {name for name, _ in leaks(out, secrets)}
    assert found == {"STATEMENT.md", "privacy.json", "images/0-ring/000000.png"}


def test_images_have_no_metadata(folder, publish):
    out = publish(folder)
    for path in out.rglob("*.png"):
        data, at, chunks = path.read_bytes(), 8, []
        while at < len(data):
            chunks.append(data[at + 4 : at + 8])
            at += 12 + int.from_bytes(data[at : at + 4], "big")
        assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}
    with zipfile.ZipFile(out / "images.npz") as archive:
        assert {(member.date_time, member.comment) for member in archive.infolist()} == {((1980, 1, 1, 0, 0, 0), b"")}
        assert archive.comment == b""


def test_the_same_run_gives_the_same_bytes_and_costs_nothing_more(folder, publish, root):
    first, second = publish(folder, "a", weights=True), publish(folder, "b", weights=True)
    assert files(first) == files(second)
    register = root / "shapes.releases.jsonl"
    assert len(register.read_text().splitlines()) == 1
    publish(folder, "c")
    assert len(register.read_text().splitlines()) == 2, "images alone are another folder"
    assert told(publish(folder, "d")).together == told(first).together


def test_the_record_says_what_the_ledger_does(folder, publish):
    record, ledger = told(publish(folder)), read_record(folder / "ledger.json", Ledger)
    assert record.this_release.epsilon == ledger.spent_epsilon == record.together.epsilon
    assert (record.unit, record.units, record.delta, record.relation) == ("image", 3500, ledger.delta, ledger.relation)
    assert record.this_release.releases == ledger.releases and record.together.earlier_releases == 0
    assert [item.split(":")[0] for item in record.treated_as_public].count("hyperparameters") == 1
    assert "hyperparameters, chosen elsewhere" not in record.treated_as_public


def test_two_releases_of_one_dataset_compose_and_shared_scores_count_once(folder, publish, root):
    publish(folder)
    second = write_run(root, spec(ratio=0.5))
    out = publish(second, "second", hyperparameters="accounted")
    record = told(out)
    assert record.together.earlier_releases == 1 and record.together.unregistered == 0
    assert record.together.epsilon == spent_epsilon([SALIENCY, DP_SGD, DP_SGD], record.delta)
    assert record.this_release.epsilon["pld"] < record.together.epsilon["pld"]
    assert record.together.attack_bounds.advantage > record.this_release.attack_bounds.advantage
    assert "Together with 1 earlier release of this dataset: epsilon" in (out / "STATEMENT.md").read_text()


def test_a_selection_without_noise_is_never_published_nor_anything_that_it_may_have_shaped(folder, publish, root, tmp_path):
    """Not even where all other noise is real, and DP-SGD alone would hold the target."""
    made = write_run(root, spec("proxy", proxy="shapes"))
    ledger = read_record(made / "ledger.json", Ledger)
    assert (ledger.target_epsilon, ledger.spent_epsilon, ledger.noise) == (None, {}, "system")
    with pytest.raises(UserError, match="not_for_release = 'no guarantee: epsilon is infinite'"):
        publish(made)
    with pytest.raises(UserError, match="without noise'?: cannot be counted, and may have shaped this run"):
        publish(folder)
    assert not (tmp_path / "out").exists()


def test_what_was_composed_in_stays_counted(folder, publish, root):
    """The second run's releases are in the register by the first's line, though the second was never published."""
    second = write_run(root, spec("dp-lora"))
    record = told(publish(folder, compose=(second / "ledger.json",)))
    assert (record.together.earlier_releases, record.together.unregistered) == (0, 1)
    again = told(publish(folder, "again"))
    assert again == record
    third = write_run(root, spec("dp-full"))
    counted = told(publish(third, "third")).together
    assert len(counted.releases) == 4 and counted.unregistered == 0 and counted.earlier_releases == 1


def test_a_plan_that_held_the_earlier_release_is_not_counted_twice(folder, publish, root):
    publish(folder)
    prior = (folder / "ledger.json",)
    later = write_run(root, spec("dp-lora", epsilon=20.0), prior=prior)
    record, ledger = told(publish(later, "later")), read_record(later / "ledger.json", Ledger)
    assert record.together.epsilon["pld"] == pytest.approx(ledger.spent_epsilon["pld"])
    assert record.this_release.epsilon["pld"] < record.together.epsilon["pld"]


def test_a_plan_that_held_what_cannot_be_counted_is_refused(root, publish, tmp_path):
    seeded = write_run(tmp_path / "research", spec("dp-lora"), noise="seed")
    later = write_run(root, spec(epsilon=20.0), prior=(seeded / "ledger.json",))
    with pytest.raises(UserError, match="ledger.json = 'with noise from a seed': cannot be counted"):
        publish(later)


def test_an_evolved_run(root, publish):
    out = publish(write_run(root, spec("pe")))
    assert told(out).this_release.releases == (VOTES,)
    assert "by noisy votes of 3,500 private images" in (out / "STATEMENT.md").read_text()


def test_a_run_that_used_no_private_image(root, publish):
    folder = write_run(root, spec("no-finetune"))
    out = publish(folder)
    assert told(out).together.epsilon["pld"] == 0 and told(out).together.attack_bounds.advantage == 0
    assert "epsilon is 0" in (out / "STATEMENT.md").read_text()
    with pytest.raises(UserError, match="--weights = True: method no-finetune trains none"):
        publish(folder, "more", weights=True)


def test_images_of_prompts_alone_are_told_so_beside_what_others_released(folder, publish, root):
    out = publish(write_run(root, spec("no-finetune")), compose=(folder / "ledger.json",))
    text, record = (out / "STATEMENT.md").read_text(), told(out)
    assert "was adapted to" not in text and "from prompts alone. No private image was used" in text
    assert record.this_release.epsilon["pld"] == 0 and f"epsilon = {up(certified(record.together))}" in text


def test_images_made_elsewhere_are_not_published(folder, publish):
    (folder / "external.json").write_text("{}")
    with pytest.raises(UserError, match=r"external.json = .*: was made elsewhere: its epsilon is claimed only"):
        publish(folder)


def test_users_are_told_as_persons(root, publish):
    text = (publish(write_run(root, unit="user")) / "STATEMENT.md").read_text()
    assert "for one person" in text and "all private images of the person" in text and "one private image" not in text


def test_weights_are_those_that_were_audited(folder, publish):
    out = publish(folder, weights=True)
    digest = read_record(folder / "ledger.json", Ledger).weights_digest
    assert sha256(out / "weights.safetensors") == digest
    assert f"`{digest}`" in (out / "README.md").read_text()
    assert "rank 5, alpha 8" in (out / "README.md").read_text()


def test_no_name_of_a_class_leaves_the_folder_or_breaks_a_table(folder, publish, tmp_path):
    out = publish(folder)
    assert sorted(path.name for path in (out / "images").iterdir()) == ["0-ring", "1-..-cross-plus"]
    assert r"| 1 | ../cross \| plus | an image of a cross | 3 |" in (out / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "results"]


def change(path, kind, **changes):
    write_record(path, replace(read_record(path, kind), **changes))


def flip(path):
    """Change the last byte of a file."""
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def drawn_again(folder):
    write_samples(folder, spec(seed=3))
    (folder / "samples.npz").rename(folder / "other.npz")
    write_samples(folder, spec())
    (folder / "other.npz").rename(folder / "samples.npz")


def ledger_of_less(folder):
    """A ledger that tells a smaller epsilon, and images that were drawn under it."""
    spent = read_record(folder / "ledger.json", Ledger).spent_epsilon
    change(folder / "ledger.json", Ledger, spent_epsilon=spent | {"pld": 1.0})
    write_samples(folder, spec())


def ledger_without_scores(folder):
    releases = read_record(folder / "ledger.json", Ledger).releases
    change(folder / "ledger.json", Ledger, releases=releases[1:])
    write_samples(folder, spec())


def of_dataset(folder, **changes):
    change(folder.parents[1] / "cache/datasets/shapes/dataset.json", DatasetRecord, **changes)


def of_model(folder, **changes):
    change(folder.parents[1] / "cache/public_models/public-mini/model.json", ModelRecord, **changes)


def scores_of(folder):
    return next((folder.parents[1] / "cache" / "scores").glob("*/scores.csv"))


def refused_scores(folder):
    """What a refusal of propose-test-release leaves: it spent, and nothing was released."""
    spend = read_record(folder.parents[1] / "cache/scores" / spec().scores_id / "spend.json", Spend)
    path = folder.parents[1] / "cache/scores/shapes--other/refused.json"
    write_record(path, replace(spend, subject="shapes--other", digest="", private="7" * 64))


REFUSALS = {
    "no audit": (lambda folder: (folder / "ledger.json").unlink(), {}, "the audit is missing"),
    "images changed": (drawn_again, {}, "samples.npz = .*: are not the images that were drawn"),
    "images of another ledger": (
        lambda folder: change(folder / "ledger.json", Ledger, provenance={"python": "4"}),
        {},
        "timing.json: ledger = .*: the images were drawn under another ledger",
    ),
    "a smaller epsilon in the ledger": (ledger_of_less, {}, "spent_epsilon.pld = 1.0: the releases compose to"),
    "a release left out of the ledger": (ledger_without_scores, {}, "ledger.json: releases = .*: is not what the records say"),
    "weights changed": (
        lambda folder: flip(folder / "weights.safetensors"),
        {},
        "weights.safetensors = .*: is not the file that was recorded",
    ),
    "selection changed": (
        lambda folder: flip(folder / "selection.csv"),
        {},
        "selection.csv = .*: is not the file that was recorded",
    ),
    "scores changed": (lambda folder: flip(scores_of(folder)), {}, "scores.csv = .*: is not the file that was recorded"),
    "measures changed": (
        lambda folder: flip(folder / "private.json"),
        {},
        "private.json = .*: is not the file that was recorded",
    ),
    "measures removed": (lambda folder: (folder / "private.json").unlink(), {}, "private.json = None: is missing"),
    "dataset prepared again": (lambda folder: of_dataset(folder, id="0" * 64), {}, "before the dataset was prepared again"),
    "classes changed": (lambda folder: of_dataset(folder, classes=("ring",)), {}, "samples.npz = '6 images': .*of 1 classes"),
    "another model": (
        lambda folder: of_model(folder, licence="free"),
        {},
        "model.json = .*: is not the file that was recorded",
    ),
    "options of other images": (
        lambda folder: (folder / "sample.options.json").write_text('{"options": {"count": 8}}'),
        {},
        "the options beside it say 8",
    ),
    "options damaged": (lambda folder: (folder / "sample.options.json").write_text("{"), {}, "sample.options.json = 'not JSON'"),
    "options of nothing": (
        lambda folder: (folder / "sample.options.json").write_text("{}"),
        {},
        "sample.options.json: options = None",
    ),
    "options missing": (lambda folder: (folder / "sample.options.json").unlink(), {}, "sample.options.json = None: is missing"),
    "another run": (
        lambda folder: write_run(folder.parents[1], spec("dp-lora")),
        {},
        "dp-sgd.*: is of the same images and may",
    ),
    "another run with seeded noise": (
        lambda folder: write_run(folder.parents[1], spec("dp-lora"), noise="seed"),
        {},
        "ledger.json = 'with noise from a seed': cannot be counted",
    ),
    "another run without noise": (
        lambda folder: write_run(folder.parents[1], spec("no-dp")),
        {},
        "ledger.json = 'without noise': cannot be counted",
    ),
    "a refusal that was not counted": (refused_scores, {}, "refused.json = 'saliency': is of the same images"),
    "accounted, and nothing is": (lambda folder: None, {"hyperparameters": "accounted"}, "--hyperparameters = 'accounted': says"),
    "unknown run": (lambda folder: None, {"run": "shapes--nothing"}, "--run = 'shapes--nothing': no such run"),
    "no results folder": (lambda folder: None, {"run": "x", "results": None}, "if it is an id, add --results results/NAME"),
    "a folder renamed": (lambda folder: folder.rename(folder.with_name("x")), {"run": "x"}, "is not the folder's run x"),
    "no folder of the register": (
        lambda folder: None,
        {"register": "nowhere/x.jsonl"},
        "--register = .*its folder does not",
    ),
}


@pytest.mark.parametrize(("spoil", "options", "message"), REFUSALS.values(), ids=list(REFUSALS))
def test_a_refusal_is_one_line_and_leaves_nothing(folder, publish, tmp_path, root, spoil, options, message):
    spoil(folder)
    before = files(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        publish(options.pop("run", folder.name), **({"results": root} | options))
    assert len(str(caught.value).splitlines()) == 1
    assert files(tmp_path) == before and not (tmp_path / "out").exists()


def test_the_refusals_are_for_what_was_spoilt(folder, publish, root):
    publish(folder.name, results=root)


@pytest.mark.parametrize(("method", "noise"), [("dp-sapf", "seed"), ("no-dp", "system")])
def test_what_protects_nobody_is_refused(root, publish, tmp_path, method, noise):
    folder = write_run(root, spec(method), noise=noise)
    with pytest.raises(UserError, match="not_for_release = 'no"):
        publish(folder)
    change(folder / "ledger.json", Ledger, not_for_release=None)
    write_samples(folder, spec(method))
    with pytest.raises(UserError, match="not_for_release = 'no"):
        publish(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]


def test_a_folder_that_exists_is_left_alone(folder, publish, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="--out = .*: exists"):
        publish(folder)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="--out = .*: exists"):
        publish(folder, "link")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_fails_in_the_middle_leaves_no_folder_and_no_line(folder, publish, tmp_path, root, monkeypatch):
    def broken(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("dpsapf.release.release.statement", broken)
    with pytest.raises(OSError, match="full"):
        publish(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]
    assert not list(root.glob("*.jsonl"))


@pytest.mark.parametrize("record", ["of another dataset", "of another unit", "seeded"])
def test_records_that_do_not_add_up_are_refused(folder, publish, root, tmp_path, record):
    ledger = read_record(folder / "ledger.json", Ledger)
    changes = {
        "of another dataset": {"dataset_id": "0" * 64, "run": replace(ledger.run, dataset="others")},
        "of another unit": {"unit": "user"},
        "seeded": {"releases": (replace(DP_SGD, noise="seed"),)},
    }[record]
    write_record(tmp_path / "other.json", replace(ledger, **changes))
    message = {
        "of another dataset": "is not of shapes",
        "of another unit": "protects another unit",
        "seeded": "cannot be counted",
    }
    with pytest.raises(UserError, match=message[record]):
        publish(folder, compose=(tmp_path / "other.json",))


def test_images_prepared_again_are_the_same_persons(folder, publish, root, tmp_path):
    """A record of another preparation counts by the name of the dataset."""
    ledger = read_record(folder / "ledger.json", Ledger)
    write_record(tmp_path / "old.json", replace(ledger, dataset_id="0" * 64, weights_digest="e" * 64))
    assert told(publish(folder, compose=(tmp_path / "old.json",))).together.unregistered == 1


def test_a_total_without_end_is_refused(folder, publish, tmp_path):
    ledger = read_record(folder / "ledger.json", Ledger)
    whole = replace(SALIENCY, mechanism="ptr", epsilon=0.1, delta=ledger.delta)
    write_record(tmp_path / "costly.json", replace(ledger, releases=(whole,), digests={"scores": "9" * 64}))
    with pytest.raises(UserError, match="pld epsilon = inf: is not finite at delta"):
        publish(folder, compose=(tmp_path / "costly.json",))


def test_by_the_command_line(folder, root, tmp_path, capsys):
    words = ["--hyperparameters", "paper", "--out", str(tmp_path / "public" / "out"), "--quiet"]
    put_on_record(root)
    assert main(["release", str(folder), *words, "--dry-run"]) == 0
    assert f"writes  {tmp_path}/public/out" in capsys.readouterr().out and not (tmp_path / "public").exists()
    assert main(["release", str(folder), *words[2:]]) == 2
    error = capsys.readouterr().err
    assert "--hyperparameters" in error and len(error.splitlines()) == 1
    assert main(["release", str(folder), *words]) == 0
    assert [path.name for path in (tmp_path / "public").iterdir()] == ["out"], "no options, which name folders, beside it"
    assert main(["release", "--run", folder.name, "--results", str(root), *words]) == 2
    assert re.fullmatch(r"dpsapf release: --out = '.*': exists: .*\n", capsys.readouterr().err)


def test_help_has_the_meanings_and_defaults(capsys):
    assert main(["release", "--help"]) == 0
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert "never by metrics computed on them" in text and "[choices: public, paper, accounted]" in text
    assert "results/NAME/DATASET.releases.jsonl" in text and "publish the trained parameters, too [default: False]" in text


def test_the_register_is_where_the_layout_says(folder, publish, root, tmp_path):
    publish(folder)
    assert (root / "shapes.releases.jsonl").samefile(Layout(root).register("shapes"))
    publish(folder, "b", register=tmp_path / "own.jsonl")
    assert (tmp_path / "own.jsonl").exists()
