"""Sources become shards, once: the same root however many processes do it, and whatever ended an earlier try."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.dataset.chunk_files import ChunkJob, DataFolder
from coordinator.dataset.chunks import chunks_of
from coordinator.dataset.kept_out import KeptOut
from coordinator.dataset.sources import files_of
from lab import REPOSITORY
from peer.training.records import Record
from peer.training.repeats import normal_form
from protocol.data_manifest import DataManifest
from protocol.errors import InputError
from protocol.files import file_sha256
from tests.kit.preparing import (
    LENGTH,
    both_sides,
    documents,
    plain,
    prepared,
    rules,
    sequences,
    shard,
    source,
    write_records,
)

WORDS = ["wood", "fire", "table", "soup", "bread", "plate"]


def texts(number: int, seed: int = 0) -> list[str]:
    made = random.Random(seed)
    return [" ".join(made.choices(WORDS, k=made.randint(1, 30))) + f" {seed}-{i}" for i in range(number)]


# ---- the root --------------------------------------------------------------------------------------------------------


def test_the_root_is_the_same_twice_and_for_any_number_of_processes(tmp_path: Path) -> None:
    write_records(tmp_path / "wood.jsonl", texts(400))
    (tmp_path / "story.txt").write_text("\n".join(texts(200, 1)))
    chats = [{"instruction": text, "output": "Yes."} for text in texts(200, 2)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    some = (source(), source("story", kind="text", path="story.txt"), source("chats", kind="chat"))
    dated = rules(template_date="2026-12-01")
    first = prepared(tmp_path, *some, sequences=dated, folder="a")
    for folder, processes in (("a", 0), ("b", 1), ("c", 2)):
        again = prepared(tmp_path, *some, sequences=dated, folder=folder, processes=processes, chunk_bytes=2000)
        assert again.root == first.root
        assert (again.progress.new_tokens == 0) == (folder == "a"), "what is done is not done again"
    manifest = (tmp_path / "b" / "manifest.json").read_bytes()
    assert (
        DataManifest.from_bytes(manifest) == first.manifest
        and file_sha256(tmp_path / "b" / "manifest.json") == first.root
    )
    for entry in (*first.manifest.shards, first.manifest.held_out):
        assert file_sha256(DataFolder(tmp_path / "c").shard(entry.digest)) == entry.digest
        assert shard(tmp_path / "c", entry).loss_tokens.sum() == entry.loss_tokens
    assert len(first.manifest.shards) > 10


def test_other_chunks_rules_or_tokenizers_are_prepared_anew(tmp_path: Path) -> None:
    write_records(tmp_path / "wood.jsonl", texts(100))
    roots = {
        prepared(tmp_path, source(), **options).root
        for options in (
            {},
            {"chunk_bytes": 3000},
            {"sequences": rules(packing=False)},
            {"sequences": rules(held_out=0.2)},
            {"sequences": rules(sequence_length=16)},
            {"tokenizer": plain(front="<s>")},
        )
    }
    assert len(roots) == 6


def test_a_file_that_has_changed_is_prepared_again_and_one_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    path = write_records(tmp_path / "wood.jsonl", texts(100))
    first = prepared(tmp_path, source())
    (file,) = files_of(source(), tmp_path, print)
    write_records(path, [text.upper() for text in texts(100)])
    os.utime(path, ns=(1, 1))
    job = ChunkJob((source(),), rules(), plain(), DataFolder(tmp_path / "data"))
    chunk = next(chunks_of(0, file))
    with pytest.raises(InputError, match=r"wood\.jsonl: has changed since the preparation began"):
        job.do(chunk)
    assert not DataFolder(tmp_path / "data").chunk(job.key(chunk)).exists()
    assert prepared(tmp_path, source()).root != first.root


# ---- where each record is --------------------------------------------------------------------------------------------

LINES = st.lists(st.text("ab \u00e9\u67f4", min_size=1, max_size=40).filter(str.strip), min_size=8, max_size=40)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LINES, st.integers(40, 400), st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans())
def test_every_record_is_in_exactly_one_shard_or_held_out(
    tmp_path: Path, made: list[str], chunk_bytes: int, end: str, last: bool
) -> None:
    lines = [json.dumps({"text": f"{number}|{text}"}) for number, text in enumerate(made)]
    path = tmp_path / "wood.jsonl"
    path.write_bytes((end.join(lines) + (end if last else "")).encode())
    os.utime(path, ns=(0, hash((tuple(made), chunk_bytes, end, last)) & (1 << 60) - 1))
    tokenizer = plain()
    every = rules(held_out=0.3, held_out_sequences=1000, sequence_length=2048)
    try:
        result = prepared(tmp_path, source(), sequences=every, chunk_bytes=chunk_bytes, tokenizer=tokenizer)
    except InputError as error:  # all on one side
        assert "to train on" in error.message or "held out" in error.message
        return
    train, held_out = [], []
    for entries, side in ((result.manifest.shards, train), ([result.manifest.held_out], held_out)):
        for row in sequences(tmp_path / "data", entries, 2048):
            side += tokenizer.backend_tokenizer.decode(row, skip_special_tokens=False).split("</s>")[:-1]
    assert Counter(train + held_out) == Counter(f"{number}|{text}" for number, text in enumerate(made))
    assert result.report.sources[0].records == len(made)


def test_copies_but_for_case_and_white_space_fall_on_one_side_wherever_they_stand(tmp_path: Path) -> None:
    originals = texts(300)
    write_records(tmp_path / "one" / "a.jsonl", originals)
    write_records(tmp_path / "one" / "b.jsonl", [text.upper() for text in originals])
    write_records(tmp_path / "two.jsonl", ["  " + text.replace(" ", "\n") for text in reversed(originals)])
    tokenizer = plain()
    every = rules(held_out=0.2, held_out_sequences=5000)
    made = prepared(tmp_path, source("one", path="one"), source("two"), sequences=every, tokenizer=tokenizer)
    train, held_out = ([normal_form(text) for text in side] for side in both_sides(tokenizer, tmp_path / "data", made))
    assert set(train).isdisjoint(held_out)
    assert len(held_out) == len(set(held_out)) > 40, "of copies one is evaluated"
    assert set(train) | set(held_out) == set(map(normal_form, originals))
    assert Counter(train).most_common()[-1][1] == 3


def test_the_held_out_shard_has_the_lowest_places_of_all_and_no_more_than_are_evaluated(tmp_path: Path) -> None:
    write_records(tmp_path / "wood.jsonl", texts(600))
    tokenizer = plain()
    five, many = rules(held_out_sequences=5, held_out=0.2), rules(held_out_sequences=400, held_out=0.2)
    few = prepared(tmp_path, source(), folder="few", sequences=five, tokenizer=tokenizer)
    more = prepared(tmp_path, source(), folder="more", sequences=many, tokenizer=tokenizer)
    assert few.manifest.held_out.sequences == 5 and more.manifest.held_out.sequences > 50
    of_few = sequences(tmp_path / "few", [few.manifest.held_out])
    of_more = sequences(tmp_path / "more", [more.manifest.held_out])
    assert of_few == of_more[:5]
    whole = prepared(tmp_path, source(), sequences=five, chunk_bytes=1 << 20)
    assert sequences(tmp_path / "data", [whole.manifest.held_out]) == of_few, "however the files are cut"
    assert few.manifest.sources == more.manifest.sources, "what is not evaluated is not trained on either"


def test_of_what_is_kept_out_no_chunk_holds_more_than_may_be_evaluated() -> None:
    kept, most = KeptOut(tokens=100), 0
    for number in range(1000):
        kept.add(number * 617 % 1000, Record.of(np.arange(10)))
        most = max(most, len(kept.held))
    assert most <= 21
    places, records = kept.records()
    assert [place.value for place in places] == list(range(10)) and len(records) == 10


# ---- sequences -------------------------------------------------------------------------------------------------------


def test_packed_documents_follow_each_other_and_the_shard_says_where_each_begins(tmp_path: Path) -> None:
    write_records(tmp_path / "wood.jsonl", texts(300))
    tokenizer = plain(front="<s>")
    made = prepared(tmp_path, source(), tokenizer=tokenizer)
    for entry in made.manifest.shards:
        read = shard(tmp_path / "data", entry)
        assert set(read.ends[:-1] % LENGTH) <= {0}
        begins = (read.tokens == 0).nonzero()[0].tolist()
        assert read.documents.tolist() == begins and not read.learned[begins].any()
    apart = prepared(tmp_path, source(), tokenizer=tokenizer, sequences=rules(packing=False))
    for entry in apart.manifest.shards:
        read = shard(tmp_path / "data", entry)
        assert set(read.documents) <= {0, *read.ends}
        assert all(len(row) <= LENGTH for row in sequences(tmp_path / "data", [entry]))
    assert sum(len(row) for row in sequences(tmp_path / "data", apart.manifest.shards)) < apart.progress.tokens


def test_a_text_is_cut_into_blocks_and_begins_once_as_the_tokenizer_wants_it(tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text("\n".join(texts(300)), newline="\r\n")
    tokenizer = plain(front="<s>")
    story = source("story", kind="text", path="story.txt")
    made = prepared(tmp_path, story, tokenizer=tokenizer, sequences=rules(held_out_sequences=9000))
    rows = [
        row
        for entries in (made.manifest.shards, [made.manifest.held_out])
        for row in sequences(tmp_path / "data", entries)
    ]
    assert sum(row.count(0) for row in rows) == 1
    together = tokenizer.backend_tokenizer.decode([token for row in rows for token in row])
    lost = Counter("\n".join(texts(300))) - Counter(together)
    assert sum(lost.values()) <= len(made.manifest.shards), "a last token alone has nothing to be predicted from"
    assert not Counter(together) - Counter("\n".join(texts(300))), "no carriage returns"
    assert made.report.sources[0].notes.sentences() == ["lines that end with CR LF, read as if with LF: 299"]


def test_what_no_answer_is_learned_of_is_left_out_of_the_shards(tmp_path: Path) -> None:
    answers = [
        {"messages": [{"role": "user", "content": "wood " * 40}, {"role": "assistant", "content": f"Yes {number}."}]}
        for number in range(60)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    made = prepared(tmp_path, source("chats", kind="chat"), sequences=rules(packing=False, held_out=0.3))
    for entry in made.manifest.shards:
        read = shard(tmp_path / "data", entry)
        assert read.loss_tokens.min() > 0
        # of each chat what is left begins in the middle of it, and has two sequences
        assert read.documents.tolist() == [0, *read.ends[1:-1:2].tolist()]
    assert any("without anything to learn" in note for note in made.report.sources[0].notes.sentences())


def test_a_large_chunk_becomes_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.dataset.chunk_files.SHARD_TOKENS", 1000)
    write_records(tmp_path / "wood.jsonl", texts(300))
    tokenizer = plain()
    made = prepared(
        tmp_path, source(), chunk_bytes=1 << 20, tokenizer=tokenizer, sequences=rules(held_out_sequences=900)
    )
    assert len(made.manifest.shards) > 5
    train, held_out = both_sides(tokenizer, tmp_path / "data", made)
    assert Counter(train + held_out) == Counter(texts(300))


# ---- what ends a preparation -----------------------------------------------------------------------------------------

PREPARE = """
import sys, time
from pathlib import Path
from coordinator.dataset.chunk_files import ChunkJob
from protocol.errors import PotluckError
from tests.kit.preparing import prepared, source
if __name__ == "__main__":
    try:
        print(prepared(Path(sys.argv[1]), source(), processes=2).root)
    except PotluckError as error:
        sys.exit(error.message)
