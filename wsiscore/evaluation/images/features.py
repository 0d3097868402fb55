"""A feature network that the user brings as a TorchScript file, for the measures that need one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsiscore.errors import ModelError

if TYPE_CHECKING:
    import torch

__all__ = ["FeatureNetwork"]

Floats = npt.NDArray[np.float32]


class FeatureNetwork:
    """A TorchScript program that turns a picture into features.

    It takes (1, 3, H, W) float32, RGB in [0, 1], scales and normalises as it needs, and gives one tensor or several
    in a list or tuple: maps of layers (1, C, h, w), and at the end perhaps a vector (1, D). Unlike plain weights it
    is a program: it runs what is in it.

    Parameters
    ----------
    path
        What ``torch.jit.save`` wrote.
    device
        As for `running.pick_device`.

    Raises
    ------
    ModelError
        If it is not there or no such program, or this computer has no such device.
    """

    def __init__(self, path: Path, device: str = "auto") -> None:
        import torch

        from wsiscore.networks.generator import pick_device

        self.path = path
        self._device = torch.device(pick_device(device))
        if not path.is_file():
            raise ModelError(f"{path} is not there; --features wants a TorchScript file")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of TorchScript as such
                self._network = torch.jit.load(str(path), map_location=self._device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise ModelError(
                f"{path} is no feature network; --features wants a TorchScript file, as torch.jit.save writes it"
            ) from error

    def __call__(self, rgb: npt.NDArray[np.uint8]) -> tuple[list[Floats], Floats]:
        """Return the features of one picture.

        Parameters
        ----------
        rgb
            (H, W, 3) in 0..255.

        Returns
        -------
        tuple
            The maps of its layers, (C, h, w) each, and the vector of its last output, (D,): of a map the means.

        Raises
        ------
        ModelError
            If the network does not take the picture, or gives something else.
        """
        import torch

        picture = torch.from_numpy(np.ascontiguousarray(np.moveaxis(rgb, -1, 0)))[None].to(self._device)
        try:
            with torch.inference_mode():
                found = self._network(picture.float() / 255)
        except RuntimeError as error:
            said = str(error).strip().splitlines()[-1]
            raise ModelError(
                f"{self.path} cannot run on a picture of {rgb.shape[1]} × {rgb.shape[0]} px: {said}"
            ) from (error)
        outputs = [self._plain(output) for output in (found if isinstance(found, list | tuple) else [found])]
        if not outputs:
            raise ModelError(f"{self.path} gives nothing; wanted maps of layers (1, C, h, w) or a vector (1, D)")
        last = outputs[-1]
        return [output for output in outputs if output.ndim == 3], last.mean(axis=(1, 2)) if last.ndim == 3 else last

    def weights(self) -> tuple[Floats, Floats] | None:
        """Return the weights of DISTS, its tensors ``alpha`` and ``beta``, flat; None if it has none."""
        named: dict[str, torch.Tensor] = {
            **dict(self._network.named_parameters()),
            **dict(self._network.named_buffers()),
        }
        if not {"alpha", "beta"} <= set(named):
            return None
        alpha, beta = (named[name].detach().cpu().float().numpy().ravel() for name in ("alpha", "beta"))
        return alpha, beta

    def _plain(self, output: Any) -> Floats:
        import torch

        if not isinstance(output, torch.Tensor) or output.ndim not in (2, 4) or len(output) != 1:
            shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise ModelError(f"{self.path} gives {shape} for one picture; wanted (1, C, h, w) or (1, D)")
        plain: Floats = output[0].float().cpu().numpy()
        if not np.isfinite(plain).all():
            raise ModelError(f"{self.path} gives features that are no numbers (nan or infinite)")
        return plain
