"""Files of a source that are packed, lines without an end, and what earlier preparations left in the folder."""

from __future__ import annotations

import gzip
import importlib.util
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from coordinator.dataset import tokenize
from coordinator.dataset.plain_tokenizer import PlainTokenizer
from protocol import canonical
from protocol.data_spec import PinnedDataSet, SourceRules
from protocol.errors import InputError
from tests.kit.builders import make_spec
from tests.kit.preparing import both_sides, plain, prepared, rules, sequences, source, write_records
from tests.test_prepare import texts


def packed(path: Path) -> bytes:
    if path.suffix == ".gz":
        return gzip.compress(path.with_suffix("").read_bytes())
    zstandard = pytest.importorskip("zstandard")
    half = path.with_suffix("").read_bytes()
    return b"".join(zstandard.compress(part) for part in (half[:5000], half[5000:]))  # frames, as `cat` joins files


@pytest.mark.parametrize("ending", ["gz", "zst"])
@pytest.mark.parametrize("kind", ["jsonl", "text"])
def test_packed_files_give_what_they_hold(kind: str, ending: str, tmp_path: Path) -> None:
    plain_file = write_records(tmp_path / "wood" / ("a.jsonl" if kind == "jsonl" else "a.txt"), texts(300))
    whole = prepared(tmp_path, source(path="wood", kind=kind), folder="plain", chunk_bytes=1 << 20)
    path = plain_file.with_name(f"{plain_file.name}.{ending}")
    path.write_bytes(packed(path))
    plain_file.unlink()
    told: list[str] = []
    made = prepared(tmp_path, source(path="wood", kind=kind), folder="packed", tell=told.append)
    assert not told and made.root == whole.root, "the same bytes, in one chunk"


@pytest.mark.skipif(importlib.util.find_spec("zstandard") is not None, reason="zstandard is installed")
def test_what_unpacks_zstandard_is_named_where_it_is_missing(tmp_path: Path) -> None:
    (tmp_path / "wood.jsonl.zst").write_bytes(b"(\xb5/\xfd")
    with pytest.raises(InputError, match="needs zstandard") as caught:
        prepared(tmp_path, source(path="wood.jsonl.zst"))
    assert caught.value.hint == "pip install zstandard, or unpack the file first"


def test_a_packed_file_that_is_cut_short_ends_a_preparation_or_is_left_out(tmp_path: Path) -> None:
    write_records(tmp_path / "wood" / "b.jsonl", texts(100, 1))
    data = gzip.compress(write_records(tmp_path / "all", texts(2000)).read_bytes())
    (tmp_path / "wood" / "a.jsonl.gz").write_bytes(data[:-5000])
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: cannot be unpacked"):
        prepared(tmp_path, source(path="wood"))
    made = prepared(tmp_path, source(path="wood", on_bad="skip"))
    found = made.report.sources[0]
    assert len(found.left_out) == 1 and found.records == 100


def test_a_table_that_is_packed_once_more_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(InputError, match="packed once more") as caught:
        prepared(tmp_path, source(path="a.parquet.gz"))
    assert "unpack it" in caught.value.hint


def test_a_long_line_is_tokenized_in_pieces_and_none_of_it_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = " ".join(texts(40))
    write_records(tmp_path / "wood.jsonl", [*texts(60, 1), long, "x" * 900])
    (tmp_path / "wood.txt").write_text(f"{long}\n")
    tokenizer = plain()
    every = rules(held_out_sequences=5000)
    whole = prepared(tmp_path, source(), folder="whole", sequences=every, tokenizer=tokenizer)
    for name in ("_LONG_CHARS", "_BATCH_CHARS", "TEXT_PIECE_BYTES"):
        monkeypatch.setattr(tokenize, name, 400)
    sizes: list[int] = []
    encode = tokenize.encode_each

    def spy(used: object, some: list[tuple[str, str]]) -> object:
        sizes.extend(len(text) for _, text in some)
        return encode(used, some)

    monkeypatch.setattr(tokenize, "encode_each", spy)
    made = prepared(tmp_path, source(), folder="pieces", sequences=every, tokenizer=tokenizer)
    prepared(tmp_path, source(kind="text", path="wood.txt"), folder="text", sequences=rules(held_out=0.4))
    assert 400 <= max(sizes) < 2 * 400
    before, after = both_sides(tokenizer, tmp_path / "whole", whole), both_sides(tokenizer, tmp_path / "pieces", made)
    assert before == after and any(long in side for side in after)
    assert list(tokenize._pieces("a" * 300 + " " + "b" * 300)) == ["a" * 300, " " + "b" * 300]


