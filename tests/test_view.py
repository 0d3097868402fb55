"""The server of a slide answers this machine's browser alone, with that slide alone, and ends when it is told to."""

from __future__ import annotations

import dataclasses
import http.client
import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import shapely
from chromium import CHROMIUM, chromium
from commands import answering, run
from PIL import Image
from reports import cells_at

from wsiscore.cells.table import Cells, Edit
from wsiscore.errors import OutputError, SlideError, WsiscoreError
from wsiscore.pipeline.view import serving
from wsiscore.regions import Roi
from wsiscore.report.server import SlideServer
from wsiscore.report.tables import read_cells_table, write_cells_table


@pytest.fixture(scope="module")
def server(scored: tuple[Path, dict[str, str]]) -> Iterator[SlideServer]:
    """Return a running server of the scored slide."""
    with answering(scored[0] / "rendered") as running:
        yield running


def ask(server: SlideServer, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """Send a path as it is, and return the status, the content and the headers of the answer."""
    connection = http.client.HTTPConnection(*server.server_address, timeout=20)
    connection.putrequest("GET", path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, dict(answer.headers)


def test_the_page_and_the_tiles_are_those_of_the_slide(server, scored):
    base = urlsplit(server.address).path
    status, page, headers = ask(server, base)
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert f"Ki67 index {float(scored[1]['ki67_index'])} %".encode() in page
    level = len(server.pyramid.level_mpp) - 1
    status, tile, headers = ask(server, f"{base}tile/{level}/1/2.jpg")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    with Image.open(io.BytesIO(tile)) as image:
        assert image.size == (512, 512)
    assert server.pyramid.mpp == server.pyramid.slide.mpp


@pytest.mark.parametrize(
    "path",
    [
        "", "..", "../", "../../etc/passwd", "..%2f..%2fetc/passwd", "run.json", "/etc/passwd", "//etc/passwd", "\x00",
        "tile/0/0/0.jpg/../../../../run.json", "tile/../run.json", "tile/-1/0/0.jpg", "tile/0/99999/0.jpg",
        "tile/99/0/0.jpg", "tile/0/0/0.png", "tile/٠/0/0.jpg", "tile/0/0/0.jpg?", "tile/0/0/99999999999999999999.jpg",
    ],
)  # fmt: skip
def test_nothing_else_is_served(server, path):
    base = urlsplit(server.address).path
    asked = (base + path if path else base.rstrip("/")).encode("utf-8").decode("latin-1")
    connection = http.client.HTTPConnection(*server.server_address, timeout=20)
    connection._validate_path = lambda _: None  # whatever a hostile client may send
    connection._encode_request = lambda request: request.encode("latin-1")
    connection.request("GET", asked)
    answer = connection.getresponse()
    assert answer.status in {400, 404}
    assert b"wsiscore" not in answer.read().replace(b"wsiscore-out", b"")
    connection.close()


def test_only_who_knows_the_address_is_answered(server):
    port, path = server.server_address[1], urlsplit(server.address).path
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, path, Host=f"localhost:{port}")[0] == 200
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1",
        f"127.0.0.1:{port + 1}",
        "",
        f"127.0.0.1:{port}.evil",
    ):
        assert ask(server, path, Host=host)[0] == 403, host
    for other in ("/", "/tile/0/0/0.jpg", f"/{'x' * len(server.word)}/", path[:-2] + "/"):
        assert ask(server, other)[0] == 404, other


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_same_viewer_shows_the_served_slide(server, scored):
    n = int(scored[1]["positive"]) + int(scored[1]["negative"])
    with chromium() as page:
        page.open(server.address)
        page.run("document.querySelector('#viewer canvas').focus()")
        page.wait("document.querySelector('#viewer').dataset.drawn !== '0'")
        page.press("0")
        assert page.run("document.querySelector('#viewer').dataset.drawn") == str(n)
        page.press("n")
        page.wait("performance.getEntriesByType('resource').some(each => /tile.[1-9]/.test(each.name))")
        assert page.run("document.querySelector('.says strong').innerText").startswith("Least certain cell 1")
        assert page.errors == []
        assert all(asked.startswith(server.address) for asked in page.asked)


def test_a_moved_slide_is_found_and_another_one_is_not_taken(scored, rendered, tmp_path):
    folder = shutil.copytree(scored[0] / "rendered", tmp_path / "rendered")
    moved = Path(shutil.copy(rendered, tmp_path / "moved.svs"))
    about = json.loads((folder / "run.json").read_text())
    about["slide"]["path"] = str(tmp_path / "gone.svs")
    (folder / "run.json").write_text(json.dumps(about))
    with pytest.raises(SlideError, match="is not there; say where it is with --slide"), serving(folder):
        pass
    with serving(folder / "report.html", moved) as server:
        assert server.pyramid.slide.path == moved
    with moved.open("ab") as file:
        file.write(b"more")
    with pytest.raises(SlideError, match=r"moved\.svs is not the slide"), serving(folder, moved):
        pass


def test_a_folder_without_results_and_a_port_in_use_are_named(server, scored, tmp_path):
    with pytest.raises(OutputError, match="holds no finished results"), serving(tmp_path):
        pass
    port = server.server_address[1]
    with pytest.raises(OutputError, match=f"port {port} cannot be used"), serving(scored[0] / "rendered", None, port):
        pass
    done = run("view", tmp_path)
    assert done.exit_code == 1
    assert issubclass(OutputError, WsiscoreError)


def test_the_command_prints_the_address_and_ends_when_told(scored):
    command = [sys.executable, "-m", "wsiscore", "view", str(scored[0] / "rendered")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = urlsplit(process.stdout.readline().strip())
        with closing(http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)) as connection:
            connection.request("GET", address.path)
            assert connection.getresponse().read().startswith(b"<!DOCTYPE html>")
            process.send_signal(signal.SIGTERM)  # as Ctrl-C does, by the same handler
            _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in said


@pytest.mark.parametrize("name", ["cells.parquet", "cells.csv"])
def test_cells_are_read_back_as_they_were_written(tmp_path, name):
    rois = [Roi(text, shapely.box(0, 0, 9, 9)) for text in ("=SUM(A1)", "two\tlines\n", "1")]
    cells = dataclasses.replace(cells_at([1, 2, 3], [1, 2, 3], [0.9, 0.1, 0.5], [0.5, 0.25, np.nan]), roi=np.arange(3))
    cells = cells.marked(np.array([False, False, True]), np.array([Edit.CLASS_CHANGED, Edit.NONE, Edit.NONE]))
    others = cells_at([1.5], [1.5], [0.25])
    write_cells_table(tmp_path / name, cells, rois, others)
    tables = read_cells_table(tmp_path, [roi.name for roi in rois])
    assert tables is not None
    for found, wanted in zip(tables, (cells, others), strict=True):
        for column in dataclasses.fields(Cells):
            np.testing.assert_array_equal(getattr(found, column.name), getattr(wanted, column.name), column.name)
