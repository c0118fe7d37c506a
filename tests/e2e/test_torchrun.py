"""The pretraining under torchrun, as a run launches it, on one node and on two: several ranks of one command, one artifact."""

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.launching import launch
from pipeline.launching.launch import LAUNCH, PROCESSES, Meeting, chosen_launch
from pipeline.recipe import Request
from pipeline.runner import Run
from stages.errors import PipelineError
from tests.pipelines import ONE_THREAD, SMOKE, artifact_files, json_lines, lvmae
from tests.servers import free_port

EXACT = ("pretrain.optimization.deterministic=true", "pretrain.optimization.accumulation_steps=2", "pretrain.compile=false")
ARGUMENTS = ("pretrain", *SMOKE[1:], *(word for pair in EXACT for word in ("--set", pair)), "--no-tracking", "--json")
REQUEST = Request(recipe="lvmae", overlays=tuple(name for name in SMOKE[2:] if not name.startswith("--")), overrides=EXACT)


@pytest.fixture(scope="module")
def alone(smoke_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """The digest and the files of what one process makes."""
    root = Path(shutil.copytree(smoke_root, tmp_path_factory.mktemp("alone") / "root"))
    (record,) = json_lines(lvmae(*ARGUMENTS, root=root))
    assert record["state"] == "done"
    return record["digest"], artifact_files(root)


@pytest.fixture
def root(smoke_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(smoke_root, tmp_path / "root"))


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", ONE_THREAD["OMP_NUM_THREADS"])


def files(root: Path) -> dict[str, str]:
    return {name: digest for name, digest in artifact_files(root).items() if not name.startswith("logs/")}


class Notes:
    """An observer that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *values, **named: self.told.append((name, values))


def test_two_ranks_that_a_run_launches_make_the_bytes_of_one_process_and_are_heard(
    alone: tuple[str, dict[str, str]], root: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LAUNCH, "torchrun")
    monkeypatch.setenv(PROCESSES, "2")
    notes = Notes()
    (report,) = launched(REQUEST, root, notes).stages(["pretrain"])
    assert (report.artifact.digest, files(root)) == alone
    assert report.outcome.units_done == 12
    counts = Counter(name for name, _ in notes.told)
    assert (counts["begin"], counts["advance"], counts["log"]) == (1, 12, 6)
    wrong = REQUEST.model_copy(update={"overrides": ("pretrain.seed=1",)})
    with pytest.raises(PipelineError, match=r"accumulation_steps=1 .* do not divide among 2 ranks.*stderr\.log\)"):
        list(launched(wrong, root, notes).stages(["pretrain"]))


def launched(request: Request, root: Path, observer: Any) -> Run:
    def refuse(*_: Any) -> Any:
        raise AssertionError("there is one node")

    launches = chosen_launch(request, str(root), refuse)
    return Run(request, request.load(), str(root), [observer], elsewhere=launches)


def test_two_agents_make_the_bytes_of_one_process(alone: tuple[str, dict[str, str]], root: Path, one_thread: None) -> None:
    meeting = Meeting(num_nodes=2, processes=1, address=f"127.0.0.1:{free_port()}", name="agents")
    said: list[list[str]] = [[], []]
    with ThreadPoolExecutor(2) as threads:
        ran = [threads.submit(launch.train, REQUEST, str(root), meeting, node=node, heard=said[node].append) for node in (1, 0)]
        for one in ran:
            one.result()
    assert files(root) == alone[1]
    assert any('"stage": "pretrain"' in line for line in said[0])
    assert not said[1], "the first rank is on the first node"
