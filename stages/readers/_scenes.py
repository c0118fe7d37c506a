"""Seeded scenes of one moving shape whose class needs both ends of the clip; pure numpy, no files, no codec.

A clip has four equal quarters. In each, the shape travels a closed loop of one of ``num_motions`` types, drawn
independently. The long label is the pair (type in the first quarter, type in the last quarter). Because every loop ends
where it began, a frame shows nothing of the motions of other quarters. ``docs/synthetic.md`` proves what follows from
that and says what was measured. The world is a torus: what leaves on one side comes back on the other.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from models import config

Array = npt.NDArray[np.float32]

MOTIONS = ("right", "left", "down", "up", "clockwise", "counterclockwise")
"""Motion types in the order in which ``num_motions`` takes them; each one's time reversal is its neighbour."""

SHAPES = ("disc", "square", "diamond")
NUM_QUARTERS = 4
NUM_WAVES = 6


class Config(config.Config):
    """How scenes look and move. The defaults are the standing instrument; measured results hold for them alone."""

    seed: int = 0
    """Key of every draw; clip ``index`` of one seed is the same clip whatever the number of clips."""
    num_frames: int = Field(128, gt=0)
    """Frames per clip; a multiple of four."""
    size_px: int = Field(64, gt=0)
    """Height and width of a frame in pixels."""
    num_motions: int = Field(4, ge=2, le=len(MOTIONS))
    """Motion types a quarter draws from; chance is one over its square."""
    loops_per_quarter: int = Field(1, gt=0)
    """Closed loops the object travels in a quarter; with the frame size it sets the speed."""
    object_px: float = Field(24.0, gt=0)
    """Width of the moving object in pixels."""
    circle_share: float = Field(0.25, gt=0)
    """Radius of the two circular motions as a share of the frame."""
    object_contrast: float = Field(0.45, ge=0, le=1)
    """Distance of the object's colour from mid grey, in [0, 1] of the value range."""
    colour_spread: float = Field(0.2, ge=0, le=1)
    """How far the object's colour strays from white in hue, as a share of its contrast."""
    object_texture: float = Field(0.1, ge=0, le=1)
    """Amplitude of the stripes painted on the object."""
    background_texture: float = Field(0.06, ge=0, le=1)
    """Standard deviation of the smooth background pattern."""
    num_distractors: int = Field(1, ge=0)
    """Small discs that drift through the whole clip at a constant velocity of their own."""
    distractor_px: float = Field(8.0, gt=0)
    """Width of a distractor in pixels."""
    distractor_contrast: float = Field(0.2, ge=0, le=1)
    """Distance of a distractor's colour from mid grey."""
    camera_px: float = Field(2.0, ge=0)
    """Amplitude of the slow camera sway in pixels, in x and in y."""
    noise: float = Field(0.02, ge=0, le=1)
    """Standard deviation of the grey noise added to every pixel of every frame."""

    @model_validator(mode="after")
    def _quarters_are_equal(self) -> "Config":
        if self.num_frames % NUM_QUARTERS:
            raise ValueError(f"num_frames={self.num_frames} is not a multiple of {NUM_QUARTERS} quarters")
        return self


class Scene(NamedTuple):
    """Every random choice behind one clip, except the pixel noise, whose key is ``index`` itself."""

    index: int
    """Number of the clip in its set."""
    motions: tuple[int, ...]
    """Motion type of each quarter, an index into ``MOTIONS``."""
    marked_quarter: int
    """The quarter during which the object wears a white rim."""
    shape: int
    """Index into ``SHAPES``."""
    start: Array
    """Where every loop begins and ends, (x, y) as a share of the frame."""
    phase: float
    """Angle at which circles begin, radians."""
    colour: Array
    """Colour of the object, RGB in [-1, 1] around mid grey before contrast."""
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
    """Left, top, right, bottom of the object [T 4] in pixels. Left and top lie inside the frame; a right or bottom beyond
    it goes on at the opposite edge."""


def generator(config: Config, index: int, purpose: int) -> np.random.Generator:
    """The stream of one purpose of one clip: a counter-based generator keyed by seed, clip and purpose."""
    sequence = np.random.SeedSequence((config.seed, index, purpose))
    return np.random.Generator(np.random.Philox(sequence))


