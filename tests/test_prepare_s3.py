"""Sources in S3, from a stand-in of it (moto): folders, patterns, packed files, and a bucket that is not there."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import PotluckError
from tests.kit.preparing import prepared, source, write_records
from tests.test_prepare import texts

pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")


@pytest.fixture
def bucket() -> Iterator[object]:
    """An empty bucket, `wood`; keys and address stand where its own tools look for them."""
    import boto3
    import s3fs

    with pytest.MonkeyPatch.context() as patch:  # undone last
        standing = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        standing.start()
        host, port = standing.get_host_and_port()
        for name, value in (("ENDPOINT_URL", f"http://{host}:{port}"), ("ACCESS_KEY_ID", "k"), ("REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        client = boto3.client("s3")
        client.create_bucket(Bucket="wood")
        try:
            yield client
        finally:
            standing.stop()
            s3fs.S3FileSystem.clear_instance_cache()


def test_a_folder_a_pattern_and_packed_files_of_s3_give_what_the_same_files_here_give(
    bucket: object, tmp_path: Path
) -> None:
    for number in range(2):
        path = write_records(tmp_path / "wood" / f"{number}.jsonl", texts(300, number))
        bucket.upload_file(str(path), "wood", f"data/{number}.jsonl")  # type: ignore[attr-defined]
        (tmp_path / "packed").write_bytes(gzip.compress(path.read_bytes()))
        bucket.upload_file(str(tmp_path / "packed"), "wood", f"packed/{number}.jsonl.gz")  # type: ignore[attr-defined]
    bucket.put_object(Bucket="wood", Key="data/notes.md", Body=b"no data")  # type: ignore[attr-defined]
    here = prepared(tmp_path, source(path="wood"), folder="here")
    told: list[str] = []
    folder = prepared(tmp_path, source(path=None, url="s3://wood/data"), folder="folder", tell=told.append)
    assert folder.root == here.root and told == ["wood: 1 files of its folder are not read: notes.md"]
    assert prepared(tmp_path, source(path=None, url="s3://wood/data/*.jsonl"), folder="pattern").root == here.root
    whole = prepared(tmp_path, source(path="wood"), folder="whole", chunk_bytes=1 << 20)
    assert prepared(tmp_path, source(path=None, url="s3://wood/packed"), folder="packed-data").root == whole.root


def test_a_bucket_that_is_not_there_is_one_line(bucket: object, tmp_path: Path) -> None:
    with pytest.raises(PotluckError) as caught:
        prepared(tmp_path, source(path=None, url="s3://nowhere/data"))
    assert caught.value.message.startswith("wood: s3://nowhere/data") and "\n" not in caught.value.message
