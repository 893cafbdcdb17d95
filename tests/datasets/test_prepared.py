import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dpsapf.datasets.prepared import SALT_BYTES, preparing, read_part, read_salt
from dpsapf.experiment.columns import SPLITS
from dpsapf.support.errors import UserError

GENERATOR = np.random.default_rng(0)
STORED = {
    "images": GENERATOR.integers(0, 256, (6, 4, 4, 1), dtype=np.uint8),
    "labels": np.array([0, 1, 2, 0, 1, 2]),
    "split": np.array([2, 0, 0, 1, 2, 0], np.uint8),
    "salt": GENERATOR.integers(0, 256, SALT_BYTES, dtype=np.uint8),
    "users": np.array([3, 0, 1, 2, 3, 0]),
}


@pytest.fixture
def prepared(tmp_path):
    with preparing(tmp_path / "d.safetensors", STORED["images"].shape, users=True) as writer:
        for name, array in STORED.items():
            writer.put(name, 0, array)
    return tmp_path / "d.safetensors"


@pytest.mark.parametrize(("split", "positions"), [("train", [1, 2, 5]), ("validation", [3]), ("test", [0, 4])])
def test_a_part_has_its_images_labels_and_users(prepared, split, positions):
    part = read_part(prepared, split)
    assert len(part) == len(positions) and np.array_equal(part[:], STORED["images"][positions].repeat(3, -1))
    assert part.labels.tolist() == STORED["labels"][positions].tolist()
    assert part.users.tolist() == STORED["users"][positions].tolist()
    backwards = np.arange(len(part))[::-1]
    assert np.array_equal(part[backwards], part[:][backwards]) and np.array_equal(part[1:2], part[:][1:2])


def test_the_salt_is_read_back(prepared):
    assert read_salt(prepared) == STORED["salt"].tobytes()


def test_colour_stays_and_users_may_be_untold(tmp_path):
    images = GENERATOR.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    with preparing(tmp_path / "d.safetensors", images.shape, users=False) as writer:
        writer.put("images", 0, images)
    part = read_part(tmp_path / "d.safetensors", SPLITS[0])
    assert np.array_equal(part[:], images) and part.users is None


@pytest.mark.parametrize("missing", ["images", "labels", "split", "salt"])
def test_a_file_of_something_else_is_refused(prepared, missing):
    save_file({name: array for name, array in load_file(prepared).items() if name != missing}, prepared)
    for read in (lambda: read_part(prepared, "train"), lambda: read_salt(prepared)):
        with pytest.raises(UserError, match=f"has no {missing}: run prepare-dataset again"):
            read()
