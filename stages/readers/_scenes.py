"""Seeded scenes of one moving shape whose class needs both ends of the clip; pure numpy, no files, no codec.

A clip has four equal quarters. In each, the shape leaves its home near the centre in one of ``num_motions`` directions and
comes back; the directions are drawn independently. The long label is the pair (direction in the first quarter, direction in
the last quarter). The shape is as often brighter as it is darker than the ground, and grey noise whose strength changes
from place to place and from time to time lies over everything. ``docs/synthetic.md`` proves what follows from that and says
what was measured.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from models import config

Array = npt.NDArray[np.float32]

MOTIONS = ("right", "left", "down", "up", "right_down", "left_up", "right_up", "left_down")
"""Directions in the order in which ``num_motions`` takes them; each one's opposite is its neighbour."""
SHAPES = ("disc", "square", "diamond")
_REACH: Mapping[str, float] = MappingProxyType({"disc": 1.0, "square": 1.0, "diamond": 1.3})
"""How far a shape reaches, in halves of ``object_px``; 1.3 gives the diamond about the area of the disc."""
NUM_QUARTERS = 4
NUM_WAVES = 6
_HEADINGS = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [1, 1], [-1, -1], [1, -1], [-1, 1]], dtype=np.float32)
_NOISE_KNOTS = (9, 5, 5)
"""Places in time, height and width between which the strength of the noise is interpolated."""


class Config(config.Config):
    """How scenes look and move. The defaults are the standing instrument; measured results hold for them alone."""

    seed: int = 0
    """Key of every draw; clip ``index`` of one seed is the same clip whatever the number of clips."""
    num_frames: int = Field(default=128, gt=0)
    """Frames per clip; a multiple of four."""
    size_px: int = Field(default=64, gt=0)
    """Height and width of a frame in pixels."""
    num_motions: int = Field(default=4, ge=2, le=len(MOTIONS))
    """Directions a quarter draws from; chance is one over its square."""
    object_px: float = Field(default=24.0, gt=0)
    """Width of the moving object in pixels."""
    travel_px: float = Field(default=18.0, gt=0)
    """How far the object goes from home, in pixels along each axis of its direction."""
    home_px: float = Field(default=3.0, ge=0)
    """How far home may lie from the centre, in pixels along each axis."""
    object_contrast: float = Field(default=0.2, ge=0, le=0.5)
    """Distance of the object from mid grey, up or down, in [0, 1] of the value range."""
    object_texture: float = Field(default=0.05, ge=0, le=1)
    """Amplitude of the stripes painted on the object."""
    background_texture: float = Field(default=0.04, ge=0, le=1)
    """Standard deviation of the smooth background pattern."""
    num_distractors: int = Field(default=1, ge=0)
    """Small discs that drift through the whole clip at a constant velocity of their own."""
    distractor_px: float = Field(default=8.0, gt=0)
    """Width of a distractor in pixels."""
    distractor_contrast: float = Field(default=0.2, ge=0, le=1)
    """Distance of a distractor's colour from mid grey."""
    camera_px: float = Field(default=2.0, ge=0)
    """Amplitude of the slow camera sway in pixels, in x and in y."""
    noise: float = Field(default=0.4, ge=0, le=1)
    """Largest standard deviation of the grey noise; its strength varies between zero and this."""

    @model_validator(mode="after")
    def _quarters_are_equal(self) -> Self:
        if self.num_frames % NUM_QUARTERS:
            raise ValueError(f"num_frames={self.num_frames} is not a multiple of {NUM_QUARTERS} quarters")
        return self


class Scene(NamedTuple):
    """Every random choice behind one clip, except the noise, whose key is ``number`` itself."""

    number: int
    """Number of the clip in its set."""
    motions: tuple[int, ...]
    """Direction of each quarter, an index into ``MOTIONS``."""
    marked_quarter: int
    """The quarter during which the object wears a white rim."""
    shape: int
    """Index into ``SHAPES``."""
    home: Array
    """Where every quarter begins and ends, (x, y) from the centre, in [-1, 1] of ``home_px``."""
    polarity: int
    """1 when the object is brighter than the ground, -1 when it is darker."""
    stripe_angle: float
    """Direction of the stripes on the object, radians."""
    background: Array
    """Colour of the background, RGB in [0, 1]."""
    waves: Array
    """Background pattern, one row per wave: x and y cycles per frame, phase, and RGB amplitudes."""
    sway: Array
    """Camera: for x and y, cycles per clip and phase."""
    distractors: Array
    """One row per distractor: start x, y and velocity x, y in frames per clip, then RGB in [-1, 1]."""


