"""A process that has imported everything, and forks one child for each stage.

Importing torch and diffusers takes longer than many of the demo's stages.

The Snakefile starts it where stages run on this machine's CPU (`start`), and names its socket in ``DPSAPF_WARM``;
``python -m dpsapf`` then hands its words, its folder and its outputs over and waits (`ask`). Without the variable, or without an
answer, a stage imports for itself. Every stage has a process of its own, which gets its client's signals, and is killed when its
client is gone.
"""

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import typing
from pathlib import Path

from dpsapf.support.interruption import SIGNALS

SOCKET = "DPSAPF_WARM"
LAZY = (
    "cleanfid.resize",
    "dpsapf.evaluation.features",
    "dpsapf.evaluation.fidelity",
    "dpsapf.evaluation.utility",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.schedulers.scheduling_ddim",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img",
    "dp_accounting.pld.pld_privacy_accountant",
    "dp_accounting.rdp.rdp_privacy_accountant",
    "opacus.accountants",
    "peft",
    "timm.models.resnet",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
)  # what the stages import when they run
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux
PATIENCE = 1.0  # seconds between looks at whether the parent still lives


def start() -> None:
    """Start the warm process, as a child of this one, and name its socket to this process and its children."""
    folder = Path(tempfile.mkdtemp(prefix="dpsapf-"))
    path = folder / "warm"
    process = subprocess.Popen([sys.executable, "-m", "dpsapf.cli.warm", str(path)], stdin=subprocess.DEVNULL)
    while not path.exists() and process.poll() is None:
        time.sleep(0.02)
    os.environ[SOCKET] = str(path)


def ask(words: list[str]) -> int | None:
    """Let the warm process run a command line; return its exit code, or None if there is no warm process."""
    path = os.environ.get(SOCKET)
    if not path or not Path(path).exists():
        return None
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
        except OSError:
            return None

        def pass_on(number: int, _: object) -> None:
            with contextlib.suppress(OSError):  # the stage has ended
                connection.send(bytes([number]))

        passed_on = {number: signal.signal(number, pass_on) for number in SIGNALS}
        message = json.dumps({"words": words, "folder": str(Path.cwd()), "environment": dict(os.environ)}).encode()
        outputs = array.array("i", [1, 2])
        connection.sendmsg([len(message).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, outputs)])
        try:
            connection.sendall(message)
            answer = connection.recv(1)
        except OSError:
            answer = b""
        finally:
            for number, handler in passed_on.items():
                signal.signal(number, handler)
    if not answer:
        print(f"{path} = 'ended': the warm process was killed or ran out of memory; run the workflow again", file=sys.stderr)
    return answer[0] if answer else 1


def serve(path: str) -> None:
    """Answer until the parent process is gone and no child is left.

    Args:
        path: of the socket, in a folder that only this user may enter; both are removed at the end.
    """
    parent = os.getppid()
    for number in SIGNALS:  # they are for the stages; the process itself ends with its parent
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        try:
            _preload()
            _loop(listener, parent)
        finally:
            shutil.rmtree(Path(path).parent, ignore_errors=True)


def _preload() -> None:
    from dpsapf.cli.commands import MODULES

    for module in (*MODULES.values(), *LAZY):
        if not module.startswith(("dpsapf.pretraining", "dpsapf.bench")):
            importlib.import_module(module)
    gc.freeze()


def _loop(listener: socket.socket, parent: int) -> None:
    children: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while os.getppid() == parent or children:
            for key, _ in selector.select(0.05 if children else PATIENCE):
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    pid = _fork(connection)
                    if pid:
                        children[pid] = connection
                        selector.register(connection, selectors.EVENT_READ)
                else:  # a client says after its request what signals it gets, and nothing when it has gone
                    said = key.fileobj.recv(1)
                    child = next(pid for pid, served in children.items() if served is key.fileobj)
                    os.kill(child, said[0] if said else signal.SIGKILL)
            for pid, code in _ended(children):
                connection = children.pop(pid)
                selector.unregister(connection)
                with contextlib.suppress(OSError):
                    connection.send(bytes([code]))
                connection.close()


def _ended(children: dict[int, socket.socket]) -> list[tuple[int, int]]:
    found = []
    for pid in list(children):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            found.append((pid, os.waitstatus_to_exitcode(status) % 256))
    return found


def _fork(connection: socket.socket) -> int | None:
    """Return the child of a client's request; None, with the connection closed, if the client went before it had asked."""
    try:
        request, outputs = _received(connection)
    except (OSError, EOFError):
        return connection.close()
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        _die_with(parent)
        _become(request, outputs)
    for descriptor in outputs:
        os.close(descriptor)
    return pid


def _die_with(parent: int) -> None:
    """Let the kernel end this process with its parent: else it would go on beside the one that takes its place."""
    ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it was quicker
        os._exit(1)


def _received(connection: socket.socket) -> tuple[dict, list[int]]:
    head, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(8))
    if not ancillary:
        raise EOFError
    message = b""
    while len(message) < int.from_bytes(head, "big"):
        part = connection.recv(1 << 16)
        if not part:
            raise EOFError
        message += part
    return json.loads(message), list(array.array("i", ancillary[0][2]))


def _become(request: dict, outputs: list[int]) -> typing.NoReturn:
    """Run the command line in the child, with the client's outputs, folder and environment."""
    from dpsapf.cli.main import main

    code = 1
    try:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        for number, descriptor in zip((1, 2), outputs, strict=True):
            os.dup2(descriptor, number)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        code = main(request["words"])
    except BaseException:  # as an interpreter of its own would: told in full, and the process ends
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
    os._exit(0)  # some libraries print at an interpreter's end
