"""DeepLIIF: IHC to hematoxylin, DAPI, Lap2 and marker images and to a segmentation of cells (Ghahremani et al. 2022).

Four ResNets translate the IHC tile into the four modalities. Five U-Nets segment the tile and the four, and the
segmentation is their weighted mean: red inside positive cells, blue inside negative cells, green on boundaries.
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
from wsiscore.networks.blocks import InstanceNorm, ResNet, SampleNorm, UNet
from wsiscore.networks.checkpoints import read_in_order, read_options
from wsiscore.networks.cpu import optimise_for_cpu
from wsiscore.networks.discriminators import PatchDiscriminator, gan_loss
from wsiscore.networks.generator import NetworkGenerator, loaded, mixed_precision
from wsiscore.networks.learner import frozen, to_bytes, total
from wsiscore.networks.pix2pix import PairRecipe

__all__ = ["FAMILY", "SPEC", "Config", "Networks", "Recipe", "build", "nearly_empty", "read_published"]

MODALITIES = ("hematoxylin", "dapi", "lap2", "marker")
SOURCES = ("ihc", *MODALITIES)
PAIRS = (*SOURCES, "segmentation")
_CHANNELS = {"positive": ("segmentation", 0), "boundary": ("segmentation", 1), "negative": ("segmentation", 2)} | {
    f"{modality}_{colour}": (modality, index)
    for modality in MODALITIES
    for index, colour in enumerate(("red", "green", "blue"))
}
SPEC = GeneratorSpec(
    family="deepliif",
    channels=tuple(_CHANNELS),
    mpp=0.25,
    tile_px=512,
    margin_px=64,
    multiple_px=512,  # nine downsamplings
    rules=ComponentRules(threshold=120 / 255, boundary=80 / 255),
)
# RGB of nearly empty tiles in the published program
_EMPTY = dict.fromkeys(("segmentation", "lap2"), (0, 0, 0)) | dict.fromkeys(("dapi", "marker"), (10, 10, 10))
_EMPTY["hematoxylin"] = (201, 211, 208)
_LEAST_VARIANCE = 9.0  # grey value variance from which a tile is not nearly empty
_TURNED = (0.5, 0.7, 0.9)  # fractions of the negative cells that synthetic masks make positive
_IHC_FROM = 7  # channels from which IHC is generated: grey hematoxylin, DAPI, segmentation


@dataclass(frozen=True, slots=True)
class Config:
    """Size of the networks, and options of their training; the metadata of each field describes it."""

    width: int = option(64, "channels of the first level of every generator")
    downsamplings: int = option(9, "downsamplings of the U-Nets; a tile's side is a multiple of 2 to this power")
    blocks: int = option(9, "residual blocks of the networks that generate the modalities")
    norm: Literal["batch", "instance"] = option("batch", "normalisation; both use the statistics of each tile")
    padding: Literal["zeros", "reflect"] = option("zeros", "padding of the residual networks")
    ihc_weight: float = option(0.25, "weight of the segmentation of the IHC in the mean of the five; 0 disables it")
    hematoxylin_weight: float = option(0.15, "weight of the segmentation of the hematoxylin; 0 is the paper's ablation")
    dapi_weight: float = option(0.25, "weight of the segmentation of the DAPI; 0 is the paper's ablation")
    lap2_weight: float = option(0.1, "weight of the segmentation of the Lap2; 0 is the paper's ablation")
    marker_weight: float = option(0.25, "weight of the segmentation of the marker; 0 is the paper's ablation")
    segmenters: Literal["each", "joint"] = option("each", "one U-Net for each source, or one for all modalities")
    dropout: float = option(0.5, "dropout probability")
    error: float = option(100.0, "weight of the smooth L1 loss, the paper's lambda")
    adversarial: float = option(1.0, "weight of the adversarial loss")
    rate: float = option(2e-4, "learning rate")
    decay: float = option(0.5, "fraction of the steps, at the end, over which the learning rate falls to 0")
    discriminator_width: int = option(64, "channels of the first layer of the discriminators")
    spectral: bool = option(False, "spectral normalisation of the discriminators")
    synthetic: float = option(0.0, "fraction of the second half of the steps that train on generated IHC")

    def __post_init__(self) -> None:
        if min(self.width, self.discriminator_width) < 1 or self.downsamplings < 2 or self.blocks < 0:
            raise ValueError(f"width is at least 1, downsamplings 2 and blocks 0, got {self}")
        if self.norm not in ("batch", "instance") or self.padding not in ("zeros", "reflect"):
            raise ValueError(f"norm is batch or instance and padding zeros or reflect, got {self}")
        if not all(0 <= value <= 1 for value in (self.decay, self.synthetic, self.dropout)):
            raise ValueError(f"decay, synthetic and dropout lie in [0, 1], got {self}")
        used = [weight for source, weight in self.weights().items() if source != "ihc" or self.segmenters == "each"]
        if self.segmenters not in ("each", "joint") or min(used) < 0 or not sum(used) > 0:
            raise ValueError(f"segmenters is each or joint, and the weights of their sources 0 or more, got {self}")

    def weights(self) -> dict[str, float]:
        """Return source -> weight of its segmentation; the weights add up to 1."""
        weights = (self.ihc_weight, self.hematoxylin_weight, self.dapi_weight, self.lap2_weight, self.marker_weight)
        scale = sum(weights) or 1.0
        return {source: weight / scale for source, weight in zip(SOURCES, weights, strict=True)}


class Networks(nn.Module):
    """The generators: four ResNets that translate, and up to five U-Nets that segment.

    Parameters
    ----------
    config
        Their size and kind. A source of weight 0 has no U-Net.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.source_weights = {source: weight for source, weight in config.weights().items() if weight > 0}
        norm = SampleNorm if config.norm == "batch" else InstanceNorm
        kind: dict[str, Any] = {"norm": norm, "dropout": config.dropout, "bias": config.norm == "instance"}
        translator = partial(ResNet, config.width, blocks=config.blocks, padding=config.padding, **kind)
        segmenter = partial(UNet, config.width, config.downsamplings, **kind)
        self.translators = nn.ModuleDict({name: translator() for name in MODALITIES})
        self.joint = config.segmenters == "joint"
        if self.joint:
            self.source_weights.pop("ihc", None)
            self.segmenters = nn.ModuleDict({"joint": segmenter(channels_in=3 * len(self.source_weights))})
        else:
            self.segmenters = nn.ModuleDict({name: segmenter() for name in self.source_weights})

    def parts(self, wanted: Sequence[str]) -> list[list[str]]:
        """Return groups of sources that can run independently and together give the images `wanted`."""
        sources = [name for name in SOURCES if name in self.source_weights or name in wanted]
        return [sources] if self.joint else [[name] for name in sources]

    def forward(self, tiles: Tensor, sources: Sequence[str] = SOURCES) -> dict[str, Tensor]:
        """Turn (B, 3, H, W) IHC tiles in [-1, 1], H and W multiples of 2^downsamplings, into images of the same size.

        They are each modality among the sources, and ``segmentation``, the sum of their weighted segmentations.
        """
        made = {name: self.translators[name](tiles) for name in sources if name != "ihc"}
        used = [name for name in sources if name in self.source_weights]
        if self.joint and used:
            return made | {"segmentation": self.segmenters["joint"](torch.cat([made[name] for name in used], dim=1))}
        parts = [self.source_weights[name] * self.segmenters[name](made.get(name, tiles)) for name in used]
        return made | ({"segmentation": torch.stack(parts).sum(dim=0)} if parts else {})


