"""Small files in the formats of the four published datasets, and the digests and counts that go with them."""

import hashlib
import io
import tarfile
import zipfile

import numpy as np
from PIL import Image

CIFAR_FILES = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
CELEBA_SPLITS = [0, 0, 1, 2, 0, 2, 0, 1]
CELEBA_MALE = [1, -1, 1, 1, -1, -1, 1, -1]
CAMELYON_ROWS = [
    # patient, node, x, y, tumor, slide, center, split
    ("004", 4, 3328, 21792, 1, 0, 0, 0),
    ("004", 4, 3200, 22272, 0, 0, 0, 1),
    ("020", 2, 96, 64, 1, 10, 1, 0),
    ("021", 1, 128, 64, 0, 11, 1, 1),
    ("042", 3, 320, 32, 1, 23, 2, 0),
    ("046", 3, 352, 32, 0, 24, 2, 1),
    ("060", 1, 416, 32, 0, 30, 3, 0),
    ("099", 4, 448, 96, 1, 49, 4, 0),
    ("099", 0, 480, 96, 0, 47, 4, 0),
]


def md5(data):
    return hashlib.md5(data).hexdigest()


def png(pixels, mode=None):
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, "PNG")
    return buffer.getvalue()


def text(value):
    """A Python 2 ``str`` in protocol 2: SHORT_BINSTRING or BINSTRING, whatever its bytes."""
    data = value if isinstance(value, bytes) else value.encode()
    return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + len(data).to_bytes(4, "little") + data


def integer(value):
    return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + value.to_bytes(4, "little", signed=True)


def python_2_array(rows):
    """``numpy.core.multiarray._reconstruct(ndarray, (0,), 'b')`` and its state, as NumPy under Python 2 pickles uint8 [n, m]."""
    made = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + integer(0) + b"\x85" + text("b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + text("u1") + integer(0) + integer(1) + b"\x87R"
    dtype += b"(" + integer(3) + text("|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    shape = integer(rows.shape[0]) + integer(rows.shape[1]) + b"\x86"
    return made + b"(" + integer(1) + shape + dtype + b"\x89" + text(rows.tobytes()) + b"tb"


def cifar_batch(rows, labels, name="training batch 1 of 5"):
    """A batch as Python 2's cPickle wrote it: a dictionary of ``str`` keys, four of them, labels a list."""
    listed = b"](" + b"".join(map(integer, labels)) + b"e"
    names = b"](" + b"".join(text(f"camion_s_{n:06}.png") for n in range(len(labels))) + b"e"
    items = [(b"batch_label", text(name)), (b"labels", listed), (b"data", python_2_array(rows)), (b"filenames", names)]
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in items) + b"u."


def cifar_images(count=6, seed=0):
    """Images [count, 32, 32, 3] and labels for each file; every label appears in training."""
    generator = np.random.default_rng(seed)
    files = {name: (generator.integers(0, 256, (count, 32, 32, 3), np.uint8), np.arange(count) % 10) for name in CIFAR_FILES}
    return {name: (images, (labels + 3 * place) % 10) for place, (name, (images, labels)) in enumerate(files.items())}


def cifar_files(images=None):
    """The batches' bytes by name."""
    images = images or cifar_images()
    return {name: cifar_batch(x.transpose(0, 3, 1, 2).reshape(len(x), -1), y.tolist(), name) for name, (x, y) in images.items()}


def tarred(path, files, folder="cifar-10-batches-py"):
    """A .tar.gz with further members, as the published one has them."""
    with tarfile.open(path, "w:gz") as archive:
        directory = tarfile.TarInfo(folder)
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
        for name, data in {**files, "readme.html": b"<html>", "batches.meta": b"not read"}.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def octmnist_arrays(sizes=(9, 5, 4), seed=0):
    """Arrays of MedMNIST's archive: labels are [n, 1]."""
    generator, arrays = np.random.default_rng(seed), {}
    for name, size in zip(("train", "val", "test"), sizes, strict=True):
        arrays[f"{name}_images"] = generator.integers(0, 256, (size, 128, 128), np.uint8)
        arrays[f"{name}_labels"] = (np.arange(size, dtype=np.uint8) % 4)[:, None]
    return arrays


def celeba_image(place):
    """A JPEG of 178 x 218 with a gradient, as smooth as a face is."""
    y, x = np.mgrid[:218, :178]
    pixels = np.stack([x + 5 * place, y, np.full_like(x, 20 * place)], -1).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def celeba_name(place):
    return f"{place + 1:06}.jpg"


def celeba_attributes(male=CELEBA_MALE):
    """A count, a header that ends in a space, and values in columns: two spaces before 1, one before -1."""
    names = ("5_o_Clock_Shadow", "Arched_Eyebrows", "Male", "Young")
    rows = [celeba_name(place) + "".join(f"{value:3d}" for value in (-1, 1, sex, 1)) for place, sex in enumerate(male)]
    return "\n".join([str(len(male)), " ".join(names) + " ", *rows]) + "\n"


def celeba_partition(splits=CELEBA_SPLITS):
    return "".join(f"{celeba_name(place)} {split}\n" for place, split in enumerate(splits))


def celeba_folder(folder, *, unpacked=False, male=CELEBA_MALE, splits=CELEBA_SPLITS):
    """Write the folder; return its files' digests."""
    folder.mkdir(parents=True)
    if unpacked:
        (folder / "img_align_celeba").mkdir()
        for place in range(len(male)):
            (folder / "img_align_celeba" / celeba_name(place)).write_bytes(celeba_image(place))
    else:
        with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
            archive.mkdir("img_align_celeba")
            for place in range(len(male)):
                archive.writestr(f"img_align_celeba/{celeba_name(place)}", celeba_image(place))
    (folder / "list_attr_celeba.txt").write_text(celeba_attributes(male))
    (folder / "list_eval_partition.txt").write_text(celeba_partition(splits))
    return {path.name: md5(path.read_bytes()) for path in folder.iterdir() if path.is_file()}


def camelyon_pixels(place):
    """RGBA of 96 x 96; readers of this dataset leave A off."""
    return np.random.default_rng(place).integers(0, 256, (96, 96, 4), np.uint8)


def camelyon_path(patient, node, x, y, *_):
    return f"patches/patient_{patient}_node_{node}/patch_patient_{patient}_node_{node}_x_{x}_y_{y}.png"


def camelyon_folder(folder, rows=CAMELYON_ROWS):
    folder.mkdir(parents=True)
    (folder / "RELEASE_v1.0.txt").write_text("")
    lines = [f"{place},{','.join(map(str, row))}" for place, row in enumerate(rows)]
    (folder / "metadata.csv").write_text("\n".join([",patient,node,x_coord,y_coord,tumor,slide,center,split", *lines]) + "\n")
    for place, row in enumerate(rows):
        path = folder / camelyon_path(*row)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(camelyon_pixels(place)))
    return folder
