"""Stored clips to pixels: exactly the frames and the crop that are asked for, by PyAV on verified bytes of our own making.

A clip has a keyframe every few frames and closed groups of pictures, so a window costs its own frames and those since the
keyframe before it. Frames are addressed by their order, never by timestamps: with B-frames the first does not start at 0.
All stages convert colours here: limited-range BT.601, as clips are stored, to RGB by swscale's fast converter.
"""

import io
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from stages.errors import ArtifactDamaged

Pixels = npt.NDArray[np.uint8]

_STRIDE_PX, _HEIGHT_PX = 64, 4
"""What the memory of a crop is padded to: swscale reads whole vectors, and PyAV takes 4:2:0 in heights of fours."""

_BT601_LIMITED = {
    "src_colorspace": Colorspace.ITU601,
    "dst_colorspace": Colorspace.ITU601,
    "src_color_range": ColorRange.MPEG,
    "threads": 1,
}

_REMEDY = "run `lvmae verify`"


class Crop(NamedTuple):
    """A part of a frame, in pixels."""

    y_px: int
    x_px: int
    height_px: int
    width_px: int


def decode(data: bytes, *, start_frame: int = 0, num_frames: int | None = None, box: Crop | None = None) -> Pixels:
    """Frames of a clip, RGB ``uint8 [T H W 3]``.

    Only for bytes whose checksum was verified: they are parsed in this process.

    Args:
        data: an mp4 file of our own making.
        start_frame: the first frame wanted, counted from 0.
        num_frames: frames wanted; ``None``: all to the end.
        box: the part of every frame that is wanted; ``None``: all of it.

    Raises:
        ArtifactDamaged: the clip does not hold these frames or pixels, or cannot be decoded.
    """
    try:
        with av.open(io.BytesIO(data), format="mp4") as container:
            stream = container.streams.video[0]
            stop = stream.frames if num_frames is None else start_frame + num_frames
            if not 0 <= start_frame < stop <= stream.frames:
                raise ArtifactDamaged(
                    f"a stored clip claims {stream.frames} frames; {start_frame} to {stop} are wanted; {_REMEDY}"
                )
            crop = box or Crop(0, 0, stream.height, stream.width)
            return _decoded(container, stream, start_frame, stop, crop)
    except (av.error.FFmpegError, IndexError) as error:
        raise ArtifactDamaged(f"a stored clip cannot be decoded: {error}; {_REMEDY}") from error


def _decoded(container: Any, stream: Any, start: int, stop: int, crop: Crop) -> Pixels:
    to_rgb = _Converter(stream.height, stream.width, crop)
    pixels = np.empty((stop - start, crop.height_px, crop.width_px, 3), dtype=np.uint8)
    num_decoded = 0
    for frame in _frames(container, stream, start, stop):
        to_rgb(frame, pixels[num_decoded])
        num_decoded += 1
    if num_decoded != len(pixels):
        raise ArtifactDamaged(
            f"a stored clip holds {start + num_decoded} frames and claims {stream.frames}, {stop} of them wanted; {_REMEDY}"
        )
    return pixels


def _frames(container: Any, stream: Any, start: int, stop: int) -> Iterator[Any]:
    """The frames from ``start`` up to ``stop``; decoded are those since the keyframe before, and at most to the next one."""
    stream.codec_context.thread_count = 1
    entries = list(stream.index_entries)  # in decoding order; a keyframe has the same place in showing order
    keys = [number for number, entry in enumerate(entries) if entry.is_keyframe]
    if len(entries) != stream.frames or keys[:1] != [0]:
        raise ArtifactDamaged(f"a stored clip has {len(entries)} of {stream.frames} frames in its index; {_REMEDY}")
    first = max(key for key in keys if key <= start)
    last = min((key for key in keys if key >= stop), default=len(entries))
    if first:  # a time of showing is asked for, and the index holds times of decoding
        container.seek(entries[first].timestamp - entries[0].timestamp + (stream.start_time or 0), stream=stream)
    decoded = _decoded_packets(container, stream, entries[first:last])
    yield from itertools.islice(decoded, start - first, stop - first)