"""


def start(tmp_path: Path, **options: Any) -> subprocess.Popen[str]:
    (tmp_path / "run_prepare.py").write_text(PREPARE)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, tmp_path / "run_prepare.py", tmp_path], env=environment, text=True, **options
    )


def until(what: Any, seconds: float = 120) -> None:
    ended = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ended
        time.sleep(0.01)


def test_after_a_kill_it_goes_on_where_it_was_and_comes_to_the_same_root(tmp_path: Path) -> None:
    write_records(tmp_path / "wood.jsonl", texts(6000))
    done = tmp_path / "data" / "chunks"
    with start(tmp_path) as process:
        until(lambda: done.is_dir() and len(list(done.glob("*.json"))) > 5)
        children = psutil.Process(process.pid).children()
        process.kill()
    until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))
    half = done / f"{'ab' * 16}.json.new"
    half.write_text("{")
    assert not (tmp_path / "data" / "manifest.json").exists(), "the kill came in time"
    on = prepared(tmp_path, source())
    assert 0 < on.progress.old_bytes < on.progress.done_bytes and not half.exists()
    assert on.root == prepared(tmp_path, source(), folder="other").root


def test_a_worker_that_is_killed_and_a_second_preparation_are_told(tmp_path: Path) -> None:
    write_records(tmp_path / "wood.jsonl", texts(6000))
    done = tmp_path / "data" / "chunks"
    with start(tmp_path, stderr=subprocess.PIPE) as process:
        until(lambda: done.is_dir() and len(list(done.glob("*.json"))) > 2)
        with pytest.raises(InputError, match="another process prepares data there"):
            prepared(tmp_path, source())
        workers = [
            child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())
        ]
        workers[0].send_signal(signal.SIGKILL)
        assert process.stderr is not None
        assert (
            process.stderr.read()
            .strip()
            .endswith("a process of the preparation was killed, for want of memory perhaps")
        )
    assert process.returncode == 1
    assert prepared(tmp_path, source()).progress.old_bytes > 0


def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    disk = tmp_path / "data"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, timeout=10, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here: that needs root on Linux")
    try:
        write_records(tmp_path / "wood.jsonl", texts(6000))
        with pytest.raises(InputError, match="the disk is full") as caught:
            prepared(tmp_path, source())
        assert "goes on from here" in caught.value.hint
        assert not list(disk.rglob("*.new*"))
        done = [json.loads(path.read_bytes()) for path in (disk / "chunks").glob("*.json")]
        assert done and all(
            (disk / "shards" / f"{entry[0]}.safetensors").exists() for one in done for entry in one["shards"]
        )
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True, timeout=10)
        on = prepared(tmp_path, source())
        assert on.progress.old_bytes > 0 and on.root == prepared(tmp_path, source(), folder="other").root
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True, timeout=10)


def test_what_is_gone_of_a_chunk_is_prepared_again(tmp_path: Path) -> None:
    write_records(tmp_path / "wood.jsonl", texts(200))
    first = prepared(tmp_path, source())
    data = DataFolder(tmp_path / "data")
    data.shard(first.manifest.shards[2].digest).unlink()
    data.shard(first.manifest.shards[3].digest).write_bytes(b"cut")
    next((tmp_path / "data" / "kept-out").iterdir()).unlink()
    again = prepared(tmp_path, source())
    assert again.root == first.root and again.progress.new_tokens > 0
    assert all(file_sha256(data.shard(entry.digest)) == entry.digest for entry in again.manifest.shards)
    assert documents(plain(), tmp_path / "data", again.manifest.shards)
