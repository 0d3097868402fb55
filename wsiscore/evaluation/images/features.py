"""Feature network in a TorchScript file, for the measures that need one."""

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

    The input is (1, 3, H, W) float32, RGB in [0, 1]; the network scales and normalises it. The output is a tensor, or a
    list or tuple of tensors: maps of layers (1, C, h, w) and, optionally, a vector (1, D) as the last. TorchScript is
    executable code, so only trusted files may be loaded.

    Parameters
    ----------
    path
        File of ``torch.jit.save``.
    device
        As in `wsiscore.networks.generator.pick_device`.

    Raises
    ------
    ModelError
        If the file does not exist or is not TorchScript, or the device is not available.
    """

    def __init__(self, path: Path, device: str = "auto") -> None:
        import torch

        from wsiscore.networks.generator import pick_device

        self.path = path
        self._device = torch.device(pick_device(device))
        if not path.is_file():
            raise ModelError(f"{path} does not exist; --features wants a TorchScript file")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript itself is deprecated
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
            (H, W, 3), 0..255.

        Returns
        -------
        tuple
            The maps of the layers, (C, h, w) each, and the last output as a vector, (D,); a map is averaged.

        Raises
        ------
        ModelError
            If the network fails on the picture, or its output has another form.
        """
        import torch

        picture = torch.from_numpy(np.ascontiguousarray(np.moveaxis(rgb, -1, 0)))[None].to(self._device)
        try:
            with torch.inference_mode():
                found = self._network(picture.float() / 255)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ModelError(
                f"{self.path} cannot run on a picture of {rgb.shape[1]} × {rgb.shape[0]} px: {reason}"
            ) from error
        outputs = [self._to_array(output) for output in (found if isinstance(found, list | tuple) else [found])]
        if not outputs:
            raise ModelError(f"{self.path} returns nothing; wanted maps of layers (1, C, h, w) or a vector (1, D)")
        last = outputs[-1]
        return [output for output in outputs if output.ndim == 3], last.mean(axis=(1, 2)) if last.ndim == 3 else last

    def weights(self) -> tuple[Floats, Floats] | None:
        """Return the weights of DISTS, the tensors ``alpha`` and ``beta``, flattened; None if the network has none."""
        named: dict[str, torch.Tensor] = {
            **dict(self._network.named_parameters()),
            **dict(self._network.named_buffers()),
        }
        if not {"alpha", "beta"} <= set(named):
            return None
        alpha, beta = (named[name].detach().cpu().float().numpy().ravel() for name in ("alpha", "beta"))
        return alpha, beta

    def _to_array(self, output: Any) -> Floats:
        import torch

        if not isinstance(output, torch.Tensor) or output.ndim not in (2, 4) or len(output) != 1:
            shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise ModelError(f"{self.path} returns {shape} for one picture; wanted (1, C, h, w) or (1, D)")
        array: Floats = output[0].float().cpu().numpy()
        if not np.isfinite(array).all():
            raise ModelError(f"{self.path} returns features that are not finite")
        return array
