"""What a training sample of 128 frames costs to read: ours, and other ways to the same pixels.

    python benchmarks/read.py [--data FOLDER] [--quick]

The videos of a folder (or generated ones) are made into clips by the shard stage. Then every method makes the same samples, a
window of 128 frames and a square of 224 px from each clip, in turn and several times over, on one thread:

* ours: as the stages read, through ``stages.batches``: ranged read, crc32c, decoding of the window, crop, batch;
* the limit: PyAV and torchcodec, decoding the same windows of the same clips from memory, without any check or loader;
* webdataset: streaming the same shards, decoded by PyAV;
* originals: opening the source file of every sample, as loaders without shards do: decord where it is installed, and PyAV.

Processor time is that of the process, so that it hardly depends on what else runs; samples per second with one and two workers
do. Ratios are medians over the repetitions, each within one repetition. torchcodec and decord are optional.
"""

import argparse
import dataclasses
import functools
import importlib.util
import io
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av
import numpy as np
import numpy.typing as npt
import torch
import webdataset
from av.video.reformatter import VideoReformatter

from benchmarks import _common
from stages import shard
from stages.batches import ClipFrames, Sample, Stream, batches
from stages.storage.artifact import Artifact
from stages.storage.index import Clip, Index, read_clip
from stages.storage.workspace import Workspace
from stages.video_command import ffmpeg_binary
from stages.views import View, ViewConfig, cut, draw_view

NUM_FRAMES, SLACK_FRAMES, SIZE_PX = 128, 32, 224
BATCH_CLIPS = 2
OURS, PYAV, TORCHCODEC = "ours", "limit: PyAV", "limit: torchcodec"
WHOLE = ", whole frames"
SLOW = "originals"
GENERATED = {
    "zoom": "mandelbrot=size=1280x720:rate=30,noise=alls=6:allf=t",
    "shapes": "testsrc2=size=960x720:rate=30,rotate=t/4,noise=alls=8:allf=t",
    "cells": "life=size=640x360:rate=30:mold=10:ratio=0.3:death_color=#802020:life_color=#30c080,scale=1280:720,gblur=2",
}

Pixels = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Data:
    """What is read: clips, the files they came from, and the clips' bytes in memory."""

    snapshot: Artifact
    clips: Sequence[Clip]
    folder: Path
    encoded: Mapping[str, bytes]

    def tars(self) -> list[str]:
        """The shards that hold the clips."""
        names = sorted(name for name in self.snapshot.manifest.files if name.startswith("shards/"))
        return [str(self.snapshot.path(name)) for name in names]


class Method(NamedTuple):
    """A way to samples.

    Args:
        one: makes the sample of a clip; sent to workers.
        all: makes the samples of all clips in this process, in the method's own way.
    """

    one: Callable[[Clip, int], Sample] | None
    all: Callable[[], Iterator[Any]]


def main() -> None:
    """Measure, print a table, write the result."""
    parser = _common.arguments(__doc__ or "")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="videos to read; generated ones otherwise")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    # A machine with fewer cores than workers is slow, and that is measured.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    with tempfile.TemporaryDirectory() as scratch:
        data = _data(asked, Path(scratch))
        methods = _methods(data)
        cpu_ms = _in_turn(methods, len(data.clips), rounds=7 if asked.quick else 15)
        per_s = _throughput(methods, data, quick=asked.quick)
        _report(asked, data, cpu_ms, per_s)


def _data(asked: argparse.Namespace, scratch: Path) -> Data:
    folder = asked.data or _generate(scratch / "videos", seconds=8 if asked.quick else 30)
    config = {
        "source": {"name": "folder", "path": str(folder.resolve())},
        "clip": {"num_frames": NUM_FRAMES, "slack_frames": SLACK_FRAMES},
        "max_failed_share": 1,
        "settle_s": 0,
    }
    _common.say("making clips ...")
    snapshot = shard.run(shard.Config.model_validate(config), {}, Workspace(scratch / "root")).artifact
    clips = [
        clip for clip in Index(snapshot) if clip.num_frames >= NUM_FRAMES and min(clip.width_px, clip.height_px) >= SIZE_PX
    ]
    chosen = [clips[number] for number in np.linspace(0, len(clips) - 1, min(len(clips), 8 if asked.quick else 24)).astype(int)]
    return Data(snapshot, chosen, folder, {clip.clip_id: read_clip(snapshot, clip) for clip in chosen})


