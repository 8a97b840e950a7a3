"""What the manifest says is predicted is what members and evaluation predict, and no sequence is without any of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.preparing import LENGTH, prepared, rules, sequences, shard, source, write_records
from tests.test_prepare import texts


@pytest.mark.parametrize("apart", [True, False])
def test_the_manifest_counts_the_tokens_that_evaluation_and_members_count(tmp_path: Path, apart: bool) -> None:
    write_records(tmp_path / "wood.jsonl", texts(200))
    made = prepared(tmp_path, source(), sequences=rules(documents_apart=apart))
    for entry in (*made.manifest.shards, made.manifest.held_out):
        assert entry.loss_tokens == shard(tmp_path / "data", entry, apart=apart).loss_tokens.sum()


def test_no_sequence_is_prepared_that_holds_only_first_tokens_of_documents(tmp_path: Path) -> None:
    # "</s>" is a document of one token
    write_records(tmp_path / "wood.jsonl", [text for one in texts(30) for text in (one, *["</s>"] * 3 * LENGTH)])
    made = prepared(tmp_path, source(), sequences=rules(documents_apart=True), chunk_bytes=1 << 20)
    for entry in (*made.manifest.shards, made.manifest.held_out):
        assert shard(tmp_path / "data", entry, apart=True).loss_tokens.min() > 0
    kept = sum(len(row) for row in sequences(tmp_path / "data", made.manifest.shards))
    assert kept < 0.6 * made.progress.tokens, "what holds nothing else is left out"
