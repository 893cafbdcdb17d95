import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy import stats

from dpsapf.public_models.latents import Latents, draw_batch, origin
from dpsapf.support.errors import UserError
from dpsapf.support.randomness import torch_generator
from dpsapf.support.records import write_record
from tests.tiny import tiny_latents, tiny_record, write_latents


def drawn(indices=(3, 0, 7), multiplicity=2, seed=0, latents=None, timesteps=1000):
    generator = torch_generator(seed, "pairs")
    units = torch.tensor(indices, dtype=torch.int64)
    batch = draw_batch(latents or tiny_latents(), units, multiplicity, timesteps, generator)
    return batch.rows(0, len(batch), "cpu")


def many(std, images=400):
    """Latents of mean 3 and one standard deviation, for statistics of the draws."""
    shape = (images, 1, 2, 2)
    none = torch.zeros(images, dtype=torch.int64)
    return Latents(torch.full(shape, 3.0), torch.full(shape, std), none, torch.zeros(1, 1, 1))


def parts(pairs):
    return pairs.latents, pairs.noise, pairs.timesteps, pairs.labels


def model_file(folder):
    write_record(folder / "model.json", tiny_record())
    return folder / "model.json"


def loaded(folder, **changes):
    return Latents.load(folder / "latents.safetensors", folder / "prompts.safetensors", model_file(folder), **changes)


def test_latents_are_read_as_they_were_written(tmp_path):
    latents = tiny_latents(5)
    write_latents(tmp_path, latents)
    again = loaded(tmp_path)
    assert len(again) == 5 and torch.equal(again.labels, latents.labels)
    assert torch.equal(again.prompt_embeddings, latents.prompt_embeddings)
    some = torch.tensor([3, 0, 3])
    assert all(torch.equal(*pair) for pair in zip(again.posteriors(some), latents.posteriors(some), strict=True))


def test_a_batch_from_a_file_is_the_batch_from_memory(tmp_path):
    write_latents(tmp_path, tiny_latents())
    assert all(torch.equal(*pair) for pair in zip(parts(drawn(latents=loaded(tmp_path))), parts(drawn()), strict=True))


