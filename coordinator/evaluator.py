"""The run's model on the host: loads a received state, evaluates it, saves it. The one module here that uses torch.

Everything is loaded when first needed, in the thread that asks: for genesis the first start's, then the publisher's.
"""

from __future__ import annotations

import math
from pathlib import Path

from coordinator.uploads import PARAMETERS
from peer.training.data import Dataset, load_dataset
from peer.training.dataset.shard_folder import ShardFolder
from peer.training.dataset.sharded import prepared_dataset
from peer.training.evaluate import held_out_loss
from peer.training.loading import load_tokenizer
from peer.training.model import TrainableModel, load_trainable
from peer.training.packed import keeps_apart
from peer.training.quiet import no_progress_bars
from peer.training.tensor_file import read_pieces
from peer.training.vectors import is_finite
from protocol.checkpoint import Evaluation
from protocol.data_spec import PinnedDataSet
from protocol.errors import VerificationError
from protocol.run_spec import RunSpec


class Evaluator:
    """Evaluates states of one run, one at a time.

    Args:
        genesis_model: the `model/` folder of the genesis.
        base_model: LoRA: the base model's folder.
        data: the run's data file, or the folder of its prepared data.
        dataset: what it holds, if it was read before.
    """

    def __init__(
        self,
        spec: RunSpec,
        genesis_model: Path,
        base_model: Path | None,
        data: Path,
        dataset: Dataset | None = None,
    ) -> None:
        self.spec, self.base_model, self.data = spec, base_model, data
        self.genesis_model = genesis_model
        self._model: TrainableModel | None = None
        self._dataset = dataset
        self._fits = False  # whether the model was found to take all of it

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

    def load(self, state_folder: Path) -> None:
        """Take over the parameters of a state that `uploads.StateInbox` received and checked, a piece at a time.

        Raises:
            VerificationError: values that are not finite.
            FormatError: not the run's parameters.
        """
        path = state_folder / PARAMETERS
        values = path.stat().st_size // 4
        if not all(is_finite(piece) for piece in read_pieces(path, 0, values)):
            raise VerificationError("the agreed state holds values that are not finite")
        self._loaded().write_pieces(read_pieces(path, 0, values))

    def evaluate(self) -> Evaluation:
        """The loss on the held-out split, of the parameters loaded last (genesis if none).

        Raises:
            VerificationError: it is not finite.
            InputError: the data cannot be read, or hold tokens or sequences that the model has no place for.
        """
        model = self._loaded()
        if not self._fits:
            model.check_fits(self.dataset)
            self._fits = True
        result = held_out_loss(model, self.dataset)
        if not math.isfinite(result.loss):
            raise VerificationError(f"the held-out loss is {result.loss}")
        return Evaluation(held_out_loss=result.loss, sequences=result.sequences, tokens=result.tokens)

    def save(self, folder: Path) -> None:
        """Write the model as transformers (peft for LoRA) loads it. Raises: InputError."""
        with no_progress_bars():
            self._loaded().save_model(folder)

    def _loaded(self) -> TrainableModel:
        if self._model is None:
            with no_progress_bars():
                self._model = load_trainable(self.spec, self.genesis_model, self.base_model)
        return self._model
