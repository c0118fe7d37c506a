"""The three jobs of a data engineer, done by clicking: run a recipe, let new videos start a run, resume after a failure.

A real browser without a window, a real Prefect server, deployments made by ``lvmae deploy``, a real worker. With
``LVMAE_SCREENS=docs/screens`` the pictures of the operator's guide are taken on the way.
"""

import contextlib
import dataclasses
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import servers
from tests.e2e.test_browser import BROWSERS
from tests.servers import PrefectServer
from tests.stages.videos import ramp, write_video

pytestmark = [
    pytest.mark.operation,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]  # Prefect's own

SCREENS = "LVMAE_SCREENS"
REAL_CLIPS = Path(__file__).parents[3] / "shared" / "data" / "actions"
PATIENCE_MS = 300_000
SETTLED_MS = 1500
MOST_PRESSES, PRESSED_S = 5, 30
"""How often a button is pressed, and how long it is waited each time."""
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"


@dataclasses.dataclass(frozen=True)
class Desk:
    """What an operator has before them: a server with everything deployed, a worker, a browser."""

    server: PrefectServer
    page: Any
    outside: list[str]
    """Addresses outside of this machine that the pages asked for."""
    made: list[str]
    """Ids of the flow runs that a form made."""
    refused: list[str]
    """What the pages asked for and the server answered with an error."""

    def note(self, answer: Any) -> None:
        """Keep what the server answered to a page, if it matters here."""
        if answer.status >= 400:
            self.refused.append(f"{answer.request.method} {answer.url}: {answer.status} {answer.text()}")
        elif answer.url.endswith("/create_flow_run"):
            self.made.append(answer.json()["id"])

    def screenshot(self, name: str) -> None:
        """Take a picture for the guide, if one is wanted."""
        if not (folder := os.environ.get(SCREENS)):
            return
        self.page.wait_for_timeout(SETTLED_MS)
        image = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB").quantize(64)
        Path(folder).mkdir(parents=True, exist_ok=True)
        image.save(Path(folder) / f"{name}.png", optimize=True)

    def rest(self) -> None:
        """Show nothing while something else is waited for: the picture of a run is drawn anew all the time."""
        self.page.goto("about:blank")

    def menu(self, entry: str) -> None:
        """Click an entry of the menu at the left."""
        self.page.locator("a", has_text=entry).first.click()

    def open_run(self, run: str, tab: str) -> None:
        """Open the page of a flow run at a tab."""
        self.page.goto(f"{self.server.ui_url}/runs/flow-run/{run}")
        self.page.get_by_text(tab, exact=True).first.click()

    def waits_for(self, text: str, *, exact: bool = False) -> None:
        """Wait until the page shows a text; exactly that, or more that holds it."""
        self.page.get_by_text(text, exact=exact).first.wait_for(timeout=PATIENCE_MS)

    def shows(self, run: str, key: str, *expected: str) -> None:
        """Open an artifact of a flow run, and see some texts on it."""
        filters = {"flow_run_id": {"any_": [run]}, "key": {"any_": [key]}}
        found = servers.call(self.server, "POST", "/artifacts/filter", {"artifacts": filters, "sort": "CREATED_DESC"})
        self.page.goto(f"{self.server.ui_url}/artifacts/artifact/{found[0]['id']}")
        for text in expected:
            self.page.get_by_text(text).first.wait_for()


