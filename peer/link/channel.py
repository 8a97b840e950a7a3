"""A gRPC channel to the coordinator whose certificate the invite pins. `client` calls over it.

The certificate is fetched first, compared with the invite by its SHA-256, and then used as the channel's only root:
gRPC has no pinning of its own. A server that shows another certificate is not the one the volunteer was invited to.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import socket
import ssl

import grpc
from cryptography import x509

from peer.link.clock import ClockWrong
from protocol.errors import (
    CoordinatorAway,
    FormatError,
    InputError,
    NetworkError,
    PotluckError,
    RefusedError,
    SignatureError,
)
from protocol.rpc import HINT_KEY, MAX_MESSAGE_BYTES, TLS_NAME

logger = logging.getLogger(__name__)

_OPTIONS = [
    ("grpc.ssl_target_name_override", TLS_NAME),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]
_AWAY_HINT = "training goes on without it; check the network, or ask the host whether the run is up"


class CoordinatorBusy(CoordinatorAway):
    """It is there, and has no room for this call now."""


class CoordinatorOlder(NetworkError):
    """It is there, and does not know this call."""


def open_channel(address: str, tls_digest: str, timeout_s: float) -> grpc.Channel:
    """Connect to `host:port`, only if its certificate has the SHA-256 `tls_digest` (hex).

    Raises:
        CoordinatorAway: nobody answers there, or what answers speaks no TLS.
        SignatureError: another certificate than the one in the invite.
        ClockWrong: by this computer's clock the certificate does not hold now, and TLS would fail without a reason.
    """
    der = _fetch_certificate(address, timeout_s)
    found = hashlib.sha256(der).hexdigest()
    if found != tls_digest:
        raise SignatureError(
            f"{address} is not the coordinator you were invited to: "
            f"expected certificate {tls_digest[:16]}…, got {found[:16]}…",
            "ask the host for a fresh invite, over a way you trust",
        )
    _check_clock(x509.load_der_x509_certificate(der))
    pem = ssl.DER_cert_to_PEM_cert(der).encode()
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(root_certificates=pem), options=_OPTIONS)


def _check_clock(certificate: x509.Certificate) -> None:
    """The coordinator looks after its certificate: if it seems to be over or not to have begun, the clock is wrong."""
    now = datetime.datetime.now(datetime.UTC)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= now <= ends:
        raise ClockWrong((now - (begins if now < begins else ends)).total_seconds())


def _fetch_certificate(address: str, timeout_s: float) -> bytes:
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the certificate is compared whole, by the caller
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s) as plain,
            context.wrap_socket(plain) as secure,
        ):
            der = secure.getpeercert(binary_form=True)
    except (OSError, ValueError, OverflowError) as error:  # ssl.SSLError and timeouts are OSErrors
        raise CoordinatorAway(f"no coordinator at {address}: {error}", _AWAY_HINT) from error
    if not der:
        raise CoordinatorAway(f"no coordinator at {address}: it showed no certificate", _AWAY_HINT)
    return der


_REFUSALS: dict[grpc.StatusCode, type[PotluckError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: FormatError,
    grpc.StatusCode.OUT_OF_RANGE: InputError,
    grpc.StatusCode.NOT_FOUND: InputError,
    grpc.StatusCode.PERMISSION_DENIED: RefusedError,
    grpc.StatusCode.UNAUTHENTICATED: RefusedError,
    grpc.StatusCode.FAILED_PRECONDITION: RefusedError,
}
_AWAY: dict[grpc.StatusCode, type[CoordinatorAway]] = {
    grpc.StatusCode.UNAVAILABLE: CoordinatorAway,
    grpc.StatusCode.DEADLINE_EXCEEDED: CoordinatorAway,
    grpc.StatusCode.RESOURCE_EXHAUSTED: CoordinatorBusy,
    grpc.StatusCode.CANCELLED: CoordinatorAway,
}


def translate(error: grpc.RpcError) -> PotluckError:
    """The error of ours that a failed call stands for."""
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    details = (error.details() or "") if isinstance(error, grpc.Call) else str(error)
    if code in _AWAY:
        return _AWAY[code](f"the coordinator does not answer: {details or code.name}", _AWAY_HINT)
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return CoordinatorOlder("the host's Potluck is older, and does not know this call", "ask the host to update it")
    kind = _REFUSALS.get(code)
    if kind is None:
        return NetworkError(f"the coordinator failed: {code.name}: {details}", "try again; tell the host if it stays")
    return kind(details or code.name, _hint(error))


def _hint(error: grpc.RpcError) -> str:
    metadata = error.trailing_metadata() if isinstance(error, grpc.Call) else None
    for key, value in metadata or ():
        if key == HINT_KEY and isinstance(value, bytes):
            return value.decode(errors="replace")
    return ""
