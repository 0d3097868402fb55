"""The training of IHCScoreGAN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from wsiscore.generators.ihcscoregan.config import SPEC, Config, describe
from wsiscore.generators.ihcscoregan.network import Decoder, DualUNet, Encoder, UNet
from wsiscore.models.contract import TargetRules
from wsiscore.networks.discriminators import PatchDiscriminator, gan_loss
from wsiscore.networks.generator import initialised, load_weights, pick_device, weights_of
from wsiscore.networks.known_maps import fitted, known_losses, map_loss
from wsiscore.networks.learner import Learner, frozen, optimiser_step, to_bytes, total
from wsiscore.networks.slide_norm import PooledNorms

__all__ = ["Recipe"]


class Recipe(Learner):
    """The paper's objective (eq. 1 to 7) with least-squares losses, after supervised training on rendered tiles.

    The supervised stage trains the K branch and, if there are real tiles, the colour decoder and the inverse generator
    F. Without real tiles it is the only stage and trains the K branch only. Parameters as for
    `wsiscore.models.contract.RecipeFactory`.
    """

    multiple_px = SPEC.multiple_px

    def __init__(
        self, config: Config, *, steps: int, seed: int, device: str, tiles: bool, start: Mapping[str, Any] | None
    ) -> None:
        self.config = config
        self.targets = TargetRules(config.center, config.color_variation, config.others, config.maps)
        self._tiles, self._steps = tiles, steps
        self._warm = round(steps * config.warm_fraction) if tiles else steps
        self._device = torch.device(pick_device(device))
        self.networks = initialised(self._build, seed).to(self._device)
        if start is not None:
            load_weights(self._g.k_branch(), fitted(start, config.blocks, config.maps), describe(config))
        self._norms = PooledNorms(self._g if config.norm == "slide" else None)
        parts = dict(self.networks.named_children())
        self._discriminators = [part for name, part in parts.items() if name.startswith("discriminator")]
        generators = [part for name, part in parts.items() if not name.startswith("discriminator")]
        self.optimisers = [
            torch.optim.Adam((p for part in group for p in part.parameters()), config.rate, betas=(0.5, 0.999))
            for group in (generators, self._discriminators)
            if group
        ]

    def _build(self) -> nn.ModuleDict:
        self._g = DualUNet(self.config, self.config.detach)
        parts: dict[str, nn.Module] = {"g": self._g}
        if self._tiles:
            parts["f"] = UNet(Encoder(self.config), Decoder(self.config))
            width = self.config.discriminator_width
            parts |= {f"discriminator_{domain}": PatchDiscriminator(width) for domain in "xyk"}
        return nn.ModuleDict(parts)

    def step(self, batch: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """Take gradient step `number` and return its losses by name."""
        if "known" in batch:
            return self._known_step(batch, number)
        images = {name: self.to_unit(tiles) for name, tiles in batch.items()}
        if number < self._warm:
            self.set_learning_rate(self.config.warm_rate, self.config.decay, number, 0, self._warm)
            losses = self._supervised(images)
            optimiser_step(self.optimisers[0], total(losses))
        else:
            self.set_learning_rate(self.config.rate, self.config.decay, number, self._warm, self._steps)
            losses = self._adversarial(images)
        return {name: loss.detach() for name, loss in losses.items()}

    def _known_step(self, batch: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """Take a step on annotated and rendered nuclei."""
        rate, decay, rise = self.config.warm_rate, self.config.decay, min(100, self._steps // 10)
        self.set_learning_rate(rate, decay, number, 0, self._steps, rise=rise)
        with self._norms.counting(batch["inside"].to(self._device)), self.mixed_precision():
            losses = known_losses(self._g.k_branch()(self.to_unit(batch["rgb"])), batch["maps"], batch["known"])
        optimiser_step(self.optimisers[0], total(losses), clip=1.0)
        return {name: loss.detach() for name, loss in losses.items()}

    def _supervised(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses on rendered tiles."""
        with self.mixed_precision():
            if not self._tiles:
                return {"rendered_k": map_loss(self._g.k_branch()(images["rgb"]), images["maps"])}
            colour, maps = self._g(images["rgb"], "none")
            return {
                "rendered_k": map_loss(maps, images["maps"]),
                "rendered_y": l1_loss(colour, images["colour"]),
                "rendered_x": l1_loss(self.networks["f"](images["colour"]), images["rgb"]),
            }

    def _adversarial(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Update the generators, then the discriminators, and return the losses."""
        config, f = self.config, self.networks["f"]
        x, y, k = images["tiles"], images["mask_colour"], images["mask_maps"]
        with frozen(*self._discriminators), self.mixed_precision():
            (fake_y, fake_k), fake_x = self._g(x), f(y)
            (back_y, back_k), back_x = self._g(fake_x), f(fake_y)
            (same_y, same_k), same_x = self._g(y), f(x)
            fakes = {"x": fake_x, "y": fake_y, "k": fake_k}
            cycle = l1_loss(back_x, x) + l1_loss(back_y, y) + l1_loss(back_k, k)
            identity = l1_loss(same_x, x) + l1_loss(same_y, y) + l1_loss(same_k, k)
            losses = {
                "cycle": config.cycle * cycle,
                "adversarial": config.adversarial * self._gan_loss(fakes, real=True),
                "identity": config.identity * identity,
            }
            if config.supervised:
                losses["supervised"] = config.supervised * map_loss(self._g(images["rgb"], "none")[1], images["maps"])
        optimiser_step(self.optimisers[0], total(losses))
        with self.mixed_precision():
            loss = self._gan_loss({"x": x, "y": y, "k": k}, real=True)
            loss = loss + self._gan_loss({name: fake.detach() for name, fake in fakes.items()}, real=False)
        losses["discriminators"] = loss / 2
        optimiser_step(self.optimisers[1], losses["discriminators"])
        return losses

    def _gan_loss(self, images: Mapping[str, Tensor], *, real: bool) -> Tensor:
        """Return the sum of the adversarial losses of images by domain: x, y and k."""
        logits = (self.networks[f"discriminator_{domain}"](tiles) for domain, tiles in images.items())
        return torch.stack([gan_loss(each, real=real) for each in logits]).sum()

    def weights(self) -> dict[str, Any]:
        """Return the weights of the encoder and the K branch, which a model stores."""
        return weights_of(self._g.k_branch())

    def show(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tiles with the output of G and, if there are real tiles, masks with the output of F."""
        with torch.inference_mode(), self.mixed_precision():
            source = "tiles" if self._tiles else "rgb"
            x = self.to_unit(batch[source])
            colour, maps = self._g(x)
            shown = {source: x, "maps": maps[:, :3]}
            if self._tiles:
                y = self.to_unit(batch["mask_colour"])
                shown |= {"colour": colour, "mask_colour": y, "inverse": self.networks["f"](y)}
        return {name: to_bytes(images).cpu() for name, images in shown.items()}
