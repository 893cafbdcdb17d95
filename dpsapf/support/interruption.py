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


AGAIN_AFTER = 1.0  # seconds
_came: signal.Signals | None = None
_postponed = 0
_heard = False


@contextmanager
def listening() -> Iterator[None]:
    """Within, a signal of `SIGNALS` raises `Interrupted`, or waits where it is `postponed`; in the main thread only.

    Python drops what is raised in a destructor or a callback; so it is raised again, each second, until it is `heard`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = dict.fromkeys(SIGNALS, _handle) | {signal.SIGALRM: _raise}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        heard()
        for number, handler in before.items():
            signal.signal(number, handler)
        _forget()


def heard() -> None:
    """Note that the process is ending: further signals must not disturb that."""
    global _heard
    _heard = True
    signal.setitimer(signal.ITIMER_REAL, 0)


def _forget() -> None:
    global _came, _postponed, _heard
    _came, _postponed, _heard = None, 0, False


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
    global _came
    _came = signal.Signals(number)
    _raise()


def _raise(*_: object) -> None:
    if not _postponed and not _heard:
        signal.setitimer(signal.ITIMER_REAL, AGAIN_AFTER)
        raise Interrupted
