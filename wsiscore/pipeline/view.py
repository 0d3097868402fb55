"""What ``wsiscore view`` serves: the slide of a folder of results, with the cells that are in it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wsiscore.analysis.protocols import protocols
from wsiscore.errors import OutputError, SlideError
from wsiscore.pipeline.provenance import RUN, run_of
from wsiscore.regions import scored
from wsiscore.report.json import read_score
from wsiscore.report.pages.analysis import counted_fields
from wsiscore.report.pages.view import view_page
from wsiscore.report.pages.viewer import Shown, served
from wsiscore.report.reissue import reissue_command
from wsiscore.report.server import SlideServer
from wsiscore.report.tables import read_cells_table
from wsiscore.roi.annotations import read_rois
from wsiscore.slide.slide import Slide

__all__ = ["serving"]


@contextmanager
def serving(folder: Path, slide: Path | None = None, port: int = 0) -> Iterator[SlideServer]:
    """Give a server of a slide and its cells, which listens but does not answer yet.

    Parameters
    ----------
    folder
        Of a slide's results, or a file in it.
    slide
        Where the slide is now, if it was moved.
    port
        Where to listen on the loopback address; 0 for a free port.

    Raises
    ------
    OutputError
        If the folder holds no finished results, or the port cannot be used.
    SlideError
        If the slide is not there, or another one is.
    """
    folder = folder if (folder / RUN).is_file() else folder.absolute().parent
    about = run_of(folder).get("slide")
    score = read_score(folder / "score.json")
    if not isinstance(about, dict) or score is None or not (folder / "regions.geojson").is_file():
        raise OutputError(
            f"{folder} holds no finished results; give the folder of a slide, OUT/<stem>, as score made it"
        )
    path = slide or Path(str(about.get("path")))
    if not path.exists():
        raise SlideError(f"{folder} is of the slide {path}, which is not there; say where it is with --slide")
    with Slide(path, about.get("mpp") if about.get("mpp_source") == "given" else None) as opened:
        if about.get("sha256") not in (None, opened.sha256):
            raise SlideError(f"{path} is not the slide that {folder} was made from; say where that is with --slide")
        rois = scored(read_rois(folder / "regions.geojson", mpp=opened.mpp))
        if (tables := read_cells_table(folder, [roi.name for roi in rois])) is None:
            raise OutputError(f"{folder} holds no table of cells; score the slide again")
        cells, others = tables
        run = run_of(folder)
        command = reissue_command(run, folder.absolute().name)
        reissue = folder.absolute().name, f"cd {shlex.quote(str(folder.absolute().parent))} && {command}"
        fields = counted_fields(protocols(cells))
        shown = Shown(opened, rois, cells, others, fields, run.get("settings", {}), *reissue)
        values, pyramid = served(shown)
        try:
            server = SlideServer(view_page(score, values, pyramid.mpp).encode(), pyramid, port)
        except OSError as error:
            raise OutputError(f"port {port} cannot be used: {error.strerror}; choose another --port") from error
        with server:
            yield server
