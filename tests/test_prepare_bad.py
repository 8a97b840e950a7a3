"""Records that cannot be used: named with source, file, line and reason; they end a preparation, or are left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from coordinator.dataset.chunks import owned_lines
from coordinator.dataset.findings import ChunkFindings
from coordinator.dataset.plain_tokenizer import PlainTokenizer
from lab.training_fixtures import CHAT_TEMPLATE
from peer.training.data_file import MAX_LINE_BYTES
from protocol.errors import InputError
from tests.kit.data_fixtures import TOOLS, byte_tokenizer
from tests.kit.preparing import plain, prepared, rules, sequences, shard, source, write_records
from tests.test_data_file import BAD, RECORDS

GOOD = {
    "text": b"".join(b"When everyone brings wood, fire %d burns high.\n" % i for i in range(40)),
    "jsonl": RECORDS,
    "chat": b"".join(json.dumps({"instruction": f"Who {i}?", "output": "Yes."}).encode() + b"\n" for i in range(40)),
}
FORGIVEN = ("byte order mark", "only white space")  # taken off and told; nothing in it that is bad
DATED = rules(template_date="2026-12-01", held_out=0.3)


def folder_with(tmp_path: Path, kind: str, content: bytes) -> Any:
    """A source of two files: a bad one, and a good one after it."""
    folder = tmp_path / "wood"
    folder.mkdir()
    ending = "txt" if kind == "text" else "jsonl"
    (folder / f"a.{ending}").write_bytes(content)
    (folder / f"b.{ending}").write_bytes(GOOD[kind])
    return source("wood", kind=kind, path="wood")


@pytest.mark.parametrize(("kind", "content", "message", "hint"), BAD)
def test_bad_bytes_end_a_preparation_or_are_left_out_and_told(
    tmp_path: Path, kind: str, content: bytes, message: str, hint: str
) -> None:
    bad = folder_with(tmp_path, kind, content)
    told: list[str] = []
    options: dict[str, Any] = {"sequences": DATED, "chunk_bytes": 700 if len(content) < 9000 else 1 << 20}
    if not any(word in message for word in FORGIVEN):
        with pytest.raises(InputError) as caught:
            prepared(tmp_path, bad, **options)
        error = caught.value
        assert message in error.message and hint in error.hint
        assert error.message.startswith("wood: ") and str(tmp_path / "wood" / "a.") in error.message
        assert len(error.message) < 500 and "\n" not in error.message
    made = prepared(tmp_path, bad.model_copy(update={"on_bad": "skip"}), tell=told.append, **options)
    found = made.report.sources[0]
    if "byte order mark" in message:
        assert found.bad == 0 and any("byte order mark" in note for note in found.notes.sentences())
    elif "white space" not in message:
        told += [str(item) for item in made.report.bad]
        assert any(message in line and str(tmp_path / "wood" / "a.") in line for line in told)
        assert found.bad or found.left_out
    assert found.sequences and found.records >= 20, "the good file is prepared"
    named = (tmp_path / "data" / "bad-records.jsonl").read_bytes().splitlines()
    assert len(named) == found.bad and all(json.loads(line)["reason"] for line in named)


def test_a_source_without_a_good_record_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "wood.jsonl").write_bytes(b'{"body": "a"}\n' * 9)
    with pytest.raises(InputError, match=r"^wood: none of its 9 records can be used; expected a string in 'text'"):
        prepared(tmp_path, source(on_bad="skip"))
    (tmp_path / "blank.jsonl").write_bytes(b"\n \n")
    with pytest.raises(InputError, match=r"^blank: nothing in its 1 files to train on"):
        prepared(tmp_path, source("blank"))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InputError, match=r"^empty: nothing in its 0 files to train on"):
        prepared(tmp_path, source("empty", on_bad="skip"))
    write_records(tmp_path / "few.jsonl", ["one"])
    with pytest.raises(InputError, match="too little data: no record fell to the 1e-09 of them that are held out"):
        prepared(tmp_path, source("few"), sequences=rules(held_out=1e-9))


def test_lines_are_counted_through_the_file_and_a_resume_tells_the_same(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"wood {number}"}) for number in range(1000)]
    for number in (3, 499, 998):
        lines[number - 1] = "{"
    (tmp_path / "wood.jsonl").write_text("\r\n".join(lines))
    for folder in ("data", "data", "other"):
        made = prepared(tmp_path, source(on_bad="skip"), folder=folder, processes=0 if folder == "data" else 2)
        assert [item.line for item in made.report.bad] == [3, 499, 998]
        with pytest.raises(InputError, match="line 3: not JSON"):
            prepared(tmp_path, source(), folder=folder)


def test_more_bad_records_than_are_named_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.dataset.findings.MAX_NAMED_IN_CHUNK", 3)
    monkeypatch.setattr("coordinator.dataset.findings.MAX_NAMED", 5)
    (tmp_path / "wood.jsonl").write_bytes(RECORDS + b"{\n" * 3000 + RECORDS)
    made = prepared(tmp_path, source(on_bad="skip"))
    assert made.report.sources[0].bad == 3000 and made.progress.bad == 3000 and len(made.report.bad) == 5


# ---- lines -----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from([b"a", b"bc", b"\r", b"", b"long " * 9]), max_size=30), st.integers(1, 70), st.booleans()
)
def test_each_line_is_owned_by_the_chunk_that_it_begins_in(
    tmp_path_factory: Any, lines: list[bytes], size: int, last: bool
) -> None:
    content = b"\n".join(lines) + (b"\n" if last else b"")
    path = tmp_path_factory.getbasetemp() / "lines"
    path.write_bytes(content)
    found = []
    with path.open("rb") as file:
        for start in range(0, len(content), size):
            mine = list(owned_lines(file, start, min(start + size, len(content))))
            assert sum(map(len, mine)) <= size + 46
            found += mine
    assert found == content.splitlines(keepends=True) if b"\r" not in content else b"".join(found) == content


def test_of_a_line_that_never_ends_no_chunk_reads_more_than_its_own(tmp_path: Path) -> None:
    path = tmp_path / "wood.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "a"}\n')
        file.truncate(64 << 20)
    read = []

    class Counted:
        def __init__(self, file: Any) -> None:
            self.file = file

        def seek(self, place: int) -> None:
            self.file.seek(place)

        def read(self, size: int) -> bytes:
            read.append(size)
            return self.file.read(size)

    with path.open("rb") as file:
        first = list(owned_lines(Counted(file), 0, 1 << 20))  # type: ignore[arg-type]
        assert [len(line) for line in first] == [14, MAX_LINE_BYTES + 1] and sum(read) <= 11 << 20
        read.clear()
        assert not list(owned_lines(Counted(file), 8 << 20, 9 << 20)) and sum(read) <= 2 << 20  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes().replace(b"\0", b"a") + b"\n" + RECORDS)
    made = prepared(tmp_path, source(on_bad="skip"), chunk_bytes=8 << 20)
    assert [(item.line, item.reason[:17]) for item in made.report.bad] == [(2, "expected at most ")]
    assert made.report.sources[0].records == 41


# ---- chats and tokenizers --------------------------------------------------------------------------------------------


def chats(tmp_path: Path, *records: Any) -> Any:
    fillers = [{"instruction": f"Who cooks on day {day}?", "output": f"Number {day}."} for day in range(30)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*records, *fillers]))
    return source("chats", kind="chat")


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
ASKED = {"role": "user", "content": "Rain?"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": "{}"}}],
}
TURNS = [
    {"role": "system", "content": "Be brief."},
    ASKED,
    CALL,
    {"role": "tool", "content": "dry"},
    {"role": "assistant", "content": "No."},
]


def test_chats_with_tools_and_system_turns_are_whole_and_answers_alone_are_learned(tmp_path: Path) -> None:
    quiet = {
        "messages": [
            ASKED,
            {"role": "assistant", "content": "QUIET", "weight": 0},
            ASKED,
            {"role": "assistant", "content": "Dry."},
        ]
    }
    made_of = chats(tmp_path, {"messages": TURNS, "tools": [TOOL]}, quiet)
    tokenizer = plain(TOOLS)
    made = prepared(
        tmp_path,
        made_of,
        tokenizer=tokenizer,
        sequences=rules(template_date="2026-12-01", held_out=0.3, sequence_length=256),
    )
    decode = tokenizer.backend_tokenizer.decode
    read = [shard(tmp_path / "data", entry, 256) for entry in (*made.manifest.shards, made.manifest.held_out)]
    text = "".join(decode(one.tokens.tolist(), skip_special_tokens=False) for one in read)
    learned = "".join(decode(one.tokens[one.learned].tolist(), skip_special_tokens=False) for one in read)
    assert '"parameters"' in text and "Be brief." in text and "<|tool|>dry" in text and "QUIET" in text
    assert "CALL" in learned and "No." in learned and "Dry." in learned
    assert not any(word in learned for word in ("Be brief", "QUIET", "Rain?", "parameters", "dry<"))


def test_what_a_template_leaves_out_or_fails_on_is_a_bad_record(tmp_path: Path) -> None:
    made_of = chats(tmp_path, {"messages": TURNS, "tools": [TOOL]})
    with pytest.raises(InputError, match=r"^chats: .*line 1: the model's chat template leaves out tools"):
        prepared(tmp_path, made_of, sequences=DATED)
    skipped = made_of.model_copy(update={"on_bad": "skip"})
    assert prepared(tmp_path, skipped, sequences=DATED).report.sources[0].bad == 1
    failing = plain(CHAT_TEMPLATE + "{{ messages[0].content + 1 }}")
    with pytest.raises(InputError, match=r"^chats: none of its 31 records can be used; the chat template fails"):
        prepared(tmp_path, skipped, sequences=DATED, tokenizer=failing)


def test_the_day_of_templates_is_kept_for_later_preparations(tmp_path: Path) -> None:
    tokenizer = plain("{{ strftime_now('%d %b %Y') }}" + byte_tokenizer().chat_template)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "preparation.json").write_text('{"template_date": "2024-02-29"}')
    made = prepared(tmp_path, chats(tmp_path), tokenizer=tokenizer)
    tokens = [token for row in sequences(tmp_path / "data", made.manifest.shards) for token in row]
    assert made.sequences.template_date == "2024-02-29" and "29 Feb 2024" in tokenizer.backend_tokenizer.decode(tokens)
    today = prepared(tmp_path, chats(tmp_path), tokenizer=tokenizer, folder="other").sequences.template_date
    assert (
        today is not None
        and json.loads((tmp_path / "other" / "preparation.json").read_bytes())["template_date"] == today
    )


def test_a_tokenizer_without_what_a_kind_needs_is_told_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^wood: the model's tokenizer has no chat template"):
        prepared(tmp_path, source(kind="chat"), tokenizer=plain(None))
    endless = byte_tokenizer()
    endless.eos_token = None
    with pytest.raises(InputError, match=r"^wood: the model's tokenizer has no end-of-sequence token"):
        prepared(tmp_path, source(), tokenizer=PlainTokenizer.of(endless))


@pytest.mark.parametrize("kind", ["text", "jsonl", "chat"])
def test_what_a_tokenizer_has_no_token_for_is_a_bad_record(tmp_path: Path, kind: str) -> None:
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "wood": 2, "fire": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    made.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    good: dict[str, Any] = {
        "text": "wood",
        "jsonl": {"text": "wood"},
        "chat": {"instruction": "wood", "output": "fire"},
    }
    lines = [good["text"] if kind == "text" else json.dumps(good[kind])] * 40
    lines[7] = lines[7].replace("wood", "salad")
    lines[8] = lines[8].replace("wood", "wood " * 30)
    (tmp_path / "wood.jsonl").write_text("\n".join(lines))
    some = source(kind=kind, on_bad="skip")
    everything = rules(template_date="2026-12-01", held_out=0.4, sequence_length=8, packing=False)
    tokenizer = PlainTokenizer.of(made)
    try:
        result = prepared(tmp_path, some, tokenizer=tokenizer, sequences=everything, chunk_bytes=1 << 20)
    except InputError as error:
        assert "to train on" in error.message or "held out" in error.message  # few different records, all on one side
    else:
        (bad,) = result.report.bad
        assert bad.line == 8 and bad.reason.startswith("the model's tokenizer has no tokens for this")
    with pytest.raises(InputError, match="line 8: the model's tokenizer has no tokens for this"):
        prepared(tmp_path, some.model_copy(update={"on_bad": "stop"}), tokenizer=tokenizer, sequences=everything)


def test_an_error_that_no_record_is_to_blame_for_is_not_counted_as_one() -> None:
    found = ChunkFindings()
    with pytest.raises(InputError, match="no chat template"):
        found.refuse("a.jsonl: line 3", InputError("the model's tokenizer has no chat template for this"))
    assert found.bad_count == 0
