"""One chat record as its format means it: messages and tools for the chat template, and which answers are learned.

    OpenAI    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    ShareGPT  {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}], "system": "..."}
    Alpaca    {"instruction": "...", "input": "...", "output": "...", "system": "...", "history": [["...", "..."]]}

Sources: OpenAI's fine-tuning format (`weight`, `tools`, `functions`, `tool_calls`, `function_call`), LLaMA-Factory's
data/README (`system`, `history`, whose answers are learned, too, `tools` as a string, roles `function_call` and
`observation`), axolotl's chat_template (`train`), ms-swift's custom datasets (`loss`, roles `tool_call` and
`tool_response`).

A field that would change what is learned, and cannot be used, is refused by its name. One that is not known stands
beside the record: the host is told once that it is not used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from peer.training.notes import EMPTY_ANSWERS, Notes
from protocol.errors import InputError
from protocol.shown import named, shown

MAX_MESSAGES = 4096
SHAPES = "expected messages (role, content), conversations (from, value), or instruction, input, output"

_LISTS = ("messages", "conversations")
_ROLES = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant",
    "model": "assistant", "bot": "assistant", "system": "system", "developer": "developer", "tool": "tool",
    "observation": "tool", "tool_response": "tool", "ipython": "ipython", "function_call": "call", "tool_call": "call",
}  # fmt: skip
_SYSTEM = ("system", "system_prompt", "system_message")
_MARKS = ("weight", "train", "training", "loss")
REASONING = ("reasoning_content", "thinking", "reasoning")
# what changes the loss in ways that this program does not know
_OTHER_MARKS = (
    "train_detail", "training_detail", "loss_mask", "loss_weight", "loss_scale", "sample_weight", "mask", "masked",
    "learn", "trainable", "assistant_masks",
)  # fmt: skip
# what is said, read or chosen beside the text of the messages
_OTHER_CONTENT = (
    "chosen", "rejected", "chosen_response", "rejected_response", "preferred_output", "non_preferred_output", "images",
    "image", "image_url", "videos", "video", "audios", "audio", "documents", "chat_template_kwargs", "enable_thinking",
)  # fmt: skip
_RATINGS = ("label", "kto_tag")  # false: what not to say

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """What a chat template is given.

    Args:
        learned: of each message, whether its tokens carry loss.
        tools: as JSON schemas; None if there are none.
    """

    messages: list[Message]
    learned: list[bool]
    tools: list[Any] | None


def json_type(value: Any) -> str:
    """What JSON calls it.

    >>> json_type(None), json_type(True), json_type([])
    ('null', 'true', 'an array')
    """
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    for kind, name in ((str, "a string"), (list, "an array"), (dict, "an object")):
        if isinstance(value, kind):
            return name
    return "a number"


def _brief(value: Any) -> str:
    return shown(json.dumps(value), 40) if json_type(value) in ("a string", "a number") else json_type(value)


def conversation_of(value: dict[str, Any], where: str, notes: Notes) -> Conversation:
    """Read one record.

    Raises:
        InputError: none of the shapes or two of them, a field that cannot be used, or nobody to learn from.
            `where` names the line.
    """
    shapes = [name for name in _LISTS if value.get(name) is not None]
    if "instruction" in value and "output" in value and (not shapes or value["output"] is not None):
        shapes.append("instruction")
    if not shapes:
        raise InputError(
            f"{where}: {SHAPES}, got the keys {named(sorted(value))}",
            "rename them; texts that are no chats go by kind jsonl",
        )
    if len(shapes) > 1:
        raise InputError(
            f"{where}: two conversations in one record: {' and '.join(shapes)}",
            "leave one of them, or write two records",
        )
    if shapes == ["instruction"]:
        known = ["instruction", "input", "output", "history"]
        messages, learned = _of_instruction(value, where)
    else:
        known = shapes
        messages, learned = _of_list(value[shapes[0]], shapes[0], where)
        if _is_given(value.get("history")):
            raise InputError(f"{where}: history goes with instruction", "write the earlier turns as messages")
    system = _system(value, messages, where)
    if system is not None:
        messages, learned = [{"role": "system", "content": system}, *messages], [False, *learned]
    tools = _tools(value, where)
    _refuse(value, where, "")
    known = [*known, *_SYSTEM, *_LISTS, "tools", "functions"]
    unused = [name for name in value if name not in known and _is_given(value[name])]
    notes.unused(name for name in unused if name not in _MARKS or not _is_mark(name, value[name]))
    if not any(m["role"] == "assistant" and _says_something(m) for m in messages):
        raise InputError(f"{where}: no assistant message to learn from")
    empty = sum(m["role"] == "assistant" and not _says_something(m) for m in messages)
    notes.count(EMPTY_ANSWERS, empty)
    return Conversation(messages, learned, tools)


def _is_given(value: Any) -> bool:
    return value not in (None, "") and value != [] and value != {}


def _says_something(message: Message) -> bool:
    return any(message.get(name) for name in ("content", "tool_calls", *REASONING))


def _of_instruction(value: dict[str, Any], where: str) -> tuple[list[Message], list[bool]]:
    for name in ("instruction", "input", "output"):
        if not isinstance(value.get(name), str) and (name != "input" or value.get(name) is not None):
            raise InputError(
                f"{where}: expected strings in instruction, input and output; {name} is {json_type(value[name])}"
            )
    history = value.get("history") or []
    pairs = history if isinstance(history, list) else [history]
    if not all(isinstance(pair, list) and [type(text) for text in pair] == [str, str] for pair in pairs):
        raise InputError(f"{where}: history: expected a list of pairs of strings, an instruction and its output each")
    question = "\n\n".join(part for part in (value["instruction"], value.get("input")) if part)
    turns = [*pairs, [question, value["output"]]]
    if len(turns) > MAX_MESSAGES // 2:
        raise InputError(f"{where}: history: expected at most {MAX_MESSAGES // 2 - 1} pairs")
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return messages, [bool(m["role"] == "assistant" and m["content"]) for m in messages]


def _of_list(items: Any, shape: str, where: str) -> tuple[list[Message], list[bool]]:
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_MESSAGES:
        raise InputError(f"{where}: {shape}: expected a list of 1 to {MAX_MESSAGES} messages")
    messages: list[Message] = []
    learned: list[bool] = []
    called = False  # whether the message before is a call, which another one at once goes with
    for number, item in enumerate(items, 1):
        at = f"{where}: message {number}"
        message, is_call = _message(item, shape, at)
        mark = _learned(item, message["role"], at)
        if is_call and called and learned[-1] == mark:
            messages[-1]["tool_calls"].extend(message["tool_calls"])
        else:
            messages.append(message)
            learned.append(mark and message["role"] == "assistant" and _says_something(message))
        called = is_call
    return messages, learned


def _message(item: Any, shape: str, at: str) -> tuple[Message, bool]:
    """(the message as a template sees it, whether it is a call in a turn of its own)."""
    if not isinstance(item, dict):
        raise InputError(f"{at}: {SHAPES}")
    names = ("role", "content") if "role" in item or (shape == "messages" and "from" not in item) else ("from", "value")
    role, content = (item.get(name) for name in names)
    if not isinstance(role, str):
        raise InputError(
            f"{at}: expected strings in {names[0]!r} and {names[1]!r}; {names[0]} is {_found(item, names[0])}"
        )
    known = "tool" if role == "function" and shape == "messages" else _ROLES.get(role)
    if known is None:
        raise InputError(f"{at}: unknown role '{shown(role)}'", f"known roles: {', '.join(_ROLES)}")
    _refuse(item, at, "message ")
    rest = {name: part for name, part in item.items() if name not in (*names, *_MARKS) and part is not None}
    if known == "call":
        if "tool_calls" in rest:
            raise InputError(f"{at}: tool_calls beside a call of its own")
        calls = _calls(content, at, "the call")
        return rest | {"role": "assistant", "content": "", "tool_calls": calls}, True
    if "function_call" in rest:
        if "tool_calls" in rest:
            raise InputError(f"{at}: tool_calls and function_call")
        rest["tool_calls"] = [rest.pop("function_call")]
    if _is_given(rest.get("tool_calls")):
        if known != "assistant":
            raise InputError(f"{at}: tool_calls of a message of role {known}", "only an assistant calls tools")
        rest["tool_calls"] = _calls(rest["tool_calls"], at, "tool_calls")
        content = "" if content is None else content
    else:
        rest.pop("tool_calls", None)
    reasoning = next((rest[name] for name in REASONING if rest.get(name)), None)
    if reasoning is not None:
        if not isinstance(reasoning, str):
            raise InputError(f"{at}: expected a string as reasoning, got {json_type(reasoning)}")
        rest = {"thinking": reasoning, **rest, "reasoning_content": reasoning}
    return {"role": known, "content": _text(content, item, names, at), **rest}, False


def _found(item: dict[str, Any], name: str) -> str:
    return json_type(item[name]) if name in item else "missing"


def _text(content: Any, item: dict[str, Any], names: tuple[str, str], at: str) -> str:
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        part = content[0]
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            return str(part["text"])
    if isinstance(content, list):
        raise InputError(f"{at}: {names[1]} is a list of parts", "give one text: images and the like cannot be used")
    if not isinstance(content, str):
        raise InputError(
            f"{at}: expected strings in {names[0]!r} and {names[1]!r}; {names[1]} is {_found(item, names[1])}",
            'write "" where there is no text, or take the message out',
        )
    return content


def _learned(item: dict[str, Any], role: str, at: str) -> bool:
    """Whether a message's marks leave its answer to be learned; a message without one is learned if it is an answer."""
    marks = {name: item[name] for name in _MARKS if item.get(name) is not None}
    for name, mark in marks.items():
        if isinstance(mark, str | list | dict) or mark not in (0, 1):
            raise InputError(f"{at}: {name} is {_brief(mark)}: an answer is learned or not", f"write {name} as 0 or 1")
    if len({bool(mark) for mark in marks.values()}) > 1:
        raise InputError(f"{at}: {' and '.join(marks)} contradict each other")
    if role != "assistant" and any(marks.values()):
        raise InputError(
            f"{at}: {next(iter(marks))} marks a message of role {role} as learned",
            "only answers are: take the mark off",
        )
    return all(marks.values())


