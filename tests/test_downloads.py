"""Downloads from a url and from anywhere else: resumed, bounded, and never put in place with a wrong byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from peer.link import downloads
from peer.link.downloads import Download, fetch, is_complete, read_url
from protocol.errors import InputError, NetworkError, VerificationError
from tests.kit.http_server import serving

DATA = bytes(range(256)) * 20_000
DIGEST = hashlib.sha256(DATA).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves DATA: at /ranges from the offset asked for, at /plain always whole, at /broken half of it."""

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.path == "/ranges" else 0
        body = DATA[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/broken" else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with serving(Handler) as url:
        yield url


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "FETCH_ATTEMPTS", 2)


@pytest.mark.parametrize("path", ["/ranges", "/plain"])
@pytest.mark.parametrize("already", [0, 1, 1_000_000, len(DATA)])
def test_download_from_a_url_goes_on_from_what_is_there(site: str, tmp_path: Path, path: str, already: int) -> None:
    (tmp_path / "data.part").write_bytes(DATA[:already])
    fetch(lambda offset: read_url(site + path, offset, 5, 30), "data", DIGEST, len(DATA), tmp_path / "data", None)
    assert is_complete(tmp_path / "data", DIGEST, len(DATA)) and not (tmp_path / "data.part").exists()


def test_server_that_breaks_off_is_asked_for_the_rest(site: str, tmp_path: Path) -> None:
    """/broken ignores ranges, so the second half never comes: it ends with an error, and what came is kept."""
    with pytest.raises(NetworkError):
        broken = partial(read_url, site + "/broken", timeout_s=5, deadline_s=30)
        fetch(broken, "data", DIGEST, len(DATA), tmp_path / "data", None, attempts=2)
    assert (tmp_path / "data.part").stat().st_size == len(DATA) // 2
    fetch(lambda offset: read_url(site + "/ranges", offset, 5, 30), "data", DIGEST, len(DATA), tmp_path / "data", None)
    assert is_complete(tmp_path / "data", DIGEST, len(DATA))


def test_other_schemes_than_http_are_refused() -> None:
    for url in ("file:///etc/passwd", "ftp://example.org/x", "data:,x", "/etc/passwd"):
        with pytest.raises(InputError, match="only http"):
            list(read_url(url, 0, 1, 1))


def test_wrong_bytes_never_get_the_name(tmp_path: Path) -> None:
    wrong = b"x" * len(DATA)
    with pytest.raises(VerificationError, match="expected"):
        fetch(lambda offset: iter([wrong[offset:]]), "data", DIGEST, len(DATA), tmp_path / "data", None)
    assert not (tmp_path / "data").exists()


def test_source_that_sends_more_than_it_should_is_stopped(tmp_path: Path) -> None:
    def endless(offset: int) -> Iterator[bytes]:
        while True:
            yield DATA[:100_000]

    with pytest.raises(VerificationError, match="got more"):
        fetch(endless, "data", DIGEST, len(DATA), tmp_path / "data", None)
    assert (tmp_path / "data.part").stat().st_size <= len(DATA)


def test_link_in_place_of_the_partial_file_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "data.part").symlink_to(victim)
    with pytest.raises(InputError), Download(tmp_path / "data", DIGEST, len(DATA)):
        pass
    assert victim.read_bytes() == b"precious"