def scene(config: Config, index: int) -> Scene:
    """The choices of clip ``index``, a function of the seed and the index alone."""
    draw = generator(config, index, purpose=0)
    frequencies = draw.integers(-2, 3, (NUM_WAVES, 2))
    velocity = draw.uniform(1.5, 4.5, (config.num_distractors, 2)) * draw.choice([-1.0, 1.0], (config.num_distractors, 2))
    hue = draw.uniform(0, 2 * np.pi)
    return Scene(
        index=index,
        motions=tuple(int(motion) for motion in draw.integers(0, config.num_motions, NUM_QUARTERS)),
        marked_quarter=int(draw.integers(NUM_QUARTERS)),
        shape=int(draw.integers(len(SHAPES))),
        start=draw.random(2, dtype=np.float32),
        phase=float(draw.uniform(0, 2 * np.pi)),
        colour=np.cos(hue + np.array([0.0, 2.1, 4.2])).astype(np.float32),
        stripe_angle=float(draw.uniform(0, np.pi)),
        background=draw.uniform(0.3, 0.4, 3).astype(np.float32),
        waves=np.column_stack(
            [frequencies, draw.uniform(0, 2 * np.pi, NUM_WAVES), draw.normal(size=(NUM_WAVES, 3))]
        ).astype(np.float32),
        sway=np.stack([draw.uniform(1, 3, 2), draw.uniform(0, 2 * np.pi, 2)], axis=1).astype(np.float32),
        distractors=np.column_stack(
            [draw.random((config.num_distractors, 2)), velocity, draw.uniform(-1, 1, (config.num_distractors, 3))]
        ).astype(np.float32),
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


def _loop(motion: int, steps: Array, phase: float, radius: float) -> Array:
    """Displacement [S 2] along one motion at ``steps`` in [0, 1) of its loop, as a share of the frame."""
    name = MOTIONS[motion]
    if name in ("clockwise", "counterclockwise"):
        turn = np.float32(phase) + (1 if name == "clockwise" else -1) * 2 * np.pi * steps
        return radius * np.stack([np.cos(turn) - np.cos(phase), np.sin(turn) - np.sin(phase)], axis=1)
    axis = 0 if name in ("right", "left") else 1
    sign = 1 if name in ("right", "down") else -1
    return sign * steps[:, None] * np.eye(2, dtype=np.float32)[axis]


def camera(drawn: Scene, config: Config) -> Array:
    """How far the camera has shifted the world [T 2], in pixels."""
    time = np.arange(config.num_frames, dtype=np.float32)[:, None] / config.num_frames
    return config.camera_px * np.sin(2 * np.pi * drawn.sway[:, 0] * time + drawn.sway[:, 1])


def path(drawn: Scene, config: Config) -> Array:
    """Centre of the object in every frame [T 2], (x, y) in pixels inside the frame, camera included."""
    length = config.num_frames // NUM_QUARTERS
    steps = (np.arange(length, dtype=np.float32) * config.loops_per_quarter / length).astype(np.float32)
    loops = [_loop(motion, steps, drawn.phase, config.circle_share) for motion in drawn.motions]
    centre = (drawn.start + np.concatenate(loops)) * config.size_px + camera(drawn, config)
    return (centre % config.size_px).astype(np.float32)


def _window(centre: Array, radius: float, size_px: int) -> tuple[npt.NDArray[np.intp], Array]:
    """Pixels around the centre [T 2] that a shape of this radius may touch.

    Returns:
        Columns and rows inside the frame [2 T K], and their signed distance from the centre in pixels [2 T K].
    """
    reach = min(int(np.ceil(radius)) + 1, (size_px - 1) // 2)
    nearest = np.floor(centre).T[:, :, None] + np.arange(-reach, reach + 1, dtype=np.float32)  # [2 T K]
    offsets = nearest + np.float32(0.5) - centre.T[:, :, None]
    return nearest.astype(np.intp) % size_px, offsets.astype(np.float32)


def _distance(shape: str, offsets: Array, radius: float) -> Array:
    """Signed distance [T K K] from the outline in pixels, negative inside; rows before columns."""
    x, y = np.abs(offsets[0])[:, None, :], np.abs(offsets[1])[:, :, None]
    if shape == "disc":
        return np.sqrt(x * x + y * y) - np.float32(radius)
    if shape == "square":
        return np.maximum(x, y) - np.float32(radius)
    return (x + y - np.float32(radius)) * np.float32(np.sqrt(0.5))


def _blend(pixels: Array, distance: Array, colour: Array) -> Array:
    """The pixels with ``colour`` over them wherever ``distance`` is negative, one pixel of smooth edge."""
    cover = np.clip(np.float32(0.5) - distance, 0, 1)[..., None]
    return pixels + cover * (colour - pixels)


def _background(drawn: Scene, config: Config) -> Array:
    """The pattern behind everything [T H W 3], a sum of plane waves moved exactly by the camera."""
    pixels = (np.arange(config.size_px, dtype=np.float32) + 0.5)[None] - camera(drawn, config).T[:, :, None]  # [2 T W]
    angle = 2 * np.pi / config.size_px * pixels[..., None] * drawn.waves[:, :2].T[:, None, None]  # [2 T W waves]
    angle[0] += drawn.waves[:, 2]
    rows = np.concatenate([np.cos(angle[1]), -np.sin(angle[1])], axis=-1).astype(np.float32)  # [T H 2*waves]
    columns = np.concatenate([np.cos(angle[0]), np.sin(angle[0])], axis=-1).astype(np.float32)  # [T W 2*waves]
    strength = np.tile(drawn.waves[:, 3:], (2, 1)) * np.float32(config.background_texture * np.sqrt(2 / NUM_WAVES))
    painted = columns.transpose(0, 2, 1)[..., None] * strength[:, None]  # [T 2*waves W 3]
    pattern = rows @ painted.reshape(config.num_frames, 2 * NUM_WAVES, -1)  # [T H W*3]
    return pattern.reshape(config.num_frames, config.size_px, config.size_px, 3) + drawn.background


def _paint_object(frames: Array, drawn: Scene, config: Config) -> None:
    """Draw the object with its stripes, and its white rim during the marked quarter."""
    (columns, rows), offsets = _window(path(drawn, config), config.object_px / 2, config.size_px)
    place = (np.arange(config.num_frames)[:, None, None], rows[:, :, None], columns[:, None, :])
    distance = _distance(SHAPES[drawn.shape], offsets, config.object_px / 2)
    across = np.float32(np.cos(drawn.stripe_angle)) * offsets[0][:, None, :]
    down = np.float32(np.sin(drawn.stripe_angle)) * offsets[1][:, :, None]
    stripes = np.float32(config.object_texture) * np.sin(np.float32(4 * np.pi / config.object_px) * (across + down))
    colour = np.float32(0.35) + np.float32(config.object_contrast) * (1 + np.float32(config.colour_spread) * drawn.colour)
    pixels = _blend(frames[place], distance, colour + stripes[..., None])
    length = config.num_frames // NUM_QUARTERS
    marked = slice(drawn.marked_quarter * length, (drawn.marked_quarter + 1) * length)
    rim = np.maximum(distance[marked], -distance[marked] - np.float32(config.object_px / 8))
    pixels[marked] = _blend(pixels[marked], rim, np.ones(3, dtype=np.float32))
    frames[place] = pixels


def _paint_distractors(frames: Array, drawn: Scene, config: Config) -> None:
    """Draw the small discs, behind the object."""
    time = np.arange(config.num_frames, dtype=np.float32)[:, None] / config.num_frames
    for row in drawn.distractors:
        centre = ((row[:2] + time * row[2:4]) * config.size_px + camera(drawn, config)) % config.size_px
        (columns, rows), offsets = _window(centre.astype(np.float32), config.distractor_px / 2, config.size_px)
        place = (np.arange(config.num_frames)[:, None, None], rows[:, :, None], columns[:, None, :])
        colour = np.float32(0.5) + np.float32(config.distractor_contrast) * row[4:]
        frames[place] = _blend(frames[place], _distance("disc", offsets, config.distractor_px / 2), colour)


def _add_noise(frames: Array, drawn: Scene, config: Config) -> None:
    """Add grey noise, the sum of two even draws: bell-like, bounded, and exact on every machine."""
    draw = generator(config, drawn.index, purpose=1)
    draws = np.frombuffer(draw.bytes(2 * frames[..., 0].size), dtype=np.uint8).reshape(2, *frames.shape[:3])
    total = draws[0].astype(np.float32) + draws[1]
    # Two even draws from 0 ... 255 have mean 255 and variance 2 * (256**2 - 1) / 12.
    frames += ((total - 255) * np.float32(config.noise / np.sqrt((256**2 - 1) / 6)))[..., None]


def render(drawn: Scene, config: Config) -> Rendering:
    """The frames of a scene and the box of its object in each."""
    frames = _background(drawn, config)
    _paint_distractors(frames, drawn, config)
    _paint_object(frames, drawn, config)
    _add_noise(frames, drawn, config)
    frames *= 255
    frames += np.float32(0.5)
    np.clip(frames, 0, 255, out=frames)
    half = np.float32(config.object_px / 2)
    corner = (path(drawn, config) - half) % config.size_px
    boxes = np.concatenate([corner, corner + 2 * half], axis=1).astype(np.float32)
    return Rendering(frames.astype(np.uint8), boxes)
