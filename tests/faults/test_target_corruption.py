"""A thousand damages to stored targets: every one is found, and none is ever read as values."""

import dataclasses
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

import pytest

from pipeline import inventory
from stages.errors import ArtifactDamaged, PipelineError
from stages.storage import artifact
from stages.storage.artifact import Artifact
from stages.storage.targets import chunks
from stages.storage.targets.chunks import Place
from stages.storage.targets.reading import TargetReader
from stages.storage.workspace import Workspace
from tests.stages import target_files

SEED = 20_250_722
NUM_FLIPS, NUM_CUTS = 90, 25
"""Of each of the seven kinds of files."""
NUM_SWAPS, NUM_STALE = 150, 80
"""All together are more than a thousand."""
KINDS = {
    "objects": "targets.zarr/*/*/c.*",
    "arrays": "targets.zarr/*/*/zarr.json",
    "groups": "targets.zarr/*/zarr.json",
    "root": "targets.zarr/zarr.json",
    "views": "views/*",
    "ledger": "ledger/*",
    "manifest": "manifest.json",
}
NUM_FILES = {"objects": 16, "arrays": 8, "groups": 2, "root": 1, "views": 4, "ledger": 4, "manifest": 1}
OLD, NEW = "a" * 16, "b" * 16

Change = Mapping[Path, bytes | None]
Contents = dict[tuple[str, int], Mapping[str, bytes]]


@dataclasses.dataclass
class Patient:
    """Targets, those of another tokenizer beside them, and what a training reads of them."""

    root: Path
    values: Contents

    @property
    def folder(self) -> Path:
        """Where the targets lie."""
        return self.root / "targets" / NEW

    def files(self, kind: str) -> list[Path]:
        """The files of one kind."""
        found = sorted(self.folder.glob(KINDS[kind]))
        assert len(found) == NUM_FILES[kind]
        return found

    def undetected(self, changes: Mapping[str, Change]) -> list[str]:
        """The changes to some files, by name, that are read as values or that ``lvmae verify`` does not see."""
        return [name for name, change in changes.items() if self.is_missed(change)]

    def is_missed(self, change: Change) -> bool:
        """Whether one change is read as values or not found."""
        before = {path: path.read_bytes() for path in change}
        assert any(before[path] != data for path, data in change.items()), "a change must change something"
        try:
            put(change)
            return self.verifies() or bool(self.misread())
        finally:
            put(before)

    def misread(self) -> list[tuple[str, int]]:
        """The clips and views of which a training would get something else, without an error."""
        try:
            found = read(self.root)
        except PipelineError:
            return []
        return [key for key, values in found.items() if values != self.values[key]]

    def verifies(self) -> bool:
        """Whether ``lvmae verify`` finds nothing in these targets."""
        found = {entry.name: (entry, faults) for entry, faults in inventory.verified(Workspace(self.root))}
        entry, faults = found[NEW]
        return not faults and entry.state == inventory.State.COMMITTED


def put(files: Change) -> None:
    for path, data in files.items():
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)


def read(root: Path, name: str = NEW) -> Contents:
    """Every place's pixels and values, but for those of which reading says that they are damaged."""
    made = artifact.find(Workspace(root), "precompute", name)
    assert made
    reader, found = TargetReader(made), {}
    for unit, slot in target_files.slots(target_files.units()):
        try:
            place = reader.place(target_files.clip_of(unit, slot), unit.view)
            values = {array: part.tobytes() for array, part in reader.read(place).items()}
        except ArtifactDamaged:
            continue
        found[place.clip_id, place.view] = {**values, "pixels": repr(_pixels(place)).encode()}
    return found


def _pixels(place: Place) -> dict[str, object]:
    return {name: value for name, value in place._asdict().items() if name != "chunks"}


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patient]:
    root = tmp_path_factory.mktemp("patient")
    target_files.committed(Workspace(root), target_files.units(salt="another tokenizer"), OLD)
    target_files.committed(Workspace(root), target_files.units(), NEW)
    made = Patient(root, read(root))
    assert len(made.values) == 10
    assert made.verifies()
    yield made
    assert made.verifies(), "every change must have been undone"


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_anywhere_is_found_and_never_read_as_values(patient: Patient, kind: str) -> None:
    generator, changes = random.Random(f"{SEED} {kind}"), {}
    for number in range(NUM_FLIPS):
        path = generator.choice(patient.files(kind))
        bit, data = flipped(path, generator)
        changes[f"seed {SEED}: {number}: bit {bit} of {path.relative_to(patient.folder)}"] = {path: data}
    assert len(changes) == NUM_FLIPS
    assert patient.undetected(changes) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_cut_or_deleted_is_found_and_never_read_as_values(patient: Patient, kind: str) -> None:
    generator, changes = random.Random(f"{SEED} {kind}"), {}
    for number in range(NUM_CUTS):
        path = generator.choice(patient.files(kind))
        length = generator.randrange(path.stat().st_size) if number else 0
        changes[f"seed {SEED}: {number}: {path.relative_to(patient.folder)} cut to {length}"] = {
            path: path.read_bytes()[:length]
        }
    if kind != "manifest":  # without it there are no targets, and the next run commits the same ones
        changes |= {f"{path.relative_to(patient.folder)} deleted": {path: None} for path in patient.files(kind)}
    assert patient.undetected(changes) == []


