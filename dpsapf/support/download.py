"""Downloads that resume, fall back on mirrors, and are kept only if size and digest are right."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import requests
from pydantic import Field
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from dpsapf.support.checked import Checked
from dpsapf.support.errors import UserError
from dpsapf.support.files import md5
from dpsapf.support.progress import track

BLOCK = 2**20  # bytes that are read at a time
TIMEOUT = 30  # seconds without a byte
RETRIES = Retry(total=4, backoff_factor=1, status_forcelist=(429, 500, 502, 503, 504), respect_retry_after_header=True)


class Download(Checked):
    """A file that its owner publishes."""

    file: str = Field(description="path that it is put at, from the folder in which the command runs")
    urls: tuple[str, ...] = Field((), description="where it is published, tried in turn; empty: by hand only, from `page`")
    page: str = Field(description="web page of its owner, for people")
    md5: str | None = Field(None, description="its MD5 digest as published; null: none is")
    size: int | None = Field(None, description="its size as published; null: not told [bytes]", ge=1)
    unpack: str | None = Field(None, description="folder that the .tar.gz is unpacked to; null: not unpacked")
    token: str | None = Field(None, description="name of the environment variable with an access token; null: none is needed")

    @property
    def target(self) -> Path:
        """What is there in the end: the file, or the folder that it is unpacked to."""
        return Path(self.unpack or self.file)


def download(wanted: Download) -> Path:
    """Get a file; what an earlier attempt has got already, in ``FILE.part``, is not got again.

    Returns:
        Its path. A file that is there already, with the right size and digest, is left alone.

    Raises:
        UserError: there is no URL, none can be reached, or what came has another size or digest.
    """
    path = Path(wanted.file)
    if path.exists():
        check(path, wanted)
        return path
    if not wanted.urls:
        raise UserError("file", wanted.file, f"must be got by hand: {by_hand(wanted)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    part, failures = path.with_name(f"{path.name}.part"), []
    for url in wanted.urls:
        try:
            _fetch(url, part, wanted)
            break
        except requests.RequestException as error:
            failures.append(f"{url}: {_reason(error)}")
    else:
        raise UserError("file", wanted.file, f"cannot be downloaded ({'; '.join(failures)}); {by_hand(wanted)}")
    try:
        check(part, wanted)
    except UserError:
        part.unlink()
        raise
    part.replace(path)
    return path


def by_hand(wanted: Download) -> str:
    """Say where a file is to be got, and where to put it."""
    return f"get {Path(wanted.file).name} from {wanted.page}, under its owner's terms, and put it at {wanted.file}"


def check(path: Path, wanted: Download) -> None:
    """Check a file's size and digest, as far as they are published.

    Raises:
        UserError: one is another.
    """
    size = path.stat().st_size
    if wanted.size not in (None, size):
        raise UserError(str(path), f"{size} bytes", f"must have {wanted.size}: delete it and get it again")
    if wanted.md5 is None:
        return
    with path.open("rb") as file:
        found = md5(file)
    if found != wanted.md5:
        raise UserError(str(path), f"md5 {found}", f"must be {wanted.md5}: delete it and get it again")


def _fetch(url: str, part: Path, wanted: Download) -> None:
    done = part.stat().st_size if part.exists() else 0
    with _session() as session, session.get(url, headers=_headers(done, wanted), stream=True, timeout=TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # all of it is there
        response.raise_for_status()
        resumed = response.status_code == requests.codes.partial_content
        done = done if resumed else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else -(-(done + int(length)) // BLOCK)
        with part.open("ab" if resumed else "wb") as file:
            for block in track(_blocks(response), Path(wanted.file).name, "MiB", total, done // BLOCK):
                file.write(block)


def _reason(error: requests.RequestException) -> str:
    """Return the innermost of the messages that urllib3 nests."""
    return str(error).rpartition(": ")[2].strip("\"')") if isinstance(error, requests.ConnectionError) else str(error)


def _blocks(response: requests.Response) -> Iterator[bytes]:
    try:
        yield from response.iter_content(BLOCK)
    except requests.exceptions.ChunkedEncodingError as error:
        raise requests.ConnectionError("it broke off; the next call goes on from there") from error


def _headers(done: int, wanted: Download) -> dict[str, str]:
    headers = {"Range": f"bytes={done}-"} if done else {}
    if wanted.token is None:
        return headers
    if wanted.token not in os.environ:
        raise UserError("token", wanted.token, f"{wanted.file} needs an access token in this environment variable: set it")
    return headers | {"Authorization": f"Bearer {os.environ[wanted.token]}"}


def _session() -> requests.Session:
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns at every retry
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=RETRIES))
    return session
