"""What a person reads is short and says the same as the JSON."""

import io
import json

from pipeline.commands.execution import closing
from pipeline.console import Terminal, line
from pipeline.recipe import Recipe
from pipeline.runner import Report
from pipeline.wording import duration, size
from stages.storage.artifact import Outcome
from stages.storage.workspace import Workspace
from tests.pipeline.conftest import COUNTS, commit_clips


def report(recipe: Recipe, workspace: Workspace, *, units_done: int) -> Report:
    made = commit_clips(recipe, workspace)
    return Report("shard", Outcome(made, units_done, 2, counts=COUNTS, metrics={"clips_per_s": 1.23456}), duration_s=192.0)


def test_the_line_of_a_stage_says_what_was_done_and_where_it_lies(recipe: Recipe, workspace: Workspace) -> None:
    done = report(recipe, workspace, units_done=5)
    assert line(done) == (
        "shard       done      5 done, 2 reused  |  3 inputs = 2 committed + 1 quarantined + 0 pending  |  "
        f"clips_per_s 1.235  |  3 min 12 s  |  {done.artifact.folder}"
    )


def test_json_gets_one_object_per_stage_and_nothing_else(recipe: Recipe, workspace: Workspace) -> None:
    lines, records = io.StringIO(), io.StringIO()
    done = report(recipe, workspace, units_done=5)
    Terminal(lines, records).stage_finished(done)
    record = json.loads(records.getvalue())
    assert (
        record.items()
        >= {
            "stage": "shard",
            "fingerprint": done.artifact.fingerprint,
            "path": str(done.artifact.folder),
            "units_done": 5,
            "units_reused": 2,
            **COUNTS,
        }.items()
    )
    assert records.getvalue().count("\n") == lines.getvalue().count("\n") == 1


def test_a_run_that_did_nothing_says_so(recipe: Recipe, workspace: Workspace) -> None:
    assert closing([report(recipe, workspace, units_done=0)]) == ["nothing to do: everything was made before and is unchanged"]
    assert closing([report(recipe, workspace, units_done=1)]) == []


def test_durations_and_sizes_are_said_as_a_person_says_them() -> None:
    assert [duration(seconds) for seconds in (4.21, 192, 7500, 273_600)] == ["4.2 s", "3 min 12 s", "2 h 5 min", "3 d 4 h"]
    assert [size(number) for number in (999, 7144, 2_500_000_000)] == ["999 B", "7.1 kB", "2.5 GB"]
