"""One Snakemake on one config's results: held by the operating system, and so gone with its process, however that ends."""

import errno
import fcntl
import logging
import os
import pwd
import socket
import typing
from pathlib import Path

from dpsapf.support.errors import UserError
from dpsapf.support.files import CANNOT_LOCK

LOG = logging.getLogger(__name__)
FILE = ".one-snakemake"
UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


def user() -> str:
    """Return the name of the user whose process this is, whatever its environment says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def hold(results: Path) -> typing.TextIO:
    """Hold a results folder until this process ends, or until what is returned is closed.

    Raises:
        UserError: another process holds it, says which; or this user may not write there.
    """
    try:
        results.mkdir(parents=True, exist_ok=True)
        file = (results / FILE).open("a+")
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        remedy = f"user {user()} cannot write there ({error.strerror}): ask its owner, or take another name in the config"
        raise UserError("results", str(results), remedy) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise UserError("results", str(results), f"{owner} works on it: wait for its end, or end it") from None
    except OSError as error:
        if error.errno not in CANNOT_LOCK:
            raise
        LOG.warning("%s: its file system has no locks (%s): start one Snakemake only on it", results, error.strerror)
    file.truncate(0)
    file.write(f"process {os.getpid()} of {socket.gethostname()}, started by {user()},\n")
    file.flush()
    return file
