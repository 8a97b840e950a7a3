"""Sources in S3, from a stand-in of it: folders, patterns, packed files, and a bucket that is not there."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import PotluckError
from tests.kit.bucket_server import serve_bucket
from tests.kit.preparing import prepared, source, write_records
from tests.test_prepare import texts

s3fs = pytest.importorskip("s3fs", reason="needs the extra `data`")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """What is in a bucket, `wood`, by key; keys and address stand where its own tools look for them."""
    objects: dict[str, bytes] = {}
    with serve_bucket("wood", objects) as url:
        given = {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "DEFAULT_REGION": "us-east-1"}
        for name, value in given.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield objects
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_folder_a_pattern_and_packed_files_of_s3_give_what_the_same_files_here_give(
    bucket: dict[str, bytes], tmp_path: Path
) -> None:
    for number in range(2):
        path = write_records(tmp_path / "wood" / f"{number}.jsonl", texts(300, number))
        bucket[f"data/{number}.jsonl"] = path.read_bytes()
        bucket[f"packed/{number}.jsonl.gz"] = gzip.compress(path.read_bytes())
    bucket["data/notes.md"] = b"no data"
    here = prepared(tmp_path, source(path="wood"), folder="here")
    told: list[str] = []
    folder = prepared(tmp_path, source(path=None, url="s3://wood/data"), folder="folder", tell=told.append)
    assert folder.root == here.root and told == ["wood: 1 files of its folder are not read: notes.md"]
    assert prepared(tmp_path, source(path=None, url="s3://wood/data/*.jsonl"), folder="pattern").root == here.root
    whole = prepared(tmp_path, source(path="wood"), folder="whole", chunk_bytes=1 << 20)
    assert prepared(tmp_path, source(path=None, url="s3://wood/packed"), folder="packed-data").root == whole.root


def test_a_bucket_that_is_not_there_is_one_line(bucket: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(PotluckError) as caught:
        prepared(tmp_path, source(path=None, url="s3://nowhere/data"))
    assert caught.value.message.startswith("wood: s3://nowhere/data") and "\n" not in caught.value.message