class Rendering(NamedTuple):
    """A clip and where its object is."""

    clip: npt.NDArray[np.uint8]
    """Frames [T H W 3]."""
    boxes: Array
    """Left, top, right, bottom of the object [T 4] in pixels; parts beyond the frame are not seen."""


def generator(config: Config, index: int, purpose: int) -> np.random.Generator:
    """The stream of one purpose of one clip: a counter-based generator keyed by seed, clip and purpose."""
    sequence = np.random.SeedSequence((config.seed, index, purpose))
    return np.random.Generator(np.random.Philox(sequence))


def scene(config: Config, index: int) -> Scene:
    """The choices of clip ``index``, a function of the seed and the index alone."""
    draw = generator(config, index, purpose=0)
    velocity = draw.uniform(0.5, 2.0, (config.num_distractors, 2)) * draw.choice([-1.0, 1.0], (config.num_distractors, 2))
    waves = [draw.integers(-2, 3, (NUM_WAVES, 2)), draw.uniform(0, 2 * np.pi, NUM_WAVES), draw.normal(size=(NUM_WAVES, 3))]
    distractors = [draw.random((config.num_distractors, 2)), velocity, draw.uniform(-1, 1, (config.num_distractors, 3))]
    return Scene(
        number=index,
        motions=tuple(int(motion) for motion in draw.integers(0, config.num_motions, NUM_QUARTERS)),
        marked_quarter=int(draw.integers(NUM_QUARTERS)),
        shape=int(draw.integers(len(SHAPES))),
        home=draw.uniform(-1, 1, 2).astype(np.float32),
        polarity=int(draw.choice([-1, 1])),
        stripe_angle=float(draw.uniform(0, np.pi)),
        background=draw.uniform(0.45, 0.55, 3).astype(np.float32),
        waves=np.column_stack(waves).astype(np.float32),
        sway=np.stack([draw.uniform(1, 3, 2), draw.uniform(0, 2 * np.pi, 2)], axis=1).astype(np.float32),
        distractors=np.column_stack(distractors).astype(np.float32),
    )


def labels(drawn: Scene, num_motions: int) -> dict[str, int]:
    """Class numbers of a scene: ``long`` needs both ends of the clip, the others show learning earlier."""
    first, last = drawn.motions[0], drawn.motions[-1]
    return {
        "long": first * num_motions + last,
        "first": first,
        "last": last,
        "marked": drawn.motions[drawn.marked_quarter],
        "shape": drawn.shape,
    }


def camera(drawn: Scene, config: Config) -> Array:
    """How far the camera has shifted the world [T 2], in pixels."""
    time = np.arange(config.num_frames, dtype=np.float32)[:, None] / config.num_frames
    return _single(config.camera_px * np.sin(2 * np.pi * drawn.sway[:, 0] * time + drawn.sway[:, 1]))


def path(drawn: Scene, config: Config) -> Array:
    """Centre of the object in every frame [T 2], (x, y) in pixels, camera included."""
    length = config.num_frames // NUM_QUARTERS
    out_and_back = np.sin(np.pi * (np.arange(length) + 0.5) / length)[:, None]
    legs = np.concatenate([out_and_back * _HEADINGS[motion] for motion in drawn.motions])
    home = config.size_px / 2 + config.home_px * drawn.home
    return _single(home + config.travel_px * legs + camera(drawn, config))


def render(drawn: Scene, config: Config) -> Rendering:
    """The frames of a scene and the box of its object in each."""
    frames = _background(drawn, config)
    _paint_distractors(frames, drawn, config)
    _paint_object(frames, drawn, config)
    frames += _noise(drawn, config)[:, None]
    np.clip(frames, 0, 1, out=frames)
    clip = (frames * np.float32(255) + np.float32(0.5)).astype(np.uint8).transpose(0, 2, 3, 1)
    centre, half = path(drawn, config), config.object_px / 2 * _REACH[SHAPES[drawn.shape]]
    return Rendering(np.ascontiguousarray(clip), _single(np.concatenate([centre - half, centre + half], axis=1)))


def _single(values: npt.NDArray[np.floating]) -> Array:
    return values.astype(np.float32)


def _noise(drawn: Scene, config: Config) -> Array:
    """Grey noise [T H W] whose strength is interpolated between a few drawn places in time and space."""
    draw = generator(config, drawn.number, purpose=1)
    strength = draw.random(_NOISE_KNOTS, dtype=np.float32) * np.float32(config.noise)
    shape = (config.num_frames, config.size_px, config.size_px)
    for axis, length in enumerate(shape):
        strength = _stretched(strength, axis, length)
    return _single(strength * draw.standard_normal(shape, dtype=np.float32))