def _calls(value: Any, at: str, name: str) -> list[Any]:
    """Calls in OpenAI's form, their arguments as objects, as templates expect them."""
    value = _parsed(value, at, name)
    calls = []
    for item in value if isinstance(value, list) else [value]:
        function = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InputError(f"{at}: {name}: expected a function's name and arguments")
        arguments = _parsed(function.get("arguments") or {}, at, f"{name}: arguments")
        if not isinstance(arguments, dict):
            raise InputError(f"{at}: {name}: arguments: expected an object, got {json_type(arguments)}")
        rest = item if "function" in item else {"type": "function"}
        calls.append(rest | {"function": function | {"arguments": arguments}})
    return calls


def _parsed(value: Any, at: str, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{at}: {name}: not JSON: {shown(error)}") from error


def _system(value: dict[str, Any], messages: list[Message], where: str) -> str | None:
    """The text that goes before the first message; None if there is none."""
    given = {name: value[name] for name in _SYSTEM if value.get(name) not in (None, "")}
    for name, text in given.items():
        if not isinstance(text, str):
            raise InputError(f"{where}: {name}: expected a string, got {json_type(text)}")
    first = messages[0]["content"] if messages[0]["role"] == "system" else None
    texts = {*given.values()} | ({first} if first is not None else set())
    if given and len(texts) > 1:
        raise InputError(
            f"{where}: system messages that differ: {next(iter(given))} and another one", "leave one of them"
        )
    return texts.pop() if given and first is None else None


def _tools(value: dict[str, Any], where: str) -> list[Any] | None:
    """The record's tools as schemas in OpenAI's form."""
    given = [name for name in ("tools", "functions") if _is_given(value.get(name))]
    if len(given) > 1:
        raise InputError(f"{where}: tools and functions in one record", "leave one of them")
    if not given:
        return None
    tools = _parsed(value[given[0]], where, given[0])
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InputError(f"{where}: {given[0]}: expected a list of objects")
    bare = [
        tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool} for tool in tools
    ]
    return bare or None


