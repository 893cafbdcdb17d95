"""What else than noise moves the order: invented norms whose answer is known, and the real pass."""

import pandas as pd
import pytest
import torch

from dpsapf.experiment.columns import BLOCK, CANDIDATES, LAYER, MATRIX, RANKING_COLUMNS
from dpsapf.experiment.stages import CompareRankings
from dpsapf.saliency import agreement, ranking_stability
from dpsapf.support.checked import replace
from dpsapf.support.records import write_record
from tests.tiny import TinyModel, candidates, tiny_latents, tiny_record, tiny_unet, write_latents

M, N = 20, 400


def norms(options, table):
    """Energies of matrix m near m^2, of total near 1; another draw for another seed, and sharper in the second half."""
    noise = torch.rand(N, M, generator=torch.Generator().manual_seed(options.seed))
    energies = torch.arange(1.0, M + 1).square() * (0.5 + noise)
    return energies / energies.sum(1, keepdim=True)


def signal(options, table, share):
    return norms(options, table)[: round(share * N)].sum(0).sqrt().numpy()


@pytest.fixture
def options(tmp_path, dataset_record, monkeypatch):
    monkeypatch.setattr(ranking_stability, "squared_norms", norms)
    monkeypatch.setattr(ranking_stability, "signal_scores", signal)
    names = [f"b.{index}" for index in range(M)]
    table = pd.DataFrame({MATRIX: names, LAYER: "l", BLOCK: "b", CANDIDATES: "attention"})
    table.to_csv(tmp_path / "candidates.csv", index=False)
    write_record(tmp_path / "dataset.json", dataset_record)
    write_record(tmp_path / "model.json", tiny_record())
    files = {name: tmp_path / f"{name}.json" for name in ("dataset", "model")}
    files |= {
        "candidate_table": tmp_path / "candidates.csv",
        "latents": tmp_path / "latents.safetensors",
        "prompts": tmp_path / "prompts.safetensors",
        "out": tmp_path / "rankings.csv",
    }
    return CompareRankings(**files, sigma_s=0.5, draws=8, repeats=3, clipping_norm=1.0, images=(0.02, 1.0))


@pytest.fixture
def found(options):
    ranking_stability.compare_rankings(options)
    return pd.read_csv(options.out)


def mean(found, score, varied, value=1.0, metric="rank_correlation"):
    rows = found[(found["score"] == score) & (found["varied"] == varied) & (found["value"] == value)]
    assert len(rows) == {"timesteps": 3, "release": 3}.get(varied, 8)
    return rows[metric].mean()


def test_every_score_is_varied_and_only_those_with_a_bound_by_it(found):
    assert list(found.columns) == list(RANKING_COLUMNS)
    assert set(found.loc[found["varied"] == "clipping_norm", "score"]) == {"energy", "norm"}
    assert set(found.loc[found["varied"] == "clipping_norm", "value"]) == {0.1, 0.3, 1.0, 3.0, 10.0}
    for varied in ("images", "timesteps", "release"):
        assert set(found.loc[found["varied"] == varied, "score"]) == {"energy", "norm", "vote", "share", "signal"}


def test_a_bound_above_every_norm_only_adds_noise(found):
    """No norm exceeds 1, so at ten times the bound energy has a hundred times the noise and the same signal."""
    assert mean(found, "energy", "clipping_norm", 1.0) > 0.95 > mean(found, "energy", "clipping_norm", 10.0)
    assert mean(found, "energy", "clipping_norm", 0.3) == pytest.approx(1.0, abs=0.02), "all are cut alike"


def test_fewer_images_drown_in_the_same_noise(found):
    for score in ("energy", "share", "norm"):
        assert mean(found, score, "images", 0.02) < mean(found, score, "images", 1.0)


def test_timesteps_alone_move_less_than_a_whole_release(found):
    assert mean(found, "share", "timesteps") > mean(found, "share", "release") > 0.8


def test_draws_are_repeatable_and_differ(options, found):
    rows = found[(found["score"] == "share") & (found["varied"] == "images") & (found["value"] == 0.02)]
    assert rows["rank_correlation"].nunique() > 4
    ranking_stability.compare_rankings(options)
    pd.testing.assert_frame_equal(pd.read_csv(options.out), found)


def test_a_real_pass_over_a_share_of_the_images(tmp_path, options, monkeypatch):
    """Each image counts once, the first ones at a share, and all scores come from the same draws."""
    monkeypatch.undo()
    monkeypatch.setattr(agreement, "load_model", TinyModel)
    write_latents(tmp_path, tiny_latents(6), "d" * 64)
    names = candidates(tiny_unet())
    table = pd.DataFrame({MATRIX: names, LAYER: "l", BLOCK: "b", CANDIDATES: "attention"})
    table.to_csv(options.candidate_table, index=False)
    small = replace(options, images=(0.5, 1.0), draws=2, repeats=2, sigma_s=1e-9)
    ranking_stability.compare_rankings(small)
    written = pd.read_csv(small.out)
    whole = written[(written["varied"] == "images") & (written["value"] == 1.0)]
    assert whole["rank_correlation"].to_numpy() == pytest.approx(1.0, abs=0.05), "nearly no noise"
    half = agreement.signal_scores(small, table, 0.5)
    assert half.shape == (len(names),) and (half < agreement.signal_scores(small, table) + 3.0).all()
