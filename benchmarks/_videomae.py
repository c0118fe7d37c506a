"""Our masked autoencoder and transformers' VideoMAE on the same clips, with the same weights, under the same mask.

It needs torch, transformers and ``models`` alone, so that it also runs where nothing else is installed.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from models import cost, mae
from models.grid import Grid, gather_tokens, patchify
from models.masking import share_of
from models.masking.random import Config as Random
from models.masking.tube import Config as Tube
from models.positions import sinusoids
from models.targets.pixels import StandardisedPixels
from models.vit import PIXEL_MEAN, PIXEL_STD

DECODED = 0.15
"""Share of all tokens that a sparse step predicts. Source: arXiv 2411.13683."""

Attention = Literal["sdpa", "eager"]


class Case(NamedTuple):
    """One size of network on one size of clip."""

    size: str
    """A published encoder size, such as ``ViT-B``."""
    num_frames: int
    size_px: int
    decoder: str = "ViT-B"
    """Whose published decoder goes with it: 4 blocks of 384 and 6 heads, which are also transformers' defaults."""

    @property
    def model(self) -> mae.Config:
        """The architecture, which both sides have."""
        return mae.Config.model_validate({"encoder": self.size, "decoder": self.decoder})

    @property
    def grid(self) -> Grid:
        """The token grid of a clip."""
        return self.model.patching.grid(self.num_frames, self.size_px)

    @property
    def num_visible(self) -> int:
        """Tokens that the encoder sees: a tenth, in tubes."""
        return Tube().count(self.grid)

    @property
    def num_hidden(self) -> int:
        """All others: what the peer predicts."""
        return self.grid.num_tokens - self.num_visible


class Sparse(NamedTuple):
    """What our step is given: uint8 patches of the visible and of the predicted tokens, which the step turns into pixels."""

    visible_patches: Tensor
    predict_patches: Tensor
    visible: Tensor
    predict: Tensor
    real: Tensor


class Dense(NamedTuple):
    """What the peer's step is given: all pixels, normalised beforehand, and which tokens are hidden."""

    pixel_values: Tensor
    hidden: Tensor


def ours(case: Case) -> mae.MaskedAutoencoder:
    """Our network, which predicts pixels."""
    return mae.MaskedAutoencoder(case.model, case.grid, case.model.patching.patch_dim)


def peer(case: Case, attention: Attention = "sdpa") -> nn.Module:
    """The peer of the same architecture.

    Raises:
        SystemExit: transformers is not installed.
    """
    try:
        from transformers import VideoMAEConfig, VideoMAEForPreTraining
    except ImportError as error:
        raise SystemExit(f"the peer is VideoMAE of transformers ({error}): pip install 'transformers>=5.18'") from error
    encoder, decoder, patching = case.model.encoder, case.model.decoder, case.model.patching
    module: Any = VideoMAEForPreTraining(
        VideoMAEConfig(
            image_size=case.size_px,
            patch_size=patching.patch_px,
            num_frames=patching.tubelet_frames,  # of its tables of positions alone, which come below
            tubelet_size=patching.tubelet_frames,
            hidden_size=encoder.width,
            num_hidden_layers=encoder.depth,
            num_attention_heads=encoder.num_heads,
            intermediate_size=int(encoder.width * encoder.mlp_ratio),
            decoder_hidden_size=decoder.width,
            decoder_num_hidden_layers=decoder.depth,
            decoder_num_attention_heads=decoder.num_heads,
            decoder_intermediate_size=int(decoder.width * decoder.mlp_ratio),
            use_mean_pooling=False,
            attn_implementation=attention,
        )
    )
    # Its own function fills these tables number by number, which takes half a minute for a long clip.
    module.videomae.embeddings.position_embeddings = sinusoids(case.grid.num_tokens, encoder.width)[None]
    module.position_embeddings = sinusoids(case.grid.num_tokens, decoder.width)[None]
    return module


def sparse_batch(case: Case, num_clips: int, num_predicted: int, device: torch.device) -> Sparse:
    """Noise under a tube mask, with so many random tokens to predict; as many as are hidden: exactly those, as the peer."""
    visible, hidden = _masks(case, num_clips)
    if num_predicted == case.num_hidden:
        predict = hidden.nonzero()[:, 1].view(num_clips, -1)
    else:
        rule = Random(share=num_predicted / case.grid.num_tokens)
        predict = _selected(rule, case, num_clips, first_seed=num_clips)
    patches = patchify(_noise(case), case.model.patching).expand(num_clips, -1, -1)
    chosen = Sparse(gather_tokens(patches, visible), gather_tokens(patches, predict), visible, predict, torch.ones_like(hidden))
    return Sparse(*(value.to(device) for value in chosen))


