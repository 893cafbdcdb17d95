"""What goes wrong on a node and is nobody's mistake, or the job's: memory, disks, GPUs, files. Each is told in one line."""

import contextlib
import ctypes
import errno
import gc
import importlib
import logging
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from dpsapf.experiment.fields import GIVEN, READS, WRITES, paths
from dpsapf.support.checked import Checked, replace
from dpsapf.support.errors import UserError, out_of_memory

LOG = logging.getLogger("dpsapf")
FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EFBIG: "a file may not grow so large"}
REFUSED = {errno.EACCES, errno.EPERM}
BROKEN = {errno.EIO, errno.ESTALE, errno.ENXIO, errno.EREMOTEIO}
NETWORK = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT}
PATIENCE = 300.0  # seconds for which a file system may be read-only while a stage writes to it
LOOK = 5.0  # seconds between two looks at it


def has_gpu() -> bool:
    """Say whether a GPU's driver answers on this machine; in milliseconds, while torch takes seconds to load."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return shutil.which("nvidia-smi") is not None
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def check_device(options: Checked) -> None:
    """Check that there is the GPU that a stage asks for.

    Raises:
        UserError: there is none.
    """
    if getattr(options, "device", None) != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        remedy = "torch sees no GPU here: let the job ask for one (resources: gpus), load the node's driver, or take --device cpu"
        raise UserError("--device", "cuda", remedy)


def set_to_now(options: Checked) -> None:
    """Set the time of a stage's inputs to now where it is still to come: Snakemake refuses, and removes, what is older than them.

    What no stage wrote is left alone, and what another user wrote.
    """
    for file in (file for name, files in paths(options, READS).items() if name not in GIVEN for file in files):
        if file.is_file() and file.stat().st_mtime > time.time():
            with contextlib.suppress(PermissionError):
                os.utime(file)
                LOG.warning("%s: its time was still to come, and is now set to this one", file)


def run(stage: Callable[[Checked], None], options: Checked) -> None:
    """Run a stage, with half of its micro-batch whenever memory runs out: it goes on from its checkpoint, to the same result.

    Raises:
        UserError: something went wrong on the node; says what to do.
    """
    while True:
        try:
            return stage(options)
        except UserError:
            raise
        except Exception as error:
            if _number(error) == errno.EROFS and _writable_again(options):
                continue
            smaller = _smaller(options) if out_of_memory(error) else None
            if smaller is None:
                told = _told(error, options)
                if told is None:
                    raise
                raise told from error
        LOG.warning("out of memory with --micro-batch %d: goes on with %d", options.micro_batch, smaller.micro_batch)
        options = smaller
        _free()


def _smaller(options: Checked) -> Checked | None:
    """Halve the micro-batch; None if it is 1, or processes beside this one would wait for a batch that never comes."""
    size = getattr(options, "micro_batch", 1)
    return replace(options, micro_batch=size // 2) if size > 1 and os.environ.get("WORLD_SIZE", "1") == "1" else None


def _writable_again(options: Checked) -> bool:
    """Wait while a file system that a stage writes to is read-only; say whether it was, and is no more.

    Processes beside this one would wait for what it has to say: then it does not wait.
    """
    end, told = time.monotonic() + PATIENCE, False
    while os.environ.get("WORLD_SIZE", "1") == "1" and (file := _read_only(options)):
        if not told:
            LOG.warning("%s: its file system is read-only: waiting, for %g minutes at most", file, PATIENCE / 60)
        told = True
        if time.monotonic() >= end:
            return False
        time.sleep(LOOK)
    return told


def _read_only(options: Checked) -> Path | None:
    """Find the first file that a stage writes and whose file system is read-only."""
    for file in (file for files in paths(options, WRITES).values() for file in files):
        folder = next(folder for folder in file.absolute().parents if folder.exists())
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            return file
    return None


def _free() -> None:
    gc.collect()
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _told(error: Exception, options: Checked) -> UserError | None:
    """Say what went wrong and what to do; None if it is not known here."""
    if out_of_memory(error):
        size = getattr(options, "micro_batch", None)
        remedy = "does not fit into memory: take less, a node with more (resources: memory_mb), or gradient_checkpointing"
        return UserError("--micro-batch", size, remedy)
    if _number(error):
        return _told_system(error, _number(error), options)
    if (broken := _unreadable(options)) is not None:
        return UserError("file", str(broken), f"cannot be read ({_first_line(error)}): delete it and run its stage again")
    if isinstance(error, ImportError):
        return UserError(
            "package", error.name, f"cannot be imported here ({_first_line(error)}): install the locked requirements"
        )
    if any(word in str(error) for word in ("CUDA", "cuDNN", "NCCL", "cuBLAS")):
        remedy = "the GPU or its driver failed: run the same command again, on another node if it fails there once more"
        return UserError("--device", getattr(options, "device", None), f"{remedy} ({_first_line(error)})")
    return None


def _number(error: Exception) -> int | None:
    """Return the operating system's number of an error, of Python or of a library in Rust, such as safetensors."""
    told = re.search(r"\(os error (\d+)\)", str(error))
    return error.errno if isinstance(error, OSError) else told and int(told[1])


def _told_system(error: Exception, number: int, options: Checked) -> UserError | None:
    """Say what the operating system refused."""
    file, why = getattr(error, "filename", None), os.strerror(number)
    file = file or next((str(file.parent) for files in paths(options, WRITES).values() for file in files), "")
    if number in FULL:
        remedy = f"{FULL[number]}: make room, then run the same command; nothing half-written is left"
        return UserError("folder", str(file), remedy)
    if number == errno.EROFS:
        remedy = "its file system is read-only: run the same command when it can be written again, or take another folder"
        return UserError("file", str(file), remedy)
    if number in REFUSED:
        return UserError("file", str(file), "may not be read or written here: give this user the right, or take another folder")
    if number in BROKEN:
        return UserError("file", str(file), f"its file system fails ({why}): run the same command again, elsewhere")
    if number in NETWORK or isinstance(error, ConnectionError):
        remedy = "this node has no network: fetch what is missing on one that has (fetch-dataset, fetch-public-model)"
        return UserError("network", why, remedy)
    return None


def _unreadable(options: Checked) -> Path | None:
    """Find the first file that a stage reads and that is no safetensors file or archive, though it is called so."""
    from safetensors import SafetensorError, safe_open

    for files in paths(options, READS).values():
        for file in files:
            try:
                if file.suffix == ".safetensors":
                    with safe_open(file, "np") as opened:
                        opened.keys()
                elif file.suffix == ".npz":
                    zipfile.ZipFile(file).close()
            except (SafetensorError, OSError, zipfile.BadZipFile):
                return file
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
