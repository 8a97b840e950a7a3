from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Twin(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NONE: _ClassVar[Twin]
    CAME_LATER: _ClassVar[Twin]
    CAME_FIRST: _ClassVar[Twin]

class Reached(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NOT_TRIED: _ClassVar[Reached]
    OPEN: _ClassVar[Reached]
    CLOSED: _ClassVar[Reached]
NONE: Twin
CAME_LATER: Twin
CAME_FIRST: Twin
NOT_TRIED: Reached
OPEN: Reached
CLOSED: Reached

class GetRunRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetRunReply(_message.Message):
    __slots__ = ("run_card", "root_public_key", "genesis_files", "model_files", "round", "finished", "model_config", "version", "release")
    RUN_CARD_FIELD_NUMBER: _ClassVar[int]
    ROOT_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    GENESIS_FILES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FILES_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    MODEL_CONFIG_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    run_card: bytes
    root_public_key: bytes
    genesis_files: _containers.RepeatedCompositeFieldContainer[ModelFile]
    model_files: _containers.RepeatedCompositeFieldContainer[ModelFile]
    round: int
    finished: bool
    model_config: bytes
    version: int
    release: str
    def __init__(self, run_card: _Optional[bytes] = ..., root_public_key: _Optional[bytes] = ..., genesis_files: _Optional[_Iterable[_Union[ModelFile, _Mapping]]] = ..., model_files: _Optional[_Iterable[_Union[ModelFile, _Mapping]]] = ..., round: _Optional[int] = ..., finished: _Optional[bool] = ..., model_config: _Optional[bytes] = ..., version: _Optional[int] = ..., release: _Optional[str] = ...) -> None: ...

class ModelFile(_message.Message):
    __slots__ = ("path", "sha256", "size_bytes")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    path: str
    sha256: str
    size_bytes: int
    def __init__(self, path: _Optional[str] = ..., sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class GetChallengeRequest(_message.Message):
    __slots__ = ("peer_id",)
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    def __init__(self, peer_id: _Optional[str] = ...) -> None: ...

class GetChallengeReply(_message.Message):
    __slots__ = ("challenge",)
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    challenge: bytes
    def __init__(self, challenge: _Optional[bytes] = ...) -> None: ...

class EnrollRequest(_message.Message):
    __slots__ = ("peer_id", "challenge", "signature", "code", "version")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    challenge: bytes
    signature: bytes
    code: str
    version: int
    def __init__(self, peer_id: _Optional[str] = ..., challenge: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., code: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class EnrollReply(_message.Message):
    __slots__ = ("certificate", "swarm_addresses", "time")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    SWARM_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    swarm_addresses: _containers.RepeatedScalarFieldContainer[str]
    time: float
    def __init__(self, certificate: _Optional[str] = ..., swarm_addresses: _Optional[_Iterable[str]] = ..., time: _Optional[float] = ...) -> None: ...

class FetchFileRequest(_message.Message):
    __slots__ = ("certificate", "sha256", "offset")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    sha256: str
    offset: int
    def __init__(self, certificate: _Optional[str] = ..., sha256: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class FilePart(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class AnnounceRequest(_message.Message):
    __slots__ = ("certificate", "swarm_addresses", "round", "tokens_per_s", "states", "reduce_only", "version", "leaving", "session", "bans")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    SWARM_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    REDUCE_ONLY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    BANS_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    swarm_addresses: _containers.RepeatedScalarFieldContainer[str]
    round: int
    tokens_per_s: float
    states: _containers.RepeatedScalarFieldContainer[str]
    reduce_only: bool
    version: int
    leaving: bool
    session: bytes
    bans: int
    def __init__(self, certificate: _Optional[str] = ..., swarm_addresses: _Optional[_Iterable[str]] = ..., round: _Optional[int] = ..., tokens_per_s: _Optional[float] = ..., states: _Optional[_Iterable[str]] = ..., reduce_only: _Optional[bool] = ..., version: _Optional[int] = ..., leaving: _Optional[bool] = ..., session: _Optional[bytes] = ..., bans: _Optional[int] = ...) -> None: ...

class AnnounceReply(_message.Message):
    __slots__ = ("swarm_addresses", "want_state", "round", "finished", "time", "beginners", "alarm", "twin", "want_chain", "want_loss", "banned", "ledger_head", "drawn_until", "want_reveals", "expelled")
    SWARM_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    WANT_STATE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    BEGINNERS_FIELD_NUMBER: _ClassVar[int]
    ALARM_FIELD_NUMBER: _ClassVar[int]
    TWIN_FIELD_NUMBER: _ClassVar[int]
    WANT_CHAIN_FIELD_NUMBER: _ClassVar[int]
    WANT_LOSS_FIELD_NUMBER: _ClassVar[int]
    BANNED_FIELD_NUMBER: _ClassVar[int]
    LEDGER_HEAD_FIELD_NUMBER: _ClassVar[int]
    DRAWN_UNTIL_FIELD_NUMBER: _ClassVar[int]
    WANT_REVEALS_FIELD_NUMBER: _ClassVar[int]
    EXPELLED_FIELD_NUMBER: _ClassVar[int]
    swarm_addresses: _containers.RepeatedScalarFieldContainer[str]
    want_state: str
    round: int
    finished: bool
    time: float
    beginners: bytes
    alarm: Alarm
    twin: Twin
    want_chain: bool
    want_loss: str
    banned: bytes
    ledger_head: str
    drawn_until: int
    want_reveals: _containers.RepeatedScalarFieldContainer[str]
    expelled: str
    def __init__(self, swarm_addresses: _Optional[_Iterable[str]] = ..., want_state: _Optional[str] = ..., round: _Optional[int] = ..., finished: _Optional[bool] = ..., time: _Optional[float] = ..., beginners: _Optional[bytes] = ..., alarm: _Optional[_Union[Alarm, _Mapping]] = ..., twin: _Optional[_Union[Twin, str]] = ..., want_chain: _Optional[bool] = ..., want_loss: _Optional[str] = ..., banned: _Optional[bytes] = ..., ledger_head: _Optional[str] = ..., drawn_until: _Optional[int] = ..., want_reveals: _Optional[_Iterable[str]] = ..., expelled: _Optional[str] = ...) -> None: ...

class Alarm(_message.Message):
    __slots__ = ("round", "held_out_loss", "published_round", "published_loss", "held_back")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_LOSS_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_ROUND_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_LOSS_FIELD_NUMBER: _ClassVar[int]
    HELD_BACK_FIELD_NUMBER: _ClassVar[int]
    round: int
    held_out_loss: float
    published_round: int
    published_loss: float
    held_back: int
    def __init__(self, round: _Optional[int] = ..., held_out_loss: _Optional[float] = ..., published_round: _Optional[int] = ..., published_loss: _Optional[float] = ..., held_back: _Optional[int] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("certificate", "agreement")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    agreement: bytes
    def __init__(self, certificate: _Optional[str] = ..., agreement: _Optional[bytes] = ...) -> None: ...

class ReportChainRequest(_message.Message):
    __slots__ = ("certificate", "agreements")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    AGREEMENTS_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    agreements: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, certificate: _Optional[str] = ..., agreements: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ("accepted", "reason")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    reason: str
    def __init__(self, accepted: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class ReportLossRequest(_message.Message):
    __slots__ = ("certificate", "measured")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    measured: bytes
    def __init__(self, certificate: _Optional[str] = ..., measured: _Optional[bytes] = ...) -> None: ...

class StatePart(_message.Message):
    __slots__ = ("certificate", "state", "manifest", "data")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    state: str
    manifest: bytes
    data: bytes
    def __init__(self, certificate: _Optional[str] = ..., state: _Optional[str] = ..., manifest: _Optional[bytes] = ..., data: _Optional[bytes] = ...) -> None: ...

class UploadStateReply(_message.Message):
    __slots__ = ("accepted",)
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    def __init__(self, accepted: _Optional[bool] = ...) -> None: ...

class RevealPart(_message.Message):
    __slots__ = ("certificate", "claim", "head", "data")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CLAIM_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    claim: str
    head: bytes
    data: bytes
    def __init__(self, certificate: _Optional[str] = ..., claim: _Optional[str] = ..., head: _Optional[bytes] = ..., data: _Optional[bytes] = ...) -> None: ...

class RevealReply(_message.Message):
    __slots__ = ("accepted",)
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    def __init__(self, accepted: _Optional[bool] = ...) -> None: ...

class GetReceiptsRequest(_message.Message):
    __slots__ = ("certificate", "after_round")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    AFTER_ROUND_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    after_round: int
    def __init__(self, certificate: _Optional[str] = ..., after_round: _Optional[int] = ...) -> None: ...

class GetReceiptsReply(_message.Message):
    __slots__ = ("receipts",)
    RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    receipts: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, receipts: _Optional[_Iterable[bytes]] = ...) -> None: ...

class GetAgreementRequest(_message.Message):
    __slots__ = ("certificate", "round")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    round: int
    def __init__(self, certificate: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class GetAgreementReply(_message.Message):
    __slots__ = ("agreement",)
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    agreement: bytes
    def __init__(self, agreement: _Optional[bytes] = ...) -> None: ...

class GetCheckpointRequest(_message.Message):
    __slots__ = ("ledger", "certificate", "round")
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ledger: bool
    certificate: str
    round: int
    def __init__(self, ledger: _Optional[bool] = ..., certificate: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class GetCheckpointReply(_message.Message):
    __slots__ = ("ledger", "round", "files")
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    ledger: ModelFile
    round: int
    files: _containers.RepeatedCompositeFieldContainer[ModelFile]
    def __init__(self, ledger: _Optional[_Union[ModelFile, _Mapping]] = ..., round: _Optional[int] = ..., files: _Optional[_Iterable[_Union[ModelFile, _Mapping]]] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ("ledger_size",)
    LEDGER_SIZE_FIELD_NUMBER: _ClassVar[int]
    ledger_size: int
    def __init__(self, ledger_size: _Optional[int] = ...) -> None: ...

class GetStatusReply(_message.Message):
    __slots__ = ("status", "ledger_head", "consistency")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    LEDGER_HEAD_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    status: bytes
    ledger_head: str
    consistency: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, status: _Optional[bytes] = ..., ledger_head: _Optional[str] = ..., consistency: _Optional[_Iterable[bytes]] = ...) -> None: ...

class MeasureRequest(_message.Message):
    __slots__ = ("data", "want_bytes", "port")
    DATA_FIELD_NUMBER: _ClassVar[int]
    WANT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    want_bytes: int
    port: int
    def __init__(self, data: _Optional[bytes] = ..., want_bytes: _Optional[int] = ..., port: _Optional[int] = ...) -> None: ...

class MeasureReply(_message.Message):
    __slots__ = ("data", "time", "seen", "reached")
    DATA_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    REACHED_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    time: float
    seen: str
    reached: Reached
    def __init__(self, data: _Optional[bytes] = ..., time: _Optional[float] = ..., seen: _Optional[str] = ..., reached: _Optional[_Union[Reached, str]] = ...) -> None: ...
