import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest

from dpsapf.support import interruption
from dpsapf.support.interruption import SIGNALS, Interrupted, heard, listening, postponed


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_what_cannot_go_on_at_once(number):
    with listening(), pytest.raises(Interrupted, match=f"asked to end by {number.name}: the same command starts again"):
        signal.raise_signal(number)


def test_a_signal_waits_where_it_is_postponed():
    with listening():
        with postponed() as asked:
            assert not asked()
            signal.raise_signal(signal.SIGTERM)
            with postponed():
                pass
            signal.raise_signal(signal.SIGTERM)
            assert asked()
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)


def test_a_second_signal_does_not_disturb_the_ending():
    with listening():
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        heard()
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_destructor_drops_is_raised_again(monkeypatch):
    monkeypatch.setattr(interruption, "AGAIN_AFTER", 0.05)

    class Deaf:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    with listening(), warnings.catch_warnings(), pytest.raises(Interrupted):
        warnings.simplefilter("ignore")
        made = Deaf()
        del made
        time.sleep(10)
    with listening():
        time.sleep(0.1)  # nothing of it is left


def test_a_signal_of_an_earlier_command_is_forgotten():
    with listening(), postponed():
        signal.raise_signal(signal.SIGTERM)
    with listening(), postponed() as asked:
        assert not asked()


def test_no_handler_of_a_library_swallows_it():
    with listening(), pytest.raises(Interrupted):
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:
            pytest.fail("swallowed")


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with listening():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_beside_the_main_thread_nothing_is_listened_to():
    failed = []

    def run():
        try:
            with listening(), postponed() as asked:
                assert not asked()
        except ValueError as error:  # what Python raises for a handler that is set in another thread
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert failed == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 75)])
def test_a_command_that_is_asked_to_end_says_so_and_leaves_with_again(tmp_path, number, code):
    text = (
        "import os, sys, dpsapf.datasets.prepare as prepare; from dpsapf.cli.main import main; "
        f"prepare.prepare_dataset = lambda options: os.kill(os.getpid(), {int(number)}); "
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ["--name", "digits", *(f"--{what}={tmp_path / what}" for what in ("archive", "record", "preview"))]
    ran = subprocess.run(
        [sys.executable, "-c", text, "prepare-dataset", *words], env=os.environ, capture_output=True, text=True, check=False
    )
    assert ran.returncode == code
    assert ran.stderr == f"dpsapf prepare-dataset: asked to end by {number.name}: the same command starts again\n"
