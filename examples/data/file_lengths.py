"""How many bytes a video file says it has, for formats that say so in their header. A shorter file is cut off."""

from pathlib import Path

EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # the two parts of a Matroska file
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
ASF_HEADER = 2**16  # bytes in which the properties are searched


def promised_bytes(path: Path, format_name: str) -> int | None:
    """The bytes that a file of one of FFmpeg's formats should have; None where it does not say."""
    if format_name.startswith("matroska"):
        return _of_matroska(path)
    with path.open("rb") as file:
        head = file.read(ASF_HEADER)
    if format_name == "avi" and head[:4] == b"RIFF":  # a name, and the length of what follows; large files have several
        return 7 + int.from_bytes(head[4:8], "little")  # the last byte may be padding, which some programs leave out
    at = head.find(ASF_PROPERTIES)
    if format_name == "asf" and at >= 0 and head[at + 88 : at + 89] != b"\1":  # that is a broadcast
        return int.from_bytes(head[at + 40 : at + 48], "little")
    return None


def _of_matroska(path: Path) -> int | None:
    """A part is its name, of four bytes here, its length, and its content.

    The zero bits before the first one of the length say how many bytes it takes (RFC 8794, section 4).
    """
    at = 0
    with path.open("rb") as file:
        for name in (EBML, SEGMENT):
            file.seek(at)
            head = file.read(12)
            if len(head) < 12 or head[:4] != name or head[4] == 0:
                return None
            taken = 9 - head[4].bit_length()
            unknown = (1 << 7 * taken) - 1
            length = int.from_bytes(head[4 : 4 + taken], "big") & unknown
            if length == unknown:
                return None
            at += 4 + taken + length
    return at
