"""Each codec both ways, hostile bytes, and the binding of chunks to a claim."""

from __future__ import annotations

import hashlib
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.training.codecs.codec import EncodedUpdate, codec, verify_chunk
from protocol.errors import FormatError, VerificationError

DENSE = ["fp32", "fp16", "int8", "int4"]
NAMES = [*DENSE, "int2", "topk"]


def values(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 5000])
def test_decoding_gives_back_what_was_encoded_within_the_codecs_step(name: str, count: int) -> None:
    x = values(count) * 1e-3
    data = codec(name).encode(x)
    assert len(data) == codec(name).encoded_bytes(count)
    y = codec(name).decode(data, count)
    assert y.dtype == torch.float32 and y.shape == x.shape
    if name == "fp32":
        assert torch.equal(x, y)
    elif count:
        step = {"fp16": x.abs().max() * 2**-11, "int8": x.abs().max() / 254, "int4": x.abs().max() / 13.9}[name]
        assert (x - y).abs().max() <= step * 1.001


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=600), st.sampled_from(NAMES))
def test_any_finite_values_survive_every_codec_finite_and_no_further_off_than_a_step(
    numbers: list[float], name: str
) -> None:
    x = torch.tensor(numbers, dtype=torch.float32)
    y = codec(name).decode(codec(name).encode(x), len(numbers))
    assert torch.isfinite(y).all()
    for start in range(0, len(numbers), 256):
        a, b = x[start : start + 256].double(), y[start : start + 256].double()
        if name == "int8":
            assert (a - b).abs().max() <= a.abs().max() / 127 * 0.51 + 1e-43
        elif name == "int4":
            assert (a - b).abs().max() <= a.abs().max() / 7 * 0.53 + 1e-38
        elif name == "topk":
            assert (a - b).abs().max() <= a.abs().max()
        elif name == "int2":  # a size is rounded to bf16
            assert (a - b).abs().max() <= a.abs().max() * 1.004
        elif name == "fp16":
            assert ((a.clamp(-65504, 65504) - b).abs() <= a.abs() * 2**-10 + 2**-24).all()


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("fp32", "0705a4ef0e06667f"),
        ("fp16", "03d08b7884324d63"),
        ("int8", "856462a5a55e091e"),
        ("int4", "ae615369b83baf7c"),
        ("int2", "6dbcad8d0a585a94"),
        ("topk", "fbd04da38774fda0"),
    ],
)
def test_stored_bytes_decode_to_stored_bits(name: str, sha256: str) -> None:
    count = 1000
    if name == "int8":
        scales = b"".join(struct.pack("<f", 0.1 * (i + 1)) for i in range(4))
        data = scales + bytes((i * 37) % 255 - 127 & 0xFF for i in range(count))
    elif name == "int4":
        scales = b"".join(struct.pack("<H", 0x3C00 + 77 * i) for i in range(16))
        data = scales + bytes(1 + i % 15 | 1 + i * 7 % 15 << 4 for i in range(count // 2))
    elif name == "int2":
        sizes = b"".join(struct.pack("<HH", 0x3C00 + 77 * i, 0x3D00 + 77 * i) for i in range(4))
        data = sizes + bytes(i * 37 % 256 for i in range(250))
    elif name == "topk":
        data = bytes.fromhex("50fa489d721cb650ae832dc761bf943e4952258924524922895492088b428e42aff0c20b073ef0c1")
    else:
        form = {"fp32": "<f", "fp16": "<e"}[name]
        data = b"".join(struct.pack(form, (i - 500) / 7) for i in range(count))
    decoded = codec(name).decode(data, count)
    assert hashlib.sha256(decoded.numpy().tobytes()).hexdigest()[:16] == sha256


def test_fp16_saturates_instead_of_overflowing() -> None:
    data = codec("fp16").encode(torch.tensor([1e30, -1e30, 70000.0]))
    assert codec("fp16").decode(data, 3).tolist() == [65504.0, -65504.0, 65504.0]


def test_int8_blocks_of_zeros_and_of_denormals_decode_to_finite_values() -> None:
    x = torch.zeros(512)
    x[256:] = 1e-45
    y = codec("int8").decode(codec("int8").encode(x), 512)
    assert torch.equal(y[:256], x[:256]) and torch.isfinite(y).all()


@pytest.mark.parametrize(
    ("name", "count"),
    [(name, count) for name in DENSE[:3] for count in (-1, 0, 99, 101, 2**40)]
    + [(name, count) for name in ("int4", "int2", "topk") for count in (-1, 0, 60, 201, 2**40)],
)
def test_bytes_of_another_length_are_refused_before_anything_is_allocated(name: str, count: int) -> None:
    data = codec(name).encode(values(100))
    with pytest.raises(FormatError, match="expected"):
        codec(name).decode(data, count)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_not_encoded(name: str, bad: float) -> None:
    x = values(300)
    x[299] = bad
    with pytest.raises(FormatError, match="not finite"):
        codec(name).encode(x)


def test_encoded_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(FormatError, match="not finite"):
        codec("fp32").decode(struct.pack("<ff", 1.0, float("nan")), 2)
    with pytest.raises(FormatError, match="not finite"):
        codec("fp16").decode(struct.pack("<ee", 1.0, float("inf")), 2)


@pytest.mark.parametrize(
    ("scale", "level"), [(float("nan"), 1), (float("inf"), 1), (-1.0, 1), (1.0, -128), (3e38, 127)]
)
def test_int8_scales_and_levels_that_no_encoder_writes_are_refused(scale: float, level: int) -> None:
    with pytest.raises(FormatError):
        codec("int8").decode(struct.pack("<fb", scale, level), 1)


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(FormatError, match="fp32, fp16, int8"):
        codec("pickle")


def test_tensors_of_another_dtype_or_shape_are_refused() -> None:
    for bad in (torch.zeros(4, dtype=torch.float64), torch.zeros(2, 2), torch.zeros(8)[::2]):
        with pytest.raises(FormatError):
            codec("fp32").encode(bad)
        with pytest.raises(FormatError):
            EncodedUpdate.encode(bad, "fp32")


@pytest.mark.parametrize("name", NAMES)
def test_every_chunk_of_an_update_can_be_checked_by_itself(name: str) -> None:
    x = values(1000)
    update = EncodedUpdate.encode(x, name, chunk_values=256)
    assert len(update.chunks) == 4 and update.digest.values == 1000
    parts = [verify_chunk(update.digest, i, chunk, update.proof(i)) for i, chunk in enumerate(update.chunks)]
    assert torch.equal(torch.cat(parts), update.decode())


def test_a_chunk_that_was_changed_moved_or_cut_is_refused() -> None:
    update = EncodedUpdate.encode(values(1024), "int8", chunk_values=256)
    chunk, proof = update.chunks[1], update.proof(1)
    flipped = bytes([chunk[0] ^ 1]) + chunk[1:]
    for index, data, path in ((1, flipped, proof), (2, chunk, proof), (1, chunk, proof[:-1]), (1, chunk, [])):
        with pytest.raises(VerificationError):
            verify_chunk(update.digest, index, data, path)
    for index, data in ((1, chunk[:-1]), (1, b""), (4, chunk), (-1, chunk)):
        with pytest.raises(FormatError):
            verify_chunk(update.digest, index, data, proof)


def test_error_feedback_delivers_what_one_rounding_would_lose_for_ever() -> None:
    small = torch.full((256,), 1e-3)
    small[0] = 1.0  # sets the block's scale, under whose step the others lie
    plain = sum(EncodedUpdate.encode(small, "int8").decode() for _ in range(100))
    residual, fed = torch.zeros(256), torch.zeros(256)
    for _ in range(100):
        vector = small + residual
        update = EncodedUpdate.encode(vector, "int8")
        residual, fed = update.residual(vector), fed + update.decode()
    assert plain[1] == 0
    assert abs(fed[1].item() - 0.1) < 0.01
