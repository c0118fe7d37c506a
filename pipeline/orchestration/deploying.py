"""``lvmae deploy``: makes on a Prefect server what the pipeline needs there, as ``prefect.yaml`` and ``automations.yaml`` say.

It can be repeated. What a person switched on or off in the UI stays as it is: Prefect's own deploy makes automations and
schedules anew, so how they stand is noted before and restored after.
"""

import asyncio
import datetime
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from uuid import UUID

import httpx
import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from prefect.workers.process import ProcessWorker

from pipeline.orchestration.landing import Landing
from stages.errors import ConfigError

DEPLOYMENTS = Path(__file__).parents[1] / "prefect.yaml"
AUTOMATIONS = Path(__file__).parents[1] / "automations.yaml"

SENSOR = "lvmae-sensor/sensor"
LOOK_EVERY = datetime.timedelta(minutes=2)
"""How often the sensor looks at a folder that it was given. Our choice."""

_INCOMING = "incoming"
"""The slug of that schedule."""
_SHOWN_CHARS = 3000


class Switches(NamedTuple):
    """What is on, of all that can be switched in the UI."""

    automations: Mapping[str, bool]
    """By name."""
    deployments: Mapping[UUID, bool]
    schedules: Mapping[tuple[UUID, str], bool]
    """By deployment and what the schedule says."""


def deploy(lines: TextIO = sys.stdout, landing: Landing | None = None) -> None:
    """Make pools, queues, deployments and automations, or bring them up to date.

    Args:
        lines: where it is said what was made.
        landing: what the sensor looks at on a schedule, which is then made as well.

    Raises:
        ConfigError: no server is named, it does not answer, or Prefect refuses a deployment.
    """
    if not PREFECT_API_URL.value():
        raise ConfigError(
            "PREFECT_API_URL names no server to deploy to; `lvmae up` starts one and deploys, or set it, for example to "
            "http://127.0.0.1:4200/api"
        )
    try:
        asyncio.run(_deploy(lines, landing))
    except (httpx.TransportError, PrefectHTTPStatusError) as error:
        raise ConfigError(f"{PREFECT_API_URL.value()}: {error or type(error).__name__}; is the Prefect server up?") from error


async def _deploy(lines: TextIO, landing: Landing | None) -> None:
    content = yaml.safe_load(DEPLOYMENTS.read_text(encoding="utf-8"))
    async with get_client() as client:
        for pool in sorted(one["name"] for one in content["definitions"]["work_pools"].values()):
            await _make_pool(client, pool, content["definitions"]["queues"])
            lines.write(f"pool        {pool}: {', '.join(content['definitions']['queues'])}\n")
        before = await _switches(client)
        _deploy_file()
        for plain in yaml.safe_load(AUTOMATIONS.read_text(encoding="utf-8"))["automations"]:
            await _make_automation(client, AutomationCore.model_validate(plain))
        if landing:
            await _schedule(client, landing, before)
            lines.write(f"scheduled   {SENSOR}: every {LOOK_EVERY.seconds} s at {landing.source}\n")
        restored = await _restore(client, before)
        after = await _switches(client)
    lines.write(f"deployed    {', '.join(one['name'] for one in content['deployments'])}\n")
    for name, is_on in sorted(after.automations.items()):
        lines.write(f"automation  {name}: {'on' if is_on else 'off'}\n")
    lines.writelines(f"left        {what}\n" for what in restored)
    lines.flush()


async def _make_pool(client: PrefectClient, name: str, queues: Mapping[str, int]) -> None:
    """The pool with its queues; a pool that is there keeps its settings, such as its limit and whether it is paused."""
    try:
        await client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        await client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
    known = {queue.name: queue for queue in await client.read_work_queues(work_pool_name=name)}
    for queue, priority in queues.items():
        if queue not in known:
            await client.create_work_queue(queue, priority=priority, work_pool_name=name)


def _deploy_file() -> None:
    """Let Prefect deploy the file.

    Raises:
        ConfigError: it refuses.
    """
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(DEPLOYMENTS)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PWD": str(Path.cwd())},
    )
    if done.returncode:
        raise ConfigError(f"{DEPLOYMENTS}: Prefect refuses it:\n{(done.stdout + done.stderr)[-_SHOWN_CHARS:]}")


async def _make_automation(client: PrefectClient, wanted: AutomationCore) -> None:
    """The automation under its name, once; one that is there is brought up to date and stays as it is switched."""
    found = await client.read_automations_by_name(wanted.name)
    for surplus in found[1:]:
        await client.delete_automation(surplus.id)
    if found:
        await client.update_automation(found[0].id, wanted.model_copy(update={"enabled": found[0].enabled}))
    else:
        await client.create_automation(wanted)


async def _schedule(client: PrefectClient, landing: Landing, before: Switches) -> None:
    """Let the sensor look at a source again and again, unless a person switched that off."""
    sensor = await client.read_deployment_by_name(SENSOR)
    for one in await _schedules(client, sensor.id):
        if one.slug == _INCOMING:
            await client.delete_deployment_schedule(sensor.id, one.id)
    wanted = DeploymentScheduleCreate(
        schedule=IntervalSchedule(interval=LOOK_EVERY), active=True, parameters=landing.parameters, slug=_INCOMING
    )
    for made in await client.create_deployment_schedules(sensor.id, [wanted]):
        if not before.schedules.get((sensor.id, _identity(made)), True):
            await client.update_deployment_schedule(sensor.id, made.id, active=False)


async def _switches(client: PrefectClient) -> Switches:
    automations = {one.name: one.enabled for one in await client.read_automations()}
    deployments = {one.id: not one.paused for one in await client.read_deployments()}
    schedules = {(owner, _identity(one)): one.active for owner in deployments for one in await _schedules(client, owner)}
    return Switches(automations, deployments, schedules)


async def _restore(client: PrefectClient, before: Switches) -> list[str]:
    """Switch back what was there before and stands otherwise now; what that was, for a person."""
    restored = []
    for automation in await client.read_automations():
        was_on = before.automations.get(automation.name, automation.enabled)
        if was_on != automation.enabled:
            await (client.resume_automation if was_on else client.pause_automation)(automation.id)
            restored.append(f"automation {automation.name} {_spelled(was_on)}")
    for deployment in await client.read_deployments():
        was_on = before.deployments.get(deployment.id, not deployment.paused)
        if was_on == deployment.paused:
            await (client.resume_deployment if was_on else client.pause_deployment)(deployment.id)
            restored.append(f"deployment {deployment.name} {_spelled(was_on)}")
        for schedule in await _schedules(client, deployment.id):
            was_active = before.schedules.get((deployment.id, _identity(schedule)), schedule.active)
            if was_active != schedule.active:
                await client.update_deployment_schedule(deployment.id, schedule.id, active=was_active)
                restored.append(f"schedule of {deployment.name} {_spelled(was_active)}")
    return restored


async def _schedules(client: PrefectClient, deployment: UUID) -> list[DeploymentSchedule]:
    return await client.read_deployment_schedules(deployment)


def _identity(schedule: DeploymentSchedule) -> str:
    """What a schedule says, without the moment at which it was made."""
    plain: dict[str, Any] = schedule.schedule.model_dump(mode="json", exclude={"anchor_date"})
    return f"{schedule.slug}: {plain}"


def _spelled(is_on: bool) -> str:
    return "on, as it was" if is_on else "off, as it was"
