"""The pages of a run: what they say, and that nothing which comes from a video or an error does more than be read."""

import errno
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.orchestration import markdown
from pipeline.orchestration.failure_page import failure_page
from pipeline.orchestration.resumption import commands, remedy
from pipeline.orchestration.stage_pages import live_page, page, plan_page
from pipeline.plan import STAGES, order, plan
from pipeline.recipe import Recipe, Request
from pipeline.runner import Report
from stages import errors
from stages.errors import ArtifactDamaged, ConfigError, PipelineError
from stages.storage.artifact import Artifact, Outcome
from stages.storage.workspace import Workspace
from tests.pipeline.conftest import COUNTS, commit_clips

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](https://evil.invalid/x.png)",
    "a | b | c",
    "``` `` `",
    "line\nline\r\n# heading",
    "\u202egpj.exe",
    "www.evil.invalid *bold* _thin_ ~~gone~~ &lt;b&gt; \\",
)


@pytest.mark.parametrize("value", HOSTILE)
def test_a_value_is_shown_letter_by_letter_and_stays_in_its_cell(value: str) -> None:
    row = markdown.table([("name", markdown.code(value))], ("what", "value")).splitlines()[-1]
    cells = re.split(r"(?<!\\)\|", row)
    assert len(cells) == 4, "two cells between three bars"
    fence = re.match(r" (`+)", cells[2])
    assert fence
    inside = cells[2].strip().removeprefix(fence.group(1)).removesuffix(fence.group(1))
    assert fence.group(1) not in inside
    assert inside.isprintable()


@pytest.mark.parametrize("value", HOSTILE)
def test_running_text_has_no_mark_left(value: str) -> None:
    assert not re.search(r"[<>\[\]`*|~\\!#](?!\d+;)", markdown.plain(value).replace("&#", ""))


def test_a_link_is_one_where_a_browser_follows_it() -> None:
    assert markdown.link("report", "http://127.0.0.1:1/a b.html") == "[report](<http://127.0.0.1:1/a b.html>)"
    assert markdown.link("report", "file:///data/report.html") == "`file:///data/report.html`"
    assert markdown.link("report", "javascript:alert(1)") == "`javascript:alert(1)`"


def test_the_plan_names_every_stage_and_why(recipe: Recipe, workspace: Workspace) -> None:
    text = plan_page(plan(recipe, workspace))
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == list(STAGES)
    assert "no clips of this source" in text


def test_a_page_shows_sources_in_quarantine_with_reasons_and_links(recipe: Recipe, workspace: Workspace) -> None:
    made = commit_clips(recipe, workspace)
    shown = page(
        Report("shard", Outcome(made, 5, 2, counts=COUNTS), 1.0),
        {"truncated": 1},
        {"MLflow run": "http://127.0.0.1:5000/#/experiments/1/runs/2"},
        ["<b>a.mp4: truncated"],
    )
    assert "[MLflow run](<http://127.0.0.1:5000/#/experiments/1/runs/2>)" in shown
    assert "* `<b>a.mp4: truncated`" in shown


def test_pictures_are_made_small_and_what_has_no_room_is_named() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (900, 2000, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    assert len(markdown.picture("noise", file.getvalue())) < len(file.getvalue()) / 4
    shown = live_page("pretrain: 1 of 2", {"loss": 0.5}, 10, {"one": (10, file.getvalue()), "two": (10, file.getvalue())})
    assert "| loss | 0.5 |" in shown
    assert shown.count("![") == 0
    assert "`one, step 10`, `two, step 10`" in shown


def test_the_page_of_a_failure_says_why_what_to_do_and_how_to_resume(
    request_: Request, recipe: Recipe, workspace: Workspace, everything_made: Callable[[], dict[str, Artifact]]
) -> None:
    made = everything_made()
    (made["pretrain"].folder / "manifest.json").unlink()
    error = ArtifactDamaged(f"{made['pretrain'].folder}: sha256 differs <b>")
    again = commands(order()[1:], request_, str(workspace.root))
    text = failure_page("pretrain", error, commands=again, recipe=recipe, workspace=workspace, links={})
    assert f"`ArtifactDamaged`: `{made['pretrain'].folder}: sha256 differs <b>`" in text
    assert "Delete the folder" in text
    assert "press **Retry**" in text
    assert f"`lvmae run lvmae --overlay demo --from tokenizer --root {workspace.root}`" in text
    assert f"`lvmae status lvmae --overlay demo --root {workspace.root}`" in text
    assert "| tokenizer | skipped |" in text
    assert "| pretrain | **runs** |" in text


def test_the_page_of_a_failure_is_made_also_where_the_plan_cannot_be(recipe: Recipe, workspace: Workspace) -> None:
    made = commit_clips(recipe, workspace)
    made.manifest_path.write_text("{}")
    text = failure_page("shard", ConfigError("x"), commands={}, recipe=recipe, workspace=workspace, links={})
    assert "cannot be said before that is mended" in text


def test_a_fault_of_the_program_shows_where(recipe: Recipe, workspace: Workspace) -> None:
    try:
        raise ZeroDivisionError("division by zero")
    except ZeroDivisionError as error:
        text = failure_page("shard", error, commands={}, recipe=recipe, workspace=workspace, links={})
    assert Path(__file__).name in text


def leaves() -> list[type[BaseException]]:
    kinds = (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PipelineError))
    return [kind for kind in kinds if kind not in (PipelineError, errors.MediaError)]


@pytest.mark.parametrize("kind", leaves(), ids=lambda kind: kind.__name__)
def test_every_kind_of_error_has_a_remedy_of_its_own(kind: type[BaseException]) -> None:
    fault_of_the_program = remedy(ZeroDivisionError())
    assert remedy(kind("x")) not in (fault_of_the_program, remedy(OSError(errno.EIO, "x")))


def test_a_full_disk_a_refused_one_and_an_absent_one_have_different_remedies() -> None:
    found = {remedy(OSError(number, "x")) for number in (errno.ENOSPC, errno.EACCES, errno.EIO)}
    assert len(found) == 3
