"""A function that is killed at one of the places where it touches a file: whatever is not on the disk by then is lost."""

import json
import multiprocessing
import os
import sys
import traceback

FORK = multiprocessing.get_context("fork")
KILLED = 9


def touched(function, where, log, end=None):
    """Call a function in a process of its own, and note each file that it touches below some folders.

    Args:
        function: takes nothing.
        where: says of a path whether it counts.
        log: file of the events, a line each.
        end: number of the event before which the process is killed; None: it is not.

    Returns:
        Its exit code, and its events so far: (what, path).
    """
    log.unlink(missing_ok=True)
    process = FORK.Process(target=_watched, args=(function, where, log, end))
    process.start()
    process.join()
    rows = log.read_text().splitlines() if log.exists() else []
    return process.exitcode, [tuple(json.loads(row)) for row in rows]


def _watched(function, where, log, end):
    seen = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    count = 0

    def watch(event, arguments):
        nonlocal count
        path = os.fspath(arguments[0]) if arguments and isinstance(arguments[0], str | os.PathLike) else None
        if path is None or event in ("os.listdir", "os.scandir", "glob.glob", "import") or not where(str(path)):
            return
        if count == end:
            os._exit(KILLED)
        count += 1
        os.write(seen, json.dumps([event, str(path)]).encode() + b"\n")

    sys.addaudithook(watch)
    try:
        function()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