def _stretched(values: Array, axis: int, length: int) -> Array:
    """``values`` interpolated linearly along one axis to ``length`` places, the ends kept."""
    place = np.linspace(0, values.shape[axis] - 1, length, dtype=np.float32)
    below = np.minimum(place.astype(np.int64), values.shape[axis] - 2)
    weight = (place - below).reshape([-1 if at == axis else 1 for at in range(values.ndim)])
    left, right = np.take(values, below, axis), np.take(values, below + 1, axis)
    return _single(left + weight * (right - left))


def _offsets(centre: Array, size_px: int) -> tuple[Array, Array]:
    """Distance of every column [T W] and every row [T H] from the centre [T 2], in pixels."""
    pixels = np.arange(size_px, dtype=np.float32) + np.float32(0.5)
    return _single(pixels[None] - centre[:, 0, None]), _single(pixels[None] - centre[:, 1, None])


def _distance(shape: str, across: Array, down: Array, radius: float) -> Array:
    """Signed distance [T H W] from the outline in pixels, negative inside."""
    x, y = np.abs(across)[:, None, :], np.abs(down)[:, :, None]
    if shape == "disc":
        return _single(np.sqrt(x * x + y * y) - radius)
    if shape == "square":
        return _single(np.maximum(x, y) - radius)
    return _single((x + y - _REACH[shape] * radius) * np.sqrt(0.5))


def _background(drawn: Scene, config: Config) -> Array:
    """The pattern behind everything [T 3 H W], a sum of plane waves moved exactly by the camera."""
    pixels = (np.arange(config.size_px, dtype=np.float32) + 0.5)[None] - camera(drawn, config).T[:, :, None]  # [2 T W]
    angle = 2 * np.pi / config.size_px * pixels[..., None] * drawn.waves[:, :2].T[:, None, None]  # [2 T W waves]
    angle[0] += drawn.waves[:, 2]
    rows = np.concatenate([np.cos(angle[1]), -np.sin(angle[1])], axis=-1).astype(np.float32)  # [T H 2*waves]
    columns = np.concatenate([np.cos(angle[0]), np.sin(angle[0])], axis=-1).astype(np.float32)  # [T W 2*waves]
    strength = np.tile(drawn.waves[:, 3:], (2, 1)) * np.float32(config.background_texture * np.sqrt(2 / NUM_WAVES))
    weighted = rows[:, None] * strength.T[None, :, None]  # [T 3 H 2*waves]
    pattern = weighted.reshape(config.num_frames, -1, 2 * NUM_WAVES) @ columns.transpose(0, 2, 1)
    shape = (config.num_frames, 3, config.size_px, config.size_px)
    return _single(pattern.reshape(shape) + drawn.background[:, None, None])


def _paint(frames: Array, distance: Array, colour: Array) -> None:
    """Blend ``colour`` (broadcast against [T 3 H W]) over the frames wherever ``distance`` is negative, edges smooth."""
    cover = np.clip(np.float32(0.5) - distance, 0, 1)[:, None]
    frames += cover * (colour - frames)


def _paint_object(frames: Array, drawn: Scene, config: Config) -> None:
    """Draw the object with its stripes, and its white rim during the marked quarter."""
    across, down = _offsets(path(drawn, config), config.size_px)
    distance = _distance(SHAPES[drawn.shape], across, down, config.object_px / 2)
    towards = np.cos(drawn.stripe_angle) * across[:, None, :] + np.sin(drawn.stripe_angle) * down[:, :, None]
    stripes = config.object_texture * np.sin(4 * np.pi / config.object_px * towards)
    grey = 0.5 + drawn.polarity * config.object_contrast
    _paint(frames, distance, _single(grey + stripes)[:, None])
    length = config.num_frames // NUM_QUARTERS
    marked = slice(drawn.marked_quarter * length, (drawn.marked_quarter + 1) * length)
    rim = np.maximum(distance[marked], -distance[marked] - np.float32(config.object_px / 8))
    _paint(frames[marked], rim, np.ones(1, dtype=np.float32))


def _paint_distractors(frames: Array, drawn: Scene, config: Config) -> None:
    """Draw the small discs, behind the object; what leaves on one side comes back on the other."""
    time = np.arange(config.num_frames, dtype=np.float32)[:, None] / config.num_frames
    for row in drawn.distractors:
        centre = (row[:2] + time * row[2:4]) * config.size_px % config.size_px
        across, down = _offsets(_single(centre), config.size_px)
        colour = np.float32(0.5) + np.float32(config.distractor_contrast) * row[4:]
        _paint(frames, _distance("disc", across, down, config.distractor_px / 2), colour[:, None, None])