def _generate(folder: Path, *, seconds: int) -> Path:
    _common.say("rendering videos ...")
    folder.mkdir()
    for name, source in GENERATED.items():
        codec = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-pix_fmt", "yuv420p"]
        argv = [ffmpeg_binary(None), "-v", "error", "-f", "lavfi", "-i", source, "-t", str(seconds), *codec]
        _common.spend([*argv, folder / f"{name}.mp4"])
    return folder


def _methods(data: Data) -> dict[str, Method]:
    """Every method that can run here."""
    alone = {OURS: functools.partial(_ours, ClipFrames(data.snapshot)), PYAV: functools.partial(_limit, _pyav, data.encoded)}
    alone |= {OURS + WHOLE: functools.partial(_ours_whole, ClipFrames(data.snapshot))}
    alone |= {PYAV + WHOLE: functools.partial(_limit_whole, _pyav, data.encoded)}
    if _works("torchcodec.decoders"):
        alone[TORCHCODEC] = functools.partial(_limit, _torchcodec, data.encoded)
        alone[TORCHCODEC + WHOLE] = functools.partial(_limit_whole, _torchcodec, data.encoded)
    alone[f"{SLOW}: PyAV"] = functools.partial(_original, _pyav_file, data.folder)
    if _works("decord"):
        alone[f"{SLOW}: decord"] = functools.partial(_original, _decord_file, data.folder)
    methods = {name: Method(one, functools.partial(_each, one, data.clips)) for name, one in alone.items()}
    methods[OURS] = Method(alone[OURS], functools.partial(_batched, alone[OURS], data.clips, num_workers=0, epochs=1))
    methods["webdataset, PyAV"] = Method(None, functools.partial(_streamed, data, num_workers=0))
    return dict(sorted(methods.items(), key=lambda item: (WHOLE in item[0], list(methods).index(item[0]))))


def _works(module: str) -> bool:
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        _common.say(f"{module} is left out: {str(error).strip().splitlines()[0][:160]}")
        return False
    return True


# What a sample is


def _view(clip: Clip) -> View:
    """The window and square of a clip that every method reads: drawn, the same for all."""
    view = draw_view(clip, 1, ViewConfig(num_frames=NUM_FRAMES, size_px=SIZE_PX))
    return dataclasses.replace(view, flip=False)


def _square(view: View) -> tuple[slice, slice]:
    return slice(view.y_px, view.y_px + SIZE_PX), slice(view.x_px, view.x_px + SIZE_PX)


def _ours(frames: ClipFrames, clip: Clip, epoch: int) -> Sample:
    return {"pixels": torch.from_numpy(cut(frames, clip, _view(clip), NUM_FRAMES))}


def _ours_whole(frames: ClipFrames, clip: Clip, epoch: int) -> Sample:
    return {"pixels": torch.from_numpy(frames.read(clip, _view(clip).start_frame, NUM_FRAMES))}


def _limit(decode: Callable[..., Pixels], encoded: Mapping[str, bytes], clip: Clip, epoch: int) -> Sample:
    view = _view(clip)
    return {"pixels": torch.from_numpy(decode(encoded[clip.clip_id], view.start_frame, _square(view)))}


def _limit_whole(decode: Callable[..., Pixels], encoded: Mapping[str, bytes], clip: Clip, epoch: int) -> Sample:
    return {"pixels": torch.from_numpy(decode(encoded[clip.clip_id], _view(clip).start_frame, (slice(None), slice(None))))}


def _original(decode: Callable[..., Pixels], folder: Path, clip: Clip, epoch: int) -> Sample:
    view = _view(clip)
    return {"pixels": torch.from_numpy(decode(folder / clip.key, clip, clip.start_frame + view.start_frame, _square(view)))}


# Decoders


