"""Weights from files: checkpoints, options files, state dicts and TorchScript archives. No code in them is run.

A TorchScript archive is a zip file: ``data.pkl`` describes the tree of modules, ``data/<key>`` holds the bytes of each
tensor, and ``code/`` the program. `torch.jit.load` would compile the program and run its loading hooks, so the
tensors are read here without it.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsiscore.errors import ModelError
from wsiscore.files import ForbiddenGlobalError, RestrictedUnpickler

__all__ = ["read_checkpoint", "read_in_order", "read_options", "read_torchscript"]

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
_BATCH_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_UNREADABLE = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    StopIteration,
    zipfile.BadZipFile,
    zlib.error,
)


def read_checkpoint(path: Path) -> Any:
    """Read a torch checkpoint of plain weights; no code in it is run.

    Returns
    -------
    The saved object: dicts and lists of tensors and numbers.

    Raises
    ------
    ModelError
        If the file is missing, damaged, not a checkpoint, or holds code.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; wanted a torch checkpoint")
    with path.open("rb") as file:
        start = file.read(2)
    if not (start == b"PK" or start[:1] == b"\x80"):
        raise ModelError(f"{path} is not a torch checkpoint; wanted the .pt or .pth file of the weights")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a failure is reported below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?i:global) (\w+(?:\.\w+)+)", str(error))
        what = f"code ({found[1]})" if found else "something other than weights, perhaps code"
        raise ModelError(
            f"{path} holds {what} and was not run; ask its author for a file of plain weights (a state dict)"
        ) from error
    except _UNREADABLE as error:
        if "TorchScript" in str(error):
            raise ModelError(f"{path} is a TorchScript program, not a file of plain weights") from error
        raise ModelError(f"{path} is damaged or not a torch checkpoint; copy it again") from error


def read_options(path: Path) -> dict[str, str]:
    """Read the options file that pix2pix and its forks write beside their weights, ``key: value`` on each line.

    Raises
    ------
    ModelError
        If the file is missing or not text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read; wanted the options of the published model beside it") from error
    parts = [line.partition("[default")[0].partition(":") for line in lines]
    return {key.strip(): value.strip() for key, colon, value in parts if colon}


def read_in_order(path: Path, wanted: Mapping[str, Sequence[int]], description: str) -> dict[str, Any]:
    """Read the weights of a network that has the same layers in the same order under other names.

    Parameters
    ----------
    path
        State dict or TorchScript archive.
    wanted
        Name in this package -> shape, without running statistics of batch normalisation; those in the file are
        skipped.
    description
        The network in words, for the error text.

    Returns
    -------
    Name in this package -> float32 array.

    Raises
    ------
    ModelError
        If the file is damaged, holds code, or is another network.
    """
    state = read_torchscript(path) if _is_torchscript(path) else read_checkpoint(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} is not {description}: it holds no plain weights")
    found = [(name, value) for name, value in state.items() if not name.endswith(_BATCH_STATISTICS)]
    for (name, value), shape in zip(found, wanted.values(), strict=False):
        if value.shape != shape:
            raise ModelError(f"{path} is not {description}: {name!r} is {tuple(value.shape)}, wanted {tuple(shape)}")
    if len(found) != len(wanted):
        raise ModelError(f"{path} is not {description}: it holds {len(found)} weights, wanted {len(wanted)}")
    return {ours: value.float().numpy() for ours, (_, value) in zip(wanted, found, strict=True)}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a TorchScript archive by name, in the order of its modules; no code in it is run.

    Raises
    ------
    ModelError
        If the file is damaged, not such an archive, or holds something other than modules and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            tree = next(name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
            root = _ArchiveUnpickler(archive, tree.removesuffix(".pkl")).load()
        return _tensors(root)
    except ForbiddenGlobalError as error:
        raise ModelError(
            f"{path} holds code ({error}) and was not run; ask its author for a file of plain weights"
        ) from error
    except (pickle.UnpicklingError, *_UNREADABLE) as error:
        raise ModelError(f"{path} is a damaged TorchScript archive; copy it again") from error


class _Module:
    """A module of the archive; its tensors and submodules are its attributes."""


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset).contiguous()


_ALLOWED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("collections", "OrderedDict"): OrderedDict,
} | {("torch", name): dtype for name, dtype in _DTYPES.items()}


class _ArchiveUnpickler(RestrictedUnpickler):
    """Reads the modules of an archive as `_Module`s and its tensors as tensors."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}.pkl")), _ALLOWED)
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        return _Module if module.startswith("__torch__.") else super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, length = pid
        content = bytearray(self._archive.read(f"{self._folder}/{key}"))
        return torch.frombuffer(content, dtype=dtype, count=length) if length else torch.empty(0, dtype=dtype)


def _tensors(module: _Module, prefix: str = "") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            found[prefix + name] = value
        elif isinstance(value, _Module):
            found |= _tensors(value, f"{prefix}{name}.")
    return found
