"""The same document on both sides of the split is found: copies, also but for case and white space, and parts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from peer.training import repeats
from peer.training.data import Dataset, Sequences
from peer.training.repeats import normal_form, repeated
from tests.kit.data_fixtures import byte_tokenizer, load, texts, write_jsonl

WORDS = [f"{a}{b}" for a in ("wo", "fi", "ta", "so", "bre", "pla") for b in ("od", "re", "ble", "up", "ad", "te", "rn")]


def document(seed: int, words: int = 40) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def text_file(path: Path, documents: list[str]) -> Path:
    path.write_text("\n\n".join(documents))
    return path


def sides(tokenizer: Any, dataset: Dataset) -> tuple[bytes, bytes]:
    """(train, held out), each as one text in normal form."""
    train, held_out = ("".join(texts(tokenizer, split)) for split in (dataset.train, dataset.held_out))
    return normal_form(train), normal_form(held_out)


def shared(tokenizer: Any, dataset: Dataset, size: int = 80) -> int:
    """How many stretches of so many bytes of the held-out side stand on the training side, too."""
    train, held_out = sides(tokenizer, dataset)
    return sum(held_out[start : start + size] in train for start in range(0, len(held_out) - size, 8))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("kind", ["jsonl", "chat"])
def test_copies_but_for_case_and_white_space_fall_on_one_side(tmp_path: Path, kind: str, packing: bool) -> None:
    documents = [document(seed, 12 if seed % 2 else 3) for seed in range(200)]
    copies = [
        f(text)
        for text in documents
        for f in (str, str.upper, str.title, lambda t: "  " + t.replace(" ", "\n\t") + " ")
    ]
    records = [{"text": text} if kind == "jsonl" else {"instruction": text, "output": "Yes."} for text in copies]
    random.Random(1).shuffle(records)
    dataset = load(byte_tokenizer(), write_jsonl(tmp_path / "d", records), kind=kind, packing=packing, held_out=0.1)
    train, held_out = sides(byte_tokenizer(), dataset)
    on_both = [text for text in map(normal_form, documents) if text in train and text in held_out]
    assert len(held_out) > 1000 and not on_both


def test_letters_with_accents_and_of_other_scripts_have_a_small_form_too() -> None:
    assert normal_form("ÉCOLE ΣΟΦΙΑ Дрова\u3000ＷＯＯＤ") == normal_form(
        "école σοφια дрова wood".replace("wood", "ｗｏｏｄ")
    )
    assert normal_form("柴 火\u00a0") == "柴火".encode()


def test_a_text_of_ascii_alone_has_the_normal_form_that_it_has_among_others() -> None:
    every = "".join(map(chr, range(128)))
    assert normal_form(every) + "柴".encode() == normal_form(every + "柴") and len(normal_form(every)) < 128


def test_a_small_file_keeps_out_all_copies_of_one_record(tmp_path: Path) -> None:
    records = [{"text": text} for text in ("a b c", "A B C", "d e f", "D  E  F")]
    dataset = load(byte_tokenizer(), write_jsonl(tmp_path / "d", records), kind="jsonl")
    assert len(dataset.train) == len(dataset.held_out) == 2
    train, held_out = sides(byte_tokenizer(), dataset)
    assert set(train) != set(held_out)


def test_documents_that_come_again_in_a_text_are_left_out_of_the_held_out_side_and_counted(tmp_path: Path) -> None:
    documents = [document(seed) for seed in range(300)]
    again = [document(seed).upper() if seed % 2 else "  ".join(document(seed).split()) for seed in range(40)]
    path = text_file(tmp_path / "d.txt", [*documents, *again])
    data = {"sequence_length": 128, "held_out": 0.2}
    tokenizer = byte_tokenizer()
    old, new = load(tokenizer, path, rules=1, **data), load(tokenizer, path, **data)
    assert shared(tokenizer, old) > 20
    assert shared(tokenizer, new) == 0 and len(new.held_out) > len(old.held_out) // 2
    (note,) = new.notes()
    left_out = len(old.held_out) - len(new.held_out)
    assert (
        note
        == f"{left_out} of {len(old.held_out)} held-out sequences hold text that is trained on, too, and are left out"
    )


@pytest.mark.parametrize("packing", [True, False])
def test_a_record_inside_another_one_is_found(tmp_path: Path, packing: bool) -> None:
    inner = [document(seed) for seed in range(100)]
    records = [{"text": text} for text in inner] + [
        {"text": f"{seed} {document(900 + seed)} {inner[seed]}"} for seed in range(100)
    ]
    data = {"kind": "jsonl", "sequence_length": 1024, "held_out": 0.2}
    path = write_jsonl(tmp_path / "d", records)
    tokenizer = byte_tokenizer()
    assert shared(tokenizer, load(tokenizer, path, rules=1, packing=False, **data)) > 20
    dataset = load(tokenizer, path, packing=packing, **data)
    if "left out" in "".join(dataset.notes()):
        assert shared(tokenizer, dataset) == 0
    else:  # packed, each held-out sequence is made of many records
        assert packing and "says little" in dataset.notes()[0]


def test_a_prompt_that_all_records_share_is_no_repetition(tmp_path: Path) -> None:
    prompt = "Below is an instruction that describes a task. Write a response that completes the request as it should. "
    tokenizer = byte_tokenizer()
    records = [{"text": prompt + document(seed)} for seed in range(200)]
    dataset = load(tokenizer, write_jsonl(tmp_path / "d", records), kind="jsonl", held_out=0.1, sequence_length=1024)
    assert dataset.notes() == [] and len(dataset.held_out) > 10
    chats = [{"system": prompt, "instruction": document(0), "output": document(seed)} for seed in range(200)]
    dataset = load(tokenizer, write_jsonl(tmp_path / "d", chats), kind="chat", held_out=0.1, sequence_length=1024)
    assert dataset.notes() == [] and len(dataset.held_out) > 10


def test_a_file_that_says_the_same_over_and_over_still_has_a_held_out_side_and_the_host_is_warned(
    tmp_path: Path,
) -> None:
    path = text_file(tmp_path / "d.txt", [document(seed % 3) for seed in range(300)])
    dataset = load(byte_tokenizer(), path, sequence_length=128, held_out=0.1)
    assert len(dataset.held_out) > 10
    assert "the held-out loss says little about text that is new" in dataset.notes()[0]


def test_others_take_the_place_of_held_out_sequences_that_are_left_out(tmp_path: Path) -> None:
    path = text_file(tmp_path / "d.txt", [document(seed) for seed in [*range(600), *range(60)]])
    dataset = load(byte_tokenizer(), path, sequence_length=128, held_out=0.3, held_out_sequences=20)
    assert len(dataset.held_out) == 20 and "are left out" in dataset.notes()[0]


# ---- the windows -----------------------------------------------------------------------------------------------------


def sequences(tokenizer: Any, rows: list[str], length: int = 512) -> Sequences:
    tokens_ST = torch.zeros((len(rows), length), dtype=torch.int32)
    loss_ST = torch.zeros((len(rows), length), dtype=torch.bool)
    for row, text in enumerate(rows):
        ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        tokens_ST[row, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
        loss_ST[row, : len(ids)] = True
    return Sequences(tokens_ST, loss_ST, tuple(loss_ST.sum(1).tolist()))


@pytest.mark.parametrize("chunk", [1, 700, 1 << 18])
def test_windows_find_what_a_search_finds_wherever_the_chunks_end(chunk: int) -> None:
    tokenizer, chance = byte_tokenizer(), random.Random(3)
    train = [document(seed, 60) for seed in range(20)]
    held_out = [document(1000 + seed, 30) for seed in range(30)]
    for row in range(0, 30, 2):  # a stretch of a training text, at times a little too short
        source, size = "".join(train[row % 20].split()), chance.choice([60, 63, 64, 70])
        start = chance.randrange(len(source) - size)
        held_out[row] = held_out[row][:50] + "#" + source[start : start + size] + "#" + held_out[row][50:]
    held_out[1] += train[6][-50:] + train[7][:50]  # over the end of a sequence
    whole = b"".join(normal_form(text) for text in train)
    expected = [any(text[i : i + 64] in whole for i in range(len(text) - 63)) for text in map(normal_form, held_out)]
    found = repeated(sequences(tokenizer, held_out), sequences(tokenizer, train), tokenizer, chunk_tokens=chunk)
    assert found.tolist() == expected and 3 < sum(expected) < 15


def test_characters_of_several_tokens_and_special_tokens_do_not_hide_a_copy() -> None:
    tokenizer = byte_tokenizer()
    text = "柴多火旺，众人拾柴火焰高。🔥 Дрова приносят все вместе, и огонь горит высоко."
    held_out = sequences(tokenizer, ["<s>ab" + text, "柴 other words " * 8])
    assert repeated(held_out, sequences(tokenizer, ["x" + text + "</s>", document(1)]), tokenizer).tolist() == [
        True,
        False,
    ]


def test_of_more_windows_than_are_held_a_share_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "MAX_WINDOWS", 5000)
    tokenizer = byte_tokenizer()
    same, new = [document(seed, 60) for seed in range(20)], [document(100 + seed, 60) for seed in range(20)]
    train = sequences(tokenizer, [*same, document(999)])
    assert repeated(sequences(tokenizer, [*same, *new]), train, tokenizer).tolist() == [True] * 20 + [False] * 20


def test_nothing_is_repeated_where_texts_are_shorter_than_a_window() -> None:
    tokenizer = byte_tokenizer()
    short = sequences(tokenizer, ["wood", ""])
    assert np.array_equal(repeated(short, short, tokenizer), [False, False])