def _refuse(value: dict[str, Any], where: str, kind: str) -> None:
    """Raises: InputError: a field that changes what is learned, in a way that cannot be followed here."""
    for name in _OTHER_MARKS:
        if value.get(name) is not None:
            raise InputError(
                f"{where}: the {kind}field {name!r} cannot be used, and would change what is learned",
                "mark answers by weight, train or loss as 0 or 1, or take the field out",
            )
    for name in _OTHER_CONTENT:
        if _is_given(value.get(name)):
            raise InputError(
                f"{where}: the {kind}field {name!r} cannot be used, and is part of what is said or learned",
                "take it out if the record makes sense without it",
            )
    if kind:
        if _is_given(value.get("refusal")):
            raise InputError(f"{where}: refusal cannot be used", "write the text that is to be learned as content")
        return
    for name in _RATINGS:
        if value.get(name) is False:
            raise InputError(f"{where}: {name} is false: rated as what not to say", "take such records out")
    for name in _MARKS:
        if _is_mark(name, value.get(name)) and value[name] != 1:
            raise InputError(
                f"{where}: the record's {name} is {_brief(value[name])}: all records count alike",
                "take out the records that are not to be learned, and the field",
            )


def _is_mark(name: str, value: Any) -> bool:
    """Whether a field of a record says how much the record counts: a `loss` of 0.7 has been measured."""
    return isinstance(value, int | float) and (name != "loss" or value in (0, 1))
