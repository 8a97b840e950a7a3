"""The run's data: draws, kinds of files, packing, the held-out split, and bad records."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.training_fixtures import CHAT_TEMPLATE
from peer.training.data import Sequences, draw
from peer.training.loading import load_tokenizer
from protocol.errors import InputError
from tests.kit.data_fixtures import digest, load_by_config, rows, write_jsonl


@pytest.fixture
def tokenizer(glass_dir: Path) -> Any:
    tokenizer = load_tokenizer(glass_dir)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


PEER = "12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf"


def test_draws_are_the_documented_bytes() -> None:
    for seed, number, counter in ((0, 1, 0), (7, 12, 3), (2**53 - 1, 10**9, 2**40)):
        message = b"potluck-draw-v1\n" + struct.pack(">QQQ", seed, number, counter) + PEER.encode()
        expected = int.from_bytes(hashlib.sha256(message).digest()[:16], "big") % 1000
        assert draw(seed, number, PEER, counter, 1, 1000) == [expected]


def test_stored_draws() -> None:
    assert draw(7, 12, PEER, first=0, count=8, size=17_438) == [7816, 5180, 14906, 2548, 5853, 12365, 3670, 9356]


def test_draws_do_not_depend_on_how_many_are_asked_for_at_once() -> None:
    whole = draw(1, 2, PEER, 0, 100, 50)
    assert whole == [i for first in range(0, 100, 7) for i in draw(1, 2, PEER, first, min(7, 100 - first), 50)]


def test_other_peers_rounds_and_seeds_draw_otherwise_and_evenly() -> None:
    sets = [draw(1, 2, PEER, 0, 20, 1000), draw(2, 2, PEER, 0, 20, 1000), draw(1, 3, PEER, 0, 20, 1000)]
    sets.append(draw(1, 2, PEER[:-1] + "g", 0, 20, 1000))
    assert len({tuple(indices) for indices in sets}) == 4
    counts = torch.bincount(torch.tensor(draw(0, 1, PEER, 0, 20_000, 10)), minlength=10)
    assert counts.min() > 1800 and counts.max() < 2200
    with pytest.raises(ValueError, match="nothing to draw"):
        draw(0, 1, PEER, 0, 1, 0)


def test_text_becomes_blocks_that_together_are_the_text(tokenizer: Any, plays: Path) -> None:
    dataset = load_by_config(tokenizer, plays, held_out=0.1, held_out_sequences=1000)
    together = {tuple(row) for split in (dataset.train, dataset.held_out) for row in rows(split)}
    ids = tokenizer(plays.read_text(), add_special_tokens=False)["input_ids"]
    assert together == {tuple(ids[i : i + 32]) for i in range(0, len(ids), 32)}
    assert len(dataset.held_out) == pytest.approx(0.1 * len(together), rel=0.3)
    assert dataset.train.loss_tokens[0] == 31


def test_the_same_file_gives_the_same_sequences_and_a_stored_digest(tokenizer: Any, plays: Path) -> None:
    first, again = load_by_config(tokenizer, plays), load_by_config(tokenizer, plays)
    assert digest(first.train) == digest(again.train) and digest(first.held_out) == digest(again.held_out)
    assert digest(first.train)[:16] == "d95433ad3ea7b842"


def test_large_texts_are_tokenized_in_pieces_without_a_seam(tokenizer: Any, tmp_path: Path, plays: Path) -> None:
    path = tmp_path / "long.txt"
    text = plays.read_text() * 3
    path.write_text(text)
    dataset = load_by_config(tokenizer, path)
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert sum(dataset.train.lengths) <= len(whole)
    blocks = {tuple(whole[i : i + 32]) for i in range(0, len(whole), 32)}
    assert all(tuple(row) in blocks for row in rows(dataset.train))


def test_no_more_than_held_out_sequences_are_evaluated_and_none_is_trained_on(tokenizer: Any, plays: Path) -> None:
    many, few = (
        load_by_config(tokenizer, plays, held_out=0.4),
        load_by_config(tokenizer, plays, held_out=0.4, held_out_sequences=5),
    )
    assert len(few.held_out) == 5 and digest(few.train) == digest(many.train)
    trained = {tuple(row) for row in rows(many.train)}
    assert not trained & {tuple(row) for row in rows(many.held_out)}
    assert {tuple(row) for row in rows(few.held_out)} <= {tuple(row) for row in rows(many.held_out)}


def test_copies_of_a_record_fall_on_one_side(tokenizer: Any, tmp_path: Path) -> None:
    records = [{"text": f"line {i % 40} of the play, with some words"} for i in range(400)]
    dataset = load_by_config(
        tokenizer, write_jsonl(tmp_path / "d.jsonl", records), kind="jsonl", packing=False, held_out=0.3
    )
    assert len(dataset.held_out) >= 20
    assert not {tuple(r) for r in rows(dataset.train)} & {tuple(r) for r in rows(dataset.held_out)}


def test_packed_records_follow_each_other_with_an_end_token_and_no_waste(tokenizer: Any, tmp_path: Path) -> None:
    texts = [f"record {i}: " + "to be or not to be " * (i % 5) for i in range(50)]
    path = write_jsonl(tmp_path / "d.jsonl", [{"body": text} for text in texts])
    dataset = load_by_config(tokenizer, path, kind="jsonl", text_field="body", held_out=0.01)
    stream = [token for row in rows(dataset.train) for token in row]
    assert all(length == 32 for length in dataset.train.lengths[:-1])
    decoded = tokenizer.decode(stream).split("<eos>")
    assert decoded[-1] == "" and set(decoded[:-1]) <= set(texts) and len(decoded) in (49, 50)


def test_without_packing_each_record_begins_a_sequence_and_padding_carries_no_loss(
    tokenizer: Any, tmp_path: Path
) -> None:
    texts = ["a long one " * 20, "short one", "a shorter one", "another short one"]
    path = write_jsonl(tmp_path / "d.jsonl", [{"text": text} for text in texts])
    dataset = load_by_config(tokenizer, path, kind="jsonl", packing=False, held_out=0.001)
    (row, *_) = [i for i, text in enumerate(rows(dataset.train)) if tokenizer.decode(text).startswith("another")]
    tokens_BT, labels_BT = dataset.train.batch([row])
    length = dataset.train.lengths[row]
    assert tokenizer.decode(tokens_BT[0, :length].tolist()) == "another short one<eos>"
    assert (labels_BT[0, length:] == -100).all() and (labels_BT[0, :length] == tokens_BT[0, :length]).all()
    assert dataset.train.loss_tokens[row] == length - 1


CHATS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "who goes there"},
            {"role": "assistant", "content": "a friend"},
            {"role": "user", "content": "whose"},
            {"role": "assistant", "content": "thine"},
        ]
    },
    {"conversations": [{"from": "human", "value": "who goes there"}, {"from": "gpt", "value": "a foe"}]},
    {"instruction": "answer me", "input": "who goes there", "output": "no one"},
]


def answers(tokenizer: Any, split: Sequences, row: int) -> str:
    _, labels_BT = split.batch([row])
    return tokenizer.decode([token for token in labels_BT[0].tolist() if token != -100])


def test_in_all_three_chat_shapes_only_the_answers_carry_loss(tokenizer: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", CHATS * 2)
    dataset = load_by_config(tokenizer, path, kind="chat", packing=False, held_out=0.001, sequence_length=128)
    found = {answers(tokenizer, dataset.train, row) for row in range(len(dataset.train))}
    found |= {answers(tokenizer, dataset.held_out, row) for row in range(len(dataset.held_out))}
    assert found == {" a friend<eos>\n thine<eos>\n", " a foe<eos>\n", " no one<eos>\n"}  # "▁a" is one token
    texts = [tokenizer.decode(row) for split in (dataset.train, dataset.held_out) for row in rows(split)]
    assert any(
        text.startswith("[system] be brief\n[user] who goes there\n[assistant] a friend<eos>\n[user] whose")
        for text in texts
    )


def test_packed_chats_keep_their_masks(tokenizer: Any, tmp_path: Path) -> None:
    chats = [{"instruction": f"say {i}", "output": f"that is {i}"} for i in range(30)]
    path = write_jsonl(tmp_path / "d.jsonl", chats)
    dataset = load_by_config(tokenizer, path, kind="chat", packing=True, held_out=1e-9, sequence_length=32)
    kept = "".join(answers(tokenizer, dataset.train, row) for row in range(len(dataset.train)))
    assert kept.count("is") == 29 and kept.count("<eos>") == 29 and "say" not in kept and "[user]" not in kept


def test_turns_that_a_template_rewrites_carry_no_loss(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = (  # drops earlier answers' content, as templates of reasoning models drop thoughts
        "{% for m in messages %}{{ m['role'] + ': ' }}"
        "{% if loop.last or m['role'] != 'assistant' %}{{ m['content'] }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    path = write_jsonl(tmp_path / "d.jsonl", [CHATS[0], CHATS[2]])
    dataset = load_by_config(tokenizer, path, kind="chat", packing=False, held_out=0.001, sequence_length=128)
    kept = {answers(tokenizer, split, 0) for split in (dataset.train, dataset.held_out)}
    assert kept == {" thine\n", " no one\n"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "expected a JSON object, got an array"),
        ('{"messages": "hi"}', "expected a list"),
        ('{"messages": []}', "expected a list of 1 to"),
        ('{"messages": [1]}', "expected messages"),
        ('{"messages": [{"role": "user", "content": 3}]}', "expected strings in 'role' and 'content'"),
        ('{"messages": [{"role": "user", "content": "hi"}]}', "no assistant message"),
        ('{"conversations": [{"from": "human"}]}', "expected strings in 'from' and 'value'"),
        ('{"instruction": "a", "output": 3}', "expected strings in instruction"),
        ('{"question": "a"}', "got the keys question"),
    ],
)
def test_a_bad_chat_is_refused_by_its_line(tokenizer: Any, tmp_path: Path, bad: str, message: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(CHATS[0]) + "\n\n" + bad + "\n")
    with pytest.raises(InputError) as caught:
        load_by_config(tokenizer, path, kind="chat")
    assert message in caught.value.message and "line 3" in caught.value.message


def test_a_bad_text_record_is_refused_by_its_line(tokenizer: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [{"text": "fine"}, {"text": 3}])
    with pytest.raises(InputError, match=r"line 2: expected a string in 'text', got a number"):
        load_by_config(tokenizer, path, kind="jsonl")


def test_bytes_that_are_not_utf8_are_refused_by_their_line(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "d.txt"
    path.write_bytes(b"fine\n" * 9 + b"caf\xe9\n")
    with pytest.raises(InputError, match=r"line 10: not UTF-8"):
        load_by_config(tokenizer, path)


def test_a_line_without_end_is_refused(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peer.training.data_file.MAX_LINE_BYTES", 100)
    path = tmp_path / "d.txt"
    path.write_text("fine\n" + "x" * 101)
    with pytest.raises(InputError, match=r"line 2: expected at most 100 bytes"):
        load_by_config(tokenizer, path)


def test_a_missing_file_and_too_little_data_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such data file"):
        load_by_config(tokenizer, tmp_path / "none.txt")
    for text in ("word", "one short line\n"):
        (tmp_path / "d.txt").write_text(text)
        with pytest.raises(InputError, match="too little data"):
            load_by_config(tokenizer, tmp_path / "d.txt")


def test_a_tokenizer_without_what_the_kind_needs_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", CHATS)
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        load_by_config(tokenizer, path, kind="chat")
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-sequence token"):
        load_by_config(tokenizer, write_jsonl(path, [{"text": "a"}]), kind="jsonl")


def test_truncation_and_padding_in_a_tokenizer_file_change_nothing(tokenizer: Any, plays: Path) -> None:
    expected = digest(load_by_config(tokenizer, plays).train)
    tokenizer.backend_tokenizer.enable_truncation(10)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    assert digest(load_by_config(tokenizer, plays).train) == expected
