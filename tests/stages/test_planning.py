"""Which sources are new is decided by their bytes and their names, whatever became of earlier ones."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from stages.errors import MediaError, Reason
from stages.listing import Listed
from stages.places import Place
from stages.planning import Decisions, Entry, plan_new, planned_entries
from stages.readers import Box, Labels, Source, Span
from stages.storage.clips import SEEN, Dataset
from stages.storage.seen import Seen
from stages.storage.workspace import Workspace

NOTHING = Decisions(lost=frozenset(), retried=frozenset())
A, B, C = "a" * 64, "b" * 64, "c" * 64


def listed(source_id: str, key: str, *, labels: Labels | None = None, spans: tuple[Span, ...] | None = None) -> Listed:
    return Listed(Source(key, Place(f"/{key}"), labels or {}, spans), source_id, size_bytes=1, stamp="1")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(Workspace(tmp_path), "set")


def plan(
    dataset: Dataset, listing: Sequence[Listed], *, decisions: Decisions = NOTHING, sources_per_shard: int = 10
) -> list[Entry]:
    """The entries that a listing adds."""
    first, earlier = dataset.num_units(), Seen.load(dataset.folder / SEEN)
    plan_new(dataset, [listing], decisions=decisions, earlier=earlier, sources_per_shard=sources_per_shard)
    return [entry for ordinal in range(first, dataset.num_units()) for entry in planned_entries(dataset, ordinal)]


def fates(entries: Sequence[Entry]) -> list[tuple[str, str | None]]:
    return [(entry.key, entry.reason) for entry in entries]


def test_what_is_planned_is_not_planned_again(dataset: Dataset) -> None:
    listing = [listed(A, "a"), listed(A, "b"), listed(B, "c")]
    assert len(plan(dataset, listing)) == 3
    assert plan(dataset, listing) == []
    (dataset.folder / SEEN).unlink()
    assert plan(dataset, listing) == [], "the cache spares work and decides nothing"


def test_the_first_name_owns_the_bytes_and_the_others_are_duplicates(dataset: Dataset) -> None:
    entries = plan(dataset, [listed(A, "a", labels={"class": ("x",)}), listed(A, "b"), listed(B, "c")])
    assert fates(entries) == [("a", None), ("c", None), ("b", "duplicate")]
    assert entries[2].detail == "the same bytes as a"
    assert entries[0].labels == {"class": ("x",)}


def test_a_renamed_source_keeps_its_clips_under_the_old_name(dataset: Dataset) -> None:
    plan(dataset, [listed(A, "old")])
    entries = plan(dataset, [listed(A, "new")])
    assert fates(entries) == [("new", "renamed")]
    assert "old, which is gone" in entries[0].detail
    assert plan(dataset, [listed(A, "new")]) == []


def test_changed_bytes_under_an_old_name_are_a_new_source(dataset: Dataset) -> None:
    plan(dataset, [listed(A, "a")])
    assert fates(plan(dataset, [listed(B, "a")])) == [("a", None)]


def test_a_source_that_cannot_be_read_is_planned_once_with_its_reason(dataset: Dataset) -> None:
    broken = Listed(Source("a", Place("/a")), C, 0, "1", fault=MediaError(Reason.EMPTY, "0 bytes"))
    assert fates(plan(dataset, [broken])) == [("a", "empty")]
    assert plan(dataset, [broken]) == []


def test_a_source_that_was_lost_is_read_when_it_comes_back_under_any_name(dataset: Dataset) -> None:
    plan(dataset, [listed(A, "a"), listed(A, "b")])
    lost = Decisions(lost=frozenset({(A, "a")}), retried=frozenset())
    assert fates(plan(dataset, [listed(A, "b")], decisions=lost)) == [("b", None)]
    assert plan(dataset, [listed(A, "b")], decisions=lost) == []


def test_a_source_that_is_to_be_tried_again_is_planned_again(dataset: Dataset) -> None:
    plan(dataset, [listed(A, "a"), listed(B, "b")])
    again = Decisions(lost=frozenset(), retried=frozenset({(A, "a")}))
    assert fates(plan(dataset, [listed(A, "a"), listed(B, "b")], decisions=again)) == [("a", None)]


def test_a_source_that_is_being_written_is_left_for_a_later_run(dataset: Dataset) -> None:
    growing = Listed(Source("a", Place("/a")), "", 0, "1")
    assert fates(plan(dataset, [growing, listed(B, "b")])) == [("b", None)]
    assert fates(plan(dataset, [listed(A, "a"), listed(B, "b")])) == [("a", None)]


def test_sources_fill_units_and_one_with_many_spans_counts_as_many(dataset: Dataset) -> None:
    spans = tuple(Span(str(number), number, number + 1.0, {}) for number in range(3))
    plan(
        dataset,
        [listed(A, "a"), listed(B, "b", spans=spans), listed(C, "c"), listed("d" * 64, "d"), listed("e" * 64, "e")],
        sources_per_shard=3,
    )
    assert [[row["key"] for row in dataset.planned(ordinal)] for ordinal in range(2)] == [["a", "b"], ["c", "d", "e"]]


def test_labels_spans_and_boxes_come_back_as_they_were_planned(dataset: Dataset) -> None:
    box = Box(1.5, 0.0, 0.25, 0.5, 1.0, "track", ("run", "jump"))
    spans = (Span("first", 1.0, 2.0, {"verb": ("open",), "noun": ("door", "box")}, (box,)),)
    labels = {"split": ("train",), "class": ("b", "a")}
    (entry,) = plan(dataset, [listed(A, "a", labels=labels, spans=spans)])
    assert (entry.labels, entry.spans) == (labels, spans)


def test_many_sources_are_counted_with_those_that_went(dataset: Dataset) -> None:
    plan(dataset, [listed(A, "a"), listed(B, "b")])
    found = plan_new(
        dataset, [[listed(B, "b")]], decisions=NOTHING, earlier=Seen.load(dataset.folder / SEEN), sources_per_shard=1
    )
    assert (found.num_sources, found.gone, found.deferred) == (1, 1, 0)