class _Generator(NetworkGenerator):
    """The networks as a generator; on the CPU each core runs one source of one tile."""

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Turn tiles into maps, as `NetworkGenerator` does; nearly empty tiles get constant maps."""
        tiles = np.require(tiles, requirements=["C", "W"])
        self.spec.check(tiles)
        channels = [_CHANNELS[channel] for channel in self.spec.channels]
        wanted = sorted({name for name, _ in channels})
        maps = np.empty((len(tiles), len(channels), *tiles.shape[2:]), np.float32)
        maps[:] = np.array([_EMPTY[name][index] / 255 for name, index in channels], np.float32)[:, None, None]
        rows = [row for row, tile in enumerate(tiles) if not nearly_empty(tile)]
        parts = cast(Networks, self._network).parts(wanted)
        batches = [[row] for row in rows] if self._workers else [rows] if rows else []
        jobs = [(batch, part) for batch in batches for part in parts]
        run = self._workers.map if self._workers else map
        made = run(lambda job: self._images(tiles[job[0]], job[1], wanted), jobs)
        for batch in batches:
            images: dict[str, Any] = {}
            for _ in parts:
                for name, image in next(made).items():
                    images[name] = images.get(name, 0) + image
            for channel, (name, index) in enumerate(channels):
                maps[batch, channel] = np.clip((images[name][:, index] + 1) / 2, 0, 1)
        return maps

    def _images(
        self, tiles: npt.NDArray[np.uint8], sources: Sequence[str], wanted: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        with torch.inference_mode(), mixed_precision(self.device):
            made = self._network(self._batch(tiles), sources)
            return {name: made[name].float().cpu().numpy() for name in wanted if name in made}


def nearly_empty(tile: npt.NDArray[np.uint8]) -> bool:
    """Return whether the grey values of a (3, H, W) uint8 tile, without 0 and 255, have a variance below 9."""
    red, green, blue = tile.astype(np.int32)
    grey = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16  # Pillow's mode L
    grey = grey[(grey != 0) & (grey != 255)]
    return not grey.size or bool(grey.var() < _LEAST_VARIANCE)


def build(config: Config, spec: GeneratorSpec, weights: Mapping[str, Any] | None, device: str) -> NetworkGenerator:
    """Return the networks as a generator of the channels in `spec`, newly initialised if `weights` is None.

    Raises
    ------
    ModelError
        If the weights, the device, the channels or the tile size do not fit.
    """
    if unknown := [channel for channel in spec.channels if channel not in _CHANNELS]:
        raise ModelError(f"family {SPEC.family!r} has no channel {unknown[0]!r}; it has: {', '.join(_CHANNELS)}")
    if spec.multiple_px % 2**config.downsamplings:
        raise ModelError(f"multiples of {spec.multiple_px} px cannot be downsampled {config.downsamplings} times")
    network = loaded(lambda: Networks(config), weights, _description(config))
    generator = _Generator(network, spec, device)
    if generator.device == "cpu" and spec.norm == "tile":
        optimise_for_cpu(network)
    return generator


def _description(config: Config) -> str:
    size = f"width={config.width}, downsamplings={config.downsamplings}, blocks={config.blocks}"
    return f"family {SPEC.family!r} with {size}"


class Recipe(PairRecipe):
    """The paper's objective (eq. 1 to 7): a conditional GAN for each modality and for the segmentation.

    There is one optimiser for all generators and one for all discriminators. The smooth L1 loss of eq. 3 has its usual
    threshold 1, where it is continuous. With `Config.synthetic`, another conditional GAN generates IHC from
    hematoxylin, DAPI and segmentation. In that fraction of the second half of the steps, the networks are trained on
    IHC generated from a segmentation in which some negative cells were made positive; its marker is unknown and has no
    loss. Parameters as for `wsiscore.models.contract.RecipeFactory`.
    """

    pair = ("ihc", "segmentation")
    describe = staticmethod(_description)

    def make_networks(self) -> dict[str, nn.Module]:
        """Return the generators and discriminators, and those of synthetic IHC."""
        self._all, self.multiple_px = Networks(self.config), 2**self.config.downsamplings
        channels = 3 * len(self._all.source_weights) if self._all.joint else 3
        segmenters = {f"segmentation_{name}": channels for name in self._all.segmenters}
        discriminator = self._discriminators(dict.fromkeys(MODALITIES, 3) | segmenters)
        networks: dict[str, nn.Module] = {"generator": self._all, "discriminator": discriminator}
        if self.config.synthetic:
            networks["ihc_generator"] = ResNet(self.config.width, norm=SampleNorm, bias=False, channels_in=_IHC_FROM)
            networks["ihc_discriminator"] = self._discriminators({"ihc": _IHC_FROM})
        for layer in (layer for network in networks.values() for layer in network.modules()):
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | SampleNorm):  # the paper's N(0, 0.02)
                nn.init.normal_(layer.weight, float(isinstance(layer, SampleNorm)), 0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        return networks

    def _discriminators(self, channels_in: Mapping[str, int]) -> nn.ModuleDict:
        width = self.config.discriminator_width
        networks = {name: PatchDiscriminator(width, n + 3, SampleNorm) for name, n in channels_in.items()}
        for layer in [layer for network in networks.values() for layer in network.modules()]:
            if self.config.spectral and isinstance(layer, nn.Conv2d):
                spectral_norm(layer)
        return nn.ModuleDict(networks)

    def update(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Update the networks of synthetic IHC, if any, the discriminators, then the generators; return the losses."""
        targets = [*MODALITIES, "segmentation"]
        losses = self._update_synthesis(images) if self.config.synthetic else {}
        if 2 * self._number >= self._steps and float(torch.rand(())) < self.config.synthetic:
            images = {**images, **self._synthetic(images)}
            targets.remove("marker")
        with self.mixed_precision():
            generated = self._all(images["ihc"])
        sources = {"ihc": images["ihc"], **generated}
        sources["joint"] = torch.cat([sources[name] for name in self._all.source_weights], dim=1)
        conditions = dict.fromkeys(MODALITIES, images["ihc"])
        conditions |= {f"segmentation_{name}": sources[name] for name in self._all.segmenters}
        generated = {name: generated[name] for name in targets}
        return losses | self._update_gan("generator", "discriminator", generated, images, conditions)

    def _update_synthesis(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        condition = _ihc_from(images)
        with self.mixed_precision():
            generated = {"ihc": self.networks["ihc_generator"](condition)}
        losses = self._update_gan("ihc_generator", "ihc_discriminator", generated, images, {"ihc": condition})
        return {f"synthetic_{name}": loss for name, loss in losses.items()}

    def _update_gan(
        self,
        generator: str,
        discriminator: str,
        generated: Mapping[str, Tensor],
        true: Mapping[str, Tensor],
        conditions: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Update discriminators, then generators; `conditions` has the input image of each discriminator."""
        networks = cast(nn.ModuleDict, self.networks[discriminator])

        def adversarial(images: Mapping[str, Tensor], conditions: Mapping[str, Tensor], *, real: bool) -> Tensor:
            """Return the sum of the losses of eq. 1, one for each modality, and eq. 5, one for each segmenter."""
            losses = []
            for name, condition in conditions.items():
                kind, _, segmenter = name.partition("_")
                if kind in generated:
                    logits = networks[name](torch.cat([condition, images[kind]], dim=1))
                    loss = gan_loss(logits, real=real, mode="lsgan" if segmenter else "vanilla")
                    losses.append(loss / 2 if segmenter else loss)
            return torch.stack(losses).sum()

        with self.mixed_precision():
            detached, inputs = ({name: at.detach() for name, at in group.items()} for group in (generated, conditions))
            loss = adversarial(true, inputs, real=True) + adversarial(detached, inputs, real=False)
        self.optimise(discriminator, loss)
        with frozen(networks), self.mixed_precision():
            losses = {"adversarial": self.config.adversarial * adversarial(generated, conditions, real=True)}
        for name, images in generated.items():
            losses[name] = self.config.error * smooth_l1_loss(images.float(), true[name])
        self.optimise(generator, total(losses))
        return losses | {"discriminator": loss}

    def _synthetic(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return altered segmentations, and IHC generated from them."""
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        masks = more_positive(to_bytes(images["segmentation"]).cpu().numpy(), rng)
        altered = {"segmentation": self.to_unit(torch.from_numpy(masks))}
        with torch.no_grad(), self.mixed_precision():
            ihc = self.networks["ihc_generator"](_ihc_from({**images, **altered}))
        return {"ihc": ihc.float(), **altered}

    def show(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the IHC, its true and its predicted segmentation."""
        self._all.eval()
        with torch.inference_mode(), self.mixed_precision():
            predicted = self._all(self.to_unit(batch["ihc"]))["segmentation"]
        self._all.train()
        return {"ihc": batch["ihc"], "segmentation": batch["segmentation"], "predicted": to_bytes(predicted).cpu()}


def more_positive(masks: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Make 50, 70 or 90 % (at random) of the negative cells of each (B, 3, H, W) uint8 mask positive."""
    altered = masks.copy()
    for mask in altered:
        red, green, blue = mask.astype(np.int16)
        negative = (red + blue > 120) & (green <= 80) & (blue > red)
        count, cells = cv2.connectedComponents(negative.astype(np.uint8), connectivity=4)
        turned = np.append(False, rng.permutation(count - 1) < round(rng.choice(_TURNED) * (count - 1)))[cells]
        mask[0, turned], mask[2, turned] = mask[2, turned], mask[0, turned]
    return altered


def _ihc_from(at: Mapping[str, Tensor]) -> Tensor:
    grey = (at["hematoxylin"] * at["dapi"].new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
    return torch.cat([grey, at["dapi"], at["segmentation"]], dim=1)


def read_published(path: Path) -> tuple[Config, dict[str, Any]]:
    """Read the networks from the published program's folder; no code in it is run.

    Parameters
    ----------
    path
        Folder with ``train_opt.txt`` and either the TorchScript archives ``G1.pt`` to ``G4.pt`` and ``G51.pt`` to
        ``G55.pt``, of which only the tensors are read, or the state dicts ``latest_net_G1.pth`` and so on. A
        segmenter of weight 0 may be missing.

    Raises
    ------
    ModelError
        If a file is missing, damaged, holds code, or the networks are of another kind.
    """
    config = _published_config(path / "train_opt.txt")
    with torch.device("meta"):
        networks = Networks(config)
    files = {f"translators.{name}": f"G{i}" for i, name in enumerate(MODALITIES, 1)}
    files |= {f"segmenters.{name}": f"G5{i}" for i, name in enumerate(SOURCES, 1) if name in networks.source_weights}
    weights: dict[str, Any] = {}
    for ours, theirs in files.items():
        file = next((f for f in (path / f"latest_net_{theirs}.pth", path / f"{theirs}.pt") if f.is_file()), None)
        if file is None:
            raise ModelError(f"{path} holds neither latest_net_{theirs}.pth nor {theirs}.pt; copy the whole folder")
        wanted = {f"{ours}.{name}": at.shape for name, at in networks.get_submodule(ours).state_dict().items()}
        weights |= read_in_order(file, wanted, "the network that train_opt.txt describes")
    return config, weights


def _published_config(path: Path) -> Config:
    given = {"net_gs": "unet_512", "seg_weights": "0.25,0.15,0.25,0.1,0.25", "norm": "batch", "padding": "zero"}
    given |= {"modalities_no": "4", "model": "DeepLIIF"} | (read := read_options(path))
    given.setdefault("netG", read.get("net_g", "resnet_9blocks"))
    translator, segmenter = (set(re.findall(r"\w+", given[key])) for key in ("netG", "net_gs"))
    downsamplings = {"unet_512": 9, "unet_256": 8, "unet_128": 7}.get("".join(segmenter), 0)
    kind = {key: given[key] for key in ("model", "modalities_no", "netG", "net_gs", "norm", "padding", "seg_weights")}
    weights = [float(weight) for weight in re.findall(r"\d[\d.]*", given["seg_weights"])]
    padding = {"zero": "zeros", "reflect": "reflect"}.get(given["padding"], "")
    try:
        if (given["model"], given["modalities_no"]) != ("DeepLIIF", "4") or translator != {"resnet_9blocks"}:
            raise ValueError("wanted a DeepLIIF of 4 modalities with resnet_9blocks")
        options: dict[str, Any] = {f"{source}_weight": weight for source, weight in zip(SOURCES, weights, strict=True)}
        options |= {"norm": given["norm"], "padding": padding}
        return Config(width=int(given["ngf"]), downsamplings=downsamplings, **options)
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
    renamed={"judge_width": "discriminator_width", "halvings": "downsamplings"}
    | {f"{source}_share": f"{source}_weight" for source in SOURCES},
)
