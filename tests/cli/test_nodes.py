"""What a command says when something is wrong with its node: one line, in its log, too."""

import errno
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dpsapf.cli import nodes
from dpsapf.cli.main import main
from dpsapf.datasets import prepare
from dpsapf.public_models import encode

ROOT = Path(__file__).parents[2]


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


def words(folder, *extra):
    files = (f"--{what}={folder / what}" for what in ("archive", "record", "preview"))
    return [
        "prepare-dataset",
        "--name=digits",
        *files,
        f"--registry={ROOT}/config/datasets.yaml",
        f"--log={folder / 'log'}",
        *extra,
    ]


def failing(error):
    def stage(options):
        raise error

    return stage


SITUATIONS = {
    "disk full": (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "folder = '/x/y': the disk is full: make room, then"),
    "disk full, no name": (OSError(errno.ENOSPC, "No space left on device"), "folder = '{folder}': the disk is full"),
    "disk full, by safetensors": (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded", "/x"), "the disk quota is used up: make room"),
    "no right": (PermissionError(errno.EACCES, "Permission denied", "/x"), "file = '/x': may not be read or written here"),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "/x"), "file = '/x': its file system is read-only: run the same"),
    "broken disk": (OSError(errno.EIO, "Input/output error", "/x"), "its file system fails (Input/output error): run the same"),
    "stale handle": (OSError(errno.ESTALE, "Stale file handle", "/x"), "its file system fails (Stale file handle): run the same"),
    "no network": (OSError(errno.ENETUNREACH, "Network is unreachable"), "this node has no network"),
    "refused": (
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        "fetch what is missing on one that has",
    ),
    "GPU memory": (
        OutOfMemoryError("CUDA out of memory"),
        "--micro-batch = None: does not fit into memory",
    ),
    "memory": (MemoryError(), "--micro-batch = None: does not fit into memory: take less, a node with more"),
    "allocator": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "does not fit into memory"),
    "GPU fault": (
        RuntimeError("CUDA error: unspecified launch failure\nmore"),
        "run the same command again, on another node",
    ),
    "NCCL": (RuntimeError("NCCL error in: x.cpp, remote process exited"), "the GPU or its driver failed"),
    "package": (
        ModuleNotFoundError("No module named 'bitsandbytes'", name="bitsandbytes"),
        "package = 'bitsandbytes'",
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_one_line_with_a_remedy_and_no_traceback(tmp_path, monkeypatch, capsys, situation):
    error, line = SITUATIONS[situation]
    monkeypatch.setattr(prepare, "prepare_dataset", failing(error))
    assert main(words(tmp_path)) == 2
    told = (tmp_path / "log").read_text()
    assert line.format(folder=tmp_path) in told and told.startswith("dpsapf prepare-dataset: ") and told.count("\n") == 1
    assert capsys.readouterr().err == told
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_defect_is_told_in_full_in_the_log_too(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "prepare_dataset", failing(KeyError("x")))
    assert main(words(tmp_path)) == 1
    assert re.search(
        r"unexpected: a defect, please report.*\nTraceback.*KeyError: 'x'\n$", (tmp_path / "log").read_text(), re.DOTALL
    )


def test_a_second_try_is_told_after_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "prepare_dataset", failing(MemoryError()))
    main(words(tmp_path))
    monkeypatch.setattr(prepare, "prepare_dataset", lambda options: None)
    assert main(words(tmp_path)) == 0
    assert re.search(
        r"does not fit.*\n--- again, \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\nprepare-dataset: read ", (tmp_path / "log").read_text()
    )