def _pyav(data: bytes, start: int, square: tuple[slice, slice]) -> Pixels:
    to_rgb = VideoReformatter()
    with av.open(io.BytesIO(data), format="mp4") as container:
        frames = _pyav_frames(container, start)
        return _filled(to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()[square] for frame in frames)


def _pyav_file(path: Path, clip: Clip, start: int, square: tuple[slice, slice]) -> Pixels:
    to_rgb = VideoReformatter()
    size = {"width": clip.width_px, "height": clip.height_px}
    with av.open(str(path)) as container:
        frames = _pyav_frames(container, start)
        return _filled(to_rgb.reformat(frame, format="rgb24", threads=1, **size).to_ndarray()[square] for frame in frames)


def _pyav_frames(container: Any, start: int) -> Iterator[Any]:
    """The frames of a window, found by their time after a seek to the keyframe before."""
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    duration = 1 / (stream.average_rate * stream.time_base)
    first = (stream.start_time or 0) + round(start * duration)
    container.seek(first, stream=stream)
    wanted = (frame for frame in container.decode(stream) if frame.pts >= first - duration / 2)
    return (frame for _, frame in zip(range(NUM_FRAMES), wanted, strict=False))


def _filled(frames: Iterator[Pixels]) -> Pixels:
    first = next(frames)
    pixels = np.empty((NUM_FRAMES, *first.shape), dtype=np.uint8)
    pixels[0] = first
    for number, frame in enumerate(frames, start=1):
        pixels[number] = frame
    return pixels


def _torchcodec(data: bytes, start: int, square: tuple[slice, slice]) -> Pixels:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(data, dimension_order="NHWC", num_ffmpeg_threads=1)
    frames = decoder.get_frames_in_range(start, start + NUM_FRAMES).data
    return np.ascontiguousarray(frames[:, square[0], square[1]].numpy())


def _decord_file(path: Path, clip: Clip, start: int, square: tuple[slice, slice]) -> Pixels:
    import decord

    reader = decord.VideoReader(str(path), num_threads=1, width=clip.width_px, height=clip.height_px)
    frames = reader.get_batch(range(start, start + NUM_FRAMES)).asnumpy()
    return np.ascontiguousarray(frames[:, square[0], square[1]])


# Loaders


def _each(one: Callable[[Clip, int], Sample], clips: Sequence[Clip]) -> Iterator[Sample]:
    return (one(clip, 0) for clip in clips)


def _batched(
    one: Callable[[Clip, int], Sample], clips: Sequence[Clip], *, num_workers: int, epochs: int, batch_clips: int = BATCH_CLIPS
) -> Iterator[Sample]:
    steps = epochs * len(clips) // batch_clips
    return batches(Stream(clips, 0, one), batch_clips=batch_clips, first_step=0, last_step=steps, num_workers=num_workers)


def _streamed(data: Data, *, num_workers: int) -> Iterator[Any]:
    wanted = {clip.clip_id: clip for clip in data.clips}
    stream = webdataset.WebDataset(data.tars(), shardshuffle=False, workersplitter=None, empty_check=False)
    chosen = stream.select(functools.partial(_is_wanted, frozenset(wanted)))
    decoded = chosen.map(functools.partial(_from_tar, wanted))
    return iter(torch.utils.data.DataLoader(decoded, batch_size=BATCH_CLIPS, num_workers=num_workers))


def _is_wanted(names: frozenset[str], sample: Mapping[str, Any]) -> bool:
    return sample["__key__"] in names


def _from_tar(wanted: Mapping[str, Clip], sample: Mapping[str, Any]) -> Sample:
    view = _view(wanted[sample["__key__"]])
    return {"pixels": torch.from_numpy(_pyav(sample["mp4"], view.start_frame, _square(view)))}


# Measuring


def _in_turn(methods: Mapping[str, Method], num_samples: int, *, rounds: int) -> dict[str, dict[int, float]]:
    """Processor milliseconds per sample of every method, by round; the first warms up and does not count.

    The slow ones take part in every seventh round alone.
    """
    found: dict[str, dict[int, float]] = {name: {} for name in methods}
    for number in range(rounds + 1):
        _common.say(f"round {number} of {rounds} ..." if number else "warming up ...")
        for name, method in methods.items():
            if name.startswith(SLOW) and number % 7 != 1:
                continue
            begun_s = time.process_time()
            for _ in method.all():
                pass
            found[name][number] = (time.process_time() - begun_s) / num_samples * 1000
    return {name: {number: value for number, value in values.items() if number} for name, values in found.items()}


