"""Digests: lower-case hex SHA-256, 64 characters. What is signed names everything else by one of them.

>>> from pydantic import TypeAdapter
>>> TypeAdapter(Digest).validate_python("ab" * 32) == "ab" * 32
True
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # 32 bytes
Digest = Hex64  # the SHA-256 of something
