"""Against safetensors itself, and NumPy's indexing."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dpsapf.support.arrays import open_arrays, writing
from dpsapf.support.errors import UserError

LAYOUT = {"images": ("U8", (5, 3, 2)), "labels": ("I64", (5,)), "mean": ("F16", (5, 4)), "none": ("F32", (0, 2))}


def values(seed=0):
    generator = np.random.default_rng(seed)
    return {
        "images": generator.integers(0, 256, (5, 3, 2), dtype=np.uint8),
        "labels": generator.integers(-9, 9, 5),
        "mean": generator.normal(size=(5, 4)).astype(np.float16),
        "none": np.empty((0, 2), np.float32),
    }


@pytest.fixture
def written(tmp_path):
    path, arrays = tmp_path / "a.safetensors", values()
    with writing(path, LAYOUT, {"salt": "x"}) as writer:
        for name, array in arrays.items():
            for start in (len(array) // 2, 0):
                writer.put(name, start, array[start : start + 3])
    return path, arrays


def test_safetensors_reads_what_is_written(written):
    path, arrays = written
    found = load_file(path)
    assert list(found) == sorted(arrays) and all(np.array_equal(found[name], array) for name, array in arrays.items())
    assert {name: found[name].dtype for name in found} == {name: array.dtype for name, array in arrays.items()}
    with safe_open(path, "np") as file:
        assert file.metadata() == {"salt": "x"}
    assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 8 == 0, "arrays are aligned"


def test_what_safetensors_writes_is_read(tmp_path):
    save_file(values(), tmp_path / "a.safetensors", {"salt": "y"})
    rows, facts = open_arrays(tmp_path / "a.safetensors")
    assert facts == {"salt": "y"} and all(np.array_equal(rows[name][:], array) for name, array in values().items())


@hypothesis.given(st.lists(st.integers(0, 4), max_size=9), st.slices(5))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_rows_are_numpys(written, positions, part):
    path, arrays = written
    rows, _ = open_arrays(path)
    for name in ("images", "labels", "mean"):
        assert np.array_equal(rows[name][np.array(positions, np.int64)], arrays[name][np.array(positions, np.int64)])
        assert np.array_equal(rows[name][part], arrays[name][part])
        assert len(rows[name]) == 5 and rows[name].shape == arrays[name].shape


def test_rows_outside_are_refused(written):
    rows, _ = open_arrays(written[0])
    for outside in (-1, 5):
        with pytest.raises(IndexError, match="of 5"):
            rows["labels"][np.array([0, outside])]


def test_equal_contents_are_equal_bytes(written, tmp_path):
    with writing(tmp_path / "b.safetensors", LAYOUT, {"salt": "x"}) as writer:
        for name, array in values().items():
            writer.put(name, 0, array)
    assert (tmp_path / "b.safetensors").read_bytes() == written[0].read_bytes()


def test_a_failure_leaves_what_was_there(written):
    before = written[0].read_bytes()
    with pytest.raises(ZeroDivisionError), writing(written[0], LAYOUT) as writer:
        writer.put("labels", 0, np.arange(5))
        raise ZeroDivisionError
    assert written[0].read_bytes() == before and len(list(written[0].parent.iterdir())) == 1


@pytest.mark.parametrize(("start", "shape"), [(4, (2, 3, 2)), (0, (1, 2, 3)), (0, (6, 3, 2))])
def test_what_does_not_fit_is_refused(tmp_path, start, shape):
    with pytest.raises(ValueError, match="images: rows"), writing(tmp_path / "a", LAYOUT) as writer:
        writer.put("images", start, np.zeros(shape, np.uint8))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "content", [b"", b"abc", b"\xff" * 40, (2).to_bytes(8, "little") + b"[]", (2).to_bytes(8, "little") + b"xx"]
)
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match="no readable safetensors file"):
        open_arrays(tmp_path / "a")
    with pytest.raises(UserError, match="no readable safetensors file"):
        open_arrays(tmp_path / "nowhere")


def test_a_truncated_file_is_refused(written):
    rows, _ = open_arrays(written[0])
    written[0].write_bytes(written[0].read_bytes()[:-3])
    with pytest.raises(UserError, match="truncated"):
        open_arrays(written[0])
    with pytest.raises(UserError, match="shorter than its header says"):
        rows["mean"][:]


def test_what_was_put_is_read_while_the_file_is_under_way(tmp_path):
    values = np.random.default_rng(0).normal(size=(5, 3))
    with writing(tmp_path / "a.safetensors", {"x": ("F64", (5, 3))}) as writer:
        writer.put("x", 1, values[1:])
        assert np.array_equal(writer.rows("x")[1:], values[1:]) and not writer.rows("x")[0:1].any()
    assert np.array_equal(load_file(tmp_path / "a.safetensors")["x"][1:], values[1:])
