"""Weights out of published files: state dicts, and TorchScript archives, whose program is never loaded or run.

An archive is a zip file: ``data.pkl`` describes the tree of modules, ``data/<key>`` holds the bytes of each tensor, and
``code/`` the program, which nothing here opens. `torch.jit.load` would compile that program and run whatever it
asks to be run on loading.
"""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsiscore.errors import ModelError
from wsiscore.networks.generator import read_checkpoint

__all__ = ["in_order", "read_options", "read_script"]

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_OF_BATCHES = ("running_mean", "running_var", "num_batches_tracked")
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)


def read_options(path: Path) -> dict[str, str]:
    """Read the options that a program of pix2pix's kind writes beside its weights, ``key: value`` on each line.

    Raises
    ------
    ModelError
        If the file is missing or no text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read; wanted the options of the published model beside it") from error
    parts = [line.partition("[default")[0].partition(":") for line in lines]
    return {key.strip(): value.strip() for key, colon, value in parts if colon}


def in_order(path: Path, wanted: Mapping[str, Sequence[int]], what: str) -> dict[str, Any]:
    """Read a network's weights under our names: both list the same layers in the same order.

    Parameters
    ----------
    path
        A state dict or a TorchScript archive.
    wanted
        Our name -> shape. Statistics of batches have no place in it.
    what
        The network in words, for the error text.

    Returns
    -------
    Our name -> float32 array.

    Raises
    ------
    ModelError
        If the file is damaged, holds code, or is another network.
    """
    state = read_script(path) if _is_script(path) else read_checkpoint(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} is not {what}: it holds no plain weights")
    found = [(name, value) for name, value in state.items() if not name.endswith(_OF_BATCHES)]
    for (name, value), shape in zip(found, wanted.values(), strict=False):
        if value.shape != shape:
            raise ModelError(f"{path} is not {what}: {name!r} is {tuple(value.shape)}, wanted {tuple(shape)}")
    if len(found) != len(wanted):
        raise ModelError(f"{path} is not {what}: it holds {len(found)} weights, wanted {len(wanted)}")
    return {ours: value.float().numpy() for ours, (_, value) in zip(wanted, found, strict=True)}


def _is_script(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_script(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a TorchScript archive, by name, in the order of its modules; no code of it is run.

    Raises
    ------
    ModelError
        If the file is damaged, no such archive, or holds something other than modules and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            tree = next(name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
            root = _Reader(archive, tree.removesuffix(".pkl")).load()
        return _tensors(root)
    except _ForeignError as error:
        raise ModelError(
            f"{path} holds code ({error}) and was not run; ask its author for a file of plain weights"
        ) from error
    except (*_BROKEN, StopIteration) as error:
        raise ModelError(f"{path} is a damaged TorchScript archive; copy it again") from error


class _ForeignError(Exception):
    """The archive asks for something that is neither a module nor a tensor."""


class _Part:
    """A module of the archive: what it holds is in its attributes."""


class _Reader(pickle.Unpickler):
    """Reads modules as `_Part`s and tensors as tensors, and calls nothing else."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}.pkl")))
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__."):
            return _Part
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("collections", "OrderedDict"): OrderedDict,
        }
        if (module, name) not in known:
            raise _ForeignError(f"{module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, length = pid
        content = bytearray(self._archive.read(f"{self._folder}/{key}"))
        return torch.frombuffer(content, dtype=dtype, count=length) if length else torch.empty(0, dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset).contiguous()


def _tensors(part: Any, above: str = "") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in vars(part).items():
        if isinstance(value, Tensor):
            found[above + name] = value
        elif isinstance(value, _Part):
            found |= _tensors(value, f"{above}{name}.")
    return found
