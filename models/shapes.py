"""Shape-checked tensor types, from jaxtyping where it is installed.

A machine that only trains may have torch, einops and pydantic alone; there the annotations are plain tensors and
nothing is checked. The tests always check.
"""

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Int, Shaped, UInt8
    except ImportError:

        class _Unchecked:
            def __getitem__(self, _):
                return Tensor

        Bool = Float = Int = Shaped = UInt8 = _Unchecked()

__all__ = ["Bool", "Float", "Int", "Shaped", "Tensor", "UInt8"]
