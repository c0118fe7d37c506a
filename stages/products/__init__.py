"""Products: what is known of every token before training. One file per product, named as in a recipe.

A product looks at one view of one clip and says something about each of its tokens, such as how much moves there. Maskings
ask for it by its name. The tokenizer's codes and priorities are products, too, but not of this folder: they need a network.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from models.config import Config
from models.grid import Grid, Patching
from stages.errors import ConfigError
from stages.views import View

Values = npt.NDArray[Any]
"""One value per token ``[t h w]``, or several ``[t h w channels]``."""


class Footage(NamedTuple):
    """What a product may look at: one view of one clip."""

    pixels: npt.NDArray[np.uint8]
    """The view's frames ``[T H W 3]``, cropped and mirrored already: what the encoder sees of them."""
    view: View
    """Where in the clip they were taken, and whether they were mirrored."""
    patching: Patching
    """The pixels of one token."""
    motion: npt.NDArray[np.int8] | None = None
    """The motion that is stored with the clip, of all of it, see :mod:`stages.video_motion`; null: it has none."""

    @property
    def grid(self) -> Grid:
        """The token grid of the frames."""
        return self.patching.grid(len(self.pixels), self.view.size_px)


class ProductConfig(Config, ABC):
    """What every product offers; a file in this folder holds one subclass named ``Config``.

    The values are a pure function of the footage and the config: no draw without a seed, no clock, no number of threads.
    """

    dtype: ClassVar[str]
    """How the values are stored, such as ``float16``."""
    num_channels: ClassVar[int | None] = None
    """Values per token; null: a single one, and no axis for it."""
    needs_motion: ClassVar[bool] = False
    """Whether the product reads the motion that is stored with a clip."""

    name: str
    """The name in a recipe."""

    @abstractmethod
    def measure(self, footage: Footage) -> Values:
        """The values ``[t h w]`` or ``[t h w channels]`` of frames that were all recorded, in any float precision.

        Args:
            footage: at least one slot; nothing in it is repeated, so every two neighbouring frames were neighbours.
        """

    def compute(self, footage: Footage) -> Values:
        """The values of every token of a view, finite, in the product's ``dtype``.

        Frames that repeat a short clip would show motion where it starts again, so they are not looked at: a slot that
        holds such a frame has zeros. Maskings take these tokens last, whatever their values.

        Raises:
            ConfigError: the product needs what this clip was not stored with.
            ValueError: the product breaks its contract.
        """
        values = np.zeros(self.shape(footage.grid), self.dtype)
        frames = footage.patching.tubelet_frames
        slots = min(footage.view.num_real_frames, len(footage.pixels)) // frames
        if slots:
            measured = self.measure(footage._replace(pixels=footage.pixels[: slots * frames]))
            values[:slots] = self._checked(measured, values[:slots].shape, footage.view)
        return values

    def shape(self, grid: Grid) -> tuple[int, ...]:
        """The shape of the values of a view: ``[t h w]`` or ``[t h w channels]``."""
        return (*grid,) if self.num_channels is None else (*grid, self.num_channels)

    def _checked(self, measured: Values, shape: tuple[int, ...], view: View) -> Values:
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused below
            stored = measured.astype(self.dtype, casting="same_kind")
        if stored.shape != shape or not np.isfinite(stored).all():
            raise ValueError(
                f"product {self.name} of clip {view.clip_id}, view {view.view}: expected finite values {list(shape)}, got "
                f"{list(stored.shape)} of which {np.count_nonzero(~np.isfinite(stored))} are not finite; correct its measure()"
            )
        return stored


def stored_motion(footage: Footage) -> npt.NDArray[np.int8]:
    """The motion that is stored with a clip ``[tubelets rows columns 2]``, for products that cannot do without.

    Raises:
        ConfigError: the clip was stored without it.
    """
    if footage.motion is None:
        raise ConfigError(
            f"clip {footage.view.clip_id} was stored without motion vectors; set shard.clip.encoding.name=h264 and "
            "shard.clip.motion_vectors=true and shard again, or leave the product out"
        )
    return footage.motion
