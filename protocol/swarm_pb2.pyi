from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Progress(_message.Message):
    __slots__ = ("certificate", "round", "base", "tokens", "leaving", "attempt", "addresses", "step_s", "from_you_bytes_s", "up_bytes_s", "hears", "answers", "epoch", "bans", "banned", "ledger_head", "moves", "reduce_only", "farewells")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    STEP_S_FIELD_NUMBER: _ClassVar[int]
    FROM_YOU_BYTES_S_FIELD_NUMBER: _ClassVar[int]
    UP_BYTES_S_FIELD_NUMBER: _ClassVar[int]
    HEARS_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BANS_FIELD_NUMBER: _ClassVar[int]
    BANNED_FIELD_NUMBER: _ClassVar[int]
    LEDGER_HEAD_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    REDUCE_ONLY_FIELD_NUMBER: _ClassVar[int]
    FAREWELLS_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    round: int
    base: str
    tokens: int
    leaving: bool
    attempt: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    step_s: float
    from_you_bytes_s: float
    up_bytes_s: float
    hears: int
    answers: bool
    epoch: int
    bans: int
    banned: bytes
    ledger_head: str
    moves: int
    reduce_only: bool
    farewells: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, certificate: _Optional[str] = ..., round: _Optional[int] = ..., base: _Optional[str] = ..., tokens: _Optional[int] = ..., leaving: _Optional[bool] = ..., attempt: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ..., step_s: _Optional[float] = ..., from_you_bytes_s: _Optional[float] = ..., up_bytes_s: _Optional[float] = ..., hears: _Optional[int] = ..., answers: _Optional[bool] = ..., epoch: _Optional[int] = ..., bans: _Optional[int] = ..., banned: _Optional[bytes] = ..., ledger_head: _Optional[str] = ..., moves: _Optional[int] = ..., reduce_only: _Optional[bool] = ..., farewells: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Proposal(_message.Message):
    __slots__ = ("certificate", "round", "base", "attempt", "timeout_s", "asked", "word")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    WORD_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    round: int
    base: str
    attempt: int
    timeout_s: float
    asked: _containers.RepeatedScalarFieldContainer[str]
    word: bytes
    def __init__(self, certificate: _Optional[str] = ..., round: _Optional[int] = ..., base: _Optional[str] = ..., attempt: _Optional[int] = ..., timeout_s: _Optional[float] = ..., asked: _Optional[_Iterable[str]] = ..., word: _Optional[bytes] = ...) -> None: ...

class ProposalReply(_message.Message):
    __slots__ = ("accepted", "reason", "certificate", "claim", "voted", "can_reduce", "attempt", "farewells", "unheard", "promise")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CLAIM_FIELD_NUMBER: _ClassVar[int]
    VOTED_FIELD_NUMBER: _ClassVar[int]
    CAN_REDUCE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FAREWELLS_FIELD_NUMBER: _ClassVar[int]
    UNHEARD_FIELD_NUMBER: _ClassVar[int]
    PROMISE_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    reason: str
    certificate: str
    claim: bytes
    voted: _containers.RepeatedCompositeFieldContainer[Voted]
    can_reduce: bool
    attempt: int
    farewells: _containers.RepeatedScalarFieldContainer[bytes]
    unheard: _containers.RepeatedScalarFieldContainer[str]
    promise: bytes
    def __init__(self, accepted: _Optional[bool] = ..., reason: _Optional[str] = ..., certificate: _Optional[str] = ..., claim: _Optional[bytes] = ..., voted: _Optional[_Iterable[_Union[Voted, _Mapping]]] = ..., can_reduce: _Optional[bool] = ..., attempt: _Optional[int] = ..., farewells: _Optional[_Iterable[bytes]] = ..., unheard: _Optional[_Iterable[str]] = ..., promise: _Optional[bytes] = ...) -> None: ...

class Voted(_message.Message):
    __slots__ = ("vote", "group")
    VOTE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    vote: bytes
    group: Group
    def __init__(self, vote: _Optional[bytes] = ..., group: _Optional[_Union[Group, _Mapping]] = ...) -> None: ...

class GroupMember(_message.Message):
    __slots__ = ("certificate", "claim", "can_reduce", "share")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CLAIM_FIELD_NUMBER: _ClassVar[int]
    CAN_REDUCE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    claim: bytes
    can_reduce: bool
    share: int
    def __init__(self, certificate: _Optional[str] = ..., claim: _Optional[bytes] = ..., can_reduce: _Optional[bool] = ..., share: _Optional[int] = ...) -> None: ...

class Reducer(_message.Message):
    __slots__ = ("certificate", "share")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    share: int
    def __init__(self, certificate: _Optional[str] = ..., share: _Optional[int] = ...) -> None: ...

