"""The command line: help that teaches, errors that say what to do, and exit codes a script can rely on."""

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import typer
from typer.testing import CliRunner, Result

from pipeline.commands.main import build
from pipeline.commands.options import reporting
from stages.errors import ConfigError
from stages.storage.artifact import Artifact
from stages.storage.workspace import Workspace

STAGES = ("shard", "tokenizer", "precompute", "pretrain", "evaluate", "export")
COMMANDS = ("run", *STAGES, "embed", "compare", "status", "verify", "recipes", "plan", "gc", "doctor")
DEMO = ("lvmae", "--overlay", "demo")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(build(), list(arguments))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"Example: lvmae {command}" in result.output


def test_help_needs_neither_torch_nor_prefect_nor_mlflow() -> None:
    script = (
        "import sys; from pipeline.commands.main import build; build();"
        "sys.exit(bool({'torch', 'prefect', 'mlflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "lvma"), "error: unknown recipe 'lvma'; known: everest, lvmae"),
        (("run", *DEMO, "--only", "train"), "error: unknown stage 'train'; known, in their order: shard"),
        (("run", *DEMO, "--only", "shard", "--from", "shard"), "contradict"),
        (("run", *DEMO, "--set", "pretrain.sede=1"), "pretrain.sede: unknown key; did you mean 'seed'?"),
        (("run", *DEMO, "--root", "s3://bucket/x"), "only local folders"),
        (("status", "lvma"), "unknown recipe 'lvma'"),
    ],
)
def test_a_wrong_request_gives_one_message_and_exit_code_2(arguments: tuple[str, ...], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_verbose_shows_where_an_error_came_from() -> None:
    assert "Traceback" in invoke("run", "lvma", "--verbose").stderr


def test_a_stage_without_its_inputs_says_which_command_makes_them(workspace: Workspace) -> None:
    result = invoke("pretrain", *DEMO, "--root", str(workspace.root))
    assert result.exit_code == 2
    assert f"lvmae shard lvmae --overlay demo --root {workspace.root}" in result.stderr
    assert not workspace.root.exists()


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (ConfigError("wrong"), 2)])
def test_an_error_that_was_meant_becomes_an_exit_code(error: BaseException, code: int) -> None:
    with pytest.raises(typer.Exit) as caught, reporting(verbose=False):
        raise error
    assert caught.value.exit_code == code


def test_an_error_that_nobody_meant_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError), reporting(verbose=False):
        raise ZeroDivisionError


def test_status_agrees_with_what_lies_on_disk(workspace: Workspace, everything_made: Callable[[], dict[str, Artifact]]) -> None:
    made = everything_made()
    found = json.loads(invoke("status", *DEMO, "--root", str(workspace.root), "--json").stdout)
    assert {one["stage"]: one["digest"] for one in found["artifacts"]} == {name: one.digest for name, one in made.items()}
    assert [step["action"] for step in found["next"]] == ["look", *["reuse"] * 5]
    text = invoke("status", *DEMO, "--root", str(workspace.root)).stdout
    assert all(one.folder.name in text for one in made.values())


def test_verify_exits_with_1_on_damage(workspace: Workspace, everything_made: Callable[[], dict[str, Artifact]]) -> None:
    made = everything_made()
    assert invoke("verify", "--root", str(workspace.root)).exit_code == 0
    (made["pretrain"].folder / "file.bin").write_bytes(b"mode")
    damaged = invoke("verify", "--root", str(workspace.root))
    assert damaged.exit_code == 1
    assert f"DAMAGED pretrain {made['pretrain'].folder}" in damaged.stdout
    assert json.loads(invoke("verify", "--root", str(workspace.root), "--json").stdout)["damaged"] == 1


def test_recipes_are_listed_and_printed() -> None:
    assert json.loads(invoke("recipes", "--json").stdout)["recipes"] == [
        "everest",
        "lvmae",
        "mae_st",
        "mgmae",
        "videomae",
        "videomae_v2",
    ]
    assert "min_learning_rate" in invoke("recipes", *DEMO).stdout
