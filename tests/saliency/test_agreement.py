import numpy as np
import pandas as pd
import pytest
import torch

from dpsapf.experiment.columns import AGREEMENT_COLUMNS, BLOCK, CANDIDATES, LAYER, MATRIX
from dpsapf.experiment.stages import CompareScores
from dpsapf.public_models.latents import draw_batch
from dpsapf.saliency import agreement
from dpsapf.support.randomness import torch_generator
from dpsapf.support.records import write_record
from tests.tiny import TinyModel, tiny_latents, tiny_record, write_latents

M = 20


@pytest.fixture
def options(tmp_path, dataset_record, monkeypatch):
    """A comparison whose squared norms are known: matrix m has about m^2 of the energy."""
    energies = torch.arange(1.0, M + 1).square() * (0.5 + torch.rand(300, M, generator=torch.Generator().manual_seed(0)))
    monkeypatch.setattr(agreement, "squared_norms", lambda options, table: energies / energies.sum(1, keepdim=True))
    monkeypatch.setattr(agreement, "signal_scores", lambda options, table: energies.mean(0).sqrt().numpy())
    names = [f"b.{index}" for index in range(M)]
    table = pd.DataFrame({MATRIX: names, LAYER: "l", BLOCK: "b", CANDIDATES: "attention"})
    table.to_csv(tmp_path / "candidates.csv", index=False)
    write_record(tmp_path / "dataset.json", dataset_record)
    write_record(tmp_path / "model.json", tiny_record())
    files = {name: tmp_path / f"{name}.json" for name in ("dataset", "model")}
    return CompareScores(
        **files,
        candidate_table=tmp_path / "candidates.csv",
        latents=tmp_path / "latents.safetensors",
        prompts=tmp_path / "prompts.safetensors",
        sigma_s=(0.01, 1000.0),
        draws=5,
        out=tmp_path / "agreement.csv",
    )


def test_little_noise_keeps_the_order_and_much_noise_loses_it(options):
    agreement.compare_scores(options)
    table = pd.read_csv(options.out)
    assert list(table.columns) == list(AGREEMENT_COLUMNS) and len(table) == 5 * 2 * 5
    means = table.groupby(["score", "sigma_s"])[["rank_correlation", "overlap"]].mean()
    for name in ("energy", "norm", "share", "signal"):
        assert means.loc[(name, 0.01)].min() > 0.99
        assert means.loc[(name, 1000.0)].max() < 0.75


def test_agreement_of_known_orders():
    table = pd.DataFrame({MATRIX: list("abcd")})
    exact = np.array([4.0, 3.0, 2.0, 1.0])
    assert agreement.agreement(exact, exact, table, 0.5) == (pytest.approx(1.0), 1.0)
    assert agreement.agreement(exact, -exact, table, 0.5) == (pytest.approx(-1.0), 0.0)
    assert agreement.agreement(exact, np.array([4.0, 1.0, 2.0, 3.0]), table, 0.5)[1] == 0.5


def test_squared_norms_come_from_the_saliency_pass(tmp_path, monkeypatch, options):
    monkeypatch.undo()
    seen = {}

    def norms(unet, scheduler, pairs, names, given):
        seen["latents"] = pairs.rows(0, 7, "cpu").latents
        yield torch.ones(len(pairs), len(names))

    monkeypatch.setattr(agreement, "squared_gradient_norms", norms)
    monkeypatch.setattr(agreement, "load_model", TinyModel)
    write_latents(tmp_path, tiny_latents(7), "d" * 64)
    table = pd.DataFrame({MATRIX: list("abc")})
    assert agreement.squared_norms(options, table).shape == (7, 3)
    draws = torch_generator(options.seed, "saliency", "pairs")
    order = torch.randperm(7, generator=torch_generator(options.seed, "saliency", "order"))
    expected = draw_batch(tiny_latents(7), order, 1, 1000, draws).rows(0, 7, "cpu").latents
    assert torch.equal(seen["latents"], expected)
