"""A campaign of faults against the pipeline as Prefect runs it: what is planned, where, and what must hold afterwards.

A real server with SQLite and real workers run real deployments below one root. An episode makes one stage, or all, from nothing
while faults strike; it is resumed as a person would, by Retry or a new run, until it is done. Then the artifacts must be those
of an undisturbed run, byte for byte. Nothing is ever cleaned up by hand; the stage is removed only before the next episode.
"""

import contextlib
import dataclasses
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from stages.storage.artifact import read_manifest
from stages.storage.workspace import FOLDERS
from tests import servers
from tests.faults import processes, warm_flows
from tests.faults.harness import REPOSITORY
from tests.pipelines import SMOKE, STAGES, artifact_files

WHOLE = "pipeline"
"""The stage of an episode that makes all six."""
POOLS = {"shard": "cpu", "tokenizer": "gpu", "precompute": "gpu", "pretrain": "gpu", "evaluate": "cpu", "export": "cpu"}
PRELOADED = (
    "prefect.flow_engine",
    "pipeline.orchestration.flows",
    "pipeline.tracking.mlflow_store",
    "pipeline.commands.main",
    "pipeline.commands.execution",
    "torch._dynamo",
    "torchmetrics.functional.image",
    "pandas",
    "matplotlib.backends.backend_agg",
    "sklearn.linear_model",
    "torch.export",
)
UNFINISHED = re.compile(r"\.(tmp|partial)$|(^|/)checkpoints/")
RECIPE = {"recipe": "lvmae", "overlays": [name for name in SMOKE[2:] if not name.startswith("--")]}
_RESUMES_BESIDE = 4
"""How often an episode may have to be resumed beside once for each fault."""
_GONE_S = 150.0
"""How long after a run something may be left: what sends to MLflow gives up a server after 20 s and a file after 120 s."""
_PATIENCE_S = 1800.0


class Fault(NamedTuple):
    """What goes wrong, and when."""

    number: int
    kind: str
    share: float
    """When: a share of the time that the stage takes, or of what is left of it."""
    seconds: float
    """How long a lasting fault lasts."""
    resume: str
    """What a person does if the run has ended: ``retry`` or ``new``."""


class Episode(NamedTuple):
    """A stage made from nothing under faults."""

    stage: str
    is_cold: bool
    """Prefect's own command starts the flow processes, instead of a fork of one that has imported everything."""
    faults: tuple[Fault, ...]


class Kind(NamedTuple):
    """How often a kind of fault is drawn, and where."""

    weight: float
    strike: Callable[["Attempt", Fault], str | None]
    """Lets it happen and returns the evidence that it did, or nothing where there was nothing to hit any more."""
    stages: tuple[str, ...] = (*STAGES, WHOLE)
    alone: bool = False
    """It lasts as long as a run, so nothing else happens then."""


def schedule(seed: int, num_faults: int, kinds: dict[str, Kind], stages: Sequence[str] | None = None) -> list[Episode]:
    """The episodes of a campaign, the same for the same arguments: first one of each stage, and in them all kinds."""
    draw, episodes, number = random.Random(seed), [], 0
    weights = {"shard": 7, "tokenizer": 2, "precompute": 5, "pretrain": 5, "evaluate": 1, "export": 2, WHOLE: 0.5}
    names = list(stages or weights)
    order = sorted(names, key=lambda name: weights[name])
    unseen = draw.sample(sorted(kinds), len(kinds))
    while number < num_faults:
        stage = order.pop() if order else draw.choices(names, [weights[name] for name in names])[0]
        known = [name for name, kind in kinds.items() if stage in kind.stages]
        chosen = draw.choices(known, [kinds[name].weight for name in known], k=draw.randint(4, 9))
        chosen[:3] = [name for name in unseen if name in known][:3] or chosen[:3]
        draw.shuffle(chosen)
        if any(kinds[name].alone for name in chosen):
            chosen = [next(name for name in chosen if kinds[name].alone)]
        chosen = chosen[: num_faults - number]
        unseen = [name for name in unseen if name not in chosen]
        faults = tuple(
            Fault(number + place, name, round(draw.random(), 3), round(draw.uniform(1, 10), 1), draw.choice(["retry", "new"]))
            for place, name in enumerate(chosen)
        )
        episodes.append(Episode(stage, draw.random() < 0.1, faults))
        number += len(chosen)
    return episodes


