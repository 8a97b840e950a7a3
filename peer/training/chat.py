"""Turns a conversation into tokens by the tokenizer's chat template, with the loss on the assistant's answers only.

An answer's place is found by rendering the conversation up to it with the generation prompt, and up to its end: what
the second adds to the first is the answer with the marks that end it, which a model has to learn too. Templates that
rewrite earlier turns (dropping old thoughts, say) make that impossible for those turns; they then carry no loss.

By the first rules of data (`data.rules`), `messages_of` reads a record and transformers renders it. From rules 2 on,
`conversation.conversation_of` reads it, and `Chats` renders it the same everywhere and sees that nothing is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import numpy as np

from peer.training.chat_template import ChatTemplate, TemplateError, told
from peer.training.conversation import MAX_MESSAGES, REASONING, SHAPES, Conversation
from peer.training.notes import REWRITTEN, UNLEARNED, UNTOLD, Notes
from protocol.errors import InputError
from protocol.shown import named

_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_OWN_FIELDS = {"role", "content", "tool_calls", *REASONING}  # whose use is seen to by itself

Message = dict[str, Any]
Encoded = tuple[np.ndarray, np.ndarray]  # tokens (int32) and loss mask (bool)
Pieces = Callable[[str], Iterable[str]]


class Chats:
    """Encodes the conversations of one file.

    Args:
        tokenizer: a fast transformers tokenizer.
        day: what the template is told the day is, YYYY-MM-DD.
        pieces: what of a rendered text is tokenized at a time: a token takes some 300 bytes until its place is known.

    Raises:
        InputError: no chat template, or one that is none.
    """

    def __init__(self, tokenizer: Any, day: str, notes: Notes, pieces: Pieces = lambda text: [text]) -> None:
        _check_template(tokenizer)
        self._tokenizer, self._notes, self._pieces = tokenizer, notes, pieces
        self._compiled: dict[str, ChatTemplate] = {}
        self._day = day
        self._seen: set[str] = set()  # further fields of messages, by their names

    def encode(self, conversation: Conversation, where: str) -> tuple[Encoded | None, str]:
        """((tokens, loss mask), text) of one conversation; no tokens if all of it is marked as not to be learned.

        Raises:
            InputError: the template refuses it or leaves something out, or no answer is told apart in what it renders.
        """
        template = self._template(conversation.tools)

        def render(messages: list[Message], generation_prompt: bool = False, tools: Any = conversation.tools) -> str:
            return template(messages, tools, generation_prompt)

        try:
            text = render(conversation.messages)
            self._check_written(conversation, text, render, where)
            spans = _spans(conversation.messages, conversation.learned, text, render, _before_first)
        except TemplateError as error:
            raise InputError(
                f"{where}: the chat template fails on this conversation: {error}", "mend the record or the template"
            ) from error
        wanted = sum(conversation.learned)
        if not wanted:
            self._notes.count(UNLEARNED)
            return None, text
        self._notes.count(UNTOLD, wanted - len(spans))
        return _tokens(self._tokenizer, self._pieces(text), spans, where), text

    def _template(self, tools: Any) -> ChatTemplate:
        try:
            source = self._tokenizer.get_chat_template(tools=tools)  # a tokenizer may have one for tools alone
        except ValueError as error:
            raise InputError(
                f"the model's tokenizer has no chat template for this: {told(error)}", "name one of them default"
            ) from error
        if source not in self._compiled:
            if "strftime_now" in source:
                self._notes.say(f"the chat template writes the day: {self._day}, in this run, on all days")
            self._compiled[source] = ChatTemplate(source, self._day, dict(self._tokenizer.special_tokens_map))
        return self._compiled[source]

    def _check_written(self, conversation: Conversation, text: str, render: Callable[..., str], where: str) -> None:
        """Raises: InputError: the text would be the same without the tools, calls, thoughts or somebody's words."""
        messages = conversation.messages

        def same(changed: list[Message], tools: Any = conversation.tools) -> bool:
            try:
                return render(changed, tools=tools) == text
            except TemplateError:
                return False  # what it fails without, it reads

        if conversation.tools and same(messages, tools=None):
            _left_out(where, "tools")
        for names in (("tool_calls",), REASONING):
            without = _without(messages, names)
            if without != messages and same(without):
                _left_out(where, names[0])
        for number, message in enumerate(messages):
            if message["content"].strip() in text:
                continue
            if message["role"] == "assistant":
                self._notes.count(REWRITTEN)  # thoughts are left out of earlier answers, say
                continue
            if same([*messages[:number], message | {"content": "potluck"}, *messages[number + 1 :]]):
                _left_out(where, f"what {message['role']} says in message {number + 1}")
        for name in sorted({name for m in messages for name in m} - _OWN_FIELDS - self._seen):
            self._seen.add(name)
            if same(_without(messages, (name,))):
                self._notes.unused([f"{name} (of messages)"])


