"""metrics.jsonl: a line for each round and each evaluation, for plots and tables made later. `host` writes it.

{"time": 1763769600.0, "event": "round", "round": 12, "tokens": 48000, "peers": 3}
{"time": 1763769601.0, "event": "evaluation", "round": 10, "held_out_loss": 3.21}
"""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

from coordinator.reports import CommittedRound
from protocol.checkpoint import Evaluation

logger = logging.getLogger(__name__)


class Metrics:
    """Appends to one file; a line that cannot be written is logged and left out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def round(self, item: CommittedRound) -> None:
        self._write({"event": "round", "round": item.round, "tokens": item.tokens, "peers": item.peers})

    def evaluation(self, round_number: int, evaluation: Evaluation) -> None:
        self._write({"event": "evaluation", "round": round_number, "held_out_loss": evaluation.held_out_loss})

    def _write(self, value: dict[str, Any]) -> None:
        line = json.dumps({"time": round(time.time(), 3), **value}) + "\n"
        try:
            with self._lock, self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            logger.warning("%s: cannot be written: %s", self._path, error.strerror)
