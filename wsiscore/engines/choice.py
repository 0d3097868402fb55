"""Which engine runs a network, and in which precision.

An engine other than torch is tried once on each kind of CPU, in a process of its own: a compiler that knows no such
CPU may end the process. What it was found able to do is kept in the user's cache folder.
"""

from __future__ import annotations

import ctypes.util
import hashlib
import importlib.util
import json
import logging
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from wsiscore.errors import ModelError, OutputError
from wsiscore.files import replacing

__all__ = ["ENGINES", "PRECISIONS", "Engine", "Precision", "abilities", "choose", "may_have_gpu"]

Engine = Literal["torch", "openvino", "onnx"]
Precision = Literal["fp32", "bf16", "int8"]
ENGINES: tuple[Engine, ...] = ("torch", "openvino", "onnx")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")

_PACKAGES: Mapping[str, tuple[str, ...]] = {"openvino": ("openvino", "onnx"), "onnx": ("onnxruntime", "onnx")}
_PROBE_SECONDS = 120
_CRASHES = (signal.SIGILL, signal.SIGFPE, signal.SIGSEGV, signal.SIGABRT)

_log = logging.getLogger("wsiscore")


def choose(asked: Engine | Literal["auto"], precision: Precision, *, described: bool) -> Engine:
    """Return the engine that runs a network on the CPU.

    Parameters
    ----------
    asked
        The user's choice. ``auto`` is OpenVINO where it is installed and works, since in fp32 it gives the same cells
        as torch; else torch.
    precision
        As asked for; the engine that is returned has it, unless that is torch.
    described
        Whether the family describes its network to engines other than torch.

    Raises
    ------
    ModelError
        If the engine asked for is not installed or has no such precision.
    """
    if asked == "torch" or not described:
        if asked not in ("torch", "auto"):
            _log.warning("this family runs on torch only; --engine %s is not used", asked)
        return "torch"
    if asked == "auto":
        return "openvino" if _installed("openvino") and precision in abilities("openvino") else "torch"
    if not _installed(asked):
        raise ModelError(f"the engine {asked} is not installed; install it with: pip install 'wsiscore[{asked}]'")
    found = abilities(asked)
    if not found:
        _log.warning("%s does not work on this CPU; torch is used", asked)
        return "torch"
    if precision not in found:
        raise ModelError(
            f"{asked} has no {precision} on this CPU; it has: {', '.join(found)}; give another --precision or --engine"
        )
    return asked


def may_have_gpu() -> bool:
    """Return False where torch would find no GPU; it is not imported for that."""
    if sys.platform == "darwin":
        return True
    if sys.platform == "win32":
        return ctypes.util.find_library("nvcuda") is not None
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))


@cache
def abilities(engine: Engine) -> tuple[str, ...]:
    """Return the precisions in which an engine gives right results on this CPU; none if it cannot be used."""
    path = _cache_folder() / "engines.json"
    versions = " ".join(f"{package} {version(package)}" for package in _PACKAGES[engine])
    key = f"{versions} on {_cpu()}"
    known = _read(path)
    if key in known:
        return tuple(known[key])
    found, final = _probed(engine)
    if final:
        try:
            with replacing(path) as part:
                part.write_text(json.dumps({**_read(path), key: found}, indent=2) + "\n", encoding="utf-8")
        except OutputError:
            _log.debug("%s cannot be written; %s is tried again in the next run", path, engine)
    return tuple(found)


def _probed(engine: Engine) -> tuple[list[str], bool]:
    """Try an engine in a process of its own; return its precisions, and whether another try would find the same."""
    command = [sys.executable, "-m", "wsiscore.engines.probe", engine]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        _log.warning("%s cannot be tried: %s", engine, error)
        return [], False
    if done.returncode:
        last = (done.stderr.splitlines() or [""])[-1]
        _log.warning("%s was tried and ended with status %d. %s", engine, done.returncode, last)
    found: list[str] = [line for line in done.stdout.split() if line in PRECISIONS]
    # A crash is of this CPU; an exception of Python, being killed or no right result may be of this moment.
    return found, -done.returncode in _CRASHES or (done.returncode == 0 and bool(found))


def _installed(engine: Engine) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in _PACKAGES[engine])


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wsiscore"


def _cpu() -> str:
    """Return the name of this kind of CPU, with a digest of what it is able to do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    about = dict(line.split(":", 1) for line in lines if ":" in line)
    about = {name.strip(): value.strip() for name, value in about.items()}
    name = about.get("model name", platform.machine())
    return f"{name} {hashlib.sha256(about.get('flags', about.get('Features', '')).encode()).hexdigest()[:12]}"


def _read(path: Path) -> dict[str, list[str]]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in known.items() if isinstance(value, list)} if isinstance(known, dict) else {}
