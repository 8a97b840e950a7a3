"""Turns a conversation into tokens by the tokenizer's chat template, with the loss on the assistant's answers only.

An answer's place is found by rendering the conversation up to it with the generation prompt, and up to its end: what
the second adds to the first is the answer with the marks that end it, which a model has to learn too. Templates that
rewrite earlier turns (dropping old thoughts, say) make that impossible for those turns; they then carry no loss.
"""

from __future__ import annotations

from typing import Any

import jinja2
import numpy as np

from protocol.errors import InputError

_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_SHAPES = "expected messages (role, content), conversations (from, value), or instruction, input, output"
MAX_MESSAGES = 4096

Message = dict[str, str]


def messages_of(value: dict[str, Any], where: str) -> list[Message]:
    """One record, in any of the three shapes, as a list of role and content.

    Raises:
        InputError: none of the shapes, an unknown role, or no assistant message; `where` names the line.
    """
    if "messages" in value:
        messages = [_message(item, "role", "content", where) for item in _list(value["messages"], where)]
    elif "conversations" in value:
        messages = [_message(item, "from", "value", where) for item in _list(value["conversations"], where)]
        messages = [m | {"role": _SHAREGPT_ROLES.get(m["role"], m["role"])} for m in messages]
    elif "instruction" in value and "output" in value:
        parts = [value["instruction"], value.get("input") or "", value["output"]]
        if not all(isinstance(part, str) for part in parts):
            raise InputError(f"{where}: expected strings in instruction, input and output")
        question = "\n\n".join(part for part in parts[:2] if part)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": parts[2]}]
    else:
        raise InputError(f"{where}: {_SHAPES}, got the keys {sorted(value)[:8]}")
    if not any(m["role"] == "assistant" and m["content"] for m in messages):
        raise InputError(f"{where}: no assistant message to learn from")
    return messages


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        raise InputError(f"{where}: expected a list of 1 to {MAX_MESSAGES} messages")
    return value


def _message(item: Any, role_key: str, content_key: str, where: str) -> Message:
    if not isinstance(item, dict):
        raise InputError(f"{where}: {_SHAPES}")
    role, content = item.get(role_key), item.get(content_key)
    if not isinstance(role, str) or not isinstance(content, str):
        raise InputError(f"{where}: expected strings in {role_key!r} and {content_key!r} of each message")
    return {"role": role, "content": content}


def encode_chat(tokenizer: Any, messages: list[Message], where: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, loss mask) of one conversation: int32 and bool.

    Raises:
        InputError: the tokenizer has no chat template, the template refuses the conversation, or no answer can be
            found in what it renders.
    """
    if not tokenizer.chat_template:
        raise InputError(
            "the model's tokenizer has no chat template", "use data.kind jsonl or text, or an instruct model"
        )
    text = _render(tokenizer, messages, where)
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or not message["content"]:
            continue
        before = _render(tokenizer, messages[:index], where, generation_prompt=True)
        through = _render(tokenizer, messages[: index + 1], where)
        if through.startswith(before) and text.startswith(through):
            spans.append((len(before), len(through)))
    if not spans:
        raise InputError(f"{where}: no assistant answer can be told apart in what the chat template renders")
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    loss = np.zeros(len(encoding.ids), dtype=bool)
    starts, ends = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
    for low, high in spans:
        loss |= (ends > low) & (
            starts < high
        )  # a token that holds the last of the prompt and the first of the answer too
    return np.asarray(encoding.ids, dtype=np.int32), loss


def _render(tokenizer: Any, messages: list[Message], where: str, generation_prompt: bool = False) -> str:
    if not messages:
        return ""  # the conversation begins with an answer, and some templates refuse to render nothing
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    except jinja2.TemplateError as error:
        raise InputError(f"{where}: the chat template refuses this conversation: {error}") from error
    return text
