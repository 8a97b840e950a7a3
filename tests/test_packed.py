"""Documents that share a sequence: what a model says of each, and learns from it, is as of the document alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from peer.training.dataset.shard import Shard
from peer.training.dataset.sharded import ShardedSequences, prepared_dataset
from peer.training.evaluate import held_out_loss
from peer.training.loading import load_causal_lm, load_tokenizer
from peer.training.model import TrainableModel, full_parameters
from peer.training.packed import keeps_apart
from protocol.data_manifest import DataManifest, ShardEntry, SourceEntry
from protocol.data_spec import PinnedDataSet, SourceRules
from protocol.errors import FormatError, InputError
from tests.kit.architectures import ARCHITECTURES, write_model
from tests.kit.builders import make_spec

LENGTH = 32
APART = {"llama", "qwen3", "gemma2", "gemma3_text", "gpt2", "mistral", "mixtral", "falcon"}
JOINED = {"mamba", "mamba2", "gpt_oss", "opt", "bloom"}
SLIDING = {"mistral", "gemma3_text", "gemma2"}  # here the window is shorter than a document
DOCUMENTS = [[11, 3, 200, 45, 7], list(range(20, 37)), [5, 6], [9] * 3, list(range(100, 137))]  # 64 tokens


def model_of(kind: str, folder: Path) -> TrainableModel:
    architecture = next(item for item in ARCHITECTURES if item.kind == kind)
    changes = {"sliding_window": 4} if kind in SLIDING else {}
    write_model(folder, architecture.config(**changes))
    model = load_causal_lm(folder)
    return TrainableModel(model, full_parameters(model), load_tokenizer(folder))


def shard_of(documents: list[list[int]], *, length: int = LENGTH) -> Shard:
    """Documents one after the other, in sequences of one length; the last may be shorter."""
    tokens = np.concatenate([np.array(document, dtype=np.uint16) for document in documents])
    ends = np.append(np.arange(length, len(tokens), length), len(tokens)).astype(np.uint32)
    begins = np.cumsum([0, *map(len, documents[:-1])]).astype(np.uint32)
    return Shard(tokens, ends, np.ones(len(tokens), dtype=bool), begins)


class InMemory:
    def __init__(self, *shards: Shard) -> None:
        self.files = {shard.entry(data).digest: data for shard in shards for data in [shard.to_bytes()]}

    def read(self, entry: ShardEntry) -> bytes:
        return self.files[entry.digest]

    def has(self, entry: ShardEntry) -> bool:
        return entry.digest in self.files

    def want(self, entries: object) -> None: ...


def data_of(shard: Shard, *, apart: bool) -> tuple[DataManifest, PinnedDataSet]:
    entry = shard.entry(shard.to_bytes())
    manifest = DataManifest(LENGTH, "a" * 64, (SourceEntry("a", (entry,)),), entry)
    rules = {"sources": [SourceRules(name="a", license="MIT")], "digest": "b" * 64, "size_bytes": 1}
    return manifest, PinnedDataSet(**rules, sequence_length=LENGTH, documents_apart=apart)  # type: ignore[arg-type]


def sequences_of(shard: Shard, *, apart: bool = True) -> ShardedSequences:
    manifest, data = data_of(shard, apart=apart)
    return ShardedSequences(manifest, data, 0, InMemory(shard), 283)


def alone(documents: list[list[int]]) -> list[list[int]]:
    """Documents as sequences hold them: what goes on in the next sequence begins there anew."""
    parts, place = [], 0
    for document in documents:
        while document:
            part, document = document[: LENGTH - place % LENGTH], document[LENGTH - place % LENGTH :]
            place += len(part)
            parts.append(part)
    return parts


def gradient_alone(model: TrainableModel, documents: list[list[int]]) -> tuple[float, torch.Tensor]:
    """Summed loss and gradient of documents, each in a pass of its own."""
    model.gradient_N.zero_()
    losses = []
    for document in documents:
        if len(document) > 1:
            loss = model.loss(torch.tensor([document]), torch.tensor([document]))
            loss.backward()
            losses.append(loss.item())
    return sum(losses), model.gradient_N.clone()


@pytest.mark.parametrize("kind", sorted(APART))
def test_what_is_learned_from_documents_in_a_sequence_is_what_each_alone_teaches(kind: str, tmp_path: Path) -> None:
    model, data = model_of(kind, tmp_path), sequences_of(shard_of(DOCUMENTS))
    assert keeps_apart(model.model)
    loss, gradient_N = gradient_alone(model, alone(DOCUMENTS))
    model.gradient_N.zero_()
    rows = [data.example(), data.example()._replace(row=1)]
    packed = model.loss(*data.batch(rows))
    packed.backward()
    assert packed.item() == pytest.approx(loss, rel=1e-5)
    assert torch.allclose(model.gradient_N, gradient_N, rtol=1e-3, atol=1e-5 * float(gradient_N.abs().max()))
    assert data.counts(rows)[0] == sum(len(part) - 1 for part in alone(DOCUMENTS))

    model.gradient_N.zero_()
    model.loss(*sequences_of(shard_of(DOCUMENTS), apart=False).batch(rows)).backward()
    assert not torch.allclose(model.gradient_N, gradient_N, rtol=0.1, atol=0.1 * float(gradient_N.abs().max()))


@pytest.mark.parametrize("kind", sorted(JOINED))
def test_a_model_that_carries_on_what_it_has_read_is_found_out(kind: str, tmp_path: Path) -> None:
    model = model_of(kind, tmp_path)
    assert not keeps_apart(model.model)
    with pytest.raises(InputError, match="here the model lets them") as caught:
        model.check_fits(prepared(apart=True))
    assert caught.value.hint.startswith("update transformers")
    model.check_fits(prepared(apart=False))


def prepared(*, apart: bool) -> object:
    shard = shard_of(DOCUMENTS)
    manifest, data = data_of(shard, apart=apart)
    spec = make_spec().model_copy(update={"data": data})
    return prepared_dataset(spec, manifest, InMemory(shard), 283)


def test_the_held_out_loss_is_of_documents_apart(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path)
    loss, _ = gradient_alone(model, alone(DOCUMENTS))
    found = held_out_loss(model, prepared(apart=True))  # type: ignore[arg-type]
    assert found.tokens == sum(len(part) - 1 for part in alone(DOCUMENTS))
    assert found.loss == pytest.approx(loss / found.tokens, rel=1e-5)
    joined = held_out_loss(model, prepared(apart=False))  # type: ignore[arg-type]
    assert joined.tokens == 62 and joined.loss != pytest.approx(found.loss, rel=1e-5)


def test_padding_is_no_part_of_the_last_document_and_one_document_needs_no_mask() -> None:
    data = sequences_of(shard_of([[1, 2, 3], [4, 5], list(range(40, 80))]))
    short = data.example()._replace(row=1)
    tokens_BT, labels_BT, positions_BT = data.batch([data.example(), short])
    assert positions_BT[0].tolist() == [0, 1, 2, 0, 1, *range(27)]
    assert positions_BT[1].tolist() == [*range(13), *range(19)] and tokens_BT.shape == (2, 32)
    assert labels_BT[0, :6].tolist() == [-100, 2, 3, -100, 5, -100]
    assert len(data.batch([short])) == 2  # the kernels that need no mask are faster


def test_a_sequence_in_which_only_first_tokens_are_to_be_learned_is_refused() -> None:
    data = shard_of([[1], [2], [3]]).to_bytes()
    assert len(Shard.from_bytes(data, LENGTH, 283)) == 1
    with pytest.raises(FormatError, match="nothing to learn"):
        Shard.from_bytes(data, LENGTH, 283, apart=True)


def test_a_document_that_begins_behind_the_end_is_refused() -> None:
    made = shard_of(DOCUMENTS)
    made.documents[-1] = 64
    with pytest.raises(FormatError, match="behind its end"):
        Shard.from_bytes(made.to_bytes(), LENGTH, 283)
