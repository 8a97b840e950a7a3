"""The errors a person may see. Each says what was expected, what was found, and (in `hint`) what to do.

PotluckError                exit code 2
├── InputError              a file, flag or value from outside is wrong
│   ├── RunSpecError        run.toml or a pinned run spec
│   └── FormatError         bytes that do not parse as what they claim to be
│       └── UnsupportedError    they may be in order, and are of a kind that is not checked here
├── RefusedError            exit code 1: the answer is no
│   ├── SignatureError      a signature does not hold, or is by the wrong key
│   └── VerificationError   a checkpoint or receipt does not check out
├── NetworkError            a deadline passed or a connection broke; trying again may help
│   └── CoordinatorAway     the coordinator cannot be reached; training goes on without it
├── RoundAborted            this attempt at a round came to nothing; the work is kept
└── PartFailed              exit code 5: a thread or task of ours has ended and nobody asked it to (protocol/parts.py)
"""

from __future__ import annotations


class PotluckError(Exception):
    """Base of all errors meant for people.

    Args:
        message: one line, what went wrong.
        hint: one line, what to do about it; may be empty.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(PotluckError):
    """A file, flag or value from outside is wrong."""


class RunSpecError(InputError):
    """run.toml, or a pinned run spec, cannot be used."""


class FormatError(InputError):
    """Bytes do not parse as what they claim to be."""


class UnsupportedError(FormatError):
    """What it claims to be, perhaps, and of a kind that is not checked here."""


class RefusedError(PotluckError):
    """The answer is no."""

    exit_code = 1


class SignatureError(RefusedError):
    """A signature does not hold, or was made by another key than the one expected."""


class VerificationError(RefusedError):
    """A checkpoint or receipt does not check out."""


class NetworkError(PotluckError):
    """A deadline passed or a connection broke; trying again may help."""


class CoordinatorAway(NetworkError):
    """The coordinator cannot be reached; training goes on without it."""


class RoundAborted(PotluckError):
    """This attempt at a round came to nothing; nothing changed and the work is kept."""


class PartFailed(PotluckError):
    """A part of this process has ended though nobody asked it to; a mistake of ours."""

    exit_code = 5
