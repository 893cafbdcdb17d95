"""Signals that ask a process to end: what a cluster sends before it takes a node away, and Ctrl-C.

A stage that can go on later ends its step, keeps what it has (`dpsapf.support.checkpoint`) and leaves with `AGAIN`; any other
ends at once. Nothing is half-written: see `dpsapf.support.files.atomic`.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN = 75  # EX_TEMPFAIL of sysexits.h: the same command, once more
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # USR1: Slurm's early warning, by custom


class Interrupted(BaseException):
    """The process was asked to end, and stops here; no ``except Exception`` of a library may hold it up.

    Args:
        what: what becomes of the work, for the log.
    """

    def __init__(self, what: str = "the same command starts again") -> None:
        super().__init__(f"asked to end by {_came.name if _came else 'a signal'}: {what}")


_came: signal.Signals | None = None
_postponed = 0
_raised = False


@contextmanager
def listening() -> Iterator[None]:
    """Within, a signal of `SIGNALS` raises `Interrupted`, or waits where it is `postponed`; in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _forget()


def _forget() -> None:
    global _came, _postponed, _raised
    _came, _postponed, _raised = None, 0, False


@contextmanager
def postponed() -> Iterator[Callable[[], bool]]:
    """Within, no signal raises; the function that is given says whether one came."""
    global _postponed
    _postponed += 1
    try:
        yield lambda: _came is not None
    finally:
        _postponed -= 1


def _handle(number: int, frame: FrameType | None) -> None:
    global _came, _raised
    _came = signal.Signals(number)
    if not _postponed and not _raised:  # once: a second signal, to the whole job, must not disturb the ending
        _raised = True
        raise Interrupted
