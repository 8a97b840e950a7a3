"""Files that are no data: each is refused in one short line with file, line and what to do, by host and volunteer."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from coordinator.launch import open_run
from coordinator.run_config import RunConfig
from coordinator.run_data import Telling
from coordinator.run_folder import RunFolder
from lab.training_fixtures import CHAT_TEMPLATE, make_config, write_tiny_llama
from peer.training.data import check_data, load_dataset
from peer.training.loading import load_tokenizer
from protocol.errors import InputError
from tests.kit.data_fixtures import byte_tokenizer, load, texts

LINES = b"When everyone brings wood, the fire burns high.\n" * 40
RECORDS = b"".join(json.dumps({"text": f"wood {i}"}).encode() + b"\n" for i in range(40))


def archive(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as made:
            made.writestr("data.txt", LINES)
    else:
        with tarfile.open(fileobj=file, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("data.txt"))
    return file.getvalue()


BAD: list[tuple[str, bytes, str, str]] = [  # kind of the run, content, in the message, in the hint
    ("text", b"", "is empty", "a file with data"),
    ("jsonl", b"", "is empty", "a file with data"),
    ("chat", b"", "is empty", "a file with data"),
    ("text", b" \n\t\r\n\n", "only white space", "text in it"),
    ("jsonl", b"\n \n", "only white space", "data in it"),
    ("text", LINES + b"a\0b\n", "line 41: holds NUL bytes", "tr -d"),
    ("jsonl", RECORDS + b'{"text": "a\0b"}\n', "line 41: holds NUL bytes", "tr -d"),
    ("jsonl", RECORDS + b'{"text": "a\\u0000b"}\n', "line 41: a NUL character in 'text'", "take it out"),
    ("text", LINES.decode().encode("utf-16-le"), "line 1: NUL bytes, as UTF-16LE text", "iconv -f UTF-16LE"),
    ("text", LINES.decode().encode("utf-16-be"), "line 1: NUL bytes, as UTF-16BE text", "iconv -f UTF-16BE"),
    ("jsonl", RECORDS.decode().encode("utf-32-le"), "as UTF-32LE text", "iconv -f UTF-32LE"),
    ("jsonl", RECORDS.decode().encode("utf-32-be"), "as UTF-32BE text", "iconv -f UTF-32BE"),
    ("text", LINES.decode().encode("utf-16"), "line 1: UTF-16, not UTF-8", "iconv -f UTF-16"),
    ("chat", LINES.decode().encode("utf-32"), "line 1: UTF-32, not UTF-8", "iconv -f UTF-32"),
    ("text", b"\xef\xbb\xbf" + LINES, "line 1: begins with a byte order mark", "without BOM"),
    ("jsonl", b"\xef\xbb\xbf" + RECORDS, "line 1: begins with a byte order mark", "without BOM"),
    ("jsonl", RECORDS + b"\xef\xbb\xbf" + RECORDS, "line 41: not JSON", "one JSON object on each line"),
    ("text", LINES + b"caf\xe9\n", "line 41: not UTF-8", "iconv"),
    ("text", LINES + b"\xed\xa0\xbd\n", "line 41: not UTF-8", "iconv"),
    ("text", LINES.replace(b"\n", b"\r"), "line 1: carriage returns", "tr '"),
    ("jsonl", RECORDS.replace(b"\n", b"\r"), "line 1: carriage returns", "tr '"),
    ("text", LINES.replace(b"\n", b"\r") * 5000, "line 1: carriage returns", "tr '"),
    ("text", LINES + b"wood " * 2_000_000, "line 41: expected at most", "split it"),
    ("jsonl", RECORDS + b'{"text": "' + b"wood " * 2_000_000 + b'"}\n', "line 41: expected at most", "split it"),
    ("jsonl", RECORDS + b'{"text": "half \\ud83d"}\n', "line 41: half of a surrogate pair in 'text'", "both halves"),
    ("jsonl", RECORDS + b'{"text": "a", "\\udc00": 1}\n', "line 41: half of a surrogate pair in '\\udc00'", "both"),
    (
        "jsonl",
        RECORDS + b'{"text": "a", "meta": [{"b": ["\\ud83d"]}]}\n',
        "line 41: half of a surrogate pair in 'meta'",
        "both",
    ),
    ("chat", b'{"messages": [{"role": "user", "content": "\\udfff"}]}\n', "line 1: half of a surrogate pair", "both"),
    ("chat", b'{"instruction": "a", "output": "b", "\\ud800": "c"}\n', "line 1: half of a surrogate pair", "both"),
    ("jsonl", b"[" + RECORDS.replace(b"\n", b",\n")[:-2] + b"]", "line 1: a JSON array, not JSONL", "jq -c '.[]'"),
    ("jsonl", json.dumps([{"text": "a"}]).encode(), "line 1: a JSON array, not JSONL", "jq -c '.[]'"),
    ("chat", json.dumps([{"messages": []}], indent=2).encode(), "line 1: a JSON array, not JSONL", "jq -c '.[]'"),
    ("chat", json.dumps({"messages": []}, indent=2).encode(), "line 1: not JSON", "jq -c ."),
    ("jsonl", RECORDS + b'{"text": "a", "text": "b"}\n', "line 41: the field 'text' stands twice", "leave one"),
    ("jsonl", RECORDS + b'{"text": "cut o', "line 41: not JSON: Unterminated string", "on each line"),
    ("jsonl", RECORDS + b'{"text": ' + b"1" * 5000 + b"}\n", "line 41: not JSON", "on each line"),
    ("jsonl", RECORDS + b'{"text": null}\n', "line 41: expected a string in 'text', got null", "here are: text"),
    ("jsonl", b'{"body": "a"}\n', "got no such field", "here are: body"),
    ("jsonl", b'{"' + b"b" * 100_000 + b'": "a"}\n', "got no such field", "bbb…"),
    ("jsonl", LINES, "line 1: not JSON", "on each line"),
    ("text", gzip.compress(LINES, mtime=0), "a gzip file, not text", "unpack"),
    ("jsonl", archive("zip"), "a zip file, not text", "unpack"),
    ("text", archive("tar"), "a tar file, not text", "unpack"),
    ("jsonl", b"PAR1\x15\x04" + bytes(90), "a Parquet file, not text", "as JSONL"),
    ("text", pickle.dumps([1]), "a pickle file, not text", "as JSONL"),
    ("text", b"%PDF-1.7\n" + LINES, "a PDF file, not text", "as JSONL"),
    ("text", b"\x28\xb5\x2f\xfd" + LINES, "a Zstandard file, not text", "unpack"),
    ("text", b"SQLite format 3\0" + LINES, "a SQLite file, not text", "as JSONL"),
    (
        "chat",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "pointer of Git LFS",
        "git lfs pull",
    ),
    ("text", b"\x7fELF\x02\x01\x01" + bytes(99), "line 1: holds NUL bytes", "give a text file"),
]


@pytest.mark.parametrize(("kind", "content", "message", "hint"), BAD)
def test_bad_bytes_are_refused_in_a_short_line_before_and_with_the_tokenizer(
    tmp_path: Path, kind: str, content: bytes, message: str, hint: str
) -> None:
    path = tmp_path / "data"
    path.write_bytes(content)
    config = make_config(tmp_path, path, data={"kind": kind})
    for read in (lambda: check_data(config.data, path), lambda: load(byte_tokenizer(), path, kind=kind)):
        with pytest.raises(InputError) as caught:
            read()
        error = caught.value
        assert message in error.message and hint in error.hint and str(path) in error.message
        assert error.exit_code == 2 and len(error.message) < 400 and "\n" not in error.message


def test_a_folder_an_absent_file_and_a_path_that_is_none_are_refused(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "a folder, not a data file"),
        (tmp_path / "none.txt", "no such data file"),
        (tmp_path / ("n" * 300), "d"),
        (tmp_path / "nul\0", "d"),
        (tmp_path / "file" / "below", "no such data file"),
    ):
        (tmp_path / "file").write_bytes(LINES)
        with pytest.raises(InputError, match=message):
            load(byte_tokenizer(), path)


@pytest.mark.parametrize(("kind", "content"), [("text", b""), ("jsonl", RECORDS + b'{"text": "half \\ud83d"}\n')])
def test_a_host_hears_of_bad_data_before_it_looks_for_the_model(tmp_path: Path, kind: str, content: bytes) -> None:
    (tmp_path / "data").write_bytes(content)
    config = make_config(tmp_path / "no-model", tmp_path / "data", data={"kind": kind})
    with pytest.raises(InputError, match=r"data: (the data file is empty|line 41: half of a surrogate pair)"):
        open_run(tmp_path / "run.toml", config, RunFolder(tmp_path / "run"))
    assert not list((tmp_path / "run").glob("*.json")) and not (tmp_path / "run" / "base-model").exists()


def test_old_runs_read_on_what_they_always_read(tmp_path: Path) -> None:
    tokenizer, path = byte_tokenizer(), tmp_path / "data"
    for kind, content in (
        ("text", b"\xef\xbb\xbfa\0b\n" + LINES),
        ("jsonl", RECORDS + b'{"text": "a\\u0000b", "text": "c\\u0000"}\n'),
    ):
        path.write_bytes(content)
        dataset = load(tokenizer, path, kind=kind, rules=1, sequence_length=64)
        assert "\0" in "".join(texts(tokenizer, dataset.train, dataset.held_out))
        with pytest.raises(InputError):
            load(tokenizer, path, kind=kind)


def test_what_ended_in_a_traceback_is_refused_in_old_runs_too(tmp_path: Path) -> None:
    path = tmp_path / "data"
    for kind, content in (
        ("jsonl", b'{"text": "half \\ud83d"}\n' * 3),
        ("chat", b'{"instruction": "half \\ud83d", "output": "b"}\n' * 3),
        ("jsonl", b'{"text": ' + b"1" * 5000 + b"}\n"),
        ("chat", b'{"instruction": "a", "output": "' + b"b" * 9 + b'"}\n'),
        ("text", b""),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError):
            load(byte_tokenizer("{{ messages[0].content + 1 }}"), path, kind=kind, rules=1)


@pytest.mark.parametrize("kind", ["text", "jsonl", "chat"])
def test_what_a_tokenizer_has_no_token_for_is_told_with_its_line(tmp_path: Path, kind: str) -> None:
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "wood": 2, "fire": 3, "a": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    good: Any = {
        "text": {"text": "wood"},
        "jsonl": {"text": "wood"},
        "chat": {"instruction": "wood", "output": "fire"},
    }[kind]
    bad: Any = json.loads(json.dumps(good).replace("wood", "salad"))
    path = tmp_path / "data"
    lines = [good["text"], bad["text"]] if kind == "text" else [json.dumps(good), json.dumps(bad)]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"line [12](: | on: )the model's tokenizer has no tokens for this"):
        load(tokenizer, path, kind=kind)


# ---- at a host's first start, with a model ---------------------------------------------------------------------------

TOML = """
[run]
name = "chats"
[model]
path = "model"
license = "MIT"
[data]
path = "data"
kind = "chat"
license = "MIT"
sequence_length = 64
held_out = 0.2
[sync]
round_tokens = 100
"""


def write_run(tmp_path: Path, glass_dir: Path, template: str) -> tuple[Path, RunConfig]:
    write_tiny_llama(tmp_path / "model", glass_dir)
    tokenizer = load_tokenizer(tmp_path / "model")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "model")
    chats = [{"instruction": f"Who cooks on day {day}?", "output": f"Number {day}.", "id": day} for day in range(40)]
    (tmp_path / "data").write_text("".join(json.dumps(record) + "\n" for record in chats))
    (tmp_path / "run.toml").write_text(TOML)
    return tmp_path / "run.toml", RunConfig.load(tmp_path / "run.toml")


def test_a_template_that_fails_on_a_record_is_found_before_the_model_is_copied(tmp_path: Path, glass_dir: Path) -> None:
    path, config = write_run(tmp_path, glass_dir, CHAT_TEMPLATE + "{{ 1 + 'a' if '39' in messages[0].content }}")
    with pytest.raises(InputError, match="line 40: the chat template fails"):
        open_run(path, config, RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run" / "base-model").exists() and not (tmp_path / "run" / "run.json").exists()


def test_a_host_reads_what_its_members_read_says_what_is_not_used_and_keeps_the_day(
    tmp_path: Path, glass_dir: Path
) -> None:
    told: list[str] = []
    path, config = write_run(tmp_path, glass_dir, "{{ strftime_now('%d %b %Y') }} " + CHAT_TEMPLATE)
    config = config.model_copy(update={"data": config.data.model_copy(update={"template_date": "2024-02-29"})})
    run = open_run(path, config, RunFolder(tmp_path / "run"), Telling(told.append))
    assert f"{tmp_path / 'data'}: fields that are not used: id" in told
    tokenizer = load_tokenizer(run.folder.genesis / "model")
    members, host = load_dataset(run.card.spec, tokenizer, tmp_path / "data"), run.evaluator.dataset
    assert torch.equal(host.train.tokens_ST, members.train.tokens_ST)
    assert torch.equal(host.held_out.tokens_ST, members.held_out.tokens_ST)
    assert "29 Feb 2024 [user]" in "".join(texts(tokenizer, members.train))
    run.close()
    again = open_run(path, RunConfig.load(path), RunFolder(tmp_path / "run"))
    assert again.card.run == run.card.run and again.card.spec.data.template_date == "2024-02-29"
    again.close()
