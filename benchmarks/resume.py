"""What is executed when a run is resumed, beside what is needed: units of all stages, in every situation that a person meets.

    python benchmarks/resume.py [--from ROOT] [--rows NAME ...] [--work DIR] [--quick]

A real Prefect server, workers and deployments run a copy of this project on the smoke recipe. A run fails in the middle of the
stage precompute, something else happens, and the run is resumed: by Retry, as the button posts it, by a new run, by one stage's
deployment. Units executed are those that the stages report, held against the files that were written; units needed are those
that were not there. ``--quick`` measures three situations, ``--rows`` those that are named, and ``--from`` begins with a root
that ``lvmae run lvmae --overlay demo --overlay smoke`` has made.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import _common
from tests.faults import chaos
from tests.faults.situations import Row, Table, copy_of_project

ROWS: dict[str, Callable[[Table], Row]] = {
    "nothing_missing": Table.nothing_missing,
    "retry": Table.retry,
    "new_run": Table.new_run,
    "one_stage": Table.one_stage,
    "one_stage_made": Table.one_stage_made,
    "edited_code": Table.edited_code,
    "lost_result_storage": Table.lost_result_storage,
    "lost_database": Table.lost_database,
    "lost_ledger": lambda table: table.lost_file("precompute", "targets/*/ledger/*.parquet", needed=1),
    "lost_codes": lambda table: table.lost_file("precompute", "targets/*/targets.zarr/*/codes/c.*", needed=1),
    "lost_shard": lambda table: table.lost_file("shard", "clips/*/shards/*.tar", needed=1),
    "lost_encoder": lambda table: table.lost_file("pretrain", "pretrain/*/encoder.safetensors", table.units["pretrain"]),
    "changed_execution": Table.changed_execution,
    "changed_parameter": Table.changed_parameter,
}


def main() -> None:
    """Measure every row, print the table, write the result."""
    asked = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="resume-", dir=asked.work))
    try:
        project = copy_of_project(folder / "project")
        with chaos.site(folder, folder / "root", project) as site:
            if asked.made:
                shutil.copytree(asked.made, site.root)
            else:
                chaos.make_reference(site)
            rows = _rows(Table(site), asked.rows)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    names = ("situation", "resumed_by", "total", "needed", "executed")
    _common.say(f"\n{_common.table([{name: getattr(row, name) for name in names} for row in rows])}\n")
    executed, needed = (sum(getattr(row, name) for row in rows) for name in ("executed", "needed"))
    result = {
        "machine": _common.machine(),
        "setting": {"recipe": "lvmae + demo + smoke"},
        "rows": [row._asdict() for row in rows],
        "ratios": {
            "executed_over_needed": _common.rounded(executed / max(1, needed)),
            "rows_equal_share": _common.rounded(sum(row.executed == row.needed for row in rows) / len(rows)),
        },
    }
    _common.finish("resume", result, out=asked.out)


def _arguments() -> argparse.Namespace:
    parser = _common.arguments(__doc__ or "")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where a temporary folder is made")
    parser.add_argument("--from", dest="made", type=Path, metavar="ROOT", help="a root on which everything is made")
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="NAME", help=f"situations, of: {', '.join(ROWS)}")
    asked = parser.parse_args()
    asked.rows = asked.rows or (list(ROWS)[:3] if asked.quick else list(ROWS))
    return asked


def _rows(table: Table, names: Sequence[str]) -> list[Row]:
    """The rows, each said as soon as it is measured."""
    rows = []
    for name in names:
        rows.append(ROWS[name](table))
        _common.say(str(rows[-1]))
    return rows


if __name__ == "__main__":
    main()