def test_files_that_changed_places_are_found_and_never_read_as_values(patient: Patient) -> None:
    generator, changes = random.Random(SEED), {}
    everything = [path for kind in KINDS for path in patient.files(kind)]
    alike = [patient.files(kind) for kind in ("objects", "views", "ledger", "arrays")]
    while len(changes) < NUM_SWAPS:
        one, other = generator.sample(generator.choice([*alike, everything]), 2)
        data = one.read_bytes(), other.read_bytes()
        if data[0] != data[1]:
            changes[f"{one.relative_to(patient.folder)} and {other.relative_to(patient.folder)}"] = {
                one: data[1],
                other: data[0],
            }
    assert patient.undetected(changes) == []


def test_a_file_of_older_targets_in_the_place_of_a_newer_is_found_and_never_read_as_values(patient: Patient) -> None:
    generator, changes = random.Random(SEED), {}
    everything = [path for kind in ("objects", "views", "ledger") for path in patient.files(kind)]
    for number in range(NUM_STALE):
        chosen = generator.sample(everything, generator.randrange(1, 6))
        older = {path: patient.root / "targets" / OLD / path.relative_to(patient.folder) for path in chosen}
        stale = {path: old.read_bytes() for path, old in older.items()}
        changes[f"seed {SEED}: {number}"] = stale
    assert patient.undetected(changes) == []


def test_a_whole_older_unit_in_the_place_of_a_newer_is_found_and_never_read_as_values(patient: Patient) -> None:
    for unit in target_files.units():
        ending = f"{unit.ordinal:06d}-{unit.view:02d}.parquet"
        names = [
            path
            for path in patient.files("objects")
            if f"/{unit.ordinal:06d}/" in str(path) and f"c.0.{unit.view}." in path.name
        ]
        names += [path for kind in ("views", "ledger") for path in patient.files(kind) if path.name.endswith(ending)]
        assert len(names) == 6
        stale = {path: (patient.root / "targets" / OLD / path.relative_to(patient.folder)).read_bytes() for path in names}
        assert patient.undetected({f"{unit}": stale}) == []


@pytest.mark.parametrize("kind", ["objects", "swapped"])
def test_without_the_checksums_of_chunks_damage_is_read_as_values(patient: Patient, kind: str) -> None:
    """Neither the sizes nor the manifest find it where single clips are read: the checksums do."""
    generator, missed = random.Random(SEED), []
    for _ in range(30):
        path = generator.choice(patient.files("objects"))
        other = next(one for one in patient.files("objects") if one.parent == path.parent and one != path)
        change = {path: flipped(path, generator)[1]} if kind == "objects" else {path: other.read_bytes()}
        before = path.read_bytes()
        put(change)
        assert not patient.misread()
        with mock.patch.object(chunks, "damage", return_value=None), mock.patch.object(chunks, "decoded", lenient):
            missed += patient.misread()
        put({path: before})
    assert len(missed) > 10


def lenient(data: bytes, shape: tuple[int, ...], dtype: str) -> object:
    """Values of a chunk, or a complaint where nothing can be unpacked from it."""
    try:
        return DECODED(data, shape, dtype)
    except OSError as error:
        raise ArtifactDamaged("cannot be unpacked") from error


DECODED = chunks.decoded


def test_bulk_reading_refuses_what_the_manifest_does_not_name(patient: Patient) -> None:
    made = artifact.find(Workspace(patient.root), "precompute", NEW)
    assert made
    reader, generator = TargetReader(made), random.Random(SEED)
    for path in patient.files("objects"):
        ordinal, view = int(path.parent.parent.name), int(path.name.split(".")[2])
        before = path.read_bytes()
        put({path: flipped(path, generator)[1]})
        with pytest.raises(ArtifactDamaged, match="sha256 differs"):
            reader.read_unit(ordinal, view)
        put({path: before})
        assert len(reader.read_unit(ordinal, view)["codes"]) == target_files.COUNTS[ordinal]


def test_damage_of_one_clip_is_found_by_reading_that_clip_and_leaves_the_others(patient: Patient, tmp_path: Path) -> None:
    shutil.copytree(patient.folder, tmp_path / "copy")
    made = artifact.find(Workspace(patient.root), "precompute", NEW)
    assert made
    reader = TargetReader(Artifact(tmp_path / "copy", made.manifest, tmp_path / "copy" / "manifest.json"))
    places = list(reader.places())
    hurt = places[1]
    path = next((tmp_path / "copy").glob(f"targets.zarr/{hurt.ordinal:06d}/priority/c.0.{hurt.view}.*"))
    data = bytearray(path.read_bytes())
    data[hurt.chunks[1].offset_bytes + 3] ^= 1
    path.write_bytes(data)
    for place in places:
        if place == hurt:
            with pytest.raises(ArtifactDamaged, match=f"priority of clip {hurt.clip_id} in view {hurt.view}.*crc32c differs"):
                reader.read(place)
        else:
            assert len(reader.read(place)) == 4


def flipped(path: Path, generator: random.Random) -> tuple[int, bytes]:
    """The bytes of a file with one bit changed, and which."""
    data = bytearray(path.read_bytes())
    bit = generator.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    return bit, bytes(data)
