"""DeepLIIF: IHC to hematoxylin, DAPI, Lap2 and marker pictures, and through them to cells (Ghahremani et al. 2022).

Four residual networks translate the IHC tile into the four modalities; five U-Nets segment it and the four, and
the segmentation is their weighted mean: red inside positive cells, blue inside negative ones, green on boundaries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss
from torch.nn.utils.parametrizations import spectral_norm

from wsiscore.cells.rules import ComponentRules
from wsiscore.errors import ModelError
from wsiscore.models.contract import Family, GeneratorSpec, option
from wsiscore.networks.blocks import InstanceNorm, PatchJudge, ResNet, SampleNorm, UNet, judged
from wsiscore.networks.checkpoints import in_order, read_options
from wsiscore.networks.cpu import hasten
from wsiscore.networks.generator import NetworkGenerator, fill, fresh, mixed
from wsiscore.networks.pix2pix import PairRecipe

__all__ = ["FAMILY", "SPEC", "Config", "Networks", "Recipe", "build", "nearly_empty", "read_published"]

MODALITIES = ("hematoxylin", "dapi", "lap2", "marker")
SOURCES = ("ihc", *MODALITIES)
PAIRS = (*SOURCES, "segmentation")
_PLACES = {"positive": ("segmentation", 0), "boundary": ("segmentation", 1), "negative": ("segmentation", 2)} | {
    f"{modality}_{colour}": (modality, place)
    for modality in MODALITIES
    for place, colour in enumerate(("red", "green", "blue"))
}
SPEC = GeneratorSpec(
    family="deepliif",
    channels=tuple(_PLACES),
    mpp=0.25,
    tile_px=512,
    margin_px=64,
    multiple_px=512,  # nine halvings
    rules=ComponentRules(threshold=120 / 255, boundary=80 / 255),
)
# RGB in 0..255 of the published program where a tile is nearly empty
_EMPTY = dict.fromkeys(("segmentation", "lap2"), (0, 0, 0)) | dict.fromkeys(("dapi", "marker"), (10, 10, 10))
_EMPTY["hematoxylin"] = (201, 211, 208)
_LEAST_VARIANCE = 9.0  # of the grey values of a tile that is run
_NEG_TO_POS = (0.5, 0.7, 0.9)  # of a mask's negative cells, in synthetic pairs
_IHC_FROM = 7  # channels that IHC is painted from: grey hematoxylin, DAPI, segmentation


@dataclass(frozen=True, slots=True)
class Config:
    """The networks' size, and how they are trained; each field's metadata says what it is."""

    width: int = option(64, "channels of the first level of every generator")
    halvings: int = option(9, "of the U-Nets; a tile's side is a multiple of 2 to this power")
    blocks: int = option(9, "residual blocks of the networks that paint the modalities")
    norm: Literal["batch", "instance"] = option("batch", "normalisation, always of each tile by its own statistics")
    padding: Literal["zeros", "reflect"] = option("zeros", "beyond the edge, in the residual networks")
    ihc_share: float = option(0.25, "weight of the IHC's own segmentation in the mean of the five; 0 leaves it out")
    hematoxylin_share: float = option(0.15, "weight of the hematoxylin's segmentation; 0 is the paper's ablation")
    dapi_share: float = option(0.25, "weight of the DAPI's segmentation; 0 is the paper's ablation")
    lap2_share: float = option(0.1, "weight of the Lap2's segmentation; 0 is the paper's ablation")
    marker_share: float = option(0.25, "weight of the marker's segmentation; 0 is the paper's ablation")
    segmenters: Literal["each", "joint"] = option("each", "a U-Net for each source, or one for all modalities")
    dropout: float = option(0.5, "share of features dropped in training")
    error: float = option(100.0, "weight of the smooth L1 error, the paper's lambda")
    adversarial: float = option(1.0, "weight of the discriminators' verdict")
    rate: float = option(2e-4, "learning rate")
    decay: float = option(0.5, "share at the end in which the learning rate falls to 0")
    judge_width: int = option(64, "channels of the first layer of the discriminators")
    spectral: bool = option(False, "spectral normalisation of the discriminators")
    synthetic: float = option(0.0, "share of the later half's steps that learn from synthetic IHC, painted as we go")

    def __post_init__(self) -> None:
        if min(self.width, self.judge_width) < 1 or self.halvings < 2 or self.blocks < 0:
            raise ValueError(f"width is at least 1, halvings 2 and blocks 0, got {self}")
        if self.norm not in ("batch", "instance") or self.padding not in ("zeros", "reflect"):
            raise ValueError(f"norm is batch or instance and padding zeros or reflect, got {self}")
        if not all(0 <= share <= 1 for share in (self.decay, self.synthetic, self.dropout)):
            raise ValueError(f"decay, synthetic and dropout lie in [0, 1], got {self}")
        seen = [share for source, share in self.shares().items() if source != "ihc" or self.segmenters == "each"]
        if self.segmenters not in ("each", "joint") or min(seen) < 0 or not sum(seen) > 0:
            raise ValueError(f"segmenters is each or joint, the shares of what they see 0 or more, got {self}")

    def shares(self) -> dict[str, float]:
        """Return source -> weight of its segmentation; the weights add up to 1."""
        given = {source: float(getattr(self, f"{source}_share")) for source in SOURCES}
        return {source: share / (sum(given.values()) or 1.0) for source, share in given.items()}


class Networks(nn.Module):
    """The generators: four that translate, and up to five that segment.

    Parameters
    ----------
    config
        Their size and kind. A source of share 0 has no U-Net.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.shares = {source: share for source, share in config.shares().items() if share > 0}
        norm = SampleNorm if config.norm == "batch" else InstanceNorm
        kind: dict[str, Any] = {"norm": norm, "dropout": config.dropout, "bias": config.norm == "instance"}
        paint = partial(ResNet, config.width, blocks=config.blocks, padding=config.padding, **kind)
        segment = partial(UNet, config.width, config.halvings, **kind)
        self.translators = nn.ModuleDict({name: paint() for name in MODALITIES})
        self.joint = config.segmenters == "joint"
        if self.joint:
            self.shares.pop("ihc", None)
            self.segmenters = nn.ModuleDict({"joint": segment(channels_in=3 * len(self.shares))})
        else:
            self.segmenters = nn.ModuleDict({name: segment() for name in self.shares})

    def parts(self, wanted: Sequence[str]) -> list[list[str]]:
        """Return groups of sources that can run apart, and that together give the pictures wanted."""
        sources = [name for name in SOURCES if name in self.shares or name in wanted]
        return [sources] if self.joint else [[name] for name in sources]

    def forward(self, tiles: Tensor, sources: Sequence[str] = SOURCES) -> dict[str, Tensor]:
        """Turn (B, 3, H, W) IHC tiles in [-1, 1], sides multiples of 2^halvings, into pictures of that size and range.

        Returns each modality among the sources, and ``segmentation``: their part of the weighted mean.
        """
        made = {name: self.translators[name](tiles) for name in sources if name != "ihc"}
        seen = [name for name in sources if name in self.shares]
        if self.joint and seen:
            return made | {"segmentation": self.segmenters["joint"](torch.cat([made[name] for name in seen], dim=1))}
        parts = [self.shares[name] * self.segmenters[name](made.get(name, tiles)) for name in seen]
        return made | ({"segmentation": torch.stack(parts).sum(dim=0)} if parts else {})


