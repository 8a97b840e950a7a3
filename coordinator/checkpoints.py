"""Writes and signs checkpoints and enters them in the ledger; a kill at any point leaves nothing half done. `publisher`
and `host` call it.

    1. the folder is written under a name that is no checkpoint's, signed, and made to last
    2. its entry, its row and the new ledger head go into the store in one transaction
    3. the log proof is added and the folder gets its name

A kill before 2 leaves a folder that the next start throws away; a kill after 2 one that the next start finishes.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator import model_card
from coordinator.ledger import Ledger
from coordinator.run_folder import RunFolder, move_into_place, sync_tree
from coordinator.store.database import RESTORE, Tables
from coordinator.store.rows import CheckpointRow, EvaluationRow
from protocol import canonical, checkpoint, disk
from protocol.checkpoint import CheckpointInfo, Contributor, Evaluation, step_name
from protocol.disk import write_file
from protocol.errors import FormatError, InputError, VerificationError
from protocol.keys import RootKey
from protocol.run_card import MAX_RUN_CARD_BYTES, RunCard
from protocol.state import StateManifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parent:
    """The newest published checkpoint."""

    round: int
    payload: str  # payload digest
    held_out_loss: float | None
    folder: Path


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: the run's.
        ledger: of the run.
        card: and its signed bytes.
        root: signs.
    """

    def __init__(self, folder: RunFolder, ledger: Ledger, card: RunCard, card_bytes: bytes, root: RootKey) -> None:
        self._folder, self._card, self._root = folder, card, root
        self._ledger, self._store = ledger, ledger.store
        self._card_json: dict[str, Any] = canonical.loads(card_bytes, max_bytes=MAX_RUN_CARD_BYTES)

    def parent(self) -> Parent | None:
        """The newest published checkpoint; None before genesis."""
        with self._store.reading() as tables:
            newest = tables.checkpoints.published(most=1)
        if not newest:
            return None
        row = newest[0]
        return Parent(row.round, row.payload, row.held_out_loss, self._folder.path / row.folder)

    def publish(self, manifest: StateManifest, evaluation: Evaluation, save_model: Callable[[Path], None]) -> Path:
        """Write, sign and enter the checkpoint of a committed round, or of genesis; returns its folder.

        Args:
            manifest: of the state whose parameters `save_model` writes into the folder it is given.

        Raises:
            InputError: the disk is full, or the model cannot be written.
        """
        final = self._folder.checkpoints / step_name(manifest.round)
        draft = self._draft(manifest.round)
        shutil.rmtree(draft, ignore_errors=True)
        parent = self.parent()
        with contextlib.ExitStack() as failed:
            failed.callback(shutil.rmtree, draft, ignore_errors=True)
            failed.enter_context(disk.writing(draft))
            self._write_rounds(manifest.round)
            save_model(draft / checkpoint.MODEL)
            self._write_words(draft, manifest, evaluation, parent)
            payload = checkpoint.sign_checkpoint(draft, self._root)
            sync_tree(draft)
            failed.pop_all()
        entry = checkpoint.entry(draft)
        now = time.time()
        with self._ledger.writing() as write:
            leaf = write.leaf(entry)
            write.tables.checkpoints.decide(
                CheckpointRow(
                    round=manifest.round,
                    state=manifest.digest,
                    held_out_loss=evaluation.held_out_loss,
                    published=True,
                    reason="",
                    folder=f"{self._folder.checkpoints.name}/{final.name}",
                    payload=payload,
                    leaf=leaf,
                    time=now,
                )
            )
            _put(write.tables, manifest.round, evaluation, now)
        self._finish(draft, final, leaf)
        return final

    def hold_back(self, round_number: int, state: str, evaluation: Evaluation | None, reason: str) -> None:
        """Note that a round's state is not published; `evaluation` is None if there could be none."""
        now = time.time()
        with self._store.writing() as tables:
            tables.checkpoints.decide(
                CheckpointRow(
                    round=round_number,
                    state=state,
                    held_out_loss=evaluation.held_out_loss if evaluation else None,
                    published=False,
                    reason=reason,
                    folder="",
                    payload="",
                    leaf=None,
                    time=now,
                )
            )
            if evaluation is not None:
                _put(tables, round_number, evaluation, now)

    def recover(self) -> None:
        """Finish what a kill interrupted.

        Raises:
            InputError: a checkpoint that stands in the ledger is gone, or is not the one that was entered.
        """
        with self._store.reading() as tables:
            rows = tables.checkpoints.published()
        needed = {
            0,
            max((row.round for row in rows), default=0),
        }  # genesis is served, the newest is the next one's parent
        for row in rows:
            final, draft = self._folder.path / row.folder, self._draft(row.round)
            if final.is_dir() or row.leaf is None:
                continue
            if _is_payload(draft, row.payload):
                logger.info("finishing the checkpoint of round %d", row.round)
                self._finish(draft, final, row.leaf)
            elif row.round in needed:
                raise InputError(
                    f"{final}: this checkpoint stands in the ledger, and its folder is gone",
                    RESTORE,
                )
        for draft in self._folder.checkpoints.glob(".*.draft"):
            shutil.rmtree(draft, ignore_errors=True)
        if rows:  # whoever verifies needs them all
            self._write_rounds(max(row.round for row in rows))

    def contributors(self, up_to_round: int) -> tuple[Contributor, ...]:
        """Everyone's granted work from genesis up to a round, by peer id."""
        with self._store.reading() as tables:
            found = tables.credits.until(up_to_round)
        return tuple(
            Contributor(peer_id=item.peer_id, tokens=item.tokens, flops=min(item.flops, 2**53 - 1), rounds=item.rounds)
            for item in found
        )

    def _draft(self, round_number: int) -> Path:
        return self._folder.checkpoints / f".{step_name(round_number)}.draft"

    def _write_words(self, draft: Path, manifest: StateManifest, evaluation: Evaluation, parent: Parent | None) -> None:
        contributors = self.contributors(manifest.round)
        ledger_state, head_note = self._ledger.state_after(
            checkpoint.read_info(parent.folder).ledger if parent else None
        )
        model = draft / checkpoint.MODEL
        words = model_card.readme(
            self._card,
            round_number=manifest.round,
            evaluation=evaluation,
            measured_by=evaluation.check_measured(self._card.run, manifest.round, manifest.digest),
            genesis_loss=self._genesis_loss() if parent else None,
            contributors=contributors,
            parent=parent.payload if parent else None,
            fingerprint=self._root.keyid,
        )
        (model / "README.md").write_text(words, encoding="utf-8")
        (model / "LICENSE").write_text(model_card.license_text(self._card), encoding="utf-8")
        for path in sorted(self._folder.licenses.glob("*")):
            shutil.copyfile(path, model / f"base-model-{path.name}")
        info = CheckpointInfo(
            run=self._card.run,
            run_card=self._card_json,
            root_public_key=checkpoint.root_pem(self._root),
            round=manifest.round,
            parent=parent.payload if parent else None,
            state=manifest,
            agreement=self._agreement_json(manifest.round) if manifest.round else None,
            evaluation=evaluation,
            contributors=contributors,
            ledger=ledger_state,
        )
        checkpoint.write_info(draft, info, head_note)

    def _write_rounds(self, up_to_round: int) -> None:
        """Put the agreements of all rounds so far beside the checkpoints, for those who check the history."""
        folder = self._folder.checkpoints / checkpoint.ROUNDS
        for number in range(1, up_to_round + 1):
            path = folder / checkpoint.round_name(number)
            if not path.is_file():
                write_file(path, self._agreement(number))

    def _finish(self, draft: Path, final: Path, leaf: int) -> None:
        with disk.writing(draft):
            checkpoint.write_log_proof(draft, self._ledger.proof(leaf))
            sync_tree(draft)
            move_into_place(draft, final)

    def _agreement(self, round_number: int) -> bytes:
        """The agreement of a committed round."""
        with self._store.reading() as tables:
            data = tables.rounds.agreement(round_number)
        assert data is not None, "only committed rounds are published"
        return data

    def _agreement_json(self, round_number: int) -> dict[str, Any]:
        data = self._agreement(round_number)
        value: dict[str, Any] = canonical.loads(data, max_bytes=len(data))
        return value

    def _genesis_loss(self) -> float | None:
        with self._store.reading() as tables:
            return tables.evaluations.loss_of(0)


def _put(tables: Tables, round_number: int, evaluation: Evaluation, now: float) -> None:
    """Enter an evaluation."""
    tokens = tables.rounds.tokens_until(round_number)
    tables.evaluations.put(
        EvaluationRow(round=round_number, held_out_loss=evaluation.held_out_loss, tokens=tokens, time=now)
    )


def _is_payload(draft: Path, payload: str) -> bool:
    try:
        return checkpoint.payload_digest(draft) == payload
    except (FormatError, VerificationError):
        return False
