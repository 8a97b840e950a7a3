"""What tests and scripts stand on: communities of real processes."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