@pytest.fixture
def mounted(tmp_path):
    """A small file system of its own."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", folder], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def remount(folder, how):
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


def on_a_disk(folder, log, written):
    """Run a stage that notes each of its tries, and writes into a folder."""

    def stage(options):
        written.append(options.archive)
        options.archive.write_bytes(b"done")

    files = [f"--{what}={folder / what}" for what in ("archive", "record", "preview")]
    command = ["prepare-dataset", "--name=digits", *files, f"--registry={ROOT}/config/datasets.yaml", f"--log={log}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "prepare_dataset", stage)
        return main(command)


def test_a_disk_that_is_read_only_for_a_while_is_waited_for(mounted, tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "LOOK", 0.05)
    remount(mounted, "ro")
    threading.Timer(0.5, remount, (mounted, "rw")).start()
    assert on_a_disk(mounted, tmp_path / "log", written := []) == 0
    assert (mounted / "archive").read_bytes() == b"done" and len(written) == 2, "waited once, not in a loop"
    assert "its file system is read-only: waiting, for 5 minutes at most" in (tmp_path / "log").read_text()


def test_a_disk_that_stays_read_only_is_told_in_one_line(mounted, tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "PATIENCE", 0.0)
    remount(mounted, "ro")
    assert on_a_disk(mounted, tmp_path / "log", []) == 2
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert f"file = '{mounted}/archive': its file system is read-only: run the same command when it can be written again" in last


def test_a_file_that_may_not_grow_leaves_nothing_half_written(tmp_path):
    """The operating system's own refusal; a full disk differs by its number."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000)); "
        "from dpsapf.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *words(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert ran.returncode == 2 and "a file may not grow so large: make room, then run the same command" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1 and [path.name for path in tmp_path.iterdir()] == ["log"]


@pytest.fixture
def encoding(tmp_path):
    """Words of a stage with a device and a micro-batch, on files that exist."""
    for name in ("archive", "dataset", "model"):
        (tmp_path / name).write_bytes(b"{}")
    return [
        "encode-dataset",
        *(f"--{name}={tmp_path / name}" for name in ("archive", "dataset", "model", "out")),
        "--micro-batch=48",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu(encoding, capsys):
    assert main([*encoding, "--device=cuda"]) == 2
    error = capsys.readouterr().err
    assert "--device = 'cuda': torch sees no GPU here: let the job ask for one" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("fits", [48, 12, 1])
def test_a_micro_batch_that_does_not_fit_is_halved_until_it_does(encoding, monkeypatch, capsys, fits):
    tried = []

    def stage(options):
        tried.append(options.micro_batch)
        if options.micro_batch > fits:
            raise OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(encode, "encode_dataset", stage)
    assert main(encoding) == 0
    assert tried == [size for size in (48, 24, 12, 6, 3, 1) if size >= fits]
    assert capsys.readouterr().err.count("out of memory with --micro-batch") == len(tried) - 1


def test_a_micro_batch_of_one_that_does_not_fit_is_told(encoding, monkeypatch, capsys):
    monkeypatch.setattr(encode, "encode_dataset", failing(OutOfMemoryError("CUDA out of memory")))
    assert main(encoding) == 2
    assert capsys.readouterr().err.endswith("memory_mb), or gradient_checkpointing\n")


def test_one_of_several_processes_does_not_halve_alone(encoding, monkeypatch, capsys):
    """The others would wait for it for ever."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(encode, "encode_dataset", failing(OutOfMemoryError("CUDA out of memory")))
    assert main(encoding) == 2 and "--micro-batch = 48: does not fit" in capsys.readouterr().err


def test_a_process_that_does_not_lead_keeps_quiet_and_writes_no_log(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(prepare, "prepare_dataset", lambda options: None)
    assert main(words(tmp_path)) == 0 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["empty", "cut off", "noise"])
@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_the_input_that_cannot_be_read_is_named(tmp_path, monkeypatch, kind, damage):
    good, file = tmp_path / f"good.{kind}", tmp_path / f"broken.{kind}"
    if kind == "npz":
        np.savez(good, a=np.arange(9))
    else:
        save_file({"a": torch.arange(9)}, good)
    file.write_bytes({"empty": b"", "cut off": good.read_bytes()[:-7], "noise": b"x" * 100}[damage])
    monkeypatch.setattr(nodes, "paths", lambda options, role: {"first": [good], "second": [file]})
    assert nodes._unreadable(None) == file
