"""The page in a real browser: laid out without overflow or overlapping labels, and not blank."""

from __future__ import annotations

import html
import json
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest

from q2export.compare.verify.page import parity_page
from q2export.compare.verify.results import ParityReport
from tests.compare.verify.samples import BROKEN, DEEP, HEALTHY, SPOILT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the PATH")

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)

# Appended to a copy of the page; leaves what it measured in the DOM, where --dump-dom shows it.
PROBE = """<script>
const overlaps = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
const figures = [...document.querySelectorAll("svg")].map(svg => {
  const frame = svg.getBoundingClientRect();
  const labels = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
  const inside = r => r.left >= frame.left - 1 && r.right <= frame.right + 1
    && r.top >= frame.top - 1 && r.bottom <= frame.bottom + 1;
  const outside = labels.filter(([, r]) => !inside(r));
  const pairs = labels.flatMap(([ta, a], i) =>
    labels.slice(i + 1).filter(([, b]) => overlaps(a, b)).map(([tb]) => ta + " | " + tb));
  return {id: svg.id, width: frame.width, height: frame.height, labels: labels.length,
          outside: outside.map(([t]) => t), pairs};
});
const root = document.documentElement;
const out = document.createElement("pre");
out.id = "probe";
out.textContent = JSON.stringify({
  figures,
  overflow: root.scrollWidth - root.clientWidth,
  title: document.title,
  rows: document.querySelectorAll("#layers tbody tr").length,
  diverging: document.querySelectorAll("tr.diverges").length,
});
document.body.append(out);
</script>"""


def browse(tmp_path: Path, page: str, *arguments: str) -> str:
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *arguments]
    done = subprocess.run(
        [*command, (tmp_path / "page.html").as_uri()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def measure(tmp_path: Path, report: ParityReport, width: int) -> dict[str, Any]:
    page = parity_page(report).render().replace("</body>", f"{PROBE}</body>")
    dom = browse(tmp_path, page, f"--window-size={width},2000", "--dump-dom")
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom, flags=re.DOTALL)
    assert found, dom[-500:]
    measured: dict[str, Any] = json.loads(html.unescape(found.group(1)))
    return measured


@pytest.mark.parametrize(
    ("report", "width", "figures"),
    [(HEALTHY, 1100, 5), (BROKEN, 1100, 5), (BROKEN, 390, 5), (SPOILT, 700, 4), (DEEP, 1100, 5)],
    ids=["healthy", "broken", "broken-narrow", "spoilt", "deep"],
)
def test_layout(tmp_path: Path, report: ParityReport, width: int, figures: int) -> None:
    found = measure(tmp_path, report, width)
    assert found["title"].startswith("PASS" if report.passed else "FAIL")
    assert found["overflow"] <= 0, f"the page is {found['overflow']} px wider than its window"
    assert len(found["figures"]) == figures
    for figure in found["figures"]:
        assert figure["width"] >= 500 and figure["height"] >= 80 and figure["labels"] >= 5
        assert figure["outside"] == [], figure["id"]
        assert figure["pairs"] == [], figure["id"]
    assert report.curve is not None and found["rows"] == len(report.curve.stages)
    assert found["diverging"] == sum(stage.diverges for stage in report.curve.stages)


def pixels_that_change(png: Path) -> tuple[int, int, float]:
    """Width, height, and the share of filtered bytes that are not zero: next to none for a blank page."""
    data = png.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    body, at = b"", 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            body += data[at + 8 : at + 8 + size]
        at += 12 + size
    raster = zlib.decompress(body)
    return width, height, 1 - raster.count(0) / len(raster)


def test_the_screenshot_is_not_blank(tmp_path: Path) -> None:
    png = tmp_path / "page.png"
    browse(tmp_path, "<!DOCTYPE html><title>blank</title>", "--window-size=1100,1500", f"--screenshot={png}")
    blank = pixels_that_change(png)[2]
    browse(tmp_path, parity_page(BROKEN).render(), "--window-size=1100,1500", f"--screenshot={png}")
    width, height, share = pixels_that_change(png)
    assert (width, height) == (1100, 1500)
    assert share > 0.01 > blank
