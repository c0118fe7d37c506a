"""What a person sees of sources in quarantine, and what becomes of what he decides."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.commands.cases import REMEDIES
from pipeline.commands.main import build
from stages.errors import Reason
from stages.storage.clips import Dataset
from stages.storage.workspace import Workspace

RUNNER = CliRunner()
FAULTS = {
    "a.mp4": ("corrupt", "block 3"),
    "b/\x1b[31mred.mp4": ("truncated", "goes to 1.00 s where the container claims 2.00 s"),
    "c.mp4": ("duplicate", "the same bytes as d.mp4"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one dataset, all of whose sources are in quarantine."""
    rows = [{"source_id": key, "key": key, "reason": reason, "detail": detail} for key, (reason, detail) in FAULTS.items()]
    sources = [{"source_id": row["source_id"], "key": row["key"], "status": "quarantined"} for row in rows]
    dataset = Dataset(Workspace(tmp_path), "set-01234567")
    dataset.add_plan([[{**row, "size_bytes": 1, "labels": {}} for row in sources]])
    dataset.write_unit(0, [((), source, row) for source, row in zip(sources, rows, strict=True)])
    return tmp_path


def asked(root: Path, *arguments: str, code: int = 0) -> str:
    done = RUNNER.invoke(build(), ["quarantine", *arguments, "--root", str(root)])
    assert done.exit_code == code, done.output
    return done.output


def states(root: Path) -> dict[str, str]:
    return {case["key"]: case["state"] for case in map(json.loads, asked(root, "list", "--json").splitlines())}


def test_the_list_names_every_source_with_its_reason_and_does_not_let_names_draw(root: Path) -> None:
    shown = asked(root, "list")
    assert "\x1b" not in shown
    assert r"b/\x1b[31mred.mp4" in shown
    assert "3 in quarantine (corrupt 1, truncated 1, duplicate 1); 3 of them new" in shown
    assert asked(root, "list", "--reason", "corrupt").count(".mp4") == 1


def test_a_case_is_shown_with_its_remedy(root: Path) -> None:
    shown = asked(root, "show", "a.mp4")
    assert "block 3" in shown
    assert REMEDIES[Reason.CORRUPT] in shown


def test_every_reason_has_a_remedy() -> None:
    assert set(REMEDIES) == set(Reason)


def test_what_is_retried_and_waived_is_listed_so(root: Path) -> None:
    assert "1 source waived" in asked(root, "waive", "a.mp4", "--note", "the camera died")
    assert "1 source will be read again" in asked(root, "retry", "--reason", "truncated")
    assert states(root)["a.mp4"] == "waived"
    assert "the camera died" in asked(root, "show", "a.mp4", "--json")


def test_all_means_all_but_copies(root: Path) -> None:
    assert "2 sources waived" in asked(root, "waive", "--all")
    assert states(root)["c.mp4"] == "new"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("retry",), "name sources, or choose them"),
        (("retry", "nothing.mp4"), "'nothing.mp4' is not in quarantine"),
        (("retry", "c.mp4"), "the same bytes as another source"),
        (("waive", "--reason", "ugly"), "unknown reason 'ugly'; known: empty"),
        (("waive", "--reason", "timeout"), "no source in quarantine is meant"),
        (("list", "--dataset", "other"), "no dataset other below"),
    ],
)
def test_what_names_nothing_is_an_error_that_says_what_to_do(root: Path, arguments: tuple[str, ...], message: str) -> None:
    done = RUNNER.invoke(build(), ["quarantine", *arguments, "--root", str(root)])
    assert done.exit_code == 2
    assert message in done.stderr
