"""The pretraining under torchrun, as on many machines: several ranks of one command, one artifact."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.pipelines import ONE_THREAD, SMOKE, artifact_files, json_lines, lvmae

EXACT = ("pretrain.optimization.deterministic=true", "pretrain.optimization.accumulation_steps=2", "pretrain.compile=false")


def test_two_ranks_under_torchrun_make_the_bytes_of_one_process(smoke_root: Path, tmp_path: Path) -> None:
    alone, together = (Path(shutil.copytree(smoke_root, tmp_path / name)) for name in ("alone", "together"))
    arguments = ("pretrain", *SMOKE[1:], *(word for pair in EXACT for word in ("--set", pair)), "--no-tracking", "--json")
    (record,) = json_lines(lvmae(*arguments, root=alone))
    assert record["state"] == "done"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "pipeline", *arguments, "--root", str(together)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=ONE_THREAD,
    )
    assert done.returncode == 0, done.stderr
    assert [line["digest"] for line in json_lines(done)] == [record["digest"]], "the first rank alone speaks"
    assert artifact_files(together) == artifact_files(alone)