def _throughput(methods: Mapping[str, Method], data: Data, *, quick: bool) -> dict[str, dict[int, float]]:
    """Samples per second of every method by number of workers: the best of several rounds, each from the first batch on."""
    timed = {name: method.one for name, method in methods.items() if method.one and WHOLE not in name}
    found: dict[str, dict[int, float]] = {name: {} for name in timed}
    for number in range(2 if quick else 3):
        _common.say(f"workers, round {number + 1} ...")
        for name, one in timed.items():
            if name.startswith(SLOW) and (quick or number):
                continue
            for num_workers in (1, 2):
                loader = _batched(one, data.clips, num_workers=num_workers, epochs=1 if name.startswith(SLOW) else 3)
                next(loader)
                begun_s, count = time.perf_counter(), sum(len(batch["pixels"]) for batch in loader)
                rate = count / (time.perf_counter() - begun_s)
                found[name][num_workers] = max(rate, found[name].get(num_workers, 0.0))
    return found


def _report(
    asked: argparse.Namespace,
    data: Data,
    cpu_ms: Mapping[str, Mapping[int, float]],
    per_s: Mapping[str, Mapping[int, float]],
) -> None:
    rows = [
        {
            "method": name,
            "CPU ms, least": min(values.values()),
            "CPU ms, median": statistics.median(values.values()),
            "cores for 100/s": min(values.values()) / 10,
            "samples/s, 1 worker": per_s.get(name, {}).get(1),
            "samples/s, 2 workers": per_s.get(name, {}).get(2),
        }
        for name, values in cpu_ms.items()
    ]
    sizes = sorted({f"{clip.width_px}x{clip.height_px}" for clip in data.clips})
    _common.say(f"\n{len(data.clips)} clips of {', '.join(sizes)} px; {NUM_FRAMES} frames, {SIZE_PX} px unless said\n")
    _common.say(_common.table(rows) + "\n")
    ratios = _ratios(cpu_ms)
    result = {
        "machine": _common.machine(),
        "data": {
            "source": "given" if asked.data else "generated",
            "num_clips": len(data.clips),
            "sizes_px": sizes,
            "mean_clip_bytes": round(statistics.mean(map(len, data.encoded.values()))),
        },
        "repetitions": len(cpu_ms[OURS]),
        "methods": rows,
        "ratios": ratios,
    }
    _common.finish("read", result, out=asked.out)


def _ratios(cpu_ms: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    ratios = {
        "cpu_vs_bare_decode": _ratio(cpu_ms, OURS, _limits(cpu_ms, "")),
        "cpu_vs_bare_decode_whole_frames": _ratio(cpu_ms, OURS + WHOLE, _limits(cpu_ms, WHOLE)),
        "cores_per_100_samples_per_s": min(cpu_ms[OURS].values()) / 10,
    }
    for name in cpu_ms:
        if name.startswith(("webdataset", SLOW)):
            ratios[f"cpu_vs_{name.replace(': ', '_').replace(', ', '_').lower()}"] = _ratio(cpu_ms, OURS, [name])
    return {name: _common.rounded(value, 3) for name, value in ratios.items()}


def _limits(cpu_ms: Mapping[str, Mapping[int, float]], suffix: str) -> list[str]:
    return [name + suffix for name in (PYAV, TORCHCODEC) if name + suffix in cpu_ms]


def _ratio(cpu_ms: Mapping[str, Mapping[int, float]], ours: str, others: Sequence[str]) -> float:
    """The median over the rounds of ours over the cheapest other of the same round."""
    rounds = set(cpu_ms[ours]).intersection(*(cpu_ms[name] for name in others))
    return statistics.median(cpu_ms[ours][number] / min(cpu_ms[name][number] for name in others) for number in rounds)


if __name__ == "__main__":
    main()