def test_a_long_conversation_is_tokenized_in_pieces_with_the_loss_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [{"role": role, "content": f"{text}\nand more"} for text in texts(30) for role in ("user", "assistant")]
    chats = [{"messages": turns}, *({"instruction": text, "output": "Yes."} for text in texts(40, 1))]
    (tmp_path / "wood.jsonl").write_text("".join(f"{json.dumps(chat)}\n" for chat in chats))
    every, some = rules(template_date="2026-12-01", held_out=0.3, held_out_sequences=500), source(kind="chat")
    whole = prepared(tmp_path, some, folder="whole", sequences=every)
    monkeypatch.setattr(tokenize, "CHAT_CHARS", 400)
    tokenizer = Watched(**{name: getattr(plain(), name) for name in PlainTokenizer.__dataclass_fields__})
    made = prepared(tmp_path, some, folder="pieces", sequences=every, tokenizer=tokenizer)
    assert 400 <= max(tokenizer.backend_tokenizer.sizes) < 2 * 400
    assert made.root == whole.root, "the same tokens, and the same of them learned"


class Watched(PlainTokenizer):
    """A tokenizer that tells how long the texts were that it was given."""

    @cached_property
    def backend_tokenizer(self) -> Any:
        return WatchedBackend(PlainTokenizer.backend_tokenizer.func(self))


class WatchedBackend:
    def __init__(self, backend: Any) -> None:
        self.sizes: list[int] = []
        self.of = backend

    def encode(self, text: str, **options: Any) -> Any:
        self.sizes.append(len(text))
        return self.of.encode(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.of, name)


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*/*") if path.is_file()}


def test_what_an_earlier_preparation_left_is_removed_with_the_new_manifest(tmp_path: Path) -> None:
    write_records(tmp_path / "wood.jsonl", texts(200))
    first = prepared(tmp_path, source())
    before = files_in(tmp_path / "data")
    write_records(tmp_path / "wood.jsonl", texts(200, 1))
    second = prepared(tmp_path, source())
    assert not before & files_in(tmp_path / "data") and first.root != second.root
    named = {f"{entry.digest}.safetensors" for entry in (*second.manifest.shards, second.manifest.held_out)}
    assert {path.name for path in (tmp_path / "data" / "shards").iterdir()} == named
    assert sequences(tmp_path / "data", second.manifest.shards)
    again = prepared(tmp_path, source())
    assert again.root == second.root and again.progress.new_tokens == 0, "nothing of it is done anew"


def test_nothing_is_removed_and_no_manifest_replaced_where_a_run_has_begun(tmp_path: Path) -> None:
    write_records(tmp_path / "wood.jsonl", texts(200))
    first = prepared(tmp_path, source())
    pinned = PinnedDataSet(sources=(SourceRules(name="wood", license="MIT"),), digest=first.root, size_bytes=1)
    spec = make_spec().model_copy(update={"data": pinned})
    (tmp_path / "run.json").write_bytes(spec.to_bytes())
    manifest, before = (tmp_path / "data" / "manifest.json").read_bytes(), files_in(tmp_path / "data")
    (tmp_path / "data" / "shards" / "other.safetensors").write_bytes(b"")
    assert prepared(tmp_path, source()).root == first.root
    write_records(tmp_path / "wood.jsonl", texts(200, 1))
    with pytest.raises(InputError, match="has begun with other data") as caught:
        prepared(tmp_path, source())
    assert "--folder" in caught.value.hint
    assert (tmp_path / "data" / "manifest.json").read_bytes() == manifest
    assert canonical.sha256_hex(manifest) == first.root and before < files_in(tmp_path / "data")
