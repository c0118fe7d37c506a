"""The pages as a person meets them: a real browser without a window opens them, and nothing is missing or complains.

Needs a Chromium or Chrome that is installed already, such as Debian's package ``chromium``; without one the tests are skipped.
"""

import base64
import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from stages import film
from stages.storage.workspace import Workspace
from tests.evaluations import committed, rows
from tests.pipelines import lvmae
from tests.stages.test_film import picture

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LONGEST_WAIT_MS = 30_000
LOADED = """
async () => {
  const videos = [...document.querySelectorAll("video")];
  for (const video of videos) {
    if (video.readyState < 2 && !video.error) {
      video.preload = "auto";
      await new Promise(done => ["loadeddata", "error"].forEach(event => video.addEventListener(event, done)));
    }
  }
  return {
    images: [...document.images].map(image => image.complete ? image.naturalWidth : 0),
    videos: videos.map(video => ({ ready: video.readyState, width: video.videoWidth, seconds: video.duration })),
    drawings: [...document.querySelectorAll("svg")].map(drawing => drawing.getBoundingClientRect().height),
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  };
}
"""


@dataclasses.dataclass(frozen=True)
class Visit:
    """What became of a page in the browser."""

    images: Sequence[int]
    """Widths of the pictures; 0 for one that was not drawn."""
    videos: Sequence[dict[str, float]]
    drawings: Sequence[float]
    """Heights of the drawings."""
    wide: float
    """Pixels by which the page is wider than the window."""
    complaints: Sequence[str]
    requests: Sequence[str]
    """Addresses that were asked for, those inside the page left out."""
    text: str


@pytest.fixture(scope="session")
def visit() -> Iterator[Callable[[Path], Visit]]:
    """Opens a page."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup-dev")
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser: install one of {', '.join(BROWSERS)} (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield lambda path: _visited(browser, path)
        browser.close()


def _visited(browser: Any, path: Path) -> Visit:
    complaints: list[str] = []
    requests: list[str] = []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(LONGEST_WAIT_MS)
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri(), wait_until="load")
    found = page.evaluate(LOADED)
    text = page.inner_text("body")
    page.close()
    outside = [address for address in requests if not address.startswith(("data:", "blob:"))]
    return Visit(**found, complaints=complaints, requests=outside, text=text)


def assert_whole(seen: Visit, path: Path) -> None:
    assert seen.complaints == []
    assert seen.requests == [path.as_uri()], "nothing but the page itself is asked for"
    assert all(width > 0 for width in seen.images)
    assert all(video["ready"] >= 2 and video["width"] > 0 for video in seen.videos)
    assert all(height > 0 for height in seen.drawings)
    assert seen.wide <= 0, "nobody has to scroll sideways"


def test_the_report_is_drawn_whole(visit: Callable[[Path], Visit], smoke_root: Path) -> None:
    (page,) = smoke_root.glob("evaluate/*/report.html")
    seen = visit(page)
    assert_whole(seen, page)
    assert len(seen.images) >= 3, "a chart, a picture of a clip, and curves"


def test_a_comparison_is_drawn_whole(visit: Callable[[Path], Visit], tmp_path: Path) -> None:
    root = Workspace(tmp_path / "root")
    committed(root, "a" * 16, rows([True] * 12) + rows([True] * 12, probe="linear_probe"))
    committed(root, "b" * 16, rows([True, False] * 6) + rows([False] * 12, probe="linear_probe"))
    committed(root, "c" * 16, rows([False] * 6, first=3))
    page = tmp_path / "comparison.html"
    lvmae("compare", "a", "b", "c", "--out", str(page), root=root.root)
    seen = visit(page)
    assert_whole(seen, page)
    assert len(seen.drawings) == 1
    assert "A is better than B" in seen.text
    assert "were not tested on the same clips" in seen.text


def test_a_film_plays_inside_a_page(visit: Callable[[Path], Visit], tmp_path: Path) -> None:
    data = base64.b64encode(film.film(picture())).decode()
    page = tmp_path / "film.html"
    page.write_text(
        f'<!doctype html><title>film</title><video controls muted loop src="data:video/webm;base64,{data}"></video>'
    )
    seen = visit(page)
    assert_whole(seen, page)
    (video,) = seen.videos
    assert video["width"] == 608
    assert video["seconds"] == pytest.approx(6 / film.FPS, abs=0.1)


def test_a_page_with_a_broken_picture_or_a_blocked_one_is_noticed(visit: Callable[[Path], Visit], tmp_path: Path) -> None:
    page = tmp_path / "broken.html"
    policy = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:">'
    page.write_text(f'<!doctype html>{policy}<img src="data:image/png;base64,AAAA"><img src="https://example.invalid/x.png">')
    seen = visit(page)
    assert 0 in seen.images
    assert any("Content Security Policy" in complaint for complaint in seen.complaints)
