"""Rules 1 and 2 of data: what a run that began by the old ones keeps, and what the new ones put at a text's ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from lab.training_fixtures import CHAT_TEMPLATE
from peer.training.loading import load_tokenizer
from tests.kit.data_fixtures import digest, load_by_config, rows, write_jsonl


@pytest.fixture
def tokenizer(glass_dir: Path) -> Any:
    tokenizer = load_tokenizer(glass_dir)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


PROVERBS = [f"When everyone brings wood, the fire burns high. {number}" for number in range(60)]
OLD_RECORDS: dict[str, list[Any]] = {
    "jsonl": [{"text": text, "meta": "x"} for text in (*PROVERBS, "", *PROVERBS[:3])],
    "chat": [
        *(
            {"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": "Yes", "weight": 0}]}
            for t in PROVERBS
        ),
        *(
            {
                "conversations": [
                    {"from": "gpt", "value": "So"},
                    {"from": "human", "value": t},
                    {"from": "gpt", "value": "A"},
                ]
            }
            for t in PROVERBS[:9]
        ),
        *(
            {"instruction": t, "input": "in", "output": "B", "system": "x", "history": [["a", "b"]]}
            for t in PROVERBS[:9]
        ),
    ],
    "few": [{"text": "a b c"}, {"text": "a b c"}, {"text": "d e f"}],
}
OLD_DIGESTS = {  # by the code of the time when no run had rules 2
    "text": "3efb3d2c3cda0cdc3397295443ac80f8",
    "jsonl": "e2cc018d6b5b82267d9b1e121a8d5263",
    "chat": "2921748345f023440030b19f9774bb2a",
    "few": "563c657657c08d9d5122e0e57e167c67",
}


@pytest.mark.parametrize("kind", OLD_DIGESTS)
def test_a_run_that_began_by_rules_1_keeps_its_tokens_and_its_split(tokenizer: Any, tmp_path: Path, kind: str) -> None:
    data: dict[str, Any] = {"held_out": 0.2, "rules": 1}
    if kind == "text":
        path = tmp_path / "d.txt"
        path.write_text("\n".join(PROVERBS))
    else:
        path = write_jsonl(tmp_path / "d.jsonl", OLD_RECORDS[kind])
        data |= {"kind": "chat" if kind == "chat" else "jsonl", "packing": kind == "jsonl"}
    if kind == "few":
        data |= {"held_out": 1e-9}
    dataset = load_by_config(with_front(tokenizer), path, **data)
    assert digest(dataset.train)[:16] + digest(dataset.held_out)[:16] == OLD_DIGESTS[kind]


def with_front(tokenizer: Any) -> Any:
    """The tokenizer, putting its beginning-of-sequence token in front of a text."""
    special = [("<bos>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=special)
    return tokenizer


def test_a_text_and_each_jsonl_record_begin_as_the_tokenizer_wants_it_and_that_is_not_predicted(
    tokenizer: Any, tmp_path: Path
) -> None:
    with_front(tokenizer)
    (tmp_path / "d.txt").write_text("\n".join(PROVERBS))
    text = load_by_config(tokenizer, tmp_path / "d.txt", held_out=0.1)
    both = [row for split in (text.train, text.held_out) for row in rows(split)]
    assert sum(row.count(tokenizer.bos_token_id) for row in both) == 1
    assert any(row[0] == tokenizer.bos_token_id for row in both)
    path = write_jsonl(tmp_path / "d.jsonl", [{"text": text} for text in PROVERBS])
    for packing in (True, False):
        dataset = load_by_config(tokenizer, path, kind="jsonl", held_out=0.1, packing=packing)
        stream = [token for row in rows(dataset.train) + rows(dataset.held_out) for token in row]
        pairs = [token for token in stream if token in (tokenizer.bos_token_id, tokenizer.eos_token_id)]
        assert pairs == [tokenizer.bos_token_id, tokenizer.eos_token_id] * len(PROVERBS)
        is_front = dataset.train.tokens_ST == tokenizer.bos_token_id
        assert is_front.any() and not (dataset.train.loss_ST & is_front).any()


@pytest.mark.parametrize("back", ["", "<eos>"])
def test_beginnings_and_ends_that_a_record_was_written_with_are_not_doubled(
    tokenizer: Any, tmp_path: Path, back: str
) -> None:
    special = [("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)]
    single = f"<bos> $A {back}".strip()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=special)
    marks = tokenizer.bos_token + "{}" + tokenizer.eos_token
    path = write_jsonl(
        tmp_path / "d.jsonl", [{"text": text.format(i)} for i in range(20) for text in (marks, "{} plain")]
    )
    dataset = load_by_config(tokenizer, path, kind="jsonl", packing=False, held_out=0.1)
    for row in rows(dataset.train) + rows(dataset.held_out):
        assert [i for i, token in enumerate(row) if token == tokenizer.bos_token_id] == [0]
        assert [i for i, token in enumerate(row) if token == tokenizer.eos_token_id] == [len(row) - 1]


def test_a_tokenizer_that_puts_nothing_in_front_gets_nothing_in_front(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    path = write_jsonl(tmp_path / "d.jsonl", [{"text": text} for text in PROVERBS])
    dataset = load_by_config(tokenizer, path, kind="jsonl", held_out=0.1)
    assert all(tokenizer.bos_token_id not in row for row in rows(dataset.train))


def test_what_is_left_out_cut_or_unknown_is_told(tokenizer: Any, tmp_path: Path) -> None:
    ask = {"role": "user", "content": "a long question " * 30}
    chats = [{"messages": [ask, {"role": "assistant", "content": f"A {i}"}]} for i in range(9)]
    notes = load_by_config(tokenizer, write_jsonl(tmp_path / "d.jsonl", chats), kind="chat", packing=False).notes()
    assert any("cut: 9" in note for note in notes) and any("without anything to learn" in note for note in notes)
    texts = [{"text": text} for text in ("", "  ", *PROVERBS)]
    notes = load_by_config(tokenizer, write_jsonl(tmp_path / "d.jsonl", texts), kind="jsonl", held_out=0.1).notes()
    assert any("empty text, which are left out: 2" in note for note in notes)
    notes = load_by_config(tokenizer, write_jsonl(tmp_path / "d.jsonl", texts), kind="text", held_out=0.1).notes()
    assert any("looks like JSONL" in note for note in notes)
    everything = write_jsonl(tmp_path / "d.jsonl", [{"text": f"{number} of a different kind"} for number in range(60)])
    assert load_by_config(tokenizer, everything, kind="jsonl", held_out=0.1).notes() == []
