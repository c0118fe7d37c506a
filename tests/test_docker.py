"""The deployment as it is written: nothing listens beyond this machine, runs as root, may write its root, or knows a secret."""

import re
from typing import Any

import pytest

from tests.compose import FOLDER, read, texts, variables

SERVICES: dict[str, dict[str, Any]] = read()["services"]
ENDS_BY_ITSELF = "deploy"

# What is configured beside secrets; any other value in an environment is a variable, or this test learns of it.
_SECRET_NAME = re.compile(r"PASSWORD|SECRET|KEY|AUTH_STRING|TOKEN|CREDENTIAL")
_VARIABLE = re.compile(r"(admin:)?\$\{[A-Z0-9_]+:\?set it in docker/\.env\}")


@pytest.fixture(params=sorted(SERVICES))
def service(request: pytest.FixtureRequest) -> dict[str, Any]:
    return SERVICES[request.param]


def test_everything_that_a_deployment_needs_is_a_service() -> None:
    assert set(SERVICES) == {"postgres", "prefect", "mlflow", "s3", "deploy", "worker", "trainer", "watcher"}
    pools = {part for name in ("worker", "trainer") for part in SERVICES[name]["command"] if part in ("cpu", "gpu")}
    assert pools == {"cpu", "gpu"}


def test_a_service_runs_without_root_and_without_rights(service: dict[str, Any]) -> None:
    user, _, group = service["user"].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "userns_mode", "devices"} & set(service)


def test_a_service_writes_nothing_but_volumes_and_what_is_gone_with_it(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert "/tmp" in service["tmpfs"]
    named = set(read()["volumes"])
    for volume in service.get("volumes", ()):
        source = volume.split(":/")[0]
        assert source in named or volume.endswith(":ro"), f"{volume} lets a container write this machine's files"


def test_ports_are_open_to_this_machine_alone(service: dict[str, Any]) -> None:
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_the_database_is_reached_by_the_server_alone() -> None:
    assert SERVICES["postgres"]["networks"] == ["database"]
    assert read()["networks"]["database"]["internal"] is True
    assert "ports" not in SERVICES["postgres"]
    assert [name for name, each in SERVICES.items() if "database" in each.get("networks", ())] == ["postgres", "prefect"]


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {ENDS_BY_ITSELF}))
def test_a_service_that_stays_says_whether_it_is_well(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    assert SERVICES[name]["restart"] == "unless-stopped"


def test_whatever_is_secret_comes_from_the_environment(service: dict[str, Any]) -> None:
    secret = {name: value for name, value in service.get("environment", {}).items() if _SECRET_NAME.search(name)}
    secret = {
        name: value for name, value in secret.items() if value not in ("true", "false") and name != "MLFLOW_AUTH_CONFIG_PATH"
    }
    assert all(_VARIABLE.fullmatch(value) for value in secret.values()), secret
    assert not re.search(r"://[^/\s]*:[^/\s]*@", " ".join(texts(service)))
    assert "env_file" not in service


def test_every_variable_is_explained_and_none_has_a_value() -> None:
    lines = [line for line in (FOLDER / ".env.example").read_text().splitlines() if line and not line.startswith("#")]
    assert {line.removesuffix("=") for line in lines} == variables()
    assert all(line.endswith("=") for line in lines)


def test_the_image_ends_as_an_ordinary_user_and_holds_no_secret() -> None:
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    users = [line for line in lines if line.startswith("USER ")]
    assert users == ["USER 1000:1000"]
    assert not [line for line in lines if re.match(r"(ARG|ENV)\b.*(PASSWORD|SECRET|TOKEN|_KEY)", line)]


def test_what_is_for_gpus_changes_nothing_else() -> None:
    services = read("compose.gpu.yaml")["services"]
    assert set(services) == {"trainer"}
    assert set(services["trainer"]) == {"image", "build", "deploy"}
