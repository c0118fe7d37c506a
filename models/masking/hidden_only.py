"""Any other rule, kept away from what the encoder sees: every predicted token counts in the loss."""

from collections.abc import Mapping
from typing import Literal

import torch

from models.extension import extension
from models.grid import Grid
from models.masking import MaskingConfig, all_but, first_real
from models.shapes import Bool, Int, Shaped, Tensor


class Config(MaskingConfig):
    """Takes as many tokens as another rule does, and only such as are hidden from the encoder.

    A token that the rule would take and the encoder sees is passed over like padding, so the rule fills up the count by its
    own order. Only where fewer tokens are hidden than the count wants does a visible one come in.

    Source: our choice. arXiv 2411.13683 mentions keeping the two sets disjoint as possible; the code of VideoMAE V2
    (arXiv 2303.16727) lets them overlap and leaves the overlap out of the loss, as every rule does without this one.
    """

    name: Literal["hidden_only"] = "hidden_only"
    """The name in a recipe."""

    rule: extension("models.masking", MaskingConfig)
    """The rule that chooses, such as ``{name: priority, top: 0.10, random: 0.05}``."""

    @property
    def needs(self) -> tuple[str, ...]:
        """What the rule needs."""
        needs: tuple[str, ...] = self.rule.needs
        return needs

    def count(self, grid: Grid) -> int:
        """What the rule takes."""
        count: int = self.rule.count(grid)
        return count

    def select(
        self,
        grid: Grid,
        *,
        products: Mapping[str, Shaped[Tensor, "N ..."]],
        real: Bool[Tensor, " N"],
        generator: torch.Generator,
    ) -> Int[Tensor, " M"]:
        """The rule's own choice: as encoder rule there is nothing to keep away from."""
        chosen: Tensor = self.rule.select(grid, products=products, real=real, generator=generator)
        return chosen

    def select_beside(
        self,
        grid: Grid,
        *,
        visible: Int[Tensor, " V"],
        products: Mapping[str, Shaped[Tensor, "N ..."]],
        real: Bool[Tensor, " N"],
        generator: torch.Generator,
    ) -> Int[Tensor, " M"]:
        """Positions that the encoder does not see; padding before visible tokens where nothing else is left."""
        hidden = all_but(visible, real)
        chosen = self.rule.select_beside(grid, visible=visible, products=products, real=real & hidden, generator=generator)
        others = all_but(chosen, real).nonzero()[:, 0]
        return first_real(torch.cat([chosen, others]), hidden, self.count(grid))
