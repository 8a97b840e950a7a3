"""Finds text of the held-out split that is trained on, too: copies but for case and white space, parts of documents.

Both sides are compared by windows of 64 bytes of their normal form, about the 13 words by which Brown et al. 2020
(arXiv:2005.14165, appendix C) look for what a model has seen. The held-out windows are held as hashes, a bounded number
of them; the training side goes past them once. Only tokens that are learned count, so a system message that all chats
share is no repetition.

A held-out sequence is repeated when a window of it is trained on that is apart from what more than a quarter of the
held-out sequences have (a prompt that stands in all records); or when all of its windows are trained on.

>>> normal_form("When  EVERYONE brings\\nwood") == normal_form("when everyone brings wood")
True
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np

WINDOW_BYTES = 64  # a power of two
MAX_WINDOWS = 1 << 22  # that are held: 32 MiB of hashes
_TOKEN_BYTES = 4  # about; of text
CHUNK_TOKENS = 1 << 18
_SIEVE_BITS = 22
_COMMON_SHARE, _COMMON_SEQUENCES = 0.25, 3

# letters with one small form each in every version of Unicode since 6, and all white space: the same on every Python
_LETTERS = [
    *range(0x41, 0x5B), *range(0xC0, 0x527), *range(0x531, 0x557), *range(0x1E00, 0x2000), *range(0xFF21, 0xFF3B),
]  # fmt: skip
_SPACES = [
    *range(9, 14), *range(28, 33), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200E), 0x2028, 0x2029, 0x202F, 0x205F, 0x2060,
    0x3000, 0xFEFF,
]  # fmt: skip
_NORMAL: dict[int, str | None] = {
    letter: chr(letter).lower() for letter in _LETTERS if len(chr(letter).lower()) == 1
} | dict.fromkeys(_SPACES)
_ASCII_SPACES = bytes(space for space in _SPACES if space < 128)


class Tokens(Protocol):
    """What of `data.Sequences` is looked at."""

    @property
    def tokens_ST(self) -> Any: ...

    @property
    def loss_ST(self) -> Any: ...

    def __len__(self) -> int: ...


def normal_form(text: str) -> bytes:
    """The text in small letters and without white space, as UTF-8."""
    if text.isascii():  # the same, several times as fast
        return text.encode().lower().translate(None, _ASCII_SPACES)
    return text.translate(_NORMAL).encode("utf-8", "surrogatepass")


def repeated(held_out: Tokens, train: Tokens, tokenizer: Any, *, chunk_tokens: int = CHUNK_TOKENS) -> np.ndarray:
    """Which of the held-out sequences hold text that is trained on, bool, one for each.

    Args:
        tokenizer: gives the tokens' texts.
        chunk_tokens: of the training side that are looked at together.
    """
    spelled = _Spelling(tokenizer)
    windows = int(held_out.loss_ST.sum()) * _TOKEN_BYTES
    # a window is held when its hash has no bit of these
    every = np.uint64((1 << (windows // MAX_WINDOWS).bit_length()) - 1)
    hashes, starts = [], []
    for row in range(len(held_out)):
        found = _windows(spelled.bytes_of(_learned(held_out, row, row + 1)))
        starts.append(np.flatnonzero(found & every == 0))
        hashes.append(found[starts[-1]])
    known = np.unique(np.concatenate([*hashes, np.zeros(0, np.uint64)]))
    if not len(known):
        return np.zeros(len(held_out), dtype=bool)
    own = [np.searchsorted(known, found) for found in hashes]
    sequences = np.bincount(np.concatenate([np.unique(places) for places in own]), minlength=len(known))
    common = sequences > max(_COMMON_SEQUENCES, _COMMON_SHARE * len(held_out))
    trained = _seen(known, _stream(train, spelled, chunk_tokens), every)
    return np.array(
        [_is_repeated(trained[places], common[places], start) for places, start in zip(own, starts, strict=True)],
        dtype=bool,
    )


def _is_repeated(trained: np.ndarray, common: np.ndarray, starts: np.ndarray) -> bool:
    """By the windows of one sequence: which are trained on, which are common, and where they start (ascending)."""
    if not len(starts):
        return False
    # how many common windows share a byte with each
    first, last = (np.searchsorted(starts, starts + end) for end in (1 - WINDOW_BYTES, WINDOW_BYTES))
    before = np.concatenate([[0], np.cumsum(common)])
    apart = before[last] == before[first]
    return bool((trained & apart).any() or trained.all())


def _seen(known: np.ndarray, windows: Iterable[np.ndarray], every: np.uint64) -> np.ndarray:
    """Which of the known windows are among others."""
    sieve = np.zeros(1 << _SIEVE_BITS, dtype=bool)  # most windows are known to be none of them at one look
    shift = np.uint64(64 - _SIEVE_BITS)
    sieve[known >> shift] = True
    seen = np.zeros(len(known), dtype=bool)
    for hashes in windows:
        hashes = hashes[sieve[hashes >> shift]]
        hashes = hashes[hashes & every == 0]
        places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        seen[places[known[places] == hashes]] = True
    return seen


def _stream(train: Tokens, spelled: _Spelling, chunk_tokens: int) -> Iterator[np.ndarray]:
    """The hashes of all windows of the training side, some rows at a time."""
    rows = max(1, chunk_tokens // train.tokens_ST.shape[1])
    tail = np.zeros(0, dtype=np.uint8)
    for start in range(0, len(train), rows):
        text = np.concatenate([tail, spelled.bytes_of(_learned(train, start, start + rows))])
        yield _windows(text)
        tail = text[-(WINDOW_BYTES - 1) :]


def _learned(sequences: Tokens, start: int, stop: int) -> np.ndarray:
    tokens: np.ndarray = sequences.tokens_ST[start:stop][sequences.loss_ST[start:stop]].numpy()
    return tokens


class _Spelling:
    """Each token's text in normal form; special tokens have none."""

    def __init__(self, tokenizer: Any) -> None:
        backend = tokenizer.backend_tokenizer
        size = backend.get_vocab_size(with_added_tokens=True)
        texts = backend.decode_batch([[token] for token in range(size)], skip_special_tokens=True)
        # a part of a character stands for itself
        spelled = [normal_form(text) if "\ufffd" not in text else b"\xff%d" % token for token, text in enumerate(texts)]
        self._lengths = np.array([len(text) for text in spelled] + [0], dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._lengths)[:-1]])
        self._all = np.frombuffer(b"".join(spelled), dtype=np.uint8)

    def bytes_of(self, tokens: np.ndarray) -> np.ndarray:
        """The text of the tokens, one after the other, uint8."""
        tokens = np.minimum(tokens, len(self._lengths) - 1)  # a token that the tokenizer does not know has no text
        lengths = self._lengths[tokens]
        ends = np.cumsum(lengths)
        shift = np.repeat(self._starts[tokens] - ends + lengths, lengths)
        found: np.ndarray = self._all[shift + np.arange(len(shift))]
        return found


def _windows(text: np.ndarray) -> np.ndarray:
    """A 64-bit hash of every window of the text, uint64: a polynomial in an odd number, built by doubling it."""
    hashes = _BYTES[text]
    width, factor = 1, 0x9E3779B97F4A7C15
    while width < WINDOW_BYTES:
        hashes = hashes[:-width] * np.uint64(factor) + hashes[width:]
        width, factor = 2 * width, factor * factor % 2**64
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(0xD6E8FEB86659FD93)
    return hashes ^ (hashes >> np.uint64(29))


_BYTES = np.random.default_rng(17).integers(
    0, 2**64, 256, dtype=np.uint64
)  # never stored or sent: only equality counts