class _Generator(NetworkGenerator):
    """The networks as a generator; on the CPU each core takes one source of one tile."""

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Turn tiles into maps, as `NetworkGenerator` does; nearly empty tiles are not run, but filled."""
        tiles = np.require(tiles, requirements=["C", "W"])
        self.spec.check(tiles)
        places = [_PLACES[channel] for channel in self.spec.channels]
        wanted = sorted({picture for picture, _ in places})
        maps = np.empty((len(tiles), len(places), *tiles.shape[2:]), np.float32)
        maps[:] = np.array([_EMPTY[picture][place] / 255 for picture, place in places], np.float32)[:, None, None]
        rows = [row for row, tile in enumerate(tiles) if not nearly_empty(tile)]
        parts = cast(Networks, self._network).parts(wanted)
        batches = [[row] for row in rows] if self._workers else [rows] if rows else []
        jobs = [(batch, part) for batch in batches for part in parts]
        run = self._workers.map if self._workers else map
        made = run(lambda job: self._pictures(tiles[job[0]], job[1], wanted), jobs)
        for batch in batches:
            pictures: dict[str, Any] = {}
            for _ in parts:
                for name, picture in next(made).items():
                    pictures[name] = pictures.get(name, 0) + picture
            for channel, (name, place) in enumerate(places):
                maps[batch, channel] = np.clip((pictures[name][:, place] + 1) / 2, 0, 1)
        return maps

    def _pictures(
        self, tiles: npt.NDArray[np.uint8], sources: Sequence[str], wanted: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        with torch.inference_mode(), mixed(self.device):
            batch = torch.from_numpy(tiles).to(self.device, memory_format=torch.channels_last)
            made = self._network(batch.float() / 127.5 - 1, sources)
            return {name: made[name].float().cpu().numpy() for name in wanted if name in made}


def nearly_empty(tile: npt.NDArray[np.uint8]) -> bool:
    """Return whether the grey of a tile, (3, H, W) in 0..255, has a variance below 9, but for pure black and white."""
    red, green, blue = tile.astype(np.int32)
    grey = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16  # Pillow's mode L
    grey = grey[(grey != 0) & (grey != 255)]
    return not grey.size or bool(grey.var() < _LEAST_VARIANCE)


def build(config: Config, spec: GeneratorSpec, weights: Mapping[str, Any] | None, device: str) -> NetworkGenerator:
    """Return the networks as a generator of the channels in `spec`; without weights seeded afresh.

    Raises
    ------
    ModelError
        If weights or device do not fit, a channel is unknown, or the tiles cannot be halved so often.
    """
    if unknown := [channel for channel in spec.channels if channel not in _PLACES]:
        raise ModelError(f"family {SPEC.family!r} has no channel {unknown[0]!r}; it has: {', '.join(_PLACES)}")
    if spec.multiple_px % 2**config.halvings:
        raise ModelError(f"tiles of a multiple of {spec.multiple_px} px cannot be halved {config.halvings} times")
    network = fresh(lambda: Networks(config))
    if weights is not None:
        fill(network, weights, _told(config))
    generator = _Generator(network, spec, device)
    if generator.device == "cpu":
        hasten(network)
    return generator


def _told(config: Config) -> str:
    return f"family {SPEC.family!r} with width={config.width}, halvings={config.halvings}, blocks={config.blocks}"


class Recipe(PairRecipe):
    """The paper's objective (eq. 1 to 7): a conditional GAN for each modality and for the segmentation.

    One optimiser for all generators, one for all discriminators. Eq. 3's smooth L1 is taken with its usual bend at 1,
    where it is continuous. With `Config.synthetic`, a further conditional GAN learns to paint IHC from hematoxylin,
    DAPI and segmentation; from half of the steps on, that share of them learns from IHC it painted for a segmentation
    whose negative cells were in part made positive. Their marker is not known and not learnt. Parameters as in
    `wsiscore.models.contract.RecipeFactory`.
    """

    pair = ("ihc", "segmentation")

    def what(self) -> str:
        """Return the generators in words."""
        return _told(self.config)

    def make(self) -> dict[str, nn.Module]:
        """Return the generators and their discriminators, and those of synthetic IHC."""
        self._all, self.multiple_px = Networks(self.config), 2**self.config.halvings
        seen = 3 * len(self._all.shares) if self._all.joint else 3
        segmenters = {f"segmentation_{name}": seen for name in self._all.segmenters}
        judge = self._judges(dict.fromkeys(MODALITIES, 3) | segmenters)
        networks: dict[str, nn.Module] = {"generator": self._all, "judge": judge}
        if self.config.synthetic:
            networks["painter"] = ResNet(self.config.width, norm=SampleNorm, bias=False, channels_in=_IHC_FROM)
            networks["painter_judge"] = self._judges({"ihc": _IHC_FROM})
        for layer in (layer for network in networks.values() for layer in network.modules()):
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | SampleNorm):  # the paper's N(0, 0.02)
                nn.init.normal_(layer.weight, float(isinstance(layer, SampleNorm)), 0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        return networks

    def _judges(self, seen: Mapping[str, int]) -> nn.ModuleDict:
        width = self.config.judge_width
        judges = nn.ModuleDict({name: PatchJudge(width, channels + 3, SampleNorm) for name, channels in seen.items()})
        for layer in list(judges.modules()) if self.config.spectral else ():
            if isinstance(layer, nn.Conv2d):
                spectral_norm(layer)
        return judges

    def learn(self, at: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Teach the discriminators, then the generators; before, where there is one, the painter of synthetic IHC."""
        learnt = [*MODALITIES, "segmentation"]
        losses = self._learn_ihc(at) if self.config.synthetic else {}
        if 2 * self._number >= self._steps and float(torch.rand(())) < self.config.synthetic:
            at = {**at, **self._synthetic(at)}
            learnt.remove("marker")
        with self.mixed():
            made = self._all(at["ihc"])
        sources = {"ihc": at["ihc"], **made}
        sources["joint"] = torch.cat([sources[name] for name in self._all.shares], dim=1)
        conditions = dict.fromkeys(MODALITIES, at["ihc"])
        conditions |= {f"segmentation_{name}": sources[name] for name in self._all.segmenters}
        return losses | self._contest("generator", "judge", {name: made[name] for name in learnt}, at, conditions)

    def _learn_ihc(self, at: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with self.mixed():
            made = {"ihc": self.networks["painter"](condition := _ihc_from(at))}
        losses = self._contest("painter", "painter_judge", made, at, {"ihc": condition})
        return {f"painter_{name}": loss for name, loss in losses.items()}

    def _contest(
        self,
        generator: str,
        judge: str,
        made: Mapping[str, Tensor],
        at: Mapping[str, Tensor],
        conditions: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Teach discriminators to tell `made` from `at`, then generators; `conditions` is by discriminator."""
        judges = cast(nn.ModuleDict, self.networks[judge])

        def verdict(pictures: Mapping[str, Tensor], conditions: Mapping[str, Tensor], *, real: bool) -> Tensor:
            """Return eq. 1's loss for each modality and eq. 5's for each segmenter, added up."""
            losses = []
            for name, condition in conditions.items():
                kind, _, segmenter = name.partition("_")
                if kind in made:
                    logits = judges[name](torch.cat([condition, pictures[kind]], dim=1))
                    loss = judged(logits, real=real, loss="squares" if segmenter else "vanilla")
                    losses.append(loss / 2 if segmenter else loss)
            return torch.stack(losses).sum()

        with self.mixed():
            still, told = ({name: at.detach() for name, at in group.items()} for group in (made, conditions))
            caught = verdict(at, told, real=True) + verdict(still, told, real=False)
        self.descend(judge, caught)
        judges.requires_grad_(False)
        with self.mixed():
            losses = {"adversarial": self.config.adversarial * verdict(made, conditions, real=True)}
        judges.requires_grad_(True)
        losses |= {name: self.config.error * smooth_l1_loss(here.float(), at[name]) for name, here in made.items()}
        self.descend(generator, torch.stack(list(losses.values())).sum())
        return losses | {"judge": caught}

    def _synthetic(self, at: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return altered segmentations, and IHC painted for them."""
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        masks = more_positive(_to_bytes(at["segmentation"]).cpu().numpy(), rng)
        altered = {"segmentation": self._unit(torch.from_numpy(masks))}
        with torch.no_grad(), self.mixed():
            painted = self.networks["painter"](_ihc_from({**at, **altered}))
        return {"ihc": painted.float(), **altered}

    def show(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the IHC, its true segmentation and the one the networks give, without dropout."""
        self._all.eval()
        with torch.inference_mode(), self.mixed():
            made = self._all(self._unit(batch["ihc"]))["segmentation"]
        self._all.train()
        return {"ihc": batch["ihc"], "segmentation": batch["segmentation"], "predicted": _to_bytes(made).cpu()}


def more_positive(masks: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Turn 50, 70 or 90 %, by chance, of each mask's negative cells positive; masks are (B, 3, H, W) in 0..255."""
    altered = masks.copy()
    for mask in altered:
        red, green, blue = mask.astype(np.int16)
        negative = (red + blue > 120) & (green <= 80) & (blue > red)
        count, cells = cv2.connectedComponents(negative.astype(np.uint8), connectivity=4)
        turned = np.append(False, rng.permutation(count - 1) < round(rng.choice(_NEG_TO_POS) * (count - 1)))[cells]
        mask[0, turned], mask[2, turned] = mask[2, turned], mask[0, turned]
    return altered


def _ihc_from(at: Mapping[str, Tensor]) -> Tensor:
    grey = (at["hematoxylin"] * at["dapi"].new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
    return torch.cat([grey, at["dapi"], at["segmentation"]], dim=1)


def _to_bytes(pictures: Tensor) -> Tensor:
    return ((pictures.float() + 1) * 127.5).round().clamp(0, 255).byte()


def read_published(path: Path) -> tuple[Config, dict[str, Any]]:
    """Read the networks from the published program's folder; no code in it is run.

    Parameters
    ----------
    path
        Folder of ``train_opt.txt`` and either TorchScript archives ``G1.pt`` to ``G4.pt`` and ``G51.pt`` to
        ``G55.pt``, of which `wsiscore.networks.checkpoints` reads the tensors alone, or the state dicts
        ``latest_net_G1.pth`` and so on. A segmenter of weight 0 may be missing.

    Raises
    ------
    ModelError
        If a file is missing, damaged, holds code, or the networks are of another kind.
    """
    config = _published_config(path / "train_opt.txt")
    with torch.device("meta"):
        networks = Networks(config)
    files = {f"translators.{name}": f"G{i}" for i, name in enumerate(MODALITIES, 1)}
    files |= {f"segmenters.{name}": f"G5{i}" for i, name in enumerate(SOURCES, 1) if name in networks.shares}
    weights: dict[str, Any] = {}
    for ours, theirs in files.items():
        file = next((f for f in (path / f"latest_net_{theirs}.pth", path / f"{theirs}.pt") if f.is_file()), None)
        if file is None:
            raise ModelError(f"{path} holds neither latest_net_{theirs}.pth nor {theirs}.pt; copy the whole folder")
        wanted = {f"{ours}.{name}": at.shape for name, at in networks.get_submodule(ours).state_dict().items()}
        weights |= in_order(file, wanted, "the network that train_opt.txt describes")
    return config, weights


def _published_config(path: Path) -> Config:
    given = {"net_gs": "unet_512", "seg_weights": "0.25,0.15,0.25,0.1,0.25", "norm": "batch", "padding": "zero"}
    given |= {"modalities_no": "4", "model": "DeepLIIF"} | (read := read_options(path))
    given.setdefault("netG", read.get("net_g", "resnet_9blocks"))
    painter, segmenter = (set(re.findall(r"\w+", given[key])) for key in ("netG", "net_gs"))
    halvings = {"unet_512": 9, "unet_256": 8, "unet_128": 7}.get("".join(segmenter), 0)
    kind = {key: given[key] for key in ("model", "modalities_no", "netG", "net_gs", "norm", "padding", "seg_weights")}
    shares = [float(share) for share in re.findall(r"\d[\d.]*", given["seg_weights"])]
    padding = {"zero": "zeros", "reflect": "reflect"}.get(given["padding"], "")
    try:
        if (given["model"], given["modalities_no"]) != ("DeepLIIF", "4") or painter != {"resnet_9blocks"}:
            raise ValueError("wanted a DeepLIIF of 4 modalities with resnet_9blocks")
        shares_by = {f"{source}_share": share for source, share in zip(SOURCES, shares, strict=True)}
        options: dict[str, Any] = {"norm": given["norm"], "padding": padding, **shares_by}
        return Config(width=int(given["ngf"]), halvings=halvings, **options)
    except (ValueError, KeyError) as error:
        raise ModelError(f"{path} describes no DeepLIIF model that this family runs: {kind}; {error}") from error


FAMILY = Family(
    name=SPEC.family,
    spec=SPEC,
    config=Config,
    build=build,
    recipe=Recipe,
    pairs=PAIRS,
    read_published=read_published,
)
