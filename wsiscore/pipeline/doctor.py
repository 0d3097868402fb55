"""Checks of this computer: what wsiscore needs, what it has, how fast it is, and what a cohort is going to take."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import openslide

from wsiscore import __version__
from wsiscore.engines.choice import ENGINES, abilities
from wsiscore.errors import WsiscoreError
from wsiscore.models.card import read_card
from wsiscore.models.store import default_model, find_model, model_names
from wsiscore.pipeline.cost import Cost, measure_cost
from wsiscore.pipeline.job import OUT
from wsiscore.pipeline.options import ScoreOptions
from wsiscore.pipeline.plan import Plan, cost_text, existing, plan_slide
from wsiscore.threads import threads

__all__ = ["Check", "cohort_checks", "machine_checks", "speed_checks"]

_LEAST_MEMORY_GB = 4.0  # a process with torch and a slide of 100 mm² stays under half of this
_LEAST_DISK_GB = 1.0
_BUSY = 3.0  # times as long by the clock as of the processor
_READERS = ("tifffile", "imagecodecs", "zarr", "pillow")
_NO_USE = ("bcdata", "dev")  # an earlier name, and what tests need
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Check:
    """What was found of one thing.

    Parameters
    ----------
    name
        What was checked.
    state
        ``ok``; ``note`` if it is slower or less than it could be; ``wrong`` if wsiscore cannot work with it.
    found
        What is there.
    advice
        What to do; empty if there is nothing to do.
    """

    name: str
    state: Literal["ok", "note", "wrong"]
    found: str
    advice: str = ""


def machine_checks(options: ScoreOptions) -> Iterator[Check]:
    """Yield checks of programs, processors, memory, disk and models, which take seconds."""
    system = f"wsiscore {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Check("version", "ok", system)
    yield _cores()
    yield _memory()
    yield _torch(options.device)
    yield _engines()
    yield _readers()
    yield _extras()
    yield from _models(options.model)
    yield _disk("disk", options.out or OUT)
    yield _disk("temporary", Path(tempfile.gettempdir()))


def speed_checks(options: ScoreOptions) -> Iterator[Check | Cost]:
    """Yield what scoring a mm² takes with a model, as a check and as the `Cost`; a check alone if it fails."""
    try:
        cost = measure_cost(options)
    except (WsiscoreError, OSError) as error:
        yield Check("speed", "wrong", " ".join(str(error).split()), "correct this first")
        return
    found = (
        f"{cost.model}: {cost.seconds_per_mm2:.3g} s a mm² of tissue, {cost.processor_seconds_per_mm2:.3g} s of "
        f"processor; {cost.seconds_a_slide:.2g} s a slide; {cost.mb_per_mm2:.3g} MB a mm²"
    )
    if cost.seconds_per_mm2 > _BUSY * cost.processor_seconds_per_mm2:
        yield Check("speed", "note", found, "the processor did other work, or the disk is slow: try on a quiet machine")
    else:
        yield Check("speed", "ok", found)
    yield cost


def cohort_checks(paths: Iterable[Path], options: ScoreOptions, cost: Cost) -> Iterator[Check]:
    """Yield a check of each slide that cannot be scored, then one of the time and disk that all others take."""
    plans: list[Plan] = []
    for path in paths:
        plans.append(plan := plan_slide(path, options))
        if plan.error:
            yield Check("slide", "wrong", plan.error, "correct it, or leave this slide out")
    megabytes = cost.megabytes(sum(plan.area_mm2 for plan in plans if plan.tiles))
    free = shutil.disk_usage(existing(options.out or OUT)).free / 1e6
    enough = megabytes < free
    advice = "" if enough else f"only {free:.3g} MB are free; choose another folder with -o"
    yield Check("cohort", "ok" if enough else "wrong", cost_text(plans, cost), advice)


def _cores() -> Check:
    cores, allowed, given = os.cpu_count() or 1, threads(), os.environ.get("OMP_NUM_THREADS", "")
    found = f"{cores} cores" + (f", of which {allowed} may be used" if allowed < cores else "")
    found += f", OMP_NUM_THREADS={given}" if given else ""
    if given.isdecimal() and int(given) > allowed:
        return Check("processor", "note", found, f"set OMP_NUM_THREADS={allowed} or less: threads wait for one another")
    return Check("processor", "ok", found)


def _memory() -> Check:
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    limit = None
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            limit = int((_CGROUP / name).read_text(encoding="ascii")) / 1e9
            break
    found = f"{gigabytes:.3g} GB" + (
        f", {limit:.3g} GB allowed by the control group" if limit and limit < gigabytes else ""
    )
    if min(gigabytes, limit or gigabytes) < _LEAST_MEMORY_GB:
        return Check("memory", "note", found, f"large slides want {_LEAST_MEMORY_GB:g} GB")
    return Check("memory", "ok", found)


def _torch(device: str) -> Check:
    """Check torch, and the device that was asked for."""
    try:
        import torch

        from wsiscore.networks.generator import pick_device

        chosen = pick_device(device)
    except ImportError as error:
        return Check("torch", "wrong", f"it cannot be imported: {error}", "install it as https://pytorch.org says")
    except WsiscoreError as error:
        return Check("torch", "wrong", str(error), "leave out --device")
    name = torch.cuda.get_device_name(chosen) if chosen.startswith("cuda") else f"{torch.get_num_threads()} threads"
    return Check("torch", "ok", f"{torch.__version__} on {chosen} ({name})")


def _engines() -> Check:
    """Name the engines and what each can do on this CPU; one that was never used is tried, which takes seconds."""
    found, wrong = ["torch"], []
    for engine in ENGINES[1:]:
        with suppress(PackageNotFoundError):
            able = abilities(engine)
            found += [f"{engine} ({', '.join(able)})"] if able else []
            wrong += [] if able else [engine]
    if wrong:
        text = f"{', '.join(found)}; {', '.join(wrong)} does not work on this CPU"
        return Check("engines", "note", text, f"torch is used; update {', '.join(wrong)}, or remove it")
    return Check("engines", "ok", ", ".join(found))


def _readers() -> Check:
    found = [f"OpenSlide {openslide.__library_version__}", *(f"{name} {_version(name)}" for name in _READERS)]
    missing = [name for name in _READERS if not _version(name)]
    advice = f"install {', '.join(missing)}" if missing else ""
    return Check("readers", "wrong" if missing else "ok", ", ".join(found), advice)


def _extras() -> Check:
    """Name the extras of the package that are installed, and those that are not."""
    packages: dict[str, list[str]] = {}
    with suppress(PackageNotFoundError):  # run from its folder
        for needed in requires("wsiscore") or ():
            if found := re.fullmatch(r"([\w.-]+).*; extra == ['\"](.+)['\"]", needed):
                packages.setdefault(found[2], []).append(found[1])
    names = sorted(set(packages) - set(_NO_USE))
    there = [name for name in names if all(map(_version, packages[name]))]
    missing = [name for name in names if name not in there]
    found_text = f"{', '.join(there) or 'none'} installed" + (f"; {', '.join(missing)} not" if missing else "")
    return Check("extras", "ok", found_text)


def _models(asked: str | None) -> Iterator[Check]:
    """Check the cards and weights of the models that come with wsiscore, and of the one asked for."""
    default = default_model()
    if default not in model_names():
        yield Check("models", "wrong", f"the default model {default!r} is not there", "install wsiscore anew")
    for name in dict.fromkeys([*model_names(), *([asked] if asked else [])]):
        try:
            card = read_card(folder := find_model(name))
            found = f"{name} {card.version}" + (", the default" if name == default else "")
            if card.weights:
                sha256 = hashlib.sha256((folder / card.weights.file).read_bytes()).hexdigest()
                if sha256 != card.weights.sha256:
                    yield Check(
                        "model", "wrong", f"{found}: its weights are not those of its card", "copy or install it anew"
                    )
                    continue
                found += f", weights {sha256[:12]} as its card says"
        except (WsiscoreError, OSError) as error:
            yield Check("model", "wrong", f"{name}: {error}", "install wsiscore anew")
        else:
            yield Check("model", "ok", found)


def _disk(name: str, folder: Path) -> Check:
    there = existing(folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Check(name, "wrong", f"{there} cannot be written to", "choose another folder with -o, or set TMPDIR")
    gigabytes = shutil.disk_usage(there).free / 1e9
    found = f"{gigabytes:.3g} GB free in {folder}"
    if gigabytes < _LEAST_DISK_GB:
        return Check(name, "note", found, "free some, or choose another folder with -o or TMPDIR")
    return Check(name, "ok", found)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
