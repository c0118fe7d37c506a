"""What ffmpeg's log tells of a source before any frame is decoded: its container, its codec, its colours."""

import re
from typing import NamedTuple

from stages.video_command import Colours

_CONTAINER = re.compile(r"^\[info\] Input #0, (.+?), from ", re.MULTILINE)
_CHOSEN = re.compile(r"^\[info\]   Stream #0:(\d+) \((\w+)\) -> ", re.MULTILINE)
_STREAM = r"^\[info\]   Stream #0:{}(?=[\[(:]).*?: Video: (.*(?:\n\[info\]    .*)*)"
_PIXELS = re.compile(r", (\w+)(?:\(((?:[^()]|\([^()]*\))*)\))?, \d+x\d+")
_COLOURS = re.compile(r"([\w-]+)/([\w-]+)/([\w-]+)")
_ONE_COLOUR = re.compile(r"\b(?:bt709|smpte170m|smpte240m)\b")
"""The names that stand for matrix, primaries and transfer alike; ffmpeg then says them once."""
_ROTATION = re.compile(r"(?:displaymatrix|Display Matrix): rotation of (-?[\d.]+) degrees")
_INTERLACED = re.compile(r"\b(?:top|bottom) (?:coded )?first\b")


class Description(NamedTuple):
    """What is known of a source's picture stream, in ffmpeg's words; empty where nothing is said."""

    container: str = ""
    codec: str = ""
    pixel_format: str = ""
    colours: Colours = Colours()
    rotation_deg: int = 0
    """What the container asks a player to turn it by, counter-clockwise."""
    interlaced: bool = False


def describe(log: str) -> Description:
    """The description of the stream that a pass read, from its log at level ``level+verbose``."""
    container, chosen = _CONTAINER.search(log), _CHOSEN.search(log)
    known = Description(container=container[1] if container else "", codec=chosen[2] if chosen else "")
    stream = re.search(_STREAM.format(chosen[1]), log, re.MULTILINE) if chosen else None
    if stream is None:
        return known
    pixels, rotation = _PIXELS.search(stream[1]), _ROTATION.search(stream[1])
    notes = (pixels[2] or "") if pixels else ""
    return known._replace(
        pixel_format=pixels[1] if pixels else "",
        colours=_colours(notes),
        rotation_deg=round(float(rotation[1])) if rotation else 0,
        interlaced=bool(_INTERLACED.search(notes)),
    )


def _colours(notes: str) -> Colours:
    three, one = _COLOURS.search(notes), _ONE_COLOUR.search(notes)
    if three:
        return Colours(*three.groups())
    return Colours(one[0], one[0], one[0]) if one else Colours()