def _without(messages: list[Message], names: tuple[str, ...]) -> list[Message]:
    return [{name: part for name, part in message.items() if name not in names} for message in messages]


def _left_out(where: str, what: str) -> NoReturn:
    raise InputError(
        f"{where}: the model's chat template leaves out {what}",
        "use a model whose template writes it, or take it out of the record",
    )


def _check_template(tokenizer: Any) -> None:
    if not tokenizer.chat_template:
        raise InputError(
            "the model's tokenizer has no chat template", "use data.kind jsonl or text, or an instruct model"
        )


def _spans(
    messages: list[Message],
    learned: list[bool],
    text: str,
    render: Callable[..., str],
    before_first: Callable[[Message, str, Callable[..., str]], str],
) -> list[tuple[int, int]]:
    """Where in the text the answers stand that are learned and can be told apart."""
    spans = []
    for index, wanted in enumerate(learned):
        if not wanted:
            continue
        through = render(messages[: index + 1])
        # some templates refuse to render nothing
        before = render(messages[:index], True) if index else before_first(messages[0], through, render)
        if through.startswith(before) and text.startswith(through):
            spans.append((len(before), len(through)))
    return spans


def _before_first(message: Message, through: str, render: Callable[..., str]) -> str:
    """What stands before an answer that begins the conversation: as much as another answer would have before it."""
    other = render([message | {"content": "*" if message["content"][:1] == "#" else "#"}])
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(through, other, strict=False))
    return "".join(character for character, _ in same)


def _tokens(tokenizer: Any, pieces: Iterable[str], spans: list[tuple[int, int]], where: str) -> Encoded:
    if not spans:
        raise InputError(f"{where}: no assistant answer can be told apart in what the chat template renders")
    found: list[Encoded] = []
    done = 0  # characters
    for piece in pieces:
        end = done + len(piece)
        here = [(low - done, high - done) for low, high in spans if low < end and high > done]
        found.append(_piece_tokens(tokenizer, piece, here, where))
        done = end
    tokens, loss = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return tokens, loss


def _piece_tokens(tokenizer: Any, text: str, spans: list[tuple[int, int]], where: str) -> Encoded:
    try:
        encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    except Exception as error:  # what tokenizers raises where a model has no token for a character; nothing narrower
        raise InputError(f"{where}: the model's tokenizer has no tokens for this: {told(error)}") from error
    loss = np.zeros(len(encoding.ids), dtype=bool)
    starts, ends = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
    for low, high in spans:
        # a token that holds the last of the prompt and the first of the answer too
        loss |= (ends > low) & (starts < high)
    return np.asarray(encoding.ids, dtype=np.int32), loss


# ---- rules 1 ---------------------------------------------------------------------------------------------------------


def messages_of(value: dict[str, Any], where: str) -> list[Message]:
    """One record, in any of the three shapes, as a list of role and content; further fields are left out.

    Raises:
        InputError: none of the shapes, or no assistant message; `where` names the line.
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
        raise InputError(f"{where}: {SHAPES}, got the keys {named(sorted(value))}")
    if not any(m["role"] == "assistant" and m["content"] for m in messages):
        raise InputError(f"{where}: no assistant message to learn from")
    return messages


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        raise InputError(f"{where}: expected a list of 1 to {MAX_MESSAGES} messages")
    return value


def _message(item: Any, role_key: str, content_key: str, where: str) -> Message:
    if not isinstance(item, dict):
        raise InputError(f"{where}: {SHAPES}")
    role, content = item.get(role_key), item.get(content_key)
    if not isinstance(role, str) or not isinstance(content, str):
        raise InputError(f"{where}: expected strings in {role_key!r} and {content_key!r} of each message")
    return {"role": role, "content": content}


def encode_by_transformers(tokenizer: Any, messages: list[Message], where: str) -> Encoded:
    """(tokens, loss mask) of one conversation, rendered by the transformers that is installed, on this day.

    Raises:
        InputError: the tokenizer has no chat template, the template refuses the conversation, or no answer can be
            found in what it renders.
    """
    _check_template(tokenizer)

    def render(messages: list[Message], generation_prompt: bool = False) -> str:
        try:
            text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
            text.encode()
        except Exception as error:  # a template is code from outside: its errors are of any kind
            raise InputError(f"{where}: the chat template fails on this conversation: {told(error)}") from error
        return text

    text = render(messages)
    learned = [m["role"] == "assistant" and bool(m["content"]) for m in messages]
    return _tokens(tokenizer, [text], _spans(messages, learned, text, render, lambda *_: ""), where)
