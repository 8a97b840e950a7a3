"""The files of a run, from the service to a member: whole, by digest alone, and two at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from coordinator.service import TRANSFERS_EACH
from peer.training.genesis import load_state
from protocol import coordinator_pb2
from protocol.data_spec import PinnedData
from protocol.errors import InputError
from protocol.rpc import PART_BYTES
from tests.kit.coordinator import Site, site_of, write_run


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with site_of(write_run(folder / "source"), folder / "run") as site:
        yield site


def token(site: Site) -> str:
    """The first member's certificate."""
    return site.swarm.members[0].certificate


def data_of(site: Site) -> PinnedData:
    return site.client.get_run().card.spec.data


def test_member_fetches_verified_genesis_and_data(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    files = site.client.fetch_run_files(
        token(site),
        tmp_path,
        lambda name, done, total: seen.append((name, done, total)),
    )
    assert load_state(files.genesis / "model").digest == site.client.get_run().card.genesis
    assert hashlib.sha256(files.data.read_bytes()).hexdigest() == data_of(site).digest
    assert files.base_model is None and not list(tmp_path.rglob("*.part"))
    before = len(seen)
    site.client.fetch_run_files(token(site), tmp_path, lambda name, done, total: seen.append((name, 0, 0)))
    assert len(seen) == before, "what is whole is not fetched again"


def test_broken_download_goes_on_where_it_stopped(site: Site, tmp_path: Path) -> None:
    data = data_of(site)
    source = site.host.folder.parent / "source" / "text.txt"
    (tmp_path / "text.part").write_bytes(source.read_bytes()[:1000])
    seen: list[int] = []
    site.client.fetch_file(
        token(site), data.digest, data.size_bytes, tmp_path / "text", lambda _, done, __: seen.append(done)
    )
    assert hashlib.sha256((tmp_path / "text").read_bytes()).hexdigest() == data.digest and min(seen) > 1000


def test_leftover_of_other_bytes_is_thrown_away(site: Site, tmp_path: Path) -> None:
    data = data_of(site)
    (tmp_path / "text.part").write_bytes(b"x" * 500)
    site.client.fetch_file(token(site), data.digest, data.size_bytes, tmp_path / "text")
    assert hashlib.sha256((tmp_path / "text").read_bytes()).hexdigest() == data.digest


def test_file_that_is_not_offered_cannot_be_fetched(site: Site, tmp_path: Path) -> None:
    secret = hashlib.sha256((site.host.folder / "root.pem").read_bytes()).hexdigest()
    for digest in (secret, "0" * 64, "../root.pem"):
        with pytest.raises(InputError, match="no file with digest"):
            site.client.fetch_file(token(site), digest, 10, tmp_path / "secret")


def test_offset_beyond_the_end_is_refused(site: Site) -> None:
    request = coordinator_pb2.FetchFileRequest(certificate=token(site), sha256=data_of(site).digest, offset=2**60)
    with pytest.raises(grpc.RpcError) as caught:
        list(site.client.connection.stub().FetchFile(request, timeout=60))
    assert isinstance(caught.value, grpc.Call) and caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_slow_reader_does_not_keep_others_out(site: Site) -> None:
    """Two transfers of one member are the most; a third is put off, and other calls are answered."""
    request = coordinator_pb2.FetchFileRequest(certificate=token(site), sha256=data_of(site).digest)
    assert data_of(site).size_bytes < PART_BYTES
    open_calls = [site.client.connection.stub().FetchFile(request, timeout=60) for _ in range(8)]
    assert site.client.status().name == "campfire"
    codes = set()
    for call in open_calls:
        try:
            list(call)
            codes.add(grpc.StatusCode.OK)
        except grpc.RpcError:
            codes.add(call.code())
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED} and grpc.StatusCode.OK in codes
    assert len(open_calls) > TRANSFERS_EACH
