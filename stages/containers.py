"""Whether a container is closed: whether all that its headers promise lies within the bytes that are there.

A file that is still copied from its beginning to its end is not closed until the last byte is there, however long the copy
pauses. Headers alone are read, a bounded number of them, in plain Python: nothing is decoded, and no byte decides more than how
far to look. Of a container that promises no length nothing can be said, and nothing is: MPEG program and transport streams,
Ogg, raw streams, and Matroska of unknown length, as live recordings have.
"""

import struct
from typing import BinaryIO

_HEAD_BYTES = 16
_LEAST_BOX_BYTES = 8
_MAX_HEADERS = 65_536
"""Boxes or chunks that are looked at; a file with more of them is not looked at further. Our choice."""

_ISO = frozenset({b"ftyp", b"styp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"pnot", b"sidx", b"uuid", b"mfra"})
"""Boxes that an ISO base media file (mp4, mov, 3gp) may begin with."""
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def unclosed(file: BinaryIO, size_bytes: int) -> str:
    """What a container lacks, in words that follow "it"; empty when it lacks nothing that could be told from its headers.

    Args:
        file: its bytes, which can be sought in.
        size_bytes: how many they are.

    Raises:
        MediaError: they cannot be read.
    """
    if size_bytes == 0:
        return "holds no byte"
    head = _at(file, 0, _HEAD_BYTES)
    if not any(head):
        return "begins with zeros, as space that was set aside and not written"
    if len(head) < _HEAD_BYTES:
        return f"has {size_bytes} bytes, too few for any container"
    if head[4:8] in _ISO:
        return _unclosed_iso(file, size_bytes)
    if head[:4] == _EBML:
        return _unclosed_matroska(file, size_bytes)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _unclosed_avi(file, size_bytes)
    return ""


def _unclosed_iso(file: BinaryIO, size_bytes: int) -> str:
    """Every box lies within the file, and an index (moov) and frames (mdat) are among them.

    Source: ISO/IEC 14496-12, section 4.2. What follows the last whole box and is no box is passed over once both were seen.
    """
    found: set[bytes] = set()
    place = 0
    for _ in range(_MAX_HEADERS):
        if place >= size_bytes:
            break
        kind, length_bytes = _box(_at(file, place, _HEAD_BYTES), size_bytes - place)
        if not length_bytes:
            is_whole = {b"moov", b"mdat"} <= found and size_bytes - place >= _LEAST_BOX_BYTES
            return "" if is_whole else f"has no box at byte {place}"
        if length_bytes > size_bytes - place:
            return f"promises a box {kind.decode('latin-1')} up to byte {place + length_bytes}, and has {size_bytes}"
        found.add(kind)
        place += length_bytes
    lacking = [kind.decode() for kind in (b"moov", b"mdat") if kind not in found]
    return f"has no {' and no '.join(lacking)}" if lacking and place >= size_bytes else ""


def _box(head: bytes, left_bytes: int) -> tuple[bytes, int]:
    """Name and length of a box; 0, where there is none. A box of length 0 goes to the end of the file."""
    if len(head) < _LEAST_BOX_BYTES or not all(0x20 <= value < 0x7F or value == 0xA9 for value in head[4:8]):
        return b"", 0
    kind, length_bytes = head[4:8], int.from_bytes(head[:4])
    if length_bytes == 1:
        return kind, int.from_bytes(head[8:16]) if len(head) == _HEAD_BYTES and int.from_bytes(head[8:16]) >= 16 else 0
    if length_bytes == 0:
        return kind, left_bytes
    return kind, length_bytes if length_bytes >= _LEAST_BOX_BYTES else 0


def _unclosed_matroska(file: BinaryIO, size_bytes: int) -> str:
    """The segment lies within the file. Source: RFC 8794, sections 4 to 6."""
    length_bytes, width = _vint(_at(file, 4, 8))
    place = 4 + width + (length_bytes or 0)
    head = _at(file, place, 12)
    if head[:4] != _SEGMENT:
        return f"has no segment at byte {place}" if len(head) < 12 else ""
    length_bytes, width = _vint(head[4:])
    end = place + 4 + width + (length_bytes or 0)
    return f"promises a segment up to byte {end}, and has {size_bytes}" if end > size_bytes else ""


def _vint(data: bytes) -> tuple[int | None, int]:
    """A length as EBML writes it, and the bytes that it takes; ``None`` is an unknown length."""
    width = 9 - data[0].bit_length() if data and data[0] else 8
    value = int.from_bytes(data[:width]) & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), width


def _unclosed_avi(file: BinaryIO, size_bytes: int) -> str:
    """Every RIFF chunk lies within the file; one of length 0 is filled in when a recording ends."""
    place = 0
    for _ in range(_MAX_HEADERS):
        head = _at(file, place, 12)
        if len(head) < 12 or head[:4] != b"RIFF":
            return ""
        (length_bytes,) = struct.unpack("<I", head[4:8])
        if not length_bytes:
            return "has a header that was not filled in at the end"
        end = place + 8 + length_bytes
        if end > size_bytes:
            return f"promises a chunk up to byte {end}, and has {size_bytes}"
        place = end + length_bytes % 2
    return ""


def _at(file: BinaryIO, place: int, amount: int) -> bytes:
    file.seek(place)
    return file.read(amount)
