"""The campaign of half-uploaded files, in its short form: real containers, cut at drawn places, while the stage runs."""

from argparse import Namespace
from pathlib import Path

from benchmarks import landing
from tests.stages.videos import write_ramp


def test_no_half_uploaded_file_is_ingested_and_every_one_is_when_it_is_complete(tmp_path: Path) -> None:
    forms = {"last.mp4": (), "first.mp4": ("-movflags", "+faststart"), "cluster.mkv": ()}
    videos = [write_ramp(tmp_path / name, 20, options=options) for name, options in forms.items()]
    found = landing._uploads(Namespace(seed=3, uploads=8), videos, tmp_path / "uploads")
    assert found == {
        "trials": 8,
        "looks_at_half": 16,
        "ingested_half": 0,
        "quarantined_half": 0,
        "landed_half": 0,
        "ingested_whole": 8,
    }
