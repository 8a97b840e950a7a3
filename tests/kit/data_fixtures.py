"""Small tokenizers and data files for the tests of how a file becomes tokens. All in memory, in milliseconds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lab.training_fixtures import make_config
from peer.training.data import Dataset, Sequences, build_dataset

SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOOLS = (  # writes tools, calls and thoughts, as templates of models with tool use do
    "{% if tools %}<|system|>{% for t in tools %}{{ t | tojson }}{% endfor %}<|end|>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}CALL{{ c.function | tojson }}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer(template: str | dict[str, str] | None = CHAT, front: str = "", back: str = "") -> Any:
    """A byte-level BPE; `front` and `back`: special tokens that its post-processor puts around a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["When everyone brings wood, the fire burns high."], trainer)
    if front or back:
        special = [(token, SPECIAL.index(token)) for token in {*front.split(), *back.split()}]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{front} $A {back}".strip(), special_tokens=special
        )
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    made.chat_template = template
    return made


def load(tokenizer: Any, path: Path, **data: Any) -> Dataset:
    """Read a file as a new run does, or with `rules=1` as an old one; one record a sequence."""
    return load_by_config(tokenizer, path, **{"packing": False, "held_out": 1e-9, "sequence_length": 512} | data)


def load_by_config(tokenizer: Any, path: Path, **data: Any) -> Dataset:
    """Read a file as the small runs of the tests do, but for these values of their section."""
    return build_dataset(make_config(path.parent, path, data=data).data, tokenizer, path)


def write_jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


def texts(tokenizer: Any, *splits: Sequences) -> list[str]:
    """Each sequence as text, special tokens included."""
    return [
        tokenizer.decode(row[:length].tolist())
        for split in splits
        for row, length in zip(split.tokens_ST, split.lengths, strict=True)
    ]


def learned(tokenizer: Any, *splits: Sequences) -> list[str]:
    """Of each sequence what carries loss."""
    return [
        tokenizer.decode(row[mask].tolist())
        for split in splits
        for row, mask in zip(split.tokens_ST, split.loss_ST, strict=True)
    ]


def chat(tokenizer: Any, path: Path, *records: Any, **data: Any) -> Dataset:
    """These chats, trained on; one of some others in the file is kept out."""
    for attempt in range(20):
        questions = [{"role": "user", "content": f"Who? {attempt}-{number}"} for number in range(30)]
        others = [{"messages": [question, {"role": "assistant", "content": "FILLER"}]} for question in questions]
        dataset = load(tokenizer, write_jsonl(path, [*records, *others]), **{"kind": "chat"} | data)
        if all("FILLER" in text for text in texts(tokenizer, dataset.held_out)):
            rows = [row for row, text in enumerate(texts(tokenizer, dataset.train)) if "FILLER" not in text]
            lengths = tuple(dataset.train.lengths[row] for row in rows)
            train = Sequences(dataset.train.tokens_ST[rows], dataset.train.loss_ST[rows], lengths)
            return Dataset(train, dataset.held_out, dataset._notes)
    raise AssertionError("one of these chats was always kept out")


def digest(split: Sequences) -> str:
    return hashlib.sha256(split.tokens_ST.numpy().tobytes() + split.loss_ST.numpy().tobytes()).hexdigest()


def rows(split: Sequences) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(split.tokens_ST, split.lengths, strict=True)]
