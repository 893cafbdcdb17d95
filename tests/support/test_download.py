"""Against a server of its own that knows ranges, breaks off, and asks for a token."""

import hashlib
import http.server
import threading
from pathlib import Path

import pytest

from dpsapf.support import download as module
from dpsapf.support.download import Download, download
from dpsapf.support.errors import UserError

CONTENT = bytes(range(256)) * 5_000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `CONTENT` at /file; /broken stops half-way, /closed asks for a token, /whole knows no ranges."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        if self.path == "/missing":
            return self.answer(404, b"")
        if self.path == "/closed" and self.headers.get("Authorization") != "Bearer secret":
            return self.answer(401, b"")
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if self.path == "/whole":
            start = 0
        if start >= len(CONTENT):
            return self.answer(416, b"")
        return self.answer(206 if start else 200, CONTENT[start:])

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/broken" else body)
        self.close_connection = self.path == "/broken"

    def log_message(self, *message):
        """Say nothing."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "RETRIES", 0)
    monkeypatch.setattr(module, "BLOCK", 2**14)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.seen = []
        threading.Thread(target=running.serve_forever, daemon=True).start()
        running.at = f"http://127.0.0.1:{running.server_address[1]}"
        yield running
        running.shutdown()


@pytest.fixture
def wanted(tmp_path, server):
    def make(*paths, **changes):
        urls = [f"{server.at}/{path}" for path in paths]
        return Download(**{"file": str(tmp_path / "a" / "file.bin"), "urls": urls, "page": "the page", "md5": MD5} | changes)

    return make


def test_a_file_is_got_and_not_got_again(wanted, server):
    for _ in range(2):
        path = download(wanted("file", size=len(CONTENT)))
        assert path.read_bytes() == CONTENT and [file.name for file in path.parent.iterdir()] == ["file.bin"]
    assert len(server.seen) == 1


def test_what_breaks_off_goes_on_where_it_was(wanted, server):
    with pytest.raises(UserError, match=r"cannot be downloaded \(.*/broken: it broke off; the next call goes on.*put it at"):
        download(wanted("broken"))
    part = Path(wanted("broken").file + ".part")
    done = part.read_bytes()
    assert len(CONTENT) // 2 - module.BLOCK < len(done) <= len(CONTENT) // 2 and CONTENT.startswith(done)
    assert download(wanted("file")).read_bytes() == CONTENT and not part.exists()
    assert server.seen[-1][1] == f"bytes={len(done)}-"


def test_a_server_without_ranges_starts_from_the_beginning(wanted):
    part = Path(wanted("whole").file + ".part")
    part.parent.mkdir()
    part.write_bytes(b"something else")
    assert download(wanted("whole")).read_bytes() == CONTENT


def test_a_part_that_is_whole_is_taken(wanted):
    part = Path(wanted("file").file + ".part")
    part.parent.mkdir()
    part.write_bytes(CONTENT)
    assert download(wanted("file")).read_bytes() == CONTENT


def test_mirrors_are_tried_in_turn(wanted, server):
    assert download(wanted("missing", "file")).read_bytes() == CONTENT
    assert [path for path, *_ in server.seen] == ["/missing", "/file"]


@pytest.mark.parametrize(("changes", "named"), [({"md5": "0" * 32}, "must be 0000"), ({"size": 7}, "must have 7")])
def test_what_is_not_as_published_is_not_kept(wanted, changes, named):
    with pytest.raises(UserError, match=named):
        download(wanted("file", **changes))
    assert not list(Path(wanted("file").file).parent.iterdir())


def test_a_file_of_another_digest_is_named_and_stays(wanted, server):
    path = Path(wanted("file").file)
    path.parent.mkdir()
    path.write_bytes(b"another")
    with pytest.raises(UserError, match="md5 .* must be .*delete it and get it again"):
        download(wanted("file"))
    assert path.read_bytes() == b"another" and not server.seen


def test_what_cannot_be_downloaded_is_got_by_hand(wanted):
    with pytest.raises(UserError, match="file.bin': must be got by hand: get file.bin from the page, .* put it at"):
        download(wanted())
    with pytest.raises(UserError, match="cannot be downloaded .*missing.*404.*get file.bin from the page"):
        download(wanted("missing"))


def test_without_a_network_the_file_is_said(wanted):
    nowhere = wanted("file").model_copy(update={"urls": ("http://127.0.0.1:9/file",)})
    with pytest.raises(UserError, match="cannot be downloaded .*refused.*; get file.bin from the page"):
        download(nowhere)


def test_a_token_comes_from_the_environment_alone(wanted, monkeypatch, server):
    with pytest.raises(UserError, match="token = 'DPSAPF_TEST_TOKEN': .*set it"):
        download(wanted("closed", token="DPSAPF_TEST_TOKEN"))
    monkeypatch.setenv("DPSAPF_TEST_TOKEN", "secret")
    assert download(wanted("closed", token="DPSAPF_TEST_TOKEN")).read_bytes() == CONTENT
    download(wanted("file", file=wanted().file + "2"))
    assert server.seen[-1][2] is None, "an entry that names no token sends none"


def test_retries_are_for_what_may_pass():
    assert module.RETRIES.total == 4
    assert module.RETRIES.is_retry("GET", 503) and not module.RETRIES.is_retry("GET", 404)