def test_files_that_hold_something_else_are_refused(tmp_path):
    write_latents(tmp_path, tiny_latents())
    save_file({"mean": torch.zeros(2, 4, 4, 4)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="--latents = .*holds no latents: run encode-dataset again"):
        Latents.load(tmp_path / "other.safetensors", tmp_path / "prompts.safetensors", model_file(tmp_path))
    with pytest.raises(UserError, match="--prompts = .*holds no prompts: run embed-prompts again"):
        Latents.load(tmp_path / "latents.safetensors", tmp_path / "other.safetensors", model_file(tmp_path))


def test_what_latents_were_made_from_is_read_from_their_file(tmp_path):
    write_latents(tmp_path, tiny_latents(5), "abc", "def")
    assert origin(tmp_path / "latents.safetensors") == origin(tmp_path / "prompts.safetensors") == ("abc", "def")


@pytest.mark.parametrize("facts", [None, {"name": "abc"}, {"dataset_id": "abc"}, {"model": "abc"}])
def test_latents_that_do_not_say_what_they_were_made_from_are_refused(tmp_path, facts):
    save_file({"mean": torch.zeros(2, 1)}, tmp_path / "latents.safetensors", facts)
    with pytest.raises(
        UserError, match="does not say of which dataset and model it is: run encode-dataset and embed-prompts again"
    ):
        origin(tmp_path / "latents.safetensors")


@pytest.mark.parametrize(
    ("latents", "prompts", "told"),
    [
        (("a", "other"), ("a", "other"), "--latents = .* was made with model other,"),
        (("a", None), ("a", "other"), "--prompts = .* was made with model other,"),
        (("a", None), ("b", None), "--prompts = .* was made with dataset b, the files beside it with a:"),
    ],
)
def test_files_of_different_datasets_or_models_are_refused(tmp_path, latents, prompts, told):
    for name, of in (("first", latents), ("second", prompts)):
        (tmp_path / name).mkdir()
        write_latents(tmp_path / name, tiny_latents(), *of)
    with pytest.raises(UserError, match=told):
        Latents.load(
            tmp_path / "first" / "latents.safetensors", tmp_path / "second" / "prompts.safetensors", model_file(tmp_path)
        )


def test_a_users_image_is_drawn_by_a_uniform_number_of_53_bits():
    users = [2, 0, 1, 0, 2, 2, 0, 1, 2, 2, 2, 0]
    latents, units = dataclasses.replace(tiny_latents(12), users=torch.tensor(users)), torch.arange(3).repeat(50)
    images = {user: [image for image, owner in enumerate(users) if owner == user] for user in range(3)}
    draws = torch.rand(150, generator=torch_generator(0, "users"), dtype=torch.float64).tolist()
    expected = [images[user][int(draw * len(images[user]))] for user, draw in zip(units.tolist(), draws, strict=True)]
    assert latents.images_of(units, torch_generator(0, "users")).tolist() == expected


def test_an_images_rows_are_adjacent_and_of_its_own_posterior():
    latents = tiny_latents()
    pairs = drawn((3, 0, 8), 2)
    assert len(pairs) == 6 and pairs.labels.tolist() == [1, 1, 0, 0, 0, 0]
    for row, image in enumerate((3, 3, 0, 0, 8, 8)):
        torch.testing.assert_close(pairs.latents[row], latents.mean[image], rtol=0, atol=0.06)  # std 0.01, six of them
    assert pairs.noise.shape == pairs.latents.shape and pairs.timesteps.dtype == torch.int64


def test_rows_of_one_image_are_separate_draws():
    pairs = drawn((5, 5), 3)
    for part in (pairs.latents, pairs.noise):
        assert len({tuple(row.flatten().tolist()) for row in part}) == 6
    assert len(set(pairs.timesteps.tolist())) > 1


def test_draws_depend_on_the_generator_alone():
    first, again, other = drawn(), drawn(), drawn(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(parts(first), parts(again), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(parts(first)[:3], parts(other)[:3], strict=True))
    state = torch.get_rng_state()
    drawn()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("std", [0.0, 2.0])
def test_latents_are_normal_around_the_posterior_mean(std):
    pairs = drawn(range(400), 2, latents=many(std))
    values = pairs.latents.flatten().numpy()
    if std == 0:
        assert (values == 3.0).all()
    else:
        assert stats.kstest(values, stats.norm(3, std).cdf).pvalue > 0.01
        assert stats.kstest(values, stats.norm(3, 1.5 * std).cdf).pvalue < 1e-6
        assert abs(np.corrcoef(values, pairs.noise.flatten())[0, 1]) < 4 / np.sqrt(len(values))  # four standard errors


@pytest.mark.parametrize("timesteps", [10, 1000])
def test_noise_is_standard_normal_and_timesteps_are_uniform_over_the_schedule(timesteps):
    pairs = drawn(range(400), 5, latents=many(1.0), timesteps=timesteps)
    noise = pairs.noise.flatten().numpy()
    assert stats.kstest(noise, "norm").pvalue > 1e-3 and stats.kstest(noise, stats.norm(0, 1.2).cdf).pvalue < 1e-6
    assert stats.chisquare(np.histogram(pairs.timesteps, 10, (0, timesteps))[0]).pvalue > 0.01
    assert pairs.timesteps.min() >= 0 and pairs.timesteps.max() < timesteps


def test_nobody_draws_nothing():
    pairs = drawn(())
    assert len(pairs) == 0 and pairs.latents.shape == (0, 4, 4, 4) and pairs.embeddings.shape == (0, 3, 8)


def test_a_row_is_drawn_by_its_own_counted_generator():
    """Neither the other rows nor the order in which they are asked for matter: NumPy's Philox, written out."""
    latents, units = tiny_latents(), torch.tensor([3, 0, 7])
    batch = draw_batch(latents, units, 2, 1000, torch_generator(4, "pairs"))
    draws = torch_generator(4, "pairs")
    steps = torch.randint(1000, (6,), generator=draws)
    high, low = torch.randint(2**63 - 1, (2,), generator=draws).tolist()
    for row in (5, 1):
        found = batch.rows(row, row + 1, "cpu")
        generator = np.random.Generator(np.random.Philox(key=high * 2**64 + low, counter=[0, 0, 0, row]))
        posterior, noise = generator.standard_normal((2, 4, 4, 4), np.float32)
        image = units[row // 2]
        assert np.array_equal(found.noise[0], noise) and found.timesteps.tolist() == [steps[row]]
        assert torch.equal(found.latents[0], latents.mean[image] + latents.std[image] * torch.from_numpy(posterior))


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(6)), multiplicity=st.integers(1, 3), chunk=st.integers(1, 6))
def test_chunks_of_images_are_the_whole_batch(order, multiplicity, chunk):
    whole = drawn((3, 0, 7, 1, 9, 4), multiplicity)
    chunks = [whole.units(positions, multiplicity, "cpu") for positions in torch.tensor(order).split(chunk)]
    rows = [image * multiplicity + pair for image in order for pair in range(multiplicity)]
    for index, part in enumerate(parts(whole)):
        assert torch.equal(torch.cat([parts(pairs)[index] for pairs in chunks]), part[rows])


def test_rows_are_a_slice_with_every_prompt():
    whole = drawn()
    some = whole.rows(1, 4, "cpu")
    assert all(torch.equal(part, other[1:4]) for part, other in zip(parts(some), parts(whole), strict=True))
    assert torch.equal(some.prompt_embeddings, whole.prompt_embeddings)


def test_each_row_has_the_prompt_of_its_label():
    pairs = drawn((3, 0), 2)
    latents = tiny_latents()
    assert torch.equal(pairs.embeddings, latents.prompt_embeddings[[1, 1, 0, 0]])
    assert not torch.equal(latents.prompt_embeddings[0], latents.prompt_embeddings[1])


def test_latents_that_are_stored_in_fp16_are_given_in_fp32(tmp_path):
    latents = tiny_latents(5)
    write_latents(tmp_path, dataclasses.replace(latents, mean=latents.mean.half(), std=latents.std.half()))
    mean, std = loaded(tmp_path).posteriors(torch.tensor([4, 1]))
    assert mean.dtype == std.dtype == torch.float32
    assert torch.equal(mean, latents.mean.half().float()[[4, 1]])
