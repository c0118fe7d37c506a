"""Targets come back as they were written, by our reader and by Zarr's, or not at all."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from models.config import Config
from stages.batches import Stream
from stages.errors import ArtifactDamaged, TargetsInvalid
from stages.storage import artifact
from stages.storage.artifact import Artifact
from stages.storage.index import Clip
from stages.storage.publish import publish_bytes
from stages.storage.tables import write_table
from stages.storage.targets.adoption import adopt_file, adopted, donors
from stages.storage.targets.chunks import Chunk, ChunkReader, Place
from stages.storage.targets.layout import CODES, VIEWS_SCHEMA, ledger_name, object_name, views_name
from stages.storage.targets.reading import TargetReader
from stages.storage.targets.writing import TargetWriter, read_ledger
from stages.storage.workspace import Workspace
from tests.stages import target_files
from tests.stages.target_files import EXTENT, clip_of, contents, listing, random_values, slots, units, view_rows


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return target_files.committed(Workspace(tmp_path_factory.mktemp("targets")))


def test_every_value_comes_back_in_the_type_that_is_stored(made: Artifact) -> None:
    reader, largest = TargetReader(made), 0
    for unit, slot in slots(units()):
        found = reader.read(reader.place(clip_of(unit, slot), unit.view))
        written = random_values(unit)
        assert list(found) == ["codes", "priority", "motion", "count"]
        for spec in EXTENT.arrays:
            assert found[spec.name].dtype == spec.dtype
            assert (found[spec.name] == written[spec.name][slot].astype(spec.dtype)).all()
        largest = max(largest, int(found["codes"].max()))
    assert largest >= 2**17, "the test must need more than 17 bits"


def test_zarr_itself_reads_the_same(made: Artifact) -> None:
    reader = TargetReader(made)
    group = zarr.open_group(made.folder / "targets.zarr", mode="r")
    assert sorted(group.group_keys()) == ["000000", "000002"]
    assert len(reader) == 10
    for place in reader.places():
        found = reader.read(place)
        whole = reader.read_unit(place.ordinal, place.view)
        for name, values in found.items():
            array = group[f"{place.ordinal:06d}/{name}"]
            assert array.dtype == values.dtype
            assert (array[place.slot, place.view] == values).all()
            assert (array[:, place.view] == whole[name]).all()


def test_a_place_says_which_pixels_its_values_belong_to(made: Artifact) -> None:
    reader = TargetReader(made)
    for unit, slot in slots(units()):
        place = reader.place(clip_of(unit, slot), unit.view)
        row = view_rows(unit)[slot]
        assert {name: getattr(place, name) for name in row} == row
        assert (place.ordinal, place.slot, len(place.chunks)) == (unit.ordinal, slot, 4)


def test_only_the_arrays_that_are_asked_for_are_read(made: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made.folder, folder)
    for path in folder.glob("targets.zarr/*/codes/c.*"):
        path.unlink()
    place = TargetReader(made).place(clip_of(units()[0], 1), 0)
    reader = ChunkReader(str(folder), EXTENT)
    assert list(reader.read(place, {"motion", "priority"})) == ["priority", "motion"]
    with pytest.raises(ArtifactDamaged, match=r"targets\.zarr/000000/codes/c\.0\.0\.0\.0\.0: codes of clip clip01"):
        reader.read(place)


@pytest.mark.parametrize("stranger", [("clip03", 0, 3), ("clip10", 1, 0), ("other", 0, 0)])
def test_a_clip_that_is_not_there_is_refused(made: Artifact, stranger: tuple[str, int, int]) -> None:
    name, ordinal, slot = stranger
    clip = Clip(**{**vars(clip_of(units()[0], 0)), "clip_id": name, "ordinal": ordinal, "slot": slot})
    with pytest.raises(ArtifactDamaged, match=f"holds no targets of clip {name} in view 0; .* run precompute"):
        TargetReader(made).place(clip, 0)
    with pytest.raises(ArtifactDamaged, match="holds no targets of clip clip00 in view 2"):
        TargetReader(made).place(clip_of(units()[0], 0), 2)


def test_the_same_values_make_the_same_bytes_in_any_order_of_units(made: Artifact, tmp_path: Path) -> None:
    again = target_files.committed(Workspace(tmp_path), units()[::-1])
    assert contents(again.folder) == contents(made.folder)


def test_a_ledger_row_names_its_files_and_the_range_of_its_codes(made: Artifact) -> None:
    for unit in units():
        row = read_ledger(made.folder / ledger_name(unit.ordinal, unit.view))
        codes = random_values(unit)["codes"]
        assert (row["unit"], row["num_clips"]) == (unit.digest, unit.num_clips)
        assert (row["min_code"], row["max_code"]) == (codes.min(), codes.max())
        objects = [object_name(spec, unit.ordinal, unit.view) for spec in EXTENT.arrays]
        assert list(row["files"]) == [*objects, views_name(unit.ordinal, unit.view)]
        assert all(made.manifest.files[name] == record for name, record in row["files"].items())


def test_a_unit_is_held_only_while_every_byte_of_it_is_right(made: Artifact, tmp_path: Path) -> None:
    shutil.copytree(made.folder, tmp_path / "copy")
    unit = units()[1]
    writer = TargetWriter(tmp_path / "copy", EXTENT, {"views": {}})
    names = [*read_ledger(made.folder / ledger_name(unit.ordinal, unit.view))["files"], ledger_name(unit.ordinal, unit.view)]
    assert len(names) == 6
    for name in names:
        path = tmp_path / "copy" / name
        data = path.read_bytes()
        assert writer.holds(unit)
        for damaged in (data[:-1], bytes([data[0] ^ 1]) + data[1:], None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            assert not writer.holds(unit)
            path.write_bytes(data)
    assert not writer.holds(unit._replace(digest="other"))


def test_damaged_metadata_that_a_killed_run_left_is_mended(made: Artifact, tmp_path: Path) -> None:
    shutil.copytree(made.folder, tmp_path / "copy")
    metadata = sorted((tmp_path / "copy").glob("targets.zarr/**/zarr.json"))
    assert len(metadata) == 1 + 2 * (1 + 4)
    for path in metadata:
        path.write_bytes(b"{}")
    writer = TargetWriter(tmp_path / "copy", EXTENT, {"views": {}})
    for unit in units():
        writer.write_unit(unit, values=random_values(unit), views=view_rows(unit))
    assert {**contents(tmp_path / "copy"), "manifest.json": b""} == {**contents(made.folder), "manifest.json": b""}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("codes", 2**18, "codes of clip clip01 in view 1 is 262144, and must be below 262144"),
        ("codes", -1, "codes of clip clip01 in view 1 is -1, and must be below"),
        ("priority", np.nan, "priority of clip clip01 in view 1 is nan, and must be finite in float16"),
        ("priority", 1e5, "priority of clip clip01 in view 1 is 100000.0, and must be finite in float16"),
        ("motion", -np.inf, "motion of clip clip01 in view 1 is -inf"),
        ("count", 128, "count of clip clip01 in view 1 is 128"),
    ],
)
def test_a_unit_with_an_impossible_value_does_not_come_to_exist(tmp_path: Path, name: str, value: float, message: str) -> None:
    unit = units()[1]
    writer = TargetWriter(tmp_path, EXTENT, {})
    values = random_values(unit)
    values[name][1].flat[5] = value
    with pytest.raises(TargetsInvalid, match=message):
        writer.write_unit(unit, values=values, views=view_rows(unit))
    assert not list(tmp_path.glob("ledger/*"))
    writer.write_unit(unit, values=random_values(unit), views=view_rows(unit))
    assert writer.holds(unit)


def test_values_of_the_wrong_shape_are_refused(tmp_path: Path) -> None:
    unit = units()[0]
    values = {**random_values(unit), "codes": np.zeros((3, 4, 2, 1), np.int64)}
    with pytest.raises(TargetsInvalid, match=r"codes of clip shard 0 has the shape \(3, 4, 2, 1\) instead of \(3, 4, 2, 2\)"):
        TargetWriter(tmp_path, EXTENT, {}).write_unit(unit, values=values, views=view_rows(unit))


@pytest.mark.parametrize("name", ["codes", "motion"])
def test_a_unit_that_comes_out_differently_the_second_time_does_not_come_to_exist(tmp_path: Path, name: str) -> None:
    unit = units()[0]
    writer = TargetWriter(tmp_path, EXTENT, {})
    values = random_values(unit)
    second = {array: found[2].copy() for array, found in values.items()}
    writer.write_unit(unit, values=values, views=view_rows(unit), again={2: second})
    assert writer.holds(unit)
    (tmp_path / ledger_name(0, 0)).unlink()
    second[name].flat[-1] += 1
    with pytest.raises(TargetsInvalid, match=rf"{name} of clip clip02 in view 0 came out differently .*\(1 of \d+ values\)"):
        writer.write_unit(unit, values=values, views=view_rows(unit), again={2: second})
    assert not writer.holds(unit)


def test_units_of_another_artifact_are_adopted_and_that_artifact_is_not_touched(made: Artifact, tmp_path: Path) -> None:
    before = listing(made.folder)
    writer = TargetWriter(tmp_path, EXTENT, {"views": {}})
    known, other = units()[:3], units(salt="another tokenizer")[3]
    assert list(adopted(writer, [*known, other], [made])) == known
    assert all(writer.holds(unit) for unit in known)
    assert not writer.holds(other)
    name = object_name(CODES, 0, 1)
    assert (tmp_path / name).samefile(made.folder / name)
    writer.write_unit(other, values=random_values(other), views=view_rows(other))
    assert listing(made.folder) == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_adopting_again_changes_nothing_and_leaves_nothing_behind(made: Artifact, tmp_path: Path) -> None:
    writer = TargetWriter(tmp_path, EXTENT, {"views": {}})
    for _ in range(2):
        assert list(adopted(writer, units(), [made])) == units()
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert names == set(made.manifest.files)


def test_a_damaged_unit_is_not_adopted(made: Artifact, tmp_path: Path) -> None:
    unit = units()[2]
    for number, name in enumerate((object_name(CODES, 2, 0), views_name(2, 0), ledger_name(2, 0))):
        folder = tmp_path / str(number)
        shutil.copytree(made.folder, folder / "old")
        data = bytearray((folder / "old" / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / "old" / name).write_bytes(data)
        damaged = Artifact(folder / "old", made.manifest, folder / "old" / "manifest.json")
        writer = TargetWriter(folder / "new", EXTENT, {"views": {}})
        assert list(adopted(writer, [unit], [damaged])) == []
        assert not writer.holds(unit)
        assert list(adopted(writer, [unit], [damaged, made])) == [unit]


def test_targets_of_another_version_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    workspace, unit = Workspace(tmp_path), units()[0]
    older = workspace.artifact_folder("precompute", "older")
    schema = pa.schema([("ordinal", pa.int32()), ("codes_sha256", pa.string())])
    write_table(older / ledger_name(0, 0), [{"ordinal": 0, "codes_sha256": "0"}], schema)
    artifact.commit(workspace, stage="precompute", name="older", config=Config(), inputs={}, counts={})
    unreadable = workspace.artifact_folder("precompute", "unreadable")
    publish_bytes(unreadable / "manifest.json", b"{}")
    folder = workspace.artifact_folder("precompute", "new")
    writer = TargetWriter(folder, EXTENT, {"views": {}})
    assert list(adopted(writer, [unit], donors(workspace, "precompute", folder))) == []
    assert "passed_over" in caplog.text
    assert "not_adopted" not in caplog.text


def test_where_there_are_no_links_files_are_copied(made: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refused)
    name = object_name(CODES, 0, 1)
    adopt_file(made.folder / name, tmp_path / name, made.manifest.files[name])
    assert (tmp_path / name).read_bytes() == (made.folder / name).read_bytes()
    assert not (tmp_path / name).samefile(made.folder / name)
    with pytest.raises(ArtifactDamaged, match="not the bytes of its manifest"):
        adopt_file(made.folder / name, tmp_path / "other", made.manifest.files[views_name(0, 1)])
    assert [path.name for path in tmp_path.iterdir()] == ["targets.zarr"]


def test_what_a_worker_is_sent_does_not_grow_with_the_store(tmp_path: Path) -> None:
    counts = dict.fromkeys(range(100), 500)
    reader = _wide_reader(tmp_path, counts)
    assert len(reader) == 100_000
    clip = clip_of(units(counts)[170], 321)
    stream = Stream([clip], 0, _Read(reader.chunks), attach=lambda clip, epoch, repeat: reader.place(clip, 1))
    assert len(pickle.dumps(stream.sample)) < 1500
    draw = stream.draw(7)
    assert len(pickle.dumps(draw)) < 1500
    (place,) = draw.attached
    assert (place.clip_id, place.ordinal, place.view, place.slot) == (clip.clip_id, 85, 1, 321)


class _Read:
    """As a training's sample holds it."""

    def __init__(self, chunks: ChunkReader) -> None:
        self.chunks = chunks

    def __call__(self, clip: Clip, epoch: int, place: Place) -> dict[str, object]:
        return dict(self.chunks.read(place))