def dense_batch(case: Case, num_clips: int, device: torch.device) -> Dense:
    """The same clips and the same mask."""
    mean, deviation = (torch.tensor(values).view(3, 1, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    normalised = ((_noise(case) / 255 - mean) / deviation).transpose(1, 2)  # [1, T, C, H, W]
    return Dense(normalised.to(device).repeat(num_clips, 1, 1, 1, 1), _masks(case, num_clips)[1].to(device))


def our_loss(module: mae.MaskedAutoencoder, target: StandardisedPixels, batch: Sparse) -> Tensor:
    """The loss of a training step, as the stage ``pretrain`` computes it."""
    wanted = target(batch.predict_patches.float() / 255, {})
    predicted = module(batch.visible_patches.float() / 255, batch.visible, batch.predict)
    weight = mae.hidden_weight(batch.visible, batch.predict, batch.real)
    return mae.masked_mean(target.error(predicted, wanted), weight)


def peer_loss(module: nn.Module, batch: Dense) -> Tensor:
    """The loss that the peer computes itself."""
    loss: Tensor = module(batch.pixel_values, bool_masked_pos=batch.hidden).loss
    return loss


def num_decoded(case: Case, *, tile: int = 1) -> int:
    """The tokens of a sparse step: ``DECODED`` of all, or as many as fill the nearest number of whole tiles in the decoder.

    Args:
        case: the clip.
        tile: tokens that a GPU's attention takes at a time; of fewer than four tiles nothing is rounded.
    """
    wanted = share_of(DECODED, case.grid.num_tokens)
    num_tiles = round((case.num_visible + wanted) / tile)
    return wanted if num_tiles < 4 else num_tiles * tile - case.num_visible


def step_flop(case: Case, num_predicted: int) -> int:
    """Floating-point operations of a training step on one clip.

    All that the loss needs and no more: embedding hidden tubelets, as the peer does, does not count.
    """
    model = case.model
    return cost.flops(cost.Workload(model, case.grid, case.num_visible, num_predicted, model.patching.patch_dim)).training


def saved_bytes(case: Case, num_predicted: int) -> int:
    """What our forward pass keeps for the backward pass of one more clip, under bf16 autocast."""

    def loss(num_clips: int) -> Tensor:
        module = _without_values(ours, case)
        batch = _empty(case, num_clips, num_predicted)
        return _autocast(lambda: our_loss(module, StandardisedPixels(case.model.patching), batch))

    return _kept_for_one_more_clip(loss)


def peer_saved_bytes(case: Case, attention: Attention) -> int:
    """What the peer's forward pass keeps for the backward pass of one more clip, under bf16 autocast.

    A real pass keeps more by 0.02 %: on fake tensors LayerNorm's statistics of a bf16 tensor take two bytes instead of four.
    """

    def loss(num_clips: int) -> Tensor:
        module = _without_values(lambda case: peer(case, attention), case)
        shape = num_clips, case.num_frames, 3, case.size_px, case.size_px
        batch = Dense(torch.empty(shape), torch.empty(num_clips, case.grid.num_tokens, dtype=torch.bool))
        with _CountedMask(batch.hidden, case.num_hidden):
            return _autocast(lambda: peer_loss(module, batch))

    return _kept_for_one_more_clip(loss)


def _noise(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = 1, 3, case.num_frames, case.size_px, case.size_px
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def _masks(case: Case, num_clips: int) -> tuple[Tensor, Tensor]:
    """Positions that are visible, another set for every clip, and which tokens are hidden."""
    visible = _selected(Tube(), case, num_clips, first_seed=0)
    return visible, torch.ones(num_clips, case.grid.num_tokens, dtype=torch.bool).scatter(1, visible, False)


def _selected(rule: Random | Tube, case: Case, num_clips: int, *, first_seed: int) -> Tensor:
    real = torch.ones(case.grid.num_tokens, dtype=torch.bool)
    generators = (torch.Generator().manual_seed(first_seed + number) for number in range(num_clips))
    return torch.stack([rule.select(case.grid, products={}, real=real, generator=generator) for generator in generators])


def _empty(case: Case, num_clips: int, num_predicted: int) -> Sparse:
    """A batch of which only the shapes matter."""
    return Sparse(
        torch.empty(num_clips, case.num_visible, case.model.patching.patch_dim, dtype=torch.uint8),
        torch.empty(num_clips, num_predicted, case.model.patching.patch_dim, dtype=torch.uint8),
        torch.empty(num_clips, case.num_visible, dtype=torch.long),
        torch.empty(num_clips, num_predicted, dtype=torch.long),
        torch.empty(num_clips, case.grid.num_tokens, dtype=torch.bool),
    )


def _kept_for_one_more_clip(loss: Callable[[int], Tensor]) -> int:
    """The difference that a second clip makes: weights, their bf16 copies and tables are there for the first one already."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return _kept(lambda: loss(2)) - _kept(lambda: loss(1))


def _kept(loss: Callable[[], Tensor]) -> int:
    """Bytes of all memory that a forward pass keeps for its backward pass; several views of one piece count once."""
    found: dict[StorageWeakRef, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        found[StorageWeakRef(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss()
    return sum(found.values())


def _without_values(build: Callable[[Case], nn.Module], case: Case) -> Any:
    """A network whose tensors have a place and a size but no memory."""
    with torch.device("meta"):
        module = build(case)
    for part in module.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(_fake(value)))
        for name, value in list(part.named_buffers(recurse=False)):
            setattr(part, name, _fake(value))
    return module


def _fake(value: Tensor) -> Tensor:
    return torch.empty(value.shape, dtype=value.dtype)


def _autocast(loss: Callable[[], Tensor]) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return loss()


class _CountedMask(TorchFunctionMode):
    """Picks by a boolean mask without values, of whose entries so many are known to be true, in every clip as many."""

    def __init__(self, mask: Tensor, count: int) -> None:
        super().__init__()
        self._mask, self._count = mask, count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        picks = func is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool
        if not picks:
            return func(*args, **(kwargs or {}))
        tensor, mask = args
        count = self._count if mask is self._mask else mask.shape[1] - self._count
        positions = torch.empty(len(mask) * count, 2, dtype=torch.long)
        return tensor[positions[:, 0], positions[:, 1]]
