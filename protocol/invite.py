"""The invite: one copy-and-paste string that says where a run is and whom to believe.

potluck1.<base64url of a payload>.<first 8 hex digits of its SHA-256>

The payload is canonical JSON; in version 2 it stands after `TO_OLDER_ONES`. A Potluck of before, which would not
understand the members, stops at that part, which has a key twice, and prints the key. Later ones are told when they
announce themselves (`protocol.rpc.SWARM_VERSION`).

{"addresses":["203.0.113.7:4700"],"code":"…","root":"<fingerprint>","run":"<digest>","tls":"<certificate's SHA-256>"}

>>> invite = Invite(addresses=("127.0.0.1:4700",), run="a" * 64, tls="b" * 64, root="c" * 64)
>>> Invite.parse(str(invite)) == invite
True
>>> Invite.parse(str(invite)[:-1])
Traceback (most recent call last):
...
protocol.errors.FormatError: the invite is damaged: its check digits do not match
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol import canonical
from protocol.digests import Digest
from protocol.errors import FormatError

MAX_INVITE_CHARS = 4096
VERSION: Final = 2  # of invites that are written now
PREFIX = "potluck1."
# bytes of the format since: only Potlucks of before version 2 print it; on a package index "potluck" is not ours
_UPDATE = "this run needs a newer Potluck: git pull, or pip install -U potluck"
TO_OLDER_ONES = f'{{"{_UPDATE}":0,"{_UPDATE}":0}}'.encode()


class Invite(BaseModel):
    """Where a run is and whom to believe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    addresses: tuple[Annotated[str, Field(max_length=255, pattern=r"^\S+:\d{1,5}$")], ...] = Field(
        min_length=1, max_length=8
    )
    run: Digest  # digest of the run spec
    tls: Digest  # SHA-256 of the coordinator's DER certificate
    root: Digest  # fingerprint of the run's root key
    code: str | None = Field(default=None, max_length=128)  # admission code
    version: Literal[1, 2] = Field(default=1, exclude=True)  # told by how the payload begins

    def __str__(self) -> str:
        payload = canonical.dumps(self.model_dump(mode="json", exclude_none=True))
        if self.version == 2:
            payload = TO_OLDER_ONES + payload
        return PREFIX + base64.urlsafe_b64encode(payload).decode().rstrip("=") + "." + canonical.sha256_hex(payload)[:8]

    @classmethod
    def parse(cls, text: str) -> Invite:
        """Read an invite, forgiving white space and line breaks that a chat program put in.

        Raises:
            FormatError: not an invite, or one that was cut short.
        """
        text = "".join(text.split())
        if len(text) > MAX_INVITE_CHARS or not text.startswith(PREFIX):
            raise FormatError(
                "not an invite", "an invite begins with 'potluck1.'; copy the whole line the host sent you"
            )
        body, _, check = text[len(PREFIX) :].partition(".")
        hint = "copy the whole line the host sent you"
        try:
            payload = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        except (binascii.Error, ValueError) as error:
            raise FormatError("the invite is damaged: it is not base64", hint) from error
        is_whole = (
            base64.urlsafe_b64encode(payload).decode().rstrip("=") == body
        )  # the last character has bits to spare
        if not is_whole or canonical.sha256_hex(payload)[:8] != check:
            raise FormatError("the invite is damaged: its check digits do not match", hint)
        try:
            said = canonical.loads(payload.removeprefix(TO_OLDER_ONES), max_bytes=MAX_INVITE_CHARS)
            version = 2 if payload.startswith(TO_OLDER_ONES) else 1
            return cls.model_validate(said).model_copy(update={"version": version})
        except ValidationError as error:
            raise FormatError(f"the invite is damaged: {error.errors()[0]['msg']}", hint) from error