def _wide_reader(root: Path, counts: dict[int, int]) -> TargetReader:
    """A reader of a store of many rows of which the tables alone are there."""
    workspace = Workspace(root)
    folder = workspace.artifact_folder("precompute", "wide")
    TargetWriter(folder, EXTENT, {})
    (folder / "views").mkdir()
    chunks = [Chunk(number * 100, 100, number) for number in range(len(EXTENT.arrays))]
    for unit in units(counts):
        rows = {name: pa.array([number] * unit.num_clips) for name, number in view_rows(unit._replace(num_clips=1))[0].items()}
        rows |= {
            "clip_id": pa.array([f"clip{unit.ordinal}{slot}" for slot in range(unit.num_clips)]),
            "ordinal": pa.array([unit.ordinal] * unit.num_clips),
            "slot": pa.array(range(unit.num_clips)),
            "chunks": pa.array([[chunk._asdict() for chunk in chunks]] * unit.num_clips, VIEWS_SCHEMA.field("chunks").type),
        }
        table = pa.table({name: rows[name].cast(VIEWS_SCHEMA.field(name).type) for name in VIEWS_SCHEMA.names})
        pq.write_table(table, folder / views_name(unit.ordinal, unit.view))
    made = artifact.commit(workspace, stage="precompute", name="wide", config=Config(), inputs={}, counts={})
    return TargetReader(made)