@pytest.fixture(scope="module")
def root(smoke_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root in which all is made but the export, which is the quickest stage to make; at a short path for pictures."""
    with contextlib.ExitStack() as stack:
        folder = tmp_path_factory.mktemp("ui")
        if os.environ.get(SCREENS):
            folder = Path(tempfile.gettempdir()) / "lvmae"
            folder.mkdir()
            stack.callback(shutil.rmtree, folder)
        shutil.copytree(smoke_root, folder / "workspace")
        shutil.rmtree(folder / "workspace" / "export", ignore_errors=True)
        yield folder / "workspace"


@pytest.fixture(scope="module")
def desk(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup-dev")
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser: install one of {', '.join(BROWSERS)} (Debian: apt-get install chromium)")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(servers.prefect_server(tmp_path_factory.mktemp("prefect")))
        servers.deploy(server)
        for pool in ("gpu", "cpu"):
            stack.enter_context(servers.worker(server, pool=pool, root=root))
        driver = stack.enter_context(playwright.sync_playwright())
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage", OFFLINE])
        stack.callback(browser.close)
        page = browser.new_page(viewport={"width": 1280, "height": 880})
        page.set_default_timeout(PATIENCE_MS)
        desk = Desk(server, page, [], [], [])
        page.on("request", lambda request: desk.outside.append(request.url) if leaves(request.url) else None)
        page.on("response", lambda answer: desk.note(answer))
        yield desk


def leaves(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))


def custom_run(desk: Desk, deployment: str) -> None:
    """Open the form of a deployment by clicking."""
    desk.page.goto(desk.server.ui_url)
    desk.menu("Deployments")
    desk.page.locator("a", has_text=re.compile(f"^{deployment}$")).first.wait_for()
    desk.screenshot("deployments")
    desk.page.locator("a", has_text=re.compile(f"^{deployment}$")).first.click()
    desk.page.get_by_role("button", name="Run", exact=True).click()
    desk.page.get_by_text("Custom run").click()
    field(desk, "Overlays").wait_for()
    desk.page.wait_for_timeout(SETTLED_MS)


def field(desk: Desk, title: str) -> Any:
    label = desk.page.locator(".schema-form-property__label", has_text=re.compile(rf"^{title} \(Optional\)$"))
    return desk.page.locator(".p-label.schema-form-property", has=label)


def choose(desk: Desk, title: str, option: str) -> None:
    """Choose one more option of a field; its list opens at the first click or the second."""
    found = desk.page.get_by_role("option", name=option)
    while not found.count():
        field(desk, title).locator(".p-select-button__icon").click()
        desk.page.wait_for_timeout(SETTLED_MS)
    found.first.click()
    desk.page.keyboard.press("Escape")
    field(desk, "Root").locator("textarea").focus()  # else the list swallows the next click


def write(desk: Desk, title: str, text: str) -> None:
    field(desk, title).locator("textarea").fill(text)


def submitted(desk: Desk) -> str:
    """Press Submit, and give the id of the run that it makes. A busy server refuses now and then: one presses again."""
    desk.made.clear()
    for _ in range(MOST_PRESSES):
        refused = len(desk.refused)
        desk.page.get_by_role("button", name="Submit").click()
        for _ in range(PRESSED_S):
            desk.page.wait_for_timeout(1000)
            if desk.made:
                desk.rest()
                return desk.made[0]
            if any("/create_flow_run" in answer or "/validate" in answer for answer in desk.refused[refused:]):
                desk.page.locator(".p-toast-container button:not(:has-text('Try'))").first.click()
                break
    raise AssertionError(
        f"Submit makes no run. The server refused {desk.refused}; the page says {desk.page.inner_text('body')}"
    )


def ids(server: PrefectServer) -> set[str]:
    return {run["id"] for run in servers.flow_runs(server)}


def started_since(desk: Desk, before: set[str]) -> dict[str, Any]:
    """The run of the pipeline that was started because something landed, once it is at work."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        runs = servers.flow_runs(desk.server)
        found[:] = [run for run in runs if run["parameters"].get("landed") and run["id"] not in before]
        return bool(found) and found[0]["state_type"] == "RUNNING"

    servers.eventually(is_there, said=lambda: str([(run["name"], run["state_name"]) for run in found]))
    return found[0]


def ended(desk: Desk, run: str) -> None:
    """Cancel a run that showed what was to be seen: to finish it is the work of other tests."""
    desk.rest()
    servers.cancel(desk.server, run)
    servers.wait_for(desk.server, run)


def land(incoming: Path, name: str) -> None:
    """Let a complete video appear: a real one where there are some."""
    real = sorted(REAL_CLIPS.glob("*/*.mp4"))
    if real:
        shutil.copy(real[len(list(incoming.iterdir()))], incoming / f".{name}.part")
    else:
        write_video(incoming / f".{name}.part.mp4", ramp(60)).rename(incoming / f".{name}.part")
    (incoming / f".{name}.part").rename(incoming / name)


def test_a_recipe_is_run_with_the_form(desk: Desk, root: Path) -> None:
    custom_run(desk, "pipeline")
    choose(desk, "Overlays", "smoke")
    write(desk, "Root", str(root))
    field(desk, "Recipe").scroll_into_view_if_needed()
    desk.screenshot("form")
    run = submitted(desk)
    assert servers.wait_for(desk.server, run)["state_type"] == "COMPLETED"
    assert len(list((root / "export").iterdir())) == 1
    desk.open_run(run, "Logs")
    desk.waits_for("Completed", exact=True)
    desk.waits_for("starts: not made yet from this configuration")
    desk.screenshot("run")
    desk.shows(run, "lvmae-plan", "why", "made before from the same configuration and inputs")
    desk.screenshot("plan")
    desk.shows(run, "lvmae-export", "units done, reused", "digest")
    desk.screenshot("stage")
    assert not desk.outside, "no page asks for anything outside of this machine"


def test_a_stage_that_failed_goes_on_with_retry(desk: Desk, root: Path) -> None:
    shutil.rmtree(root / "export", ignore_errors=True)
    (encoder,) = root.glob("pretrain/*/encoder.safetensors")
    whole = encoder.read_bytes()
    encoder.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    custom_run(desk, "pipeline")
    choose(desk, "Overlays", "smoke")
    run = submitted(desk)
    assert servers.wait_for(desk.server, run)["state_type"] == "FAILED"
    desk.shows(run, "lvmae-failure", "export stopped", "Delete the folder that is named", "lvmae run lvmae --overlay demo")
    desk.screenshot("failure")

    shutil.rmtree(encoder.parent)
    desk.open_run(run, "Logs")
    desk.page.get_by_role("button", name="Retry", exact=True).first.click()
    desk.page.get_by_role("dialog").get_by_role("button", name="Retry").click()
    servers.eventually(lambda: servers.flow_run(desk.server, run)["state_type"] != "FAILED")
    desk.rest()
    ran = servers.wait_for(desk.server, run)
    assert (ran["state_type"], ran["run_count"]) == ("COMPLETED", 2)
    assert encoder.read_bytes() == whole
    assert len(list((root / "export").iterdir())) == 1
    desk.open_run(run, "Logs")
    desk.waits_for("Completed", exact=True)
    desk.screenshot("retried")


def test_videos_that_land_start_a_run_by_event_and_without_events_by_the_sensor(desk: Desk, root: Path, tmp_path: Path) -> None:
    incoming = root.parent / "incoming"
    incoming.mkdir()
    overlays = ("--overlay", "demo", "--overlay", "smoke")
    argv = [sys.executable, "-m", "pipeline", "watch", str(incoming), *overlays, "--root", str(root), "--quiet", "1"]
    watch = servers.spawn(argv, log=tmp_path / "watch.log", environment=desk.server.environment)
    with servers.alive(watch):
        servers.eventually(lambda: "watching" in (tmp_path / "watch.log").read_text())
        before = ids(desk.server)
        land(incoming, "first.mp4")
        by_event = started_since(desk, before)
    desk.page.goto(desk.server.ui_url)
    desk.menu("Runs")
    desk.page.locator("a", has_text=by_event["name"]).first.click()
    desk.waits_for("starts: no clips of this source")
    desk.screenshot("landed")
    ended(desk, by_event["id"])

    before = ids(desk.server)
    land(incoming, "second.mp4")
    custom_run(desk, "sensor")
    choose(desk, "Overlays", "smoke")
    write(desk, "Source of videos", str(incoming))
    write(desk, "Root", str(root))
    sensor = submitted(desk)
    assert servers.wait_for(desk.server, sensor)["state_type"] == "COMPLETED"
    by_sensor = started_since(desk, before)
    desk.open_run(by_sensor["id"], "Parameters")
    desk.waits_for("landed")
    ended(desk, by_sensor["id"])
    assert by_sensor["parameters"]["landed"] != by_event["parameters"]["landed"]
