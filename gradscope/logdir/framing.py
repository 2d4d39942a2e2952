"""How TensorBoard frames the records of an event file: length, its checksum, payload, its checksum."""

from __future__ import annotations

import struct

import google_crc32c

HEADER_SIZE = 12  # uint64 length and the checksum of these eight bytes
FOOTER_SIZE = 4  # the checksum of the payload
LARGEST_PAYLOAD = 2**28  # a length beyond it is not believed

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")


def masked_crc(data: bytes) -> int:
    """The CRC-32C of ``data``, masked as TFRecord wants it (rotated by 15 bits, plus 0xa282ead8)."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def framed(payload: bytes) -> bytes:
    """``payload`` as one record of an event file."""
    length = _LENGTH.pack(len(payload))
    return b"".join((length, _CHECKSUM.pack(masked_crc(length)), payload, _CHECKSUM.pack(masked_crc(payload))))


def claimed_length(data: bytes, at: int) -> int | None:
    """The payload's length by the header at ``at``, or None where it is no header. The length is a claim, not a fact."""
    encoded = data[at : at + 8]
    if _CHECKSUM.unpack_from(data, at + 8)[0] != masked_crc(encoded):
        return None
    length = int(_LENGTH.unpack(encoded)[0])
    return length if length <= LARGEST_PAYLOAD else None


def checked_payload(data: bytes, at: int, length: int) -> bytes | None:
    """The payload whose header is at ``at``, or None where its checksum does not hold."""
    start = at + HEADER_SIZE
    payload = data[start : start + length]
    return payload if _CHECKSUM.unpack_from(data, start + length)[0] == masked_crc(payload) else None
