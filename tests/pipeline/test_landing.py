"""Whether a run is started for what landed: once for the same files, never beside one that takes them in, whoever asks."""

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.orchestration.landing import Decision, Landing, Standing, decide, event
from pipeline.recipe import Request
from stages.arrivals import Arrival, Arrivals, Waiting

NOW = datetime.datetime(2026, 11, 27, 12, tzinfo=datetime.UTC)
LANDING = Landing("lvmae", overlays=("demo",), source="/videos/incoming", root="/data/root")
FOUND = Arrivals(new=(Arrival("a.mp4", "1"), Arrival("b.mp4", "2")), begun=(), waiting=(), num_sources=2)
BEGUN = Arrivals(new=(), begun=FOUND.new, waiting=(), num_sources=2)


def standing(state: str, **changes: Any) -> Standing:
    parameters = {**LANDING.parameters, **changes.pop("parameters", {})}
    plain = {"expected": NOW, **changes}
    return Standing(name="lvmae+demo", run="12", state_type=state, state=state.title(), parameters=parameters, **plain)


def decided(*runs: Standing, found: Arrivals = FOUND, landing: Landing = LANDING) -> Decision:
    return decide(landing, found, runs, now=NOW)


def test_without_anything_new_nothing_is_started() -> None:
    waiting = Arrivals((), (), (Waiting("c.mp4", "has no moov"),), num_sources=5)
    found = decided(found=waiting)
    assert (found.starts, found.why) == (False, "nothing new: 5 sources, 1 not complete yet")


def test_what_landed_is_started_once_with_a_digest_that_does_not_depend_on_order() -> None:
    assert decided().starts
    again = dataclasses.replace(FOUND, new=FOUND.new[::-1])
    assert again.digest == FOUND.digest != ""
    for state in ("SCHEDULED", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"):
        found = decided(standing(state, parameters={"landed": again.digest}))
        assert not found.starts
        assert "12" in found.why
    assert "press Retry" in decided(standing("FAILED", parameters={"landed": FOUND.digest})).why
    assert not decided(standing("COMPLETED", idempotency_key=LANDING.key(FOUND.digest))).starts


def test_a_run_that_has_not_begun_takes_in_what_landed_since_it_was_asked_for() -> None:
    assert not decided(standing("SCHEDULED")).starts
    assert not decided(standing("PENDING", parameters={"landed": "other"})).starts
    tomorrow = NOW + datetime.timedelta(hours=15)
    assert decided(standing("SCHEDULED", expected=tomorrow)).starts, "a schedule makes runs days ahead"


def test_a_run_that_is_at_work_has_not_seen_what_is_new_but_has_what_it_began() -> None:
    assert decided(standing("RUNNING")).starts
    assert not decided(standing("RUNNING"), found=BEGUN).starts
    assert decided(standing("CRASHED"), found=BEGUN).starts
    assert decided(standing("COMPLETED")).starts


@pytest.mark.parametrize(
    "other",
    [{"recipe": "videomae"}, {"overlays": []}, {"source": "/elsewhere"}, {"root": "/elsewhere"}, {"dataset": "x"}],
    ids=lambda other: str(next(iter(other))),
)
def test_runs_of_other_recipes_sources_and_roots_do_not_count(other: dict[str, Any]) -> None:
    assert decided(standing("SCHEDULED", parameters=other)).starts
    assert decided(standing("RUNNING", parameters={**other, "landed": FOUND.digest})).starts


def test_a_root_that_is_left_to_the_worker_is_taken_for_the_same() -> None:
    assert not decided(standing("SCHEDULED", parameters={"root": ""})).starts
    assert not decided(standing("SCHEDULED", parameters={"source": "/videos/incoming/"})).starts


def test_two_recipes_over_one_source_have_runs_of_their_own() -> None:
    other = dataclasses.replace(LANDING, recipe="videomae")
    assert other.key(FOUND.digest) != LANDING.key(FOUND.digest)


def test_an_event_told_twice_is_one_event_that_says_what_to_run() -> None:
    first, second = event(LANDING, FOUND), event(LANDING, FOUND)
    assert first["id"] == second["id"] != event(LANDING, dataclasses.replace(FOUND, new=FOUND.new[:1]))["id"]
    assert first["resource"]["prefect.resource.id"] == "lvmae.source.incoming"
    payload = first["payload"]
    assert (payload["landed"], payload["num_files"], payload["source"]) == (FOUND.digest, 2, "/videos/incoming")


def test_paths_and_names_of_the_command_line_get_the_fields_of_the_form(tmp_path: Path) -> None:
    request = Request(recipe="mine.yaml", overlays=("demo", "small.yml"), source=str(tmp_path), overrides=("pretrain.seed=1",))
    landing = Landing.of(request, dataset="clips", root=str(tmp_path / "root"))
    assert (landing.recipe_file, landing.overlays, landing.overlay_files) == ("mine.yaml", ("demo",), ("small.yml",))
    assert landing.request.recipe == "mine.yaml"
    assert landing.request.overrides[-1] == "pretrain.seed=1"
    assert dataclasses.replace(landing, recipe_file="", overlay_files=()).dataset_name() == "clips"
    assert set(landing.parameters) == {
        "recipe", "recipe_file", "overlays", "overlay_files", "source", "dataset", "root", "overrides"
    }  # fmt: skip
