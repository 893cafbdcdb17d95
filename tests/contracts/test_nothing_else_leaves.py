"""Nothing leaves but what the meter releases: an attack on every file that is not private.

A run is made twice, on different private images of equal number and classes, with other secret draws (noise of the operating
system), while what the meter releases is forced to be the same. Then every other file has to be the same, bit by bit. What
differs was learnt from the images past the meter: a latent in a header, a column too many, a low bit, a second release, a
division by the real batch. A digest has to be that of a file of the run. Only times and memory may differ.
"""

from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from dpsapf.experiment.methods import FRAGILITY
from dpsapf.experiment.records import Plan
from dpsapf.finetune import train
from dpsapf.finetune.adapters import trainable
from dpsapf.privacy.meter import Meter
from dpsapf.saliency import score
from dpsapf.sampling import sample as sampling
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.records import read_record, write_record
from tests.contracts.past_the_meter import FAULTS, STEPS_TO_TELL, in_low_bits_of_images
from tests.contracts.two_runs import (
    PRIVACY,
    SHOWN,
    TRAINED,
    UPDATES,
    Side,
    differing,
    evolved,
    fine_tuned,
    forced_releases,
    forced_winners,
)
from tests.tiny import TinyModel, tiny_unet, write_tiny_model


@pytest.fixture(scope="module")
def public_model(tmp_path_factory):
    """The tiny UNet as a folder, for whoever reads what parameters it has."""
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder)
    return folder


@pytest.fixture
def sides(tmp_path, public_model, dataset_record, monkeypatch):
    """Two results folders whose private images differ, and nothing else."""
    for stage in (train, score, sampling):
        monkeypatch.setattr(stage, "load_model", TinyModel)
    made = [Side(tmp_path / name, seed, public_model) for seed, name in ((1, "one"), (2, "other"))]
    for side in made:
        side.public()
        side.encoded(*side.private(dataset_record))
        side.encoded(*side.private(dataset_record, SHOWN, seed=3), SHOWN, seed=3)
    return made


SAPF = {"method": "dp-sapf", "level": "matrix", "ratio": 0.3, "sigma_s": 10.0}
RUNS = {
    "all stages": (SAPF, {"ema_decay": 0.5}),
    "several draws of an image": ({}, {"noise_multiplicity": 3}),
    "users": ({**SAPF, "unit": "user", "expected_batch_size": 2}, {}),
    "users, several draws": ({"unit": "user", "expected_batch_size": 2}, {"noise_multiplicity": 2}),
    "gradient checkpointing, SGD": ({"optimizer": "sgd"}, {"gradient_checkpointing": True, "learning_rate_schedule": "cosine"}),
    "Adam that knows the noise": ({"optimizer": "dp-adambc"}, {"learning_rate_schedule": "linear"}),
    "a rate by what noise breaks": ({**SAPF, "learning_rate": "auto"}, {}),
    "ranks by what noise breaks": ({**SAPF, "lora_rank": "auto"}, {}),
    **{f"score {name}": ({**SAPF, "score": name}, {}) for name in ("norm", "vote", "share", "signal")},
    **{f"rule {name}": ({**SAPF, "rule": name}, {}) for name in ("least", "random", "gap")},
    **{
        f"rule {name}": ({**SAPF, "score": "signal", "rule": name}, {})
        for name in ("noise-aware", "equal-curvature", "noise-budget")
    },
    **{f"adapter {name}": ({"adapter": name}, {}) for name in ("rslora", "dora", "loha", "lokr", "ffa-lora", "la-lora")},
    **{f"method {name}": ({**SAPF, "method": name}, {}) for name in ("noisy", "no-lora", "all-params")},
    "method random": ({"method": "random", "level": "matrix", "ratio": 0.3}, {}),
    **{f"proxy {name}": ({"method": "proxy", "level": "matrix", "ratio": 0.3, "proxy": name}, {}) for name in (FRAGILITY, SHOWN)},
    **{f"method {name}": ({"method": name}, {"ema_decay": 0.5}) for name in ("dp-full", "dp-ldm", "dp-bitfit")},
    "exponential": ({**SAPF, "mechanism": "exponential"}, {}),
}


OFTEN = ("all stages", "users", "proxy shown")  # the others only with the slow tests


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in OFTEN else pytest.mark.slow) for name in RUNS])
def test_what_is_not_private_is_the_same_for_other_images(sides, name):
    changes, settings = RUNS[name]
    assert differing(sides, lambda side: fine_tuned(side, changes, settings, images=name == "all stages")) == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all stages", "rule least"])