@dataclasses.dataclass
class Site:
    """Where a campaign happens.

    Args:
        folder: holds the server's home, the undisturbed artifacts and the root under test.
        server: Prefect's.
        root: of the artifacts under test.
        reference: root of the undisturbed ones.
        project: the folder whose code runs.
    """

    folder: Path
    server: servers.PrefectServer
    root: Path
    reference: Path
    project: Path = REPOSITORY
    workers: dict[str, subprocess.Popen[bytes]] = dataclasses.field(default_factory=dict)
    durations: dict[str, float] = dataclasses.field(default_factory=dict)
    """Seconds from the start of a flow process to its end, by stage, undisturbed."""
    warm: subprocess.Popen[bytes] | None = None
    others: frozenset[int] = frozenset()
    """Children that this process had before, of other tests."""

    @property
    def socket(self) -> Path:
        """Where the process that forks listens."""
        return self.folder / "warm.sock"

    def warm_command(self, *argv: str) -> list[str]:
        """A command that does what ``python -m ARGV`` does, without the imports."""
        return [sys.executable, "-S", "-E", str(warm_flows.client_file(self.folder)), str(self.socket), *argv]

    def open(self) -> None:
        """Start the process that forks, and workers."""
        self.socket.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "tests.faults.warm_flows", str(self.socket), *PRELOADED]
        log = self.folder / "warm.log"
        self.warm = servers.spawn(argv, log=log, environment=self.server.environment, folder=self.project)
        for pool in sorted(set(POOLS.values())):
            self.start_worker(pool)
        servers.eventually(self.socket.exists, said=lambda: f"{self.folder}/warm.log")

    def start_worker(self, pool: str, **more: str) -> None:
        """A worker of a pool, instead of the one that was there and was killed; ``more`` are variables of its environment."""
        argv = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
        environment = {**self.server.environment, "LVMAE_ROOT": str(self.root), "PREFECT_WORKER_QUERY_SECONDS": "1"}
        log = self.worker_log(pool)
        if pool in self.workers:
            self.workers[pool].wait()
        self.workers[pool] = servers.spawn(argv, log=log, environment={**environment, **more}, folder=self.project)

    def worker_log(self, pool: str) -> Path:
        """Where a worker and its flow runs write."""
        return self.folder / f"worker-{pool}.log"

    def deploy(self) -> None:
        """Make the pools and the deployments, whose runs work in the project's folder; it must be open."""
        for pool in sorted(set(POOLS.values())):
            servers.call(self.server, "POST", "/work_pools/", {"name": pool, "type": "process"}, refused=True)
        argv = self.warm_command("prefect", "--no-prompt", "deploy", "--all")
        environment = {**self.server.environment, "PWD": str(self.project)}  # where flow runs work, says prefect.yaml
        done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=self.project, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr

    def close(self) -> None:
        """End all that ``open`` started."""
        for process in (*self.workers.values(), *([self.warm] if self.warm else [])):
            servers.kill(process)
        for pid in self.strays():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def reset(self, stage: str) -> None:
        """Remove what an episode is to make, and nothing else."""
        for name in STAGES if stage == WHOLE else (stage,):
            shutil.rmtree(self.root / FOLDERS[name], ignore_errors=True)

    def strays(self) -> list[int]:
        """Processes that came from this one, its workers or the one that forks, and are not meant to be there between runs."""
        known = {process.pid for process in (self.server.process, self.warm, *self.workers.values()) if process}
        below = [
            pid for process in (self.warm, *self.workers.values()) if process for pid in processes.descendants(process.pid)
        ]
        return processes.descendants_beside(os.getpid(), known | self.others) + below

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """What the command line says, with standard error."""
        return subprocess.run(
            self.warm_command("pipeline", *arguments, "--root", str(self.root)),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False, cwd=self.project,
            env=self.server.environment,
        )  # fmt: skip


@contextlib.contextmanager
def site(folder: Path, root: Path, project: Path = REPOSITORY, **more: str) -> Iterator[Site]:
    """A site with everything running; ``root`` may be kept from an earlier part, ``more`` is for the server's environment."""
    others = frozenset(processes.children(os.getpid()))
    processes.adopt_orphans()
    with servers.prefect_server(folder / "home", **more) as server:
        found = Site(folder, server, root, folder / "reference", project, others=others)
        try:
            found.open()
            if not (folder / "deployed").exists():
                found.deploy()
                (folder / "deployed").touch()
            yield found
        finally:
            found.close()


