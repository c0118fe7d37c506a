"""Short films for a page: VP9 in WebM, which every browser of today plays and no licence restricts.

Equal frames give equal bytes, on any number of cores. Source of the settings: the WebM project's guide to constant quality.
"""

import io
import itertools
from collections.abc import Iterable

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace

MEDIA_TYPE = "video/webm"
_OPTIONS = {"crf": "33", "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "0", "lag-in-frames": "0"}
"""Constant quality without a limit of the rate; the guide recommends a factor of 31 to 33 for up to 1080 lines. Fast, not
small: slower settings took four times as long for a file a quarter smaller."""


def encode_webm(frames: Iterable[npt.NDArray[np.uint8]], *, fps: int) -> bytes:
    """A film of one frame or more.

    Args:
        frames: RGB ``uint8 [H W 3]``, of equal size, height and width even.
        fps: frames per second.

    Raises:
        ValueError: a side is odd; colours are stored at half the resolution.
    """
    following = iter(frames)
    first = next(following)
    height_px, width_px, _ = first.shape
    if height_px % 2 or width_px % 2:
        raise ValueError(f"a film of {width_px}x{height_px} pixels: both sides must be even")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libvpx-vp9", rate=fps, options=_OPTIONS)
        stream.height, stream.width, stream.pix_fmt = height_px, width_px, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.colorspace, stream.codec_context.color_range = Colorspace.ITU709, ColorRange.MPEG
        for number, pixels in enumerate(itertools.chain([first], following)):
            container.mux(stream.encode(_stored(pixels, number)))
        container.mux(stream.encode())
    return buffer.getvalue()


def _stored(pixels: npt.NDArray[np.uint8], number: int) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    stored = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
    stored.pts = number
    return stored
