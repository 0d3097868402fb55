"""A vision transformer with the weight names of timm, and an image generator with one as its encoder."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, scaled_dot_product_attention

from wsiscore.networks.blocks import InstanceNorm, ResidualBlock

__all__ = ["TransformerUNet", "VisionTransformer"]

PRETRAINED_PX = 224
"""Side of the images for which position embeddings are stored."""

_EXTRA_TOKENS = 2  # PathoDuet's pretext token, then the class token


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return projected


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        mapped: Tensor = self.fc2(gelu(self.fc1(tokens)))
        return mapped


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        mapped: Tensor = tokens + self.mlp(self.norm2(tokens))
        return mapped


class _Embedding(nn.Module):
    def __init__(self, width: int, token_px: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, token_px, stride=token_px)

    def forward(self, images: Tensor) -> Tensor:
        embedded: Tensor = self.proj(images)
        return embedded


class VisionTransformer(nn.Module):
    """ViT (Dosovitskiy et al. 2021) with the tokens of PathoDuet: a pretext token, a class token, the patch tokens.

    Weights have timm's names: ``patch_embed.proj``, ``cls_token``, ``pos_embed``, ``blocks.N.norm1``, ``.attn.qkv``,
    ``.attn.proj``, ``.norm2``, ``.mlp.fc1``, ``.mlp.fc2`` and ``norm``; the first token of PathoDuet is
    ``pretext_token``. Fixed sine-cosine position embeddings (MoCo v3) are stored for images of 224 px and interpolated
    (bicubic) for other sizes.

    Parameters
    ----------
    width
        Channels of a token, a multiple of 4 and of `heads`; 768 in ViT-B.
    depth
        Number of blocks, a multiple of 4.
    heads
        Attention heads of each block.
    token_px
        Side of a patch.
    """

    pos_embed: Tensor

    def __init__(self, width: int, depth: int, heads: int, token_px: int) -> None:
        super().__init__()
        self.width, self.token_px = width, token_px
        self.grid = PRETRAINED_PX // token_px
        self.patch_embed = _Embedding(width, token_px)
        self.pretext_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.register_buffer("pos_embed", _positions(width, self.grid))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)

    def positions(self, height: int, width: int) -> Tensor:
        """Return the position embeddings of `height` × `width` patches, (1, 2 + height · width, channels)."""
        if (height, width) == (self.grid, self.grid):
            return self.pos_embed
        extra, grid = self.pos_embed[:, :_EXTRA_TOKENS], self.pos_embed[:, _EXTRA_TOKENS:]
        grid = grid.transpose(1, 2).reshape(1, -1, self.grid, self.grid)
        grid = interpolate(grid, (height, width), mode="bicubic", align_corners=False)
        return torch.cat([extra, grid.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Encode images.

        Parameters
        ----------
        images
            (B, 3, H, W) in [0, 1], not normalised; H and W multiples of `token_px`.

        Returns
        -------
        Four tensors (B, width, H / token_px, W / token_px): the patch tokens after a quarter, a half, three quarters
        and all of the blocks, the last normalised.
        """
        grid = self.patch_embed(images)
        height, width = grid.shape[2:]
        extra = torch.cat([self.pretext_token, self.cls_token], dim=1).expand(len(grid), -1, -1)
        tokens = torch.cat([extra, grid.flatten(2).transpose(1, 2)], dim=1) + self.positions(height, width)
        taken: list[Tensor] = []
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens)
            if number % (len(self.blocks) // 4) == 0:
                taken.append(tokens)
        taken[-1] = self.norm(taken[-1])
        return [torch.unflatten(at[:, _EXTRA_TOKENS:].transpose(1, 2), 2, (height, width)) for at in taken]


class TransformerUNet(nn.Module):
    """A vision transformer with a convolutional decoder, similar to UNETR and CellViT.

    The last tokens pass a bottleneck and are upsampled to the size of the image. The first upsamplings have skip
    connections from earlier blocks, the last one from the image. The last level is not normalised: instance
    normalisation would make glass and tissue alike.

    Parameters
    ----------
    encoder
        Used, not copied; its `token_px` is 8, 16 or a higher power of 2.
    width
        Channels of the decoder at full size; deeper levels have 2, 4, 8, 8, … times as many.
    blocks
        Residual blocks at the bottleneck.
    skips
        Whether there are skip connections.
    """

    def __init__(self, encoder: VisionTransformer, width: int, blocks: int, *, skips: bool = True) -> None:
        super().__init__()
        self.encoder = encoder
        upsamplings = int(math.log2(encoder.token_px))
        widths = [width * min(2 ** (upsamplings - level), 8) for level in range(upsamplings + 1)]
        self.bottleneck = nn.Sequential(
            _stage(encoder.width, widths[0]), *(ResidualBlock(widths[0]) for _ in range(blocks))
        )
        self.up = nn.ModuleList()
        self.skips = nn.ModuleList()
        self.fuse = nn.ModuleList()
        for level in range(1, upsamplings + 1):
            inner, outer, last = widths[level - 1], widths[level], level == upsamplings
            joined = 1
            if skips and level <= 3:
                path = [encoder.width, *widths[1 : level + 1]]
                self.skips.append(nn.Sequential(*(_upsampling(*pair) for pair in pairwise(path))))
                joined += 1
            if skips and last:
                self.skips.append(_stage(3, outer, norm=False))
                joined += 1
            self.up.append(nn.ConvTranspose2d(inner, outer, 2, stride=2))
            self.fuse.append(
                nn.Sequential(_stage(joined * outer, outer, norm=not last), _stage(outer, outer, norm=not last))
            )
        self.out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Turn (B, 3, H, W) into (B, 3, H, W), both in [-1, 1].

        H and W are multiples of the encoder's `token_px` and at least twice as large.
        """
        *earlier, features = self.encoder((images + 1) / 2)
        joining = [skip(at) for skip, at in zip(self.skips, [*earlier[::-1], images], strict=False)]
        features = self.bottleneck(features)
        for level, (up, fuse) in enumerate(zip(self.up, self.fuse, strict=True)):
            last = level == len(self.up) - 1
            features = fuse(
                torch.cat([up(features), *(joining[level:] if last else joining[level : level + 1])], dim=1)
            )
        return torch.tanh(self.out(features).float())


def _stage(inner: int, outer: int, *, norm: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inner, outer, 3, padding=1)]
    return nn.Sequential(*layers, *([InstanceNorm(outer)] if norm else []), nn.ReLU())


def _upsampling(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(inner, outer, 2, stride=2), *_stage(outer, outer))


def _positions(width: int, grid: int) -> Tensor:
    """Return sine-cosine embeddings of column and row, (1, 2 + grid², width), 0 for the two extra tokens (MoCo v3)."""
    rates = 10000.0 ** -(torch.arange(width // 4) / (width // 4))
    steps = torch.arange(grid, dtype=torch.float32)
    row, column = (at.flatten()[:, None] * rates for at in torch.meshgrid(steps, steps, indexing="ij"))
    at = torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)
    return torch.cat([torch.zeros(_EXTRA_TOKENS, width), at])[None]
