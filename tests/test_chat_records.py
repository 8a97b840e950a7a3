"""Chat records as their formats mean them: nothing they say is dropped in silence, nothing they mark is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocol.errors import InputError
from tests.kit.data_fixtures import CHAT, TOOLS, byte_tokenizer, chat, learned, texts

ASK, ANSWER = {"role": "user", "content": "Who cooks?"}, {"role": "assistant", "content": "Everyone."}
TOOL = {"type": "function", "function": {"name": "oven", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "oven", "arguments": {"minutes": 40}}}
CALLED = 'CALL{"name": "oven", "arguments": {"minutes": 40}}<|end|>'
GPT = {"from": "gpt", "value": "Everyone."}
HUMAN = {"from": "human", "value": "Who cooks?"}


@pytest.fixture
def plain() -> Any:
    return byte_tokenizer(CHAT)


@pytest.fixture
def tools() -> Any:
    return byte_tokenizer(TOOLS)


def read(tokenizer: Any, tmp_path: Path, record: Any) -> tuple[str, str]:
    """(text, what of it is learned) of one record."""
    train = chat(tokenizer, tmp_path / "d.jsonl", record).train
    assert len(train) == 1
    return texts(tokenizer, train)[0], learned(tokenizer, train)[0]


def refusal(tokenizer: Any, tmp_path: Path, record: Any) -> str:
    with pytest.raises(InputError) as caught:
        chat(tokenizer, tmp_path / "d.jsonl", record)
    assert "d.jsonl: line 1" in caught.value.message and len(caught.value.message) < 600
    return caught.value.message


@pytest.mark.parametrize(
    "record",
    [
        {"tools": [TOOL], "messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [CALL]}]},
        {"tools": [TOOL], "messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
        {"tools": [TOOL], "messages": [ASK, {"role": "assistant", "tool_calls": [{"id": "a1", **CALL}]}]},
        {"functions": [TOOL["function"]], "messages": [ASK, {"role": "assistant", "function_call": CALL["function"]}]},
        {
            "tools": '[{"name": "oven"}]',
            "conversations": [
                HUMAN,
                {"from": "function_call", "value": '{"name": "oven", "arguments": {"minutes": 40}}'},
            ],
        },
        {
            "tools": [TOOL],
            "messages": [ASK, {"role": "tool_call", "content": '{"name": "oven", "arguments": "{\\"minutes\\": 40}"}'}],
        },
    ],
)
def test_tools_and_calls_reach_the_template_in_all_their_forms(tools: Any, tmp_path: Path, record: Any) -> None:
    text, answer = read(tools, tmp_path, record)
    assert '"type": "function", "function": {"name": "oven"' in text
    assert answer == CALLED


def test_calls_at_once_are_one_turn_and_their_results_are_not_learned(tools: Any, tmp_path: Path) -> None:
    call = {"from": "function_call", "value": '{"name": "oven", "arguments": {"minutes": 40}}'}
    record = {"conversations": [HUMAN, call, call, {"from": "observation", "value": "ok"}, GPT]}
    text, answer = read(tools, tmp_path, record)
    assert text.count("<|assistant|>") == 2 and "<|tool|>ok<|end|>" in text
    assert answer == CALLED.replace("<|end|>", CALLED) + "Everyone.<|end|>"


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_thoughts_reach_the_template_under_all_their_names(tools: Any, tmp_path: Path, name: str) -> None:
    assert read(tools, tmp_path, {"messages": [ASK, ANSWER | {name: "who?"}]})[1] == "(who?)Everyone.<|end|>"


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"tools": [TOOL], "messages": [ASK, ANSWER]}, "leaves out tools"),
        (
            {"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [CALL]}, ANSWER]},
            "leaves out tool_calls",
        ),
        ({"messages": [ASK, ANSWER | {"thinking": "who?"}]}, "leaves out reasoning_content"),
    ],
)
def test_what_the_template_leaves_out_is_refused_by_name(plain: Any, tmp_path: Path, record: Any, named: str) -> None:
    assert named in refusal(plain, tmp_path, record)


def test_a_template_that_drops_a_system_message_is_refused(tmp_path: Path) -> None:
    template = "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    record = {"messages": [{"role": "system", "content": "Be brief."}, ASK, ANSWER]}
    assert "what system says in message 1" in refusal(byte_tokenizer(template), tmp_path, record)


@pytest.mark.parametrize(
    "record",
    [
        {"system": "Be a cook.", "messages": [ASK, ANSWER]},
        {"system": "Be a cook.", "conversations": [HUMAN, GPT]},
        {"system_prompt": "Be a cook.", "instruction": "Who cooks?", "output": "Everyone."},
        {"system": "Be a cook.", "messages": [{"role": "system", "content": "Be a cook."}, ASK, ANSWER]},
        {"system": None, "conversations": [{"from": "system", "value": "Be a cook."}, HUMAN, GPT]},
    ],
)
def test_a_system_text_beside_a_record_is_its_first_message(plain: Any, tmp_path: Path, record: Any) -> None:
    text, answer = read(plain, tmp_path, record)
    assert text == "<|system|>Be a cook.<|end|><|user|>Who cooks?<|end|><|assistant|>Everyone.<|end|>"
    assert answer == "Everyone.<|end|>"


def test_history_is_the_earlier_turns_and_is_learned_too(plain: Any, tmp_path: Path) -> None:
    record = {
        "instruction": "Who",
        "input": "cooks?",
        "output": "Everyone.",
        "history": [["Hi", "Hello"], ["So", "Yes"]],
    }
    text, answer = read(plain, tmp_path, record)
    assert text.startswith("<|user|>Hi<|end|><|assistant|>Hello<|end|><|user|>So<|end|><|assistant|>Yes<|end|>")
    assert answer == "Hello<|end|>Yes<|end|>Everyone.<|end|>"


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": 0}, {"loss": False}])
def test_an_answer_marked_as_not_to_be_learned_carries_no_loss(plain: Any, tmp_path: Path, mark: Any) -> None:
    openai = {"messages": [ASK, ANSWER | {"content": "WRONG"} | mark, ASK, ANSWER | {"weight": 1}]}
    sharegpt = {"conversations": [HUMAN, GPT | {"value": "WRONG"} | mark, HUMAN, GPT]}
    for record in (openai, sharegpt):
        text, answer = read(plain, tmp_path, record)
        assert "WRONG" in text and answer == "Everyone.<|end|>"


def test_a_record_of_which_nothing_is_to_be_learned_is_left_out_and_told(plain: Any, tmp_path: Path) -> None:
    dataset = chat(
        plain, tmp_path / "d.jsonl", {"messages": [ASK, ANSWER | {"weight": 0}]}, {"messages": [ASK, ANSWER]}
    )
    assert len(dataset.train) == 1
    assert any("marked as not to be learned" in note and note.endswith(": 1") for note in dataset.notes())


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"messages": [ASK, ANSWER | {"weight": 0.5}]}, "message 2: weight is 0.5"),
        ({"messages": [ASK, ANSWER | {"weight": "0"}]}, 'weight is "0"'),
        ({"messages": [ASK, ANSWER | {"weight": float("nan")}]}, "weight is NaN"),
        ({"messages": [ASK, ANSWER | {"train": [0, 1]}]}, "train is an array"),
        ({"messages": [ASK, ANSWER | {"train": True, "loss": False}]}, "train and loss contradict each other"),
        ({"messages": [ASK | {"train": True}, ANSWER]}, "message 1: train marks a message of role user as learned"),
        ({"messages": [ASK, ANSWER | {"train_detail": [{"begin_offset": 0, "end_offset": 3}]}]}, "'train_detail'"),
        ({"messages": [ASK, ANSWER | {"loss_mask": 0}]}, "message field 'loss_mask'"),
        ({"messages": [ASK, ANSWER], "weight": 0.3}, "the record's weight is 0.3"),
        ({"messages": [ASK, ANSWER], "loss": False}, "the record's loss is false"),
        ({"instruction": "Who?", "output": "We.", "weight": 0}, "the record's weight is 0"),
        ({"messages": [ASK, ANSWER], "enable_thinking": False}, "'enable_thinking'"),
        ({"messages": [ASK, ANSWER], "chosen": [ANSWER], "rejected": [ANSWER]}, "'chosen'"),
        ({"instruction": "Who?", "output": "We.", "kto_tag": False}, "kto_tag is false"),
        ({"messages": [ASK, ANSWER], "images": ["a.png"]}, "'images'"),
        ({"messages": [ASK, ANSWER], "documents": [{"text": "a"}]}, "'documents'"),
        ({"messages": [ASK, ANSWER | {"content": None, "refusal": "No."}]}, "refusal cannot be used"),
        ({"messages": [ASK, ANSWER], "conversations": [HUMAN, GPT]}, "messages and conversations"),
        ({"messages": [ASK, ANSWER], "instruction": "Who?", "output": "We."}, "messages and instruction"),
        ({"system": "A", "messages": [{"role": "system", "content": "B"}, ASK, ANSWER]}, "system messages that differ"),
        ({"system": 3, "messages": [ASK, ANSWER]}, "system: expected a string, got a number"),
        ({"history": [["a", "b"]], "messages": [ASK, ANSWER]}, "history goes with instruction"),
        ({"history": [["a"]], "instruction": "Who?", "output": "We."}, "history: expected a list of pairs"),
        ({"history": {"a": "b"}, "instruction": "Who?", "output": "We."}, "history: expected a list of pairs"),
        ({"tools": "[{", "messages": [ASK, ANSWER]}, "tools: not JSON"),
        ({"tools": {"name": "oven"}, "messages": [ASK, ANSWER]}, "tools: expected a list of objects"),
        ({"tools": [TOOL], "functions": [TOOL], "messages": [ASK, ANSWER]}, "tools and functions"),
        (
            {"messages": [ASK, {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}]},
            "arguments: not JSON",
        ),
        (
            {"messages": [ASK, {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": [1]}}]}]},
            "expected an object, got an array",
        ),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": ["oven"]}]}, "tool_calls: expected a function's name"),
        ({"messages": [ASK | {"tool_calls": [CALL]}, ANSWER]}, "tool_calls of a message of role user"),
        (
            {"messages": [ASK, {"role": "assistant", "content": None}, ASK, ANSWER]},
            "message 2: expected strings in 'role' and 'content'; content is null",
        ),
        ({"messages": [ASK, {"role": "assistant"}, ASK, ANSWER]}, "content is missing"),
        ({"messages": [ASK, {"role": None, "content": "a"}]}, "role is null"),
        ({"conversations": [HUMAN, {"from": "gpt", "value": None}]}, "value is null"),
        (
            {"messages": [ASK, ANSWER | {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
            "content is a list of parts",
        ),
        ({"messages": [ASK, {"role": "narrator", "content": "a"}, ANSWER]}, "message 2: unknown role 'narrator'"),
        ({"messages": [ASK, {"role": "n" * 9_000_000, "content": "a"}, ANSWER]}, "unknown role 'nnn"),
        ({"instruction": "Who?", "output": None}, "output is null"),
        ({"q" * 100_000: "Who?", "a\nb": "We."}, "got the keys"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name_and_line(
    tools: Any, tmp_path: Path, record: Any, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peer.training.data_file.MAX_LINE_BYTES", 10_000_000)
    message = refusal(tools, tmp_path, record)
    assert named in message and "\n" not in message


def test_what_stands_beside_a_record_stops_nobody_and_is_named_once(plain: Any, tmp_path: Path) -> None:
    beside = {"id": 7, "source": "web", "score": 0.25, "loss": 0.7, "meta": {"a": [1]}, "label": "good", "train": "yes"}
    nothing = {"chosen": None, "images": [], "weight": 1, "tools": [], "history": [], "system": ""}
    turns = {"messages": [ASK | {"timestamp": 3}, ANSWER | {"name": "cook", "weight": None}]}
    first, second = beside | nothing | turns, beside | nothing | turns | {"note": "x"}
    dataset = chat(plain, tmp_path / "d.jsonl", first, second)
    expected = "id, source, score, loss, meta, label, train, name (of messages), timestamp (of messages), note"
    assert dataset.notes() == [f"fields that are not used: {expected}"]


def test_one_text_part_is_its_text_and_names_go_by_either_form(plain: Any, tmp_path: Path) -> None:
    parts = {
        "conversations": [
            ASK | {"content": [{"type": "text", "text": "Who cooks?"}]},
            {"role": "model", "content": "All."},
        ]
    }
    assert read(plain, tmp_path, parts) == ("<|user|>Who cooks?<|end|><|assistant|>All.<|end|>", "All.<|end|>")


def test_an_answer_that_begins_a_conversation_is_learned_without_what_stands_before_it(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer("<|system|>Be brief.<|end|>" + CHAT)
    assert read(tokenizer, tmp_path, {"messages": [ANSWER, ASK]})[1] == "Everyone.<|end|>"


def test_answers_that_the_template_shortens_are_counted(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(CHAT.replace("{{ m.content }}", "{{ m.content.split('|')[-1] }}"))
    dataset = chat(tokenizer, tmp_path / "d.jsonl", {"messages": [ASK, ANSWER | {"content": "thoughts|Everyone."}]})
    assert any("does not write all: 1" in note for note in dataset.notes())


def test_old_runs_leave_out_what_they_always_left_out(plain: Any, tmp_path: Path) -> None:
    record = {"system": "Be a cook.", "tools": [TOOL], "messages": [ASK, ANSWER | {"weight": 0, "name": "a"}]}
    train = chat(plain, tmp_path / "d.jsonl", record, rules=1).train
    assert texts(plain, train) == ["<|user|>Who cooks?<|end|><|assistant|>Everyone.<|end|>"]
    assert learned(plain, train) == ["Everyone.<|end|>"]
