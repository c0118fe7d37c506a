"""video2dataset on local files: scaled to a height of 256, into WebDataset tars. For an interpreter that has it.

It is run as ``PYTHON _video2dataset.py WORKERS SOURCES OUT`` by ``shard.py`` and imports nothing of this project. It does less
work than the stage: it cuts nothing, for which it would encode a second time, it makes upright videos smaller, because it
knows heights but no short sides, and its encoder's settings, which it fixes itself, cost less.
"""

import csv
import sys
import tempfile
import time
from pathlib import Path

from video2dataset import video2dataset
from video2dataset.subsamplers import ResolutionSubsampler

# Release 1.3.0 asks for this when it writes, and lacks it: every shard fails otherwise. Here, because workers import this file.
ResolutionSubsampler.encode_formats = {"video": "mp4"}

_SOURCES_PER_SHARD = 32


def main(num_workers: int, sources: Path, out: Path) -> None:
    """Run it over a folder; prints the seconds it took."""
    resize = {"ResolutionSubsampler": {"args": {"height": 256, "resize_mode": "scale"}}}
    with tempfile.TemporaryDirectory() as scratch:
        listing = Path(scratch, "sources.csv")
        with listing.open("w", newline="") as file:
            csv.writer(file).writerows([["url"], *([str(path)] for path in sorted(sources.iterdir()))])
        begun = time.perf_counter()
        video2dataset(
            url_list=str(listing),
            output_folder=str(out),
            output_format="webdataset",
            input_format="csv",
            url_col="url",
            encode_formats={"video": "mp4"},
            tmp_dir=scratch,
            config={
                "subsampling": resize,
                "reading": {"yt_args": {}, "timeout": 60, "sampler": None},
                "storage": {
                    "number_sample_per_shard": _SOURCES_PER_SHARD,
                    "oom_shard_count": 5,
                    "captions_are_subtitles": False,
                },
                "distribution": {
                    "processes_count": num_workers,
                    "thread_count": 1,
                    "subjob_size": 1000,
                    "distributor": "multiprocessing",
                },
            },
        )
        sys.stdout.write(f"\n{time.perf_counter() - begun}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
