"""DeepLIIF against a plain implementation of its nine networks: same tile, same weights, float32, alternating.

    python benchmarks/deepliif.py --rounds 3

The plain networks use torch's own layers and run one after the other on all cores. Prints wall time and processor time
for a tile, and the ratios of each round; only ratios compare across machines, and on a busy machine only those of
processor time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from wsiscore.generators.deepliif import SPEC, Config, Networks, build


def norm(channels: int) -> nn.Module:
    """Return a batch normalisation by the statistics of the batch."""
    return nn.BatchNorm2d(channels, track_running_stats=False)


class Block(nn.Module):
    """Two convolutions, added to their input."""

    def __init__(self, n: int) -> None:
        super().__init__()
        conv = [nn.Conv2d(n, n, 3, padding=1, bias=False) for _ in range(2)]
        self.block = nn.Sequential(conv[0], norm(n), nn.ReLU(), nn.Dropout(0.5), conv[1], norm(n))

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        return x + self.block(x)


def resnet(w: int) -> nn.Sequential:
    """Return the ResNet with nine blocks."""
    down = [
        layer
        for n in (w, 2 * w)
        for layer in (nn.Conv2d(n, 2 * n, 3, stride=2, padding=1, bias=False), norm(2 * n), nn.ReLU())
    ]
    up = [
        layer
        for n in (4 * w, 2 * w)
        for layer in (
            nn.ConvTranspose2d(n, n // 2, 3, stride=2, padding=1, output_padding=1, bias=False),
            norm(n // 2),
            nn.ReLU(),
        )
    ]
    first = [nn.Conv2d(3, w, 7, padding=3, bias=False), norm(w), nn.ReLU()]
    last = [nn.Conv2d(w, 3, 7, padding=3), nn.Tanh()]
    return nn.Sequential(*first, *down, *(Block(4 * w) for _ in range(9)), *up, *last)


class Level(nn.Module):
    """One level of the U-Net with nine downsamplings, and those below it."""

    def __init__(self, w: int, level: int = 0) -> None:
        super().__init__()
        n = w * min(2**level, 8)
        outer = w * min(2 ** (level - 1), 8) if level else 3
        self.outermost, innermost = level == 0, level == 8
        down = nn.Conv2d(outer, n, 4, stride=2, padding=1, bias=False)
        twice = n if innermost else 2 * n
        up = nn.ConvTranspose2d(twice, outer, 4, stride=2, padding=1, bias=self.outermost)
        self.down = nn.Sequential(*([] if self.outermost else [nn.LeakyReLU(0.2)]), down)
        if not (self.outermost or innermost):
            self.down.append(norm(n))
        self.below = None if innermost else Level(w, level + 1)
        self.up = nn.Sequential(nn.ReLU(), up, nn.Tanh() if self.outermost else norm(outer))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 3, H, W) at the outermost level; else the input concatenated with the output of the level."""
        deep = self.down(x)
        made = self.up(self.below(deep) if self.below else deep)
        return made if self.outermost else torch.cat([x, made], dim=1)


class Plain(nn.Module):
    """The nine networks and the weighted sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.translators = nn.ModuleList(resnet(width) for _ in range(4))
        self.segmenters = nn.ModuleList(Level(width) for _ in range(5))

    def forward(self, tile: Tensor) -> Tensor:
        """Return (B, 15, H, W): the segmentation and the four modalities."""
        translated = [network(tile) for network in self.translators]
        masks = [network(source) for network, source in zip(self.segmenters, [tile, *translated], strict=True)]
        weights = (0.25, 0.15, 0.25, 0.1, 0.25)
        mask = sum(weight * mask for weight, mask in zip(weights, masks, strict=True))
        return torch.cat([mask, *translated], dim=1)


def timed(run: Callable[[], np.ndarray]) -> tuple[float, float, np.ndarray]:
    """Return wall time and processor time in seconds, and the result."""
    clock, processor = time.perf_counter(), time.process_time()
    result = run()
    return time.perf_counter() - clock, time.process_time() - processor, result


def tissue(size: int) -> np.ndarray:
    """Return a tile (1, 3, size, size) of brown and blue discs on a pale background."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    tile = rng.normal(235, 4, (3, size, size))
    for _ in range(size * size // 1500):
        row, column, radius = rng.uniform((0, 0, 4), (size, size, 12))
        inside = (y - row) ** 2 + (x - column) ** 2 < radius**2
        tile[:, inside] = np.array([[120, 75, 50], [110, 120, 165]][rng.integers(2)])[:, None]
    return np.clip(tile, 0, 255).astype(np.uint8)[None]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=64, help="64 as published")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.manual_seed(0)
    plain = Plain(given.width).eval()
    config, tile = Config(width=given.width), tissue(given.size)
    with torch.device("meta"):
        names = list(Networks(config).state_dict())
    weights = dict(zip(names, ordered(plain), strict=True))
    ours = build(config, SPEC, weights, "cpu")
    asked = {"all maps": SPEC, "segmentation": replace(SPEC, channels=SPEC.needed)}

    def run_plain() -> np.ndarray:
        with torch.inference_mode():
            return ((plain(torch.from_numpy(tile).float() / 127.5 - 1) + 1) / 2).numpy()

    def run_ours(name: str) -> np.ndarray:
        ours.spec = asked[name]
        return ours(tile)

    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ("plain", *asked)}
    furthest = 0.0
    for turn in range(given.rounds + 1):  # the first warms up
        *spent, wanted = timed(run_plain)
        for name in asked:
            *own, maps = timed(lambda name=name: run_ours(name))
            furthest = max(furthest, float(np.abs(maps - wanted[:, : maps.shape[1]]).max()))
            if turn:
                seconds[name].append((own[0], own[1]))
        if turn:
            seconds["plain"].append((spent[0], spent[1]))
    print(f"one tile of {given.size} px, width {given.width}, {torch.get_num_threads()} threads, {given.rounds} rounds")
    for name, spent in seconds.items():
        clock, processor = (statistics.median(each) for each in zip(*spent, strict=True))
        ratios = [[p[i] / o[i] for p, o in zip(seconds["plain"], spent, strict=True)] for i in (0, 1)]
        factors = " ".join(f"{ratio:.2f}" for ratio in ratios[0]), " ".join(f"{ratio:.2f}" for ratio in ratios[1])
        print(
            f"{name:<13} {clock:6.1f} s wall, {processor:6.1f} s processor; times faster: {factors[0]} / {factors[1]}"
        )
    print(f"largest difference of a map in [0, 1]: {furthest:.1e}")


def ordered(plain: Plain) -> list[Tensor]:
    """Return the plain networks' weights in the order of `Networks`: the levels of a U-Net down, then up."""
    weights = [weight for network in plain.translators for weight in network.state_dict().values()]
    for network in plain.segmenters:
        levels = [level for level in network.modules() if isinstance(level, Level)]
        for directions in ([level.down for level in levels], [level.up for level in reversed(levels)]):
            weights += [weight for part in directions for weight in part.state_dict().values()]
    return weights


if __name__ == "__main__":
    main()
