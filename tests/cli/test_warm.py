import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpsapf.cli import warm

ROOT = Path(__file__).parents[2]
SERVER = "import sys; from dpsapf.cli import warm; warm._preload = lambda: None; warm.serve(sys.argv[1])"


@pytest.fixture
def server(tmp_path):
    """A warm process that has imported little, so that it starts at once."""
    folder = tmp_path / "socket"
    folder.mkdir()
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(folder / "warm")], cwd=ROOT)
    wait_for(lambda: (folder / "warm").exists())
    yield folder / "warm", process
    process.kill()
    process.wait()


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def client(path, *words, **keywords):
    environment = os.environ | {warm.SOCKET: str(path), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", "dpsapf", *words], env=environment, text=True, **keywords)


def children(process):
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def test_without_a_warm_process_a_stage_imports_for_itself(monkeypatch, tmp_path):
    monkeypatch.delenv(warm.SOCKET, raising=False)
    assert warm.ask(["--version"]) is None
    monkeypatch.setenv(warm.SOCKET, str(tmp_path / "gone"))
    assert warm.ask(["--version"]) is None
    (tmp_path / "gone").touch()
    assert warm.ask(["--version"]) is None


def test_a_stage_writes_where_its_client_stands(server, tmp_path):
    path, process = server
    files = ["--archive", "d.npz", "--record", "d.json", "--preview", "d.png", "--registry", str(ROOT / "config/datasets.yaml")]
    ran = client(path, "prepare-dataset", "--name", "digits", *files, "--quiet", cwd=tmp_path)
    assert ran.wait() == 0 and (tmp_path / "d.json").exists()
    assert children(process) == []


def test_outputs_and_exit_codes_are_the_clients(server, tmp_path):
    path, _ = server
    ran = client(path, "sample", "--steps", "x", cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _, error = ran.communicate()
    assert ran.returncode == 2 and "dpsapf sample: --steps = 'x': must be a valid integer" in error
    ran = client(path, "--version", cwd=tmp_path, stdout=subprocess.PIPE)
    assert ran.communicate()[0].strip() == "0.1.0" and ran.returncode == 0


def pretraining(path, folder, **keywords):
    """A stage that goes on for hours."""
    words = ["--out", "model", "--feature-network", "f.safetensors", "--quiet"]
    return client(path, "pretrain-public-model", *words, cwd=folder, **keywords)


def test_a_killed_client_takes_its_stage_along(server, tmp_path):
    path, process = server
    ran = pretraining(path, tmp_path)
    wait_for(lambda: children(process))
    ran.send_signal(signal.SIGKILL)
    wait_for(lambda: children(process) == [])
    assert process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_client_passes_its_signals_on_and_waits(server, tmp_path, number):
    path, process = server
    ran = pretraining(path, tmp_path, stderr=subprocess.PIPE)
    wait_for(lambda: children(process))
    wait_for(lambda: listens(children(process)[0]))
    ran.send_signal(number)
    _, error = ran.communicate(timeout=60)
    assert ran.returncode == 75 and "asked to end by" in error.splitlines()[-1]
    assert "Traceback" not in error or "Exception ignored" in error, "swallowed in a destructor, and raised again"
    assert children(process) == [] and process.poll() is None


def listens(pid):
    """Whether a process handles SIGTERM by code of its own."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())[1]
    return int(caught, 16) >> (signal.SIGTERM - 1) & 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_ends_the_stages_and_leaves_the_warm_process_to_its_parent(server, tmp_path, number):
    """Ctrl-C, or a cluster that ends a job."""
    path, process = server
    ran = pretraining(path, tmp_path, stderr=subprocess.PIPE)
    wait_for(lambda: children(process))
    wait_for(lambda: listens(children(process)[0]))
    for pid in (int(children(process)[0]), process.pid, ran.pid):
        os.kill(pid, number)
    assert ran.wait(timeout=60) == 75 and process.poll() is None


def test_a_killed_stage_is_a_failure(server, tmp_path):
    path, process = server
    ran = pretraining(path, tmp_path)
    wait_for(lambda: children(process))
    os.kill(int(children(process)[0]), signal.SIGKILL)
    assert ran.wait() == 256 - signal.SIGKILL


@pytest.mark.parametrize("said", [b"", (100).to_bytes(8, "big") + b"half"])
def test_a_client_that_goes_before_it_has_asked_disturbs_nobody(server, tmp_path, said):
    path, process = server
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        if said:
            socket.send_fds(connection, [said[:8]], [1, 2])
            connection.sendall(said[8:])
    ran = client(path, "--version", cwd=tmp_path, stdout=subprocess.PIPE)
    assert ran.communicate(timeout=30)[0].strip() == "0.1.0" and process.poll() is None


def test_a_warm_process_that_is_killed_takes_its_stages_along(server, tmp_path):
    path, process = server
    ran = pretraining(path, tmp_path, stderr=subprocess.DEVNULL)
    wait_for(lambda: children(process))
    child = Path(f"/proc/{children(process)[0]}")
    process.kill()
    process.wait()
    assert ran.wait(timeout=30) == 1
    wait_for(lambda: not child.exists() or "State:\tZ" in (child / "status").read_text())


def test_a_warm_process_that_dies_is_told_in_one_line(server, tmp_path):
    path, process = server
    ran = pretraining(path, tmp_path, stderr=subprocess.PIPE)
    wait_for(lambda: children(process))
    child = int(children(process)[0])
    process.kill()
    os.kill(child, signal.SIGKILL)
    _, error = ran.communicate(timeout=30)
    assert ran.returncode == 1 and error.endswith("run the workflow again\n") and len(error.splitlines()) == 1


def test_it_ends_with_its_parent_and_leaves_no_file(tmp_path):
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SERVER!r}, sys.argv[1]]); input()"
    (tmp_path / "socket").mkdir()
    path = tmp_path / "socket" / "warm"
    parent = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdin=subprocess.PIPE)
    wait_for(path.exists)
    parent.communicate(b"\n")
    wait_for(lambda: not path.parent.exists())


@pytest.mark.slow
def test_what_is_imported_beforehand_exists():
    code = "import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))"
    assert subprocess.run([sys.executable, "-c", code, *warm.LAZY], check=False).returncode == 0
