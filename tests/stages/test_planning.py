"""Which sources are new is decided by their bytes and their names, whatever became of earlier ones."""

from pathlib import Path

from stages.errors import MediaError, Reason
from stages.listing import Listed
from stages.planning import Entry, Unit, new_entries


def listed(source_id: str, key: str, fault: MediaError | None = None) -> Listed:
    return Listed(
        source_id=source_id, key=key, path=Path("/") / key, labels={"class": key}, size_bytes=1, stamp=(), fault=fault
    )


def planned(*entries: tuple[str, str, Reason | None], ordinal: int = 0) -> Unit:
    made = [Entry(source_id, key, 1, {}, reason and reason.value, "") for source_id, key, reason in entries]
    return Unit(ordinal, tuple(made))


def fates(entries: list[Entry]) -> list[tuple[str, str | None]]:
    return [(entry.key, entry.reason) for entry in entries]


def test_what_is_planned_is_not_planned_again() -> None:
    earlier = [planned(("1", "a", None), ("1", "b", Reason.DUPLICATE))]
    assert new_entries([listed("1", "a"), listed("1", "b")], earlier, lost=set()) == []


def test_the_first_name_owns_the_bytes_and_the_others_are_duplicates() -> None:
    entries = new_entries([listed("1", "a"), listed("1", "b"), listed("2", "c")], [], lost=set())
    assert fates(entries) == [("a", None), ("b", "duplicate"), ("c", None)]
    assert entries[1].detail == "the same bytes as a"
    assert entries[0].labels == {"class": "a"}


def test_a_renamed_source_is_a_duplicate_of_its_old_name() -> None:
    assert fates(new_entries([listed("1", "new")], [planned(("1", "old", None))], lost=set())) == [("new", "duplicate")]


def test_changed_bytes_under_an_old_name_are_a_new_source() -> None:
    assert fates(new_entries([listed("2", "a")], [planned(("1", "a", None))], lost=set())) == [("a", None)]


def test_a_source_that_cannot_be_read_is_planned_once_with_its_reason() -> None:
    broken = listed("f", "a", fault=MediaError(Reason.EMPTY, "0 bytes"))
    assert fates(new_entries([broken], [], lost=set())) == [("a", "empty")]
    assert new_entries([broken], [planned(("f", "a", Reason.EMPTY))], lost=set()) == []


def test_a_source_that_was_lost_is_read_when_it_comes_back_under_any_name() -> None:
    earlier = [planned(("1", "a", None), ("1", "b", Reason.DUPLICATE))]
    lost = {(0, "1", "a")}
    assert fates(new_entries([listed("1", "b")], earlier, lost=lost)) == [("b", None)]
    again = [*earlier, planned(("1", "b", None), ordinal=1)]
    assert new_entries([listed("1", "b")], again, lost=lost) == []