def _decoded_packets(container: Any, stream: Any, entries: Sequence[Any]) -> Iterator[Any]:
    """The frames of some whole groups of pictures; flushed at their end, so that no later one is decoded to look ahead."""
    for entry, packet in zip(entries, container.demux(stream), strict=False):
        if packet.pos != entry.pos:
            raise ArtifactDamaged(f"a stored clip continues at byte {packet.pos} instead of {entry.pos}; {_REMEDY}")
        yield from packet.decode()
    yield from stream.codec_context.decode(None)


class _Converter:
    """Colour conversion of one crop of frames of one size.

    The crop is taken from limited-range 4:2:0, then converted; whatever else a codec gives is brought to that first. It is
    widened to even edges, where a chroma sample begins, so that it shows the very pixels of the whole frame.
    """

    def __init__(self, height_px: int, width_px: int, crop: Crop) -> None:
        top, left = crop.y_px // 2 * 2, crop.x_px // 2 * 2
        bottom, right = _up(crop.y_px + crop.height_px, 2), _up(crop.x_px + crop.width_px, 2)
        if min(crop) < 0 or bottom > height_px or right > width_px:
            raise ArtifactDamaged(f"a stored clip of {width_px}x{height_px} px has no part {crop}; {_REMEDY}")
        self._size = (height_px, width_px)
        self._to_limited, self._to_rgb = VideoReformatter(), VideoReformatter()
        self._buffer = None if (bottom - top, right - left) == self._size else _Planes(top, left, bottom - top, right - left)
        y, x = crop.y_px - top, crop.x_px - left
        self._rows, self._bytes = slice(y, y + crop.height_px), slice(3 * x, 3 * (x + crop.width_px))

    def __call__(self, frame: av.VideoFrame, pixels: Pixels) -> None:
        """Write the crop of a frame into ``pixels``, ``uint8 [H W 3]``."""
        if frame.is_corrupt or (frame.height, frame.width) != self._size:
            raise ArtifactDamaged(f"a stored clip has a broken frame of {frame.width}x{frame.height} px; {_REMEDY}")
        limited = self._limited(frame)
        source = self._buffer.filled(limited) if self._buffer else limited
        rgb = self._to_rgb.reformat(source, format="rgb24", dst_color_range=ColorRange.JPEG, **_BT601_LIMITED)
        rows = _rows(rgb.planes[0])[self._rows, self._bytes]
        np.copyto(pixels.reshape(rows.shape), rows)

    def _limited(self, frame: av.VideoFrame) -> av.VideoFrame:
        is_full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
        if frame.format.name == "yuv420p" and not is_full:
            return frame
        source = {**_BT601_LIMITED, "src_color_range": ColorRange.JPEG if is_full else ColorRange.MPEG}
        return self._to_limited.reformat(frame, format="yuv420p", dst_color_range=ColorRange.MPEG, **source)


class _Planes:
    """A frame over memory of ours that takes one part of each decoded frame in turn."""

    def __init__(self, top: int, left: int, height_px: int, width_px: int) -> None:
        memory = np.zeros((_up(height_px, _HEIGHT_PX) * 3 // 2, _up(width_px, _STRIDE_PX)), dtype=np.uint8)
        self._frame = av.VideoFrame.from_numpy_buffer(memory, format="yuv420p", width=width_px)
        self._luma = (slice(top, top + height_px), slice(left, left + width_px))
        self._chroma = (slice(top // 2, (top + height_px) // 2), slice(left // 2, (left + width_px) // 2))
        luma, *chroma = (_rows(plane) for plane in self._frame.planes)
        self._targets = (luma[:height_px, :width_px], *(plane[: height_px // 2, : width_px // 2] for plane in chroma))

    def filled(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The part of ``frame``, until the next call."""
        for target, plane, part in zip(self._targets, frame.planes, (self._luma, self._chroma, self._chroma), strict=True):
            np.copyto(target, _rows(plane)[part])
        return self._frame


def _rows(plane: Any) -> Pixels:
    """The bytes of a plane, one row of the picture per row, padding included."""
    rows: Pixels = np.frombuffer(plane, dtype=np.uint8).reshape(-1, plane.line_size)
    return rows


def _up(value: int, step: int) -> int:
    """The next multiple of ``step``."""
    return -(-value // step) * step
