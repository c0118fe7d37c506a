"""The first stage over an object store: the same command, the same bytes and the same care as over a folder."""

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.recipe import Request
from stages import places, shard
from stages.storage.artifact import Outcome
from stages.storage.workspace import Workspace
from tests.pipelines import ONE_THREAD, command, listing
from tests.s3 import Emulator, emulator
from tests.stages.videos import write_ramp

BUCKET = "videos"
PREFIX = "some/set"
SOURCE = f"s3://{BUCKET}/{PREFIX}"
COMMITTED = ("a.mp4", "a b/ü 'c'.mkv", "deep/er/d.mp4", "long.mp4", "raw.h264")
QUARANTINED = {"cut.mp4": "truncated", "empty.mp4": "empty", "text.mp4": "unreadable", "again.mp4": "duplicate"}
OVERLAYS = ("demo", "smoke")
OVERRIDES = ("shard.settle_s=0", "shard.abandoned_s=0", "shard.num_workers=1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with emulator(tmp_path_factory.mktemp("s3") / "log.txt", bucket=BUCKET) as running:
        yield running


@pytest.fixture
def s3(server: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """The server, which this process finds, too."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    places._client.cache_clear()
    yield server
    places._client.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and damaged sources with labels, in a folder that is called as the prefix ends."""
    folder = tmp_path_factory.mktemp("local") / Path(PREFIX).name
    for number, name in enumerate(COMMITTED):
        write_ramp(folder / name, 17 + 3 * number)
    whole = write_ramp(folder / "cut.mp4", 50).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video, " * 100)
    (folder / "again.mp4").write_bytes((folder / "a.mp4").read_bytes())
    (folder / ".left_out.mp4").write_text("of no interest")
    (folder / "labels.csv").write_text("path,class\na.mp4,jump\nlong.mp4,run\n")
    return folder


def put(s3: Emulator, key: str, data: bytes) -> None:
    s3.client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/{key}", Body=data)


def by_command(source: str, root: Path, s3: Emulator) -> dict[str, Any]:
    """What the command says of the first stage."""
    changes = [part for name in OVERLAYS for part in ("--overlay", name)] + [
        part for each in OVERRIDES for part in ("--set", each)
    ]
    argv = command("shard", "lvmae", *changes, "--source", source, "--json", root=root)
    environment = {**ONE_THREAD, **s3.environment}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return next(line for line in lines if line.get("stage") == "shard")


def here(source: str, root: Path) -> Outcome:
    """The same without the command, which takes longer to start than all the rest."""
    recipe = Request(recipe="lvmae", overlays=OVERLAYS, source=source, overrides=OVERRIDES).load()
    return shard.run(recipe.shard, {}, Workspace(root))


def made(root: Path) -> dict[str, str]:
    """The digests of all that a dataset is made of: not of snapshots, which tell how they were asked for."""
    parts = ("plans", "shards", "index", "sources", "quarantine", "units")
    paths = [path for part in parts for path in root.glob(f"clips/*/{part}/*")]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def rows(root: Path, table: str) -> list[dict[str, Any]]:
    return [row for path in sorted(root.glob(f"clips/*/{table}/*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_a_bucket_gives_what_a_folder_gives_and_then_only_what_is_new(s3: Emulator, folder: Path, tmp_path: Path) -> None:
    for path in folder.rglob("*.*"):
        put(s3, path.relative_to(folder).as_posix(), path.read_bytes())
    put(s3, "deep/", b"")  # what some programs put where a folder would be
    root = tmp_path / "root"

    first = by_command(SOURCE, root, s3)
    assert first["inputs"] == first["committed"] + first["quarantined"] == len(COMMITTED) + len(QUARANTINED)
    assert {row["key"]: row["reason"] for row in rows(root, "quarantine")} == QUARANTINED
    assert {row["key"] for row in rows(root, "index")} == set(COMMITTED)
    labels = {row["key"]: dict(row["labels"]) for row in rows(root, "index")}
    assert labels["long.mp4"] == {"class": ["run"]}
    here(str(folder), tmp_path / "local")
    assert made(root) == made(tmp_path / "local") != {}, "where bytes come from must not show in what is made of them"

    before = listing(root)
    again = by_command(SOURCE, root, s3)
    assert (again["units_done"], again["units_reused"]) == (0, first["units_done"])
    assert listing(root) == before, "nothing is new, so nothing is written"

    old = made(root)
    put(s3, "new.mp4", write_ramp(tmp_path / "new.mp4", 40).read_bytes())
    added = here(SOURCE, root)
    assert (added.units_done, added.counts["committed"]) == (1, first["committed"] + 1)

    put(s3, "a.mp4", write_ramp(tmp_path / "other.mp4", 45).read_bytes())
    replaced = here(SOURCE, root)
    assert (replaced.units_done, replaced.counts["committed"]) == (1, first["committed"] + 2)
    assert sorted(row["num_frames"] for row in rows(root, "sources") if row["key"] == "a.mp4") == [17, 45]

    s3.client.delete_object(Bucket=BUCKET, Key=f"{PREFIX}/deep/er/d.mp4")
    deleted = here(SOURCE, root)
    assert (deleted.units_done, deleted.counts["gone"]) == (0, 1)
    assert {name: digest for name, digest in made(root).items() if name in old} == old, "what was made is never changed"


def test_a_store_that_is_away_fails_the_run_and_quarantines_nothing(
    s3: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(OSError, match=r"Could not connect to the endpoint.*run again"):
        here(SOURCE, tmp_path / "root")
    assert made(tmp_path / "root") == {}
