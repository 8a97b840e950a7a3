"""`potluck data prepare`, as a host types it: what it prints, in two languages, and how it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import potluck
from coordinator.dataset.plain_tokenizer import PlainTokenizer, tokenizer_of
from coordinator.dataset.prepare import Progress
from coordinator.dataset.screen import PrepareScreen
from coordinator.run_config import ModelSource
from coordinator.run_folder import RunFolder
from peer.training.loading import load_tokenizer
from protocol import words
from protocol.files import file_sha256
from tests.kit.preparing import write_records
from tests.test_words import Done, check_chinese

TOML = """
[run]
name = "wood"
[model]
path = "{model}"
license = "MIT"
[[data]]
name = "wood"
kind = "jsonl"
path = "wood"
license = "MIT"
on_bad = "skip"
[sequences]
sequence_length = 32
held_out = 0.1
[sync]
round_tokens = 100
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def run(*arguments: str) -> Done:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["potluck", *arguments])
        with pytest.raises(SystemExit) as end:
            potluck.main()
        said = capsys.readouterr()
        return Done(int(end.value.code or 0), said.out, said.err)

    return run


def test_a_host_prepares_and_reads_what_came_of_it(tmp_path: Path, llama: Path, run: Callable[..., Done]) -> None:
    (tmp_path / "run.toml").write_text(TOML.format(model=llama))
    write_records(
        tmp_path / "wood" / "a.jsonl", [f"When everyone brings wood, fire {number}." for number in range(400)]
    )
    (tmp_path / "wood" / "b.jsonl").write_text('{"text": 3}\n{"text": "a \\nlast one"}\n')
    first = run("data", "prepare", "run.toml", "--processes", "1")
    assert first.code == 0, first.stderr
    lines = first.stdout.splitlines()
    assert lines[0].startswith("wood: 2 files, 401 records, ") and lines[0].endswith(", 1 bad records left out")
    assert lines[1] == f"wood: {tmp_path / 'wood' / 'b.jsonl'}: line 1: expected a string in 'text', got a number"
    root = lines[-1].removeprefix("root: ")
    assert root == file_sha256(tmp_path / "runs" / "wood" / "data" / "manifest.json")
    again = json.loads(run("data", "prepare", "run.toml", "--processes", "1", "--json").stdout)
    assert (again["root"], again["new_tokens"], again["sources"][0]["bad"]) == (root, 0, 1)
    try:
        chinese = run("data", "prepare", "run.toml", "--processes", "1", "--lang", "zh")
        check_chinese(chinese.stdout.replace("wood", "").replace("a number", "").replace("MB", "").replace(root, ""))
        (tmp_path / "run.toml").write_text(TOML.format(model=llama).replace("skip", "stop"))
        refused = run("data", "prepare", "run.toml", "--processes", "1", "--lang", "zh")
        assert refused.code == 2 and "b.jsonl：第 1 行" in refused.stderr
    finally:
        words.choose(None)


def test_a_folder_that_a_host_has_is_not_prepared_in(tmp_path: Path, llama: Path, run: Callable[..., Done]) -> None:
    (tmp_path / "run.toml").write_text(TOML.format(model=llama))
    with RunFolder(tmp_path / "runs" / "wood").locked():
        refused = run("data", "prepare", "run.toml")
    assert refused.code == 2 and "another host runs in this folder" in refused.stderr
    assert not (tmp_path / "runs" / "wood" / "data").exists()


def test_the_tokenizer_that_workers_have_gives_the_tokens_of_the_model_s_own(llama: Path, tmp_path: Path) -> None:
    whole = load_tokenizer(llama)
    plain, again = (tokenizer_of(ModelSource(path=str(llama), license="MIT"), tmp_path, tmp_path) for _ in range(2))
    assert plain == again == PlainTokenizer.of(whole)
    text = "When everyone brings wood, the fire burns high. 柴"
    assert plain.backend_tokenizer.encode(text, add_special_tokens=False).ids == whole.encode(
        text, add_special_tokens=False
    )
    assert plain.vocabulary == len(whole) and plain.all_special_ids == tuple(whole.all_special_ids)


def test_a_pipe_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.dataset.screen.LINE_EVERY_S", 0.0)
    with PrepareScreen(as_json=False) as screen:
        screen.show(Progress(2_000_000, 9_000_000, 0, 5000, 0, 3))
    assert capsys.readouterr().err == "2 of 9 MB, 5,000 tokens, 0 tokens/s, 3 bad records\n"
