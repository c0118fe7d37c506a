"""What a clip costs in each exported form of an encoder, against the network itself in PyTorch, on one thread.

    python benchmarks/export.py [--encoder S|B|L|H] [--frames N] [--size PX] [--batch N] [--rounds N] [--compile] [--quick]

An untrained encoder, which costs what a trained one does, is written in every form by the code of the stage ``export``, loaded
again, held against the network, and timed in turn with it: seconds are processor time per clip on a CPU, wall time on a GPU,
medians over the rounds. Frames are bytes in memory, and each way normalises them. A form that cannot be made here is left out
and said to be: those in bf16 where the processor only imitates it, ``aot_inductor`` without a C++ compiler, ``tensorrt``
without a GPU. A form that is compiled takes a minute or so; ``--compile`` times ``torch.compile`` as well, which takes another.

``--quick`` takes smaller clips and only forms that are not compiled.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks import _common
from models import mae
from stages.backends import BackendConfig, Program, aot_inductor, onnx, tensorrt, torch_export
from stages.backends._clip_encoder import ClipEncoder, Description, Sampling
from stages.backends._measuring import Parity, parity, seconds_per_clip
from stages.backends._tracing import placed
from stages.device import device, precisions
from stages.errors import ConfigError
from stages.export import probe

EAGER, COMPILED = "eager fp32", "torch.compile fp32"
EXPORTED, ONNX = "torch_export", "onnx"
FROZEN, FROZEN_BF16, OPEN = "aot_inductor, frozen", "aot_inductor, frozen, bf16", "aot_inductor, any batch, not frozen"
TENSORRT = "tensorrt bf16"


@dataclasses.dataclass(frozen=True)
class Form:
    """One way to run the encoder, made and checked.

    Args:
        run: computes tokens.
        parity: its errors; ``None`` for the network itself.
        build_s: wall seconds of making it.
        size_bytes: of its files.
        device: where it computes.
    """

    run: Callable[[Tensor], Tensor]
    parity: Parity | None
    build_s: float
    size_bytes: int
    device: torch.device


def main() -> None:
    """Make every form, time them in turn, print a table, write the result."""
    asked = _arguments()
    torch.set_num_threads(asked.threads)
    encoder = _encoder(asked)
    frames = probe(encoder.description, asked.batch, seed=0)
    with tempfile.TemporaryDirectory() as scratch:
        forms, left_out = _forms(asked, encoder, frames, Path(scratch))
        seconds = _timed(forms, frames, rounds=asked.rounds)
    _report(asked, encoder, forms, left_out, seconds)


def _arguments() -> argparse.Namespace:
    parser = _common.arguments(__doc__ or "")
    parser.add_argument("--encoder", choices=("S", "B", "L", "H"), default="S", help="size of the encoder (S)")
    parser.add_argument("--frames", type=int, default=16, help="frames of a clip (16)")
    parser.add_argument("--size", type=int, help="side of a frame in pixels (112; 64 with --quick)")
    parser.add_argument("--batch", type=int, default=2, help="clips at a time, two or more (2)")
    parser.add_argument("--rounds", type=int, help="times that the ways take turns (15; 5 with --quick)")
    parser.add_argument("--threads", type=int, default=1, help="threads of every way (1)")
    parser.add_argument("--compile", action="store_true", help="time torch.compile as well")
    asked = parser.parse_args()
    asked.size = asked.size or (64 if asked.quick else 112)
    asked.rounds = asked.rounds or (5 if asked.quick else 15)
    return asked


def _encoder(asked: argparse.Namespace) -> ClipEncoder:
    torch.manual_seed(0)
    name = f"ViT-{asked.encoder}"
    model = mae.Config.model_validate({"encoder": name, "decoder": name})
    described = Description(
        model=model, num_frames=asked.frames, size_px=asked.size, sampling=Sampling(short_side_px=asked.size)
    )
    return ClipEncoder.build(described, model.build_encoder(described.grid).state_dict())


def _wanted(asked: argparse.Namespace) -> dict[str, BackendConfig]:
    """The forms to make, by what the table calls them."""
    quick: dict[str, BackendConfig] = {EXPORTED: torch_export.Config(), ONNX: onnx.Config()}
    if asked.quick:
        return quick
    compiled: dict[str, BackendConfig] = {
        OPEN: aot_inductor.Config(any_batch=True, freezing=False),
        FROZEN: aot_inductor.Config(),
        FROZEN_BF16: aot_inductor.Config(precision="bf16"),
        TENSORRT: tensorrt.Config(),
    }
    return {**quick, **compiled}


def _forms(
    asked: argparse.Namespace, encoder: ClipEncoder, frames: Tensor, scratch: Path
) -> tuple[dict[str, Form], dict[str, str]]:
    """What could be made, and why the rest could not."""
    forms = {EAGER: Form(placed(encoder, device(), "fp32"), None, 0.0, 0, device())}
    left_out: dict[str, str] = {}
    for name, backend in _wanted(asked).items():
        try:
            _refuse_imitation(backend)
            backend.require()
        except ConfigError as error:
            left_out[name] = str(error)
            _common.say(f"left out: {name}: {error}")
            continue
        _common.say(f"making {name} ...")
        forms[name] = _made(backend, encoder, frames, scratch / str(len(forms)))
    if asked.compile:
        begun = time.perf_counter()
        run = torch.compile(placed(encoder, device(), "fp32"), dynamic=False)
        found = parity(run(frames.to(device())), encoder(frames))
        forms[COMPILED] = Form(run, found, time.perf_counter() - begun, 0, device())
    return forms, left_out


def _refuse_imitation(backend: BackendConfig) -> None:
    precision = getattr(backend, "precision", "fp32")
    if precision not in precisions(device()):
        raise ConfigError(f"this {device().type} can only imitate {precision}")


def _made(backend: BackendConfig, encoder: ClipEncoder, frames: Tensor, folder: Path) -> Form:
    folder.mkdir()
    begun = time.perf_counter()
    backend.write(encoder, folder, frames)
    build_s = time.perf_counter() - begun
    program: Program = backend.load(folder)
    found = parity(program(frames), encoder(frames))
    if found.max_relative_error > backend.tolerance:
        raise SystemExit(
            f"{backend.name} is not the encoder: its tokens differ by {found.max_relative_error:.2g} of the largest"
        )
    size_bytes = sum(path.stat().st_size for path in folder.iterdir())
    return Form(program, found, build_s, size_bytes, program.device)


def _timed(forms: Mapping[str, Form], frames: Tensor, *, rounds: int) -> dict[str, float]:
    """Seconds per clip; what computes on one device takes turns."""
    seconds: dict[str, float] = {}
    for place in dict.fromkeys(form.device for form in forms.values()):
        ways = {name: form.run for name, form in forms.items() if form.device == place}
        seconds |= seconds_per_clip(ways, frames.to(place), rounds=rounds, device=place)
    return seconds


def _report(
    asked: argparse.Namespace,
    encoder: ClipEncoder,
    forms: Mapping[str, Form],
    left_out: Mapping[str, str],
    seconds: Mapping[str, float],
) -> None:
    rows = [
        {
            "way": name,
            "s/clip": _common.rounded(seconds[name]),
            "vs eager": _common.rounded(seconds[EAGER] / seconds[name], 3),
            "relative error": form.parity.max_relative_error if form.parity else None,
            "build s": _common.rounded(form.build_s, 3),
            "MB": _common.rounded(form.size_bytes / 1e6, 3),
            "device": form.device.type,
        }
        for name, form in forms.items()
    ]
    _common.say("\n" + _common.table(_printed(rows)))
    result = {
        "machine": _common.machine(),
        "encoder": {
            "size": f"ViT-{asked.encoder}",
            "num_frames": asked.frames,
            "size_px": asked.size,
            "tokens": encoder.description.grid.num_tokens,
        },
        "batch_clips": asked.batch,
        "threads": asked.threads,
        "rounds": asked.rounds,
        "rows": rows,
        "left_out": dict(left_out),
        "ratios": {
            "aoti_freezing_vs_eager": _ratio(seconds, FROZEN),
            "aoti_freezing_bf16_vs_eager": _ratio(seconds, FROZEN_BF16),
            "onnx_vs_eager": _ratio(seconds, ONNX),
            "torch_export_vs_eager": _ratio(seconds, EXPORTED),
        },
    }
    _common.finish("export", result, out=asked.out)


def _printed(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with errors spelled out: the table rounds to whole numbers what is very small."""
    return [{**row, "relative error": f"{row['relative error']:.1e}" if row["relative error"] else "0"} for row in rows]


def _ratio(seconds: Mapping[str, float], name: str) -> float | None:
    """How many times faster than the network itself; nothing for what was not made."""
    return _common.rounded(seconds[EAGER] / seconds[name], 3) if name in seconds else None


if __name__ == "__main__":
    main()