def test_what_no_audit_has_seen_is_the_same_for_other_images(sides, name):
    changes, settings = RUNS[name]
    assert differing(sides, lambda side: fine_tuned(side, changes, settings, audit=False)) == set()


def test_the_winners_of_propose_test_release_are_all_that_leaves(sides):
    with forced_winners():
        assert differing(sides, lambda side: fine_tuned(side, {**SAPF, "mechanism": "ptr"}, {})) == set()


def test_releases_that_are_not_forced_do_differ(sides):
    """So the comparison sees what it compares: all that depends on released numbers."""
    found = differing(sides, lambda side: fine_tuned(side, SAPF, {}), releases=nullcontext)
    assert {"scores.csv", "selection.csv", "weights.safetensors"} <= {Path(name).name for name in found}


@pytest.fixture
def evolving_sides(tmp_path, model_record, two_digits):
    """Two results folders of images of 28 x 28, for an untrained public-mini."""
    made = [Side(tmp_path / name, seed, Path(model_record.path)) for seed, name in ((1, "one"), (2, "other"))]
    for side in made:
        write_record(side.layout.model("tiny", "model.json"), model_record)
        side.private(replace(two_digits, channels=1))
    return made


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "pe"},
        *(pytest.param(each, marks=pytest.mark.slow) for each in ({"method": "aug-pe"}, {"method": "pe", "unit": "user"})),
    ],
)
def test_evolved_images_are_the_same_for_other_images(evolving_sides, changes):
    assert differing(evolving_sides, lambda side: evolved(side, changes)) == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_what_leaves_past_the_meter_is_found(sides, name):
    fault, file = FAULTS[name]
    with fault():
        found = differing(sides, lambda side: fine_tuned(side, {**SAPF, "steps": STEPS_TO_TELL}, {}, audit=False))
    assert file in {Path(name).name for name in found}


SEEN = {  # by the audit, too: what it tells
    "pixels in the weights' metadata": r"weights\.safetensors: metadata",
    "a pixel in the weights' header": r"weights\.safetensors: metadata",
    "pixels in a column of scores.csv": r"scores\.csv: columns",
    "pixels in a column of selection.csv": r"selection\.csv: line 1",
    "pixels in the lowest bits of the scores": "the grid of the release",
    "a second, exact release of the scores": "the grid of the release",
    "a parameter that is trained and not counted": r"conv_in\.bias = .*must be absent",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEN)
def test_the_audit_refuses_what_leaves_in_another_form_than_the_release(sides, name):
    fault, _ = FAULTS[name]
    with fault(), pytest.raises(UserError, match=SEEN[name]):
        fine_tuned(sides[0], SAPF, {})
    assert not list(sides[0].root.glob("runs/*/ledger.json"))


def test_what_leaves_past_the_votes_is_found(evolving_sides):
    with in_low_bits_of_images():
        found = differing(evolving_sides, lambda side: evolved(side, {"method": "pe"}))
    assert {"population.safetensors", "samples.npz"} <= {Path(name).name for name in found}


def test_weights_are_what_released_sums_alone_make_of_the_public_start(sides):
    """Bit by bit: by torch's own AdamW from the adapter's start, with the sums that the meter released and public numbers."""
    sums, forced = [], forced_releases

    with forced(), pytest.MonkeyPatch.context() as patch:
        noisy = Meter.gaussian
        patch.setattr(Meter, "gaussian", lambda *inputs: sums.append(noisy(*inputs)) or sums[-1])
        fine_tuned(sides[0], {}, {"ema_decay": 0.5})
    (folder,) = Path(sides[0].root / "runs").iterdir()
    plan = read_record(folder / "plan.json", Plan)
    start = trainable(tiny_unet(), plan.run, pd.read_csv(folder / "selection.csv"), UPDATES["lora_rank"], UPDATES["lora_alpha"])
    average = {name: value.detach().clone() for name, value in start.items()}
    optimizer = torch.optim.AdamW(start.values(), lr=TRAINED["learning_rate_lora"], weight_decay=0.0)
    for step, released_sums in enumerate(sums):
        for value, total in zip(start.values(), released_sums.values, strict=True):
            value.grad = (total / PRIVACY["expected_batch_size"]).float()
        optimizer.step()
        for name, value in start.items():
            average[name].lerp_(value.detach(), 1 - min(0.5, (2 + step) / (11 + step)))
    written = load_file(folder / "weights.safetensors")
    assert written.keys() == average.keys() and len(sums) == PRIVACY["steps"]
    assert all(torch.equal(written[name], value) for name, value in average.items())
