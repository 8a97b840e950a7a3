"""The run's model on the host: loads a received state and evaluates it, and saves one without loading it.

Everything is loaded when first needed, in the thread that asks: for genesis the first start's, then the publisher's.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from coordinator.run_config import HostConfig
from coordinator.uploads import PARAMETERS
from peer.training.data import Dataset, load_dataset
from peer.training.dataset.shard_folder import ShardFolder
from peer.training.dataset.sharded import prepared_dataset
from peer.training.device import is_out_of_memory, let_go_of_memory, why_unusable
from peer.training.evaluate import held_out_loss
from peer.training.loading import load_tokenizer
from peer.training.model import TrainableModel, load_trainable
from peer.training.packed import keeps_apart
from peer.training.quiet import no_progress_bars
from peer.training.replay import Revealed, replay
from peer.training.tensor_file import read_pieces, write_pieces
from peer.training.vectors import is_finite
from protocol import disk
from protocol.checkpoint import INFO, LEDGER_HEAD, Evaluation
from protocol.data_spec import PinnedDataSet
from protocol.errors import InputError, VerificationError
from protocol.run_spec import Audit, RunSpec
from protocol.safetensors_file import ADAPTER_FILE, FULL_FILE, Weights
from protocol.state import StateManifest

_NOT_OF_THE_MODEL = ("*.safetensors*", INFO, LEDGER_HEAD.partition("/")[0])  # of a checkpoint's files


def check_evaluation(own: HostConfig) -> None:
    """Look at a host's own choices before anything is built. Raises: InputError: they do not work here."""
    if not own.measures:
        if not own.evaluators:
            raise InputError(
                'evaluate_on = "none": nobody would measure the held-out loss',
                "name members that do: evaluators, under [host] in run.toml",
            )
        return
    if why := why_unusable(own.evaluate_on):
        raise InputError(f"evaluate_on = {own.evaluate_on}: {why}", "use cpu, cuda, cuda:1 or mps")


def check_audits(own: HostConfig, audit: Audit) -> None:
    """The same of where claims are replayed. Raises: InputError."""
    if audit.share and (why := why_unusable(own.auditing_device)):
        raise InputError(f"audit_on = {own.auditing_device}: {why}", "use cpu, cuda, cuda:1 or mps")


class Evaluator:
    """Evaluates states of one run, one at a time.

    Args:
        genesis_model: the `model/` folder of the genesis.
        base_model: LoRA: the base model's folder.
        data: the run's data file, or the folder of its prepared data.
        dataset: what it holds, if it was read before.
        device: where to evaluate.
    """

    def __init__(
        self,
        spec: RunSpec,
        genesis_model: Path,
        base_model: Path | None,
        data: Path,
        dataset: Dataset | None = None,
        device: str = "cpu",
    ) -> None:
        self.spec, self.base_model, self.data = spec, base_model, data
        self.genesis_model, self._device = genesis_model, device
        self._model: TrainableModel | None = None
        self._dataset = dataset
        self._fits = False  # whether the model was found to take all of it

    def another(self, device: str) -> Evaluator:
        """One more of the same run, with a model of its own."""
        return Evaluator(self.spec, self.genesis_model, self.base_model, self.data, None, device)

    @property
    def dataset(self) -> Dataset:
        """What the data file holds, read when first needed. Raises: InputError: it cannot be read."""
        if self._dataset is None:
            if isinstance(self.spec.data, PinnedDataSet):
                shards = ShardFolder(self.data)
                self._dataset = prepared_dataset(self.spec, shards.manifest, shards, self._loaded().rows)
            else:
                self._dataset = load_dataset(self.spec, load_tokenizer(self.genesis_model), self.data)
        return self._dataset

    def keeps_apart(self) -> bool:
        """Whether the model keeps documents apart that share a sequence."""
        return keeps_apart(self._loaded().model, self.spec.data.sequence_length)

    def check_finite(self, state_folder: Path) -> None:
        """Look at the parameters of a state that `uploads.StateInbox` received and checked, a piece at a time.

        Raises: VerificationError: values that are not finite.
        """
        if not all(map(is_finite, _pieces(state_folder))):
            raise VerificationError("the agreed state holds values that are not finite")

    def load(self, state_folder: Path) -> None:
        """Take over such parameters, a piece at a time.

        Raises:
            FormatError: not the run's.
            InputError: the device's memory is not enough.
        """
        with self._enough_memory():
            self._loaded().write_pieces(_pieces(state_folder))

    def let_go(self) -> None:
        """Give back the memory of the model; it is loaded again when it is needed."""
        self._model = None
        let_go_of_memory(torch.device(self._device))

    def evaluate(self) -> Evaluation:
        """The loss on the held-out split, of the parameters loaded last (genesis if none).

        Raises:
            VerificationError: it is not finite.
            InputError: the data cannot be read, or hold tokens or sequences that the model has no place for; or the
                device's memory is not enough.
        """
        with self._enough_memory():
            model = self._loaded()
            if not self._fits:
                model.check_fits(self.dataset)
                self._fits = True
            result = held_out_loss(model, self.dataset)
        if not math.isfinite(result.loss):
            raise VerificationError(f"the held-out loss is {result.loss}")
        return Evaluation(held_out_loss=result.loss, sequences=result.sequences, tokens=result.tokens)

    def replay(self, revealed: Revealed, is_over: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """As `peer.training.replay.replay`. Raises: FormatError: as that; InputError: it cannot be replayed here."""
        with self._enough_memory():
            return replay(self._loaded(), self.dataset, self.spec, revealed, is_over)

    def save(self, manifest: StateManifest, state_folder: Path, folder: Path) -> None:
        """Write such a state as a folder that transformers (peft for LoRA) loads: the genesis' files, other weights.

        Raises: InputError: the disk is full, or holds other bytes than were written.
        """
        with disk.writing(folder):
            shutil.copytree(self.genesis_model, folder, ignore=shutil.ignore_patterns(*_NOT_OF_THE_MODEL))
            file = folder / (ADAPTER_FILE if self.spec.method.kind == "lora" else FULL_FILE)
            write_pieces(file, manifest.tensors, _pieces(state_folder))
        if Weights.open(folder, [file.name]).state_root() != manifest.parameters:
            raise InputError(f"{file}: not the weights of the state", "look after the disk; it is tried again")

    @contextlib.contextmanager
    def _enough_memory(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                f"evaluating on {self._device}: its memory is not enough",
                "choose another device, evaluate_on in run.toml, or a member that measures instead: evaluators",
            ) from error

    def _loaded(self) -> TrainableModel:
        if self._model is None:
            with no_progress_bars():
                self._model = load_trainable(self.spec, self.genesis_model, self.base_model, self._device)
        return self._model


def _pieces(state_folder: Path) -> Iterator[torch.Tensor]:
    """The parameters in 4 MiB; each piece is overwritten by the next."""
    path = state_folder / PARAMETERS
    return read_pieces(path, 0, path.stat().st_size // 4)
