"""``storage_layout.md`` and what the code writes are the same, in both directions."""

import re
from pathlib import Path
from typing import Any

import pytest
import zarr

from models.extension import names
from stages.storage import embeddings, schemas, seen
from stages.storage.targets import layout
from stages.storage.workspace import Workspace
from tests.stages import target_files

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
    return {line.split()[0] for line in block("tree") if "working" in line or "optional" in line}


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
        ("views", layout.VIEWS_SCHEMA),
        ("ledger", layout.LEDGER_SCHEMA),
    ],
)
def test_tables_have_the_listed_columns(table: str, schema: schemas.pa.Schema) -> None:
    row = next(line for line in block("tables") if line.startswith(f"| {table} |"))
    listed = row.split("|")[2].strip()
    assert listed == ", ".join(f"{field.name} {field.type}" for field in schema)


def test_embeddings_have_the_listed_columns() -> None:
    assert block("embeddings") == [", ".join(f"{field.name} {field.type}" for field in embeddings.SCHEMA)]


def test_every_form_of_an_export_has_the_listed_files(smoke_root: Path) -> None:
    listed = {name: files.split(", ") for _, name, files, _ in (map(str.strip, row.split("|")) for row in block("forms")[1:])}
    assert list(listed) == ["safetensors", "transformers", "torch_export", "aot_inductor", "onnx", "tensorrt"]
    assert sorted(listed) == names("stages.backends")
    (made,) = smoke_root.glob("export/*")
    forms = {path.name: sorted(file.name for file in path.iterdir()) for path in made.iterdir() if path.is_dir()}
    assert forms == {name: listed[name] for name in ("safetensors", "torch_export")}


ATTRIBUTES = {"quantizer", "patching", "views", "windows", "products", "tokenizer_digest", "snapshot_digest"}


def test_arrays_have_the_listed_types_shapes_and_codecs(smoke_root: Path) -> None:
    group = zarr.open_group(next(smoke_root.glob("targets/*/targets.zarr")), mode="r")
    assert set(group.attrs) >= ATTRIBUTES
    text = TEXT.partition("Attributes of the root group: ")[2].partition("One writer")[0]
    assert set(re.findall(r"`(\w+)`", text)) == set(group.attrs)
    listed = {line.split("|")[1].strip() for line in block("arrays")}
    assert listed == {"codes", "priority", "<product>"}
    assert len(list(group.groups())) == 3
    for _, shard in group.groups():
        for name, array in shard.arrays():
            assert_as_listed(name if name in listed else "<product>", array, dict(group.attrs))


def test_arrays_of_products_have_the_listed_shapes_and_codecs(tmp_path: Path) -> None:
    made = target_files.committed(Workspace(tmp_path))
    group = zarr.open_group(made.folder / "targets.zarr", mode="r")
    written = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert [name for name in written if not any(listed.fullmatch(name) for listed in tree().values())] == []
    for name in ("motion", "count"):
        assert_as_listed("<product>", group[f"000002/{name}"], dict(group.attrs))


def assert_as_listed(listed: str, array: zarr.Array, extent: dict[str, Any]) -> None:
    """An array is what the row of the table says."""
    row = next(line for line in block("arrays") if line.startswith(f"| {listed} |"))
    _, dtype, shape, chunks, shards, codecs = (cell.strip() for cell in row.strip("|").split("|"))
    sizes = {"n": array.shape[0], "V": extent["num_views"], "1": 1, **dict(zip("thw", extent["grid"], strict=True))}
    channels = array.shape[5:]
    assert (dtype in (str(array.dtype), "its own"), codecs) == (True, "zstd(1), crc32c")
    assert [type(codec).__name__ for codec in array.compressors] == ["ZstdCodec", "Crc32cCodec"]
    for spelled, actual in ((shape, array.shape), (chunks, array.chunks), (shards, array.shards)):
        fixed = tuple(sizes[part.strip()] for part in spelled.removesuffix("(, c)").split(","))
        assert actual == (*fixed, *(channels if spelled.endswith("(, c)") else ()))
