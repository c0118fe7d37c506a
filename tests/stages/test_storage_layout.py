"""``storage_layout.md`` and what the code writes are the same, in both directions."""

import re
from pathlib import Path

import pytest
import zarr

from stages.storage import schemas, seen, targets

TEXT = (Path(__file__).parents[2] / "storage_layout.md").read_text()
PLACEHOLDERS = {"NNNNNN": r"\d{6}", "VV": r"\d{2}", "...": r".+"}


def block(name: str) -> list[str]:
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", TEXT, re.DOTALL)
    assert found, name
    return [line for line in found[1].splitlines() if line and not line.startswith(("```", "|---", "| table", "| array"))]


def pattern(spelled: str) -> re.Pattern[str]:
    escaped = re.sub(r"<[^/>]+>", "[^/]+", spelled)
    for placeholder, expression in PLACEHOLDERS.items():
        escaped = escaped.replace(placeholder, f"\x00{expression}\x00")
    pieces = re.split(r"(\[\^/\]\+|\x00.*?\x00)", escaped)
    return re.compile("".join(piece.strip("\x00") if index % 2 else re.escape(piece) for index, piece in enumerate(pieces)))


def tree() -> dict[str, re.Pattern[str]]:
    return {line.split()[0]: pattern(line.split()[0]) for line in block("tree")}


def working() -> set[str]:
    return {line.split()[0] for line in block("tree") if "working" in line}


def test_every_file_that_was_written_is_listed(smoke_root: Path) -> None:
    written = [path.relative_to(smoke_root).as_posix() for path in smoke_root.rglob("*") if path.is_file()]
    assert len(written) > 20
    strangers = [name for name in written if not any(listed.fullmatch(name) for listed in tree().values())]
    assert strangers == []


def test_every_file_that_is_listed_was_written(smoke_root: Path) -> None:
    written = [path.relative_to(smoke_root).as_posix() for path in smoke_root.rglob("*") if path.is_file()]
    missing = [name for name, listed in tree().items() if not any(map(listed.fullmatch, written))]
    assert set(missing) <= working()


@pytest.mark.parametrize(
    ("table", "schema"),
    [
        ("index", schemas.INDEX),
        ("sources", schemas.SOURCES),
        ("quarantine", schemas.QUARANTINE),
        ("plans", schemas.PLAN),
        ("seen", seen.SEEN_SCHEMA),
        ("views", targets.VIEWS_SCHEMA),
        ("ledger", targets.LEDGER_SCHEMA),
    ],
)
def test_tables_have_the_listed_columns(table: str, schema: schemas.pa.Schema) -> None:
    row = next(line for line in block("tables") if line.startswith(f"| {table} |"))
    listed = row.split("|")[2].strip()
    assert listed == ", ".join(f"{field.name} {field.type}" for field in schema)


def test_arrays_have_the_listed_types_shapes_and_codecs(smoke_root: Path) -> None:
    group = zarr.open_group(next(smoke_root.glob("targets/*/targets.zarr")), mode="r")
    extent = dict(group.attrs)
    sizes = {"R": extent["rows_per_shard"], "V": extent["num_views"], "1": 1, **dict(zip("thw", extent["grid"], strict=True))}
    sizes["S*R"] = extent["num_shards"] * sizes["R"]
    assert {"levels", "patching", "views", "tokenizer_digest", "snapshot_digest"} <= set(extent)
    for line in block("arrays"):
        name, dtype, shape, chunks, shards, codecs = (cell.strip() for cell in line.strip("|").split("|"))
        array = group[name]
        assert (str(array.dtype), codecs) == (dtype, "zstd(1), crc32c")
        assert [type(codec).__name__ for codec in array.compressors] == ["ZstdCodec", "Crc32cCodec"]
        for listed, actual in ((shape, array.shape), (chunks, array.chunks), (shards, array.shards)):
            assert tuple(sizes[part.strip()] for part in listed.split(",")) == actual
