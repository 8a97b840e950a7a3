"""Sections of `scripts/gpu-check` in which something goes wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from scripts.gpu_check.given import Given
from scripts.gpu_check.tables import Row


def goes_well(given: Given) -> Iterator[Row]:
    yield Row("one", {"s": 1.0})


def raises(given: Given) -> Iterator[Row]:
    yield Row("one", {"s": 1.0})
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more lines")


def dies(given: Given) -> Iterator[Row]:
    yield Row("one", {"s": 1.0})
    os._exit(9)


def hangs(given: Given) -> Iterator[Row]:
    yield Row("one", {"s": 1.0})
    while True:
        time.sleep(60)