class Attempt:
    """An episode under way: its newest flow run, and what is resumed.

    Args:
        site: where.
        episode: what.
        root: other than the site's.
    """

    def __init__(self, site: Site, episode: Episode, root: Path | None = None, **parameters: Any) -> None:
        self.site, self.episode = site, episode
        self.parameters = {**RECIPE, "root": str(root or site.root), "tracking": False, **parameters}
        self.environment: dict[str, str] = {}
        self.resumes: Counter[str] = Counter()
        self.surprises: list[str] = []
        self.killed: Counter[str] = Counter()
        """By source how often its decoder was killed."""
        self.run = ""
        self.seen_pid = 0
        self.began = time.monotonic()

    @property
    def pool(self) -> str:
        """Whose worker runs it."""
        return POOLS.get(self.episode.stage, "gpu")

    @property
    def is_plain(self) -> bool:
        """Whether it runs with the same parameters as the undisturbed run."""
        return not self.parameters.get("overrides")

    @property
    def deployment(self) -> str:
        """Its deployment's name."""
        stage = self.episode.stage
        return "lvmae/pipeline" if stage == WHOLE else f"lvmae-{stage}/{stage}"

    def start(self) -> None:
        """A new run, with the same parameters."""
        variables: dict[str, Any] = {"env": self.environment}
        if not self.episode.is_cold:
            variables["command"] = " ".join(self.site.warm_command("prefect.engine"))
        self.run = servers.start_run(self.site.server, self.deployment, self.parameters, job_variables=variables)

    def resume(self, how: str) -> None:
        """What a person does with a run that has ended otherwise than well."""
        self.resumes[how] += 1
        allowed = len(self.episode.faults) + _RESUMES_BESIDE
        assert self.resumes.total() <= allowed, f"resumed {self.resumes} and still not done: {self.surprises}"
        if how == "retry":
            servers.retry(self.site.server, self.run)
        else:
            self.start()

    def state(self) -> dict[str, Any]:
        """The flow run as the server has it."""
        return servers.flow_run(self.site.server, self.run)

    def has_ended(self) -> bool:
        """Whether nothing more comes of the run by itself."""
        return self.state()["state_type"] in servers.ENDED

    def ended(self) -> str:
        """The type of the state in which the run ended, once it has."""
        return str(servers.wait_for(self.site.server, self.run, patience_s=_PATIENCE_S)["state_type"])

    def process(self) -> int | None:
        """The flow process, once there is one; nothing if the run ended before it was seen."""
        while True:
            if pid := self.flow_pid():
                if pid != self.seen_pid:
                    self.seen_pid, self.began = pid, time.monotonic()
                return pid
            if self.has_ended():
                return None
            time.sleep(0.05)

    def flow_pid(self) -> int | None:
        """The living process of the run, if there is one."""
        if self.episode.is_cold:
            return processes.engine_of(self.run)
        place = Path(f"{self.site.socket}.{self.run}")
        pid = int(place.read_text() or 0) if place.exists() else 0
        return pid if pid and processes.is_alive(pid) else None

    def moment(self, fault: Fault) -> int | None:
        """The flow process at the moment of a fault; nothing if it ended before."""
        pid = self.process()
        if pid is None:
            return None
        whole = self.site.durations.get(self.episode.stage, 10.0)
        wait_s = max(0.0, fault.share * (whole - (time.monotonic() - self.began)))
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and processes.is_alive(pid):
            time.sleep(0.02)
        return pid if processes.is_alive(pid) else None

    def finish(self, how: str) -> None:
        """See the run to its end; resume for as long as it does not end well."""
        while (state := self.ended()) != "COMPLETED":
            self.surprises.append(f"{state}: {str((self.state()['state'] or {}).get('message'))[:300]}")
            self.resume(how)
        servers.eventually(lambda: self.flow_pid() is None)


