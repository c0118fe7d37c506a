"""Faults against the whole pipeline under a real Prefect server and workers: nothing is lost, and every byte is as undisturbed.

    python benchmarks/chaos.py [--seed 7] [--faults 200] [--minutes 60] [--work DIR] [--quick]

A seed decides which faults strike which stage when: SIGKILL of the flow process, of its children, of a worker, of the server;
SIGTERM, SIGSTOP, cancel; the server or MLflow away; a full disk; the same thing started twice. The state of the campaign stays
in DIR, so that a campaign that was stopped goes on where it was. ``--quick`` draws 20 faults. It needs Linux; the full disk
needs the right to mount a tmpfs, and is left out without.
"""

import argparse
import json
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import _common
from tests.faults import chaos, chaos_faults
from tests.faults.situations import copy_of_project
from tests.pipelines import STAGES

_DISK_MB = 96
_VERIFY_EVERY = 10


def main() -> None:
    """Play the rest of the campaign, or as much as fits into the time, and write what came of it."""
    asked = _arguments()
    place = asked.work / "state.json"
    state = json.loads(place.read_text()) if place.exists() else {"seed": asked.seed, "faults": asked.faults, "records": []}
    assert (state["seed"], state["faults"]) == (asked.seed, asked.faults), f"{asked.work} holds another campaign"
    _common.say(f"seed {asked.seed}, {asked.faults} faults, below {asked.work}")
    root = asked.work / "disk" / "root"
    can_mount = chaos_faults.mounted(root.parent, _DISK_MB)
    kinds = {name: kind for name, kind in chaos_faults.KINDS.items() if can_mount or name != "disk full"}
    episodes = chaos.schedule(asked.seed, asked.faults, kinds)
    until = time.monotonic() + 60 * asked.minutes
    more = {"PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "5"}
    project = asked.work / "project"
    if not project.exists():
        copy_of_project(project)
    with chaos.site(asked.work, root, project, **more) as site:
        site.durations = state.get("durations", {})
        chaos.make_reference(site)
        state["durations"] = site.durations
        place.write_text(json.dumps(state, indent=1))
        _play(site, episodes, kinds, state, place, until=until)
    state["can_mount"] = can_mount
    _report(asked, state)


def _arguments() -> argparse.Namespace:
    parser = _common.arguments(__doc__ or "")
    parser.add_argument("--seed", type=int, default=7, help="decides everything that is drawn (7)")
    parser.add_argument("--faults", type=int, help="how many (200; 20 with --quick)")
    parser.add_argument("--minutes", type=float, default=600, help="stop after the episode that passes this (600)")
    parser.add_argument("--work", type=Path, default=Path("chaos-work"), metavar="DIR", help="state and artifacts (chaos-work)")
    asked = parser.parse_args()
    asked.faults = asked.faults or (20 if asked.quick else 200)
    asked.work = asked.work.absolute()
    asked.work.mkdir(parents=True, exist_ok=True)
    return asked


def _play(
    site: chaos.Site,
    episodes: list[chaos.Episode],
    kinds: dict[str, chaos.Kind],
    state: dict[str, Any],
    place: Path,
    *,
    until: float,
) -> None:
    for episode in episodes:
        if episode.faults[0].number < len(state["records"]):
            continue
        if time.monotonic() > until:
            _common.say("the time is over; call it again to go on")
            return
        began = time.monotonic()
        try:
            records = chaos.play(site, episode, kinds)
        except AssertionError as error:
            state.setdefault("broken", []).append({"episode": repr(episode), "what": traceback.format_exc()[-3000:]})
            place.write_text(json.dumps(state, indent=1))
            _common.say(f"BROKEN {episode}\n{error}")
            raise
        state["records"] += records
        place.write_text(json.dumps(state, indent=1))
        for record in records:
            _common.say(f"{record['number']:4d} {record['stage']:<10} {record['kind']:<36} {record['evidence']}")
        for surprise in records[0]["surprises"]:
            _common.say(f"     resumed after {surprise}")
        _common.say(f"     {episode.stage} whole, equal and nobody left after {time.monotonic() - began:.0f} s")
        if records[-1]["number"] // _VERIFY_EVERY > (episode.faults[0].number - 1) // _VERIFY_EVERY:
            _verify(site)


def _verify(site: chaos.Site) -> None:
    done = site.command("verify")
    assert done.returncode == 0, done.stdout
    for stage in STAGES:
        chaos.check(site, stage)
    _common.say("     verify: whole")


def _report(asked: argparse.Namespace, state: dict[str, Any]) -> None:
    records = state["records"]
    counts = Counter(record["kind"] for record in records)
    rows = [
        {
            "fault": kind,
            "fired": count,
            "stages": len({record["stage"] for record in records if record["kind"] == kind}),
        }
        for kind, count in counts.most_common()
    ]
    if rows:
        _common.say(f"\n{_common.table(rows)}\n")
    broken = [{name: _placeless(text, asked.work) for name, text in entry.items()} for entry in state.get("broken", [])]
    result = {
        "machine": _common.machine(),
        "setting": {
            "seed": asked.seed,
            "faults": asked.faults,
            "recipe": "lvmae + demo + smoke",
            "disk_full": state["can_mount"],
        },
        "fired": len(records),
        "by_kind": dict(counts),
        "by_stage": dict(Counter(record["stage"] for record in records)),
        "cold_starts": sum(record["cold"] for record in records),
        "resumed": dict(sum((Counter(record["resumed"]) for record in _one_per_episode(records)), Counter())),
        "unasked_failures": [
            _placeless(surprise, asked.work) for record in _one_per_episode(records) for surprise in record["surprises"]
        ],
        "broken": broken,
        "ratios": {"faults_survived_share": _common.rounded(len(records) / max(1, len(records) + len(broken)))},
    }
    _common.finish("chaos", result, out=asked.out)


def _placeless(text: str, work: Path) -> str:
    """A message without where this machine keeps its files."""
    return text.replace(str(work), "WORK").replace(str(_common.ROOT), "PROJECT").replace(sys.prefix, "PYTHON")


def _one_per_episode(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["number"] == record["episode"]]


if __name__ == "__main__":
    main()