class LeftOut(_message.Message):
    __slots__ = ("peer", "reason")
    PEER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    peer: str
    reason: str
    def __init__(self, peer: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Group(_message.Message):
    __slots__ = ("certificate", "round", "base", "attempt", "members", "complete", "left_out", "farewells", "promises", "voted", "word", "witnesses", "reducers")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    FAREWELLS_FIELD_NUMBER: _ClassVar[int]
    PROMISES_FIELD_NUMBER: _ClassVar[int]
    VOTED_FIELD_NUMBER: _ClassVar[int]
    WORD_FIELD_NUMBER: _ClassVar[int]
    WITNESSES_FIELD_NUMBER: _ClassVar[int]
    REDUCERS_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    round: int
    base: str
    attempt: int
    members: _containers.RepeatedCompositeFieldContainer[GroupMember]
    complete: str
    left_out: _containers.RepeatedCompositeFieldContainer[LeftOut]
    farewells: _containers.RepeatedScalarFieldContainer[bytes]
    promises: _containers.RepeatedScalarFieldContainer[bytes]
    voted: _containers.RepeatedCompositeFieldContainer[Group]
    word: bytes
    witnesses: _containers.RepeatedScalarFieldContainer[str]
    reducers: _containers.RepeatedCompositeFieldContainer[Reducer]
    def __init__(self, certificate: _Optional[str] = ..., round: _Optional[int] = ..., base: _Optional[str] = ..., attempt: _Optional[int] = ..., members: _Optional[_Iterable[_Union[GroupMember, _Mapping]]] = ..., complete: _Optional[str] = ..., left_out: _Optional[_Iterable[_Union[LeftOut, _Mapping]]] = ..., farewells: _Optional[_Iterable[bytes]] = ..., promises: _Optional[_Iterable[bytes]] = ..., voted: _Optional[_Iterable[_Union[Group, _Mapping]]] = ..., word: _Optional[bytes] = ..., witnesses: _Optional[_Iterable[str]] = ..., reducers: _Optional[_Iterable[_Union[Reducer, _Mapping]]] = ...) -> None: ...

class GroupReply(_message.Message):
    __slots__ = ("accepted", "reason")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    reason: str
    def __init__(self, accepted: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("certificate", "group", "attempt", "chunk", "data", "proof", "error")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    group: str
    attempt: int
    chunk: int
    data: bytes
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    error: str
    def __init__(self, certificate: _Optional[str] = ..., group: _Optional[str] = ..., attempt: _Optional[int] = ..., chunk: _Optional[int] = ..., data: _Optional[bytes] = ..., proof: _Optional[_Iterable[bytes]] = ..., error: _Optional[str] = ...) -> None: ...

class VoteMessage(_message.Message):
    __slots__ = ("certificate", "vote", "lacks")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    VOTE_FIELD_NUMBER: _ClassVar[int]
    LACKS_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    vote: bytes
    lacks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, certificate: _Optional[str] = ..., vote: _Optional[bytes] = ..., lacks: _Optional[_Iterable[str]] = ...) -> None: ...

class VoteReply(_message.Message):
    __slots__ = ("vote", "others")
    VOTE_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    vote: bytes
    others: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, vote: _Optional[bytes] = ..., others: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Abort(_message.Message):
    __slots__ = ("certificate", "group", "round", "attempt", "reason", "culprit")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CULPRIT_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    group: str
    round: int
    attempt: int
    reason: str
    culprit: str
    def __init__(self, certificate: _Optional[str] = ..., group: _Optional[str] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., reason: _Optional[str] = ..., culprit: _Optional[str] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HeadRequest(_message.Message):
    __slots__ = ("certificate", "state", "since")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    state: str
    since: int
    def __init__(self, certificate: _Optional[str] = ..., state: _Optional[str] = ..., since: _Optional[int] = ...) -> None: ...

class HeadReply(_message.Message):
    __slots__ = ("certificate", "round", "state", "agreement", "manifest", "chain")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    round: int
    state: str
    agreement: bytes
    manifest: bytes
    chain: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, certificate: _Optional[str] = ..., round: _Optional[int] = ..., state: _Optional[str] = ..., agreement: _Optional[bytes] = ..., manifest: _Optional[bytes] = ..., chain: _Optional[_Iterable[bytes]] = ...) -> None: ...

class StateRequest(_message.Message):
    __slots__ = ("certificate", "state", "leaves", "first_chunk", "chunks")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LEAVES_FIELD_NUMBER: _ClassVar[int]
    FIRST_CHUNK_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    state: str
    leaves: bool
    first_chunk: int
    chunks: int
    def __init__(self, certificate: _Optional[str] = ..., state: _Optional[str] = ..., leaves: _Optional[bool] = ..., first_chunk: _Optional[int] = ..., chunks: _Optional[int] = ...) -> None: ...

class AverageRequest(_message.Message):
    __slots__ = ("certificate", "state", "first_chunk", "chunks")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FIRST_CHUNK_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    state: str
    first_chunk: int
    chunks: int
    def __init__(self, certificate: _Optional[str] = ..., state: _Optional[str] = ..., first_chunk: _Optional[int] = ..., chunks: _Optional[int] = ...) -> None: ...

class StateChunk(_message.Message):
    __slots__ = ("chunk", "data", "error")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    chunk: int
    data: bytes
    error: str
    def __init__(self, chunk: _Optional[int] = ..., data: _Optional[bytes] = ..., error: _Optional[str] = ...) -> None: ...