def play(site: Site, episode: Episode, kinds: dict[str, Kind]) -> list[dict[str, Any]]:
    """What became of every fault of an episode; all of them happened, and the artifacts are those of an undisturbed run.

    Raises:
        AssertionError: something does not hold.
    """
    records = []
    attempts = [attempt := _begun(site, episode)]
    for fault in episode.faults:
        tries, evidence = 0, None
        while evidence is None:
            assert tries < 12, f"{fault} found nothing to hit"
            evidence = kinds[fault.kind].strike(attempt, fault._replace(share=fault.share / 2**tries if tries < 6 else 0.0))
            if evidence is None:  # the stage was done before: hold it against the reference, and make it once more
                tries += 1
                attempt.finish(fault.resume)
                check(site, episode.stage, records=attempt.is_plain)
                attempts.append(attempt := _begun(site, episode))
        ended = attempt.state()["state_type"]
        found = {"stage": episode.stage, "cold": episode.is_cold, "evidence": evidence, "missed": tries}
        records.append({**fault._asdict(), "episode": episode.faults[0].number, **found})
        if ended in servers.ENDED and ended != "COMPLETED":
            attempt.resume(fault.resume)
    attempt.finish(episode.faults[-1].resume)
    check(site, episode.stage, records=attempt.is_plain)
    if not attempt.is_plain:  # for the next episodes, which look at all stages now and then
        _begun(site, episode).finish("new")
    for record in records:
        record["resumed"] = dict(sum((one.resumes for one in attempts), Counter()))
        record["surprises"] = [surprise for one in attempts for surprise in one.surprises]
    return records


def _begun(site: Site, episode: Episode) -> Attempt:
    site.reset(episode.stage)
    attempt = Attempt(site, episode)
    attempt.start()
    return attempt


def make_reference(site: Site) -> None:
    """Make every stage undisturbed, once, learn how long it takes, and begin with a copy of it all."""
    if not site.durations:
        for stage in STAGES:
            attempt = Attempt(site, Episode(stage, False, ()), site.reference)
            attempt.start()
            attempt.process()
            began = time.monotonic()
            assert attempt.ended() == "COMPLETED", attempt.state()
            site.durations[stage] = round(time.monotonic() - began, 2)
        site.durations[WHOLE] = round(sum(site.durations.values()), 2)
    if not site.root.exists():
        shutil.copytree(site.reference, site.root)


def check(site: Site, stage: str, *, records: bool = True) -> None:
    """Nothing is lost, nothing is there twice, every byte is right, nothing is left over, nobody is left running.

    Args:
        site: where.
        stage: whose artifacts are looked at.
        records: also what accompanies an artifact, such as the recipe, which says how many workers there were.
    """
    found, wanted = (_made(root, stage, records=records) for root in (site.root, site.reference))
    assert found == wanted, f"{stage}: {sorted(set(found.items()) ^ set(wanted.items()))[:6]}"
    left = [
        str(path) for path in site.root.rglob("*") if path.is_file() and _is_left_over(path.relative_to(site.root).as_posix())
    ]
    assert not left, f"left over: {left[:6]}"
    check_clips(site.root)
    deadline = time.monotonic() + _GONE_S
    while strays := site.strays():
        assert time.monotonic() < deadline, f"still running: {[processes.described(pid) for pid in strays]}"
        time.sleep(0.2)


def _made(root: Path, stage: str, *, records: bool) -> dict[str, str]:
    folders = tuple(f"{FOLDERS[name]}/" for name in (STAGES if stage == WHOLE else (stage,)))
    files = {name: digest for name, digest in artifact_files(root).items() if name.startswith(folders)}
    if records:
        return files
    digests = {name: read_manifest(root / name).digest for name in files if name.endswith("/manifest.json")}
    return {name: digest for name, digest in files.items() if not name.endswith("recipe.yaml")} | digests


def _is_left_over(name: str) -> bool:
    return bool(UNFINISHED.search(name)) or name.startswith(".scratch/")


def check_clips(root: Path) -> None:
    """Every input is committed, quarantined or pending, and every clip is in the index once."""
    for newest in (max(folder.glob("snapshots/*.json")) for folder in (root / FOLDERS["shard"]).iterdir()):
        counts = read_manifest(newest).counts
        assert counts["inputs"] == counts["committed"] + counts["quarantined"] + counts["pending"], counts
        tables = [pq.read_table(part, columns=["clip_id"]) for part in sorted(newest.parents[1].glob("index/*.parquet"))]
        clips = [clip for table in tables for clip in table["clip_id"].to_pylist()]
        assert len(clips) == len(set(clips)) == counts["clips"], f"{len(clips)} rows, {len(set(clips))} clips, {counts}"
