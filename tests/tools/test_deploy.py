"""The files of deploy/, the Dockerfile and the scripts agree with the broker and with RELIABILITY's list for processes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from penstock_broker import config
from penstock_broker.cli.exits import Exit
from penstock_broker.cli.main import cli

ROOT = Path(__file__).resolve().parent.parent.parent
UNIT = ROOT / "deploy/penstock.service"
SCRIPTS = [ROOT / ".ci/run", *sorted((ROOT / "tools").glob("*.sh"))]


def unit() -> dict[str, list[str]]:
    """The settings of the unit, each with all its values."""
    settings: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if line and line[0] not in "#[;":
            name, _, value = line.partition("=")
            settings.setdefault(name, []).append(value)
    return settings


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("User", "penstock"),
        ("UMask", "0077"),
        ("NoNewPrivileges", "true"),
        ("LimitCORE", "0"),
        ("CapabilityBoundingSet", ""),
        ("AmbientCapabilities", ""),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "true"),
        ("PrivateTmp", "true"),
        ("PrivateDevices", "true"),
        ("ProtectKernelTunables", "true"),
        ("ProtectKernelModules", "true"),
        ("ProtectKernelLogs", "true"),
        ("ProtectControlGroups", "true"),
        ("RestrictSUIDSGID", "true"),
        ("RestrictNamespaces", "true"),
        ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
        ("MemoryDenyWriteExecute", "true"),
        ("LockPersonality", "true"),
        ("SystemCallArchitectures", "native"),
        ("StateDirectoryMode", "0700"),
        ("KillSignal", "SIGTERM"),
    ],
)
def test_the_unit_takes_away_what_the_broker_does_not_need(setting: str, value: str) -> None:
    assert unit()[setting] == [value]


def test_the_unit_starts_an_isolated_python_and_the_broker_reads_its_arguments() -> None:
    [command] = unit()["ExecStart"]
    python, isolated, *module = shlex.split(command)
    assert Path(python).is_absolute()
    assert isolated == "-I"
    assert module == ["-m", "penstock_broker", "serve"]
    done = subprocess.run([sys.executable, "-I", *module, "--help"], capture_output=True, text=True, check=True)
    assert "SIGHUP" in done.stdout


def test_every_variable_in_the_unit_and_the_image_is_one_of_the_brokers() -> None:
    known = {option.variable for option in config.OPTIONS} | {"PENSTOCK_CONFIG", "PENSTOCK_NAME"}
    text = UNIT.read_text() + (ROOT / "Dockerfile").read_text()
    used = set(re.findall(r"PENSTOCK_[A-Z_]+", text))
    assert "PENSTOCK_DATA" in used
    assert used <= known


def test_the_unit_does_not_restart_what_restarting_cannot_mend() -> None:
    codes = {int(code) for code in unit()["RestartPreventExitStatus"][0].split()}
    assert codes == {Exit.USAGE, Exit.SCHEMA_TOO_NEW, Exit.FENCED}


def test_the_unit_waits_longer_than_the_broker_drains_and_allows_its_connections() -> None:
    defaults = {option.name: option.default for option in config.OPTIONS}
    assert int(unit()["TimeoutStopSec"][0]) > defaults["drain_seconds"]
    assert int(unit()["LimitNOFILE"][0]) > 2 * defaults["max_connections"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / "penstock.service"
    copy.write_text(UNIT.read_text().replace("/opt/penstock/bin/python", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert [line for line in (done.stdout + done.stderr).splitlines() if "penstock.service" in line] == []


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")
def test_prometheus_understands_the_example() -> None:
    subprocess.run(["promtool", "check", "config", str(ROOT / "deploy/prometheus.yml")], capture_output=True, check=True)


def test_the_example_scrapes_where_the_broker_shows_its_metrics() -> None:
    [metrics] = [option.default for option in config.OPTIONS if option.name == "metrics"]
    assert f'targets: ["{metrics}"]' in (ROOT / "deploy/prometheus.yml").read_text()


def test_the_image_runs_a_command_that_exists_without_root() -> None:
    text = (ROOT / "Dockerfile").read_text()
    final = text[text.rindex("\nFROM ") :]
    [command] = re.findall(r"^CMD \[(.*)\]$", final, re.MULTILINE)
    _, *arguments = [word.strip('" ') for word in command.split(",")]
    assert "--insecure" not in arguments
    assert CliRunner().invoke(cli, [*arguments, "--help"]).exit_code == 0
    assert final.index("\nUSER penstock\n") < final.index("\nCMD ")
    assert "\nEXPOSE 4567 4568\n" in final


def test_the_images_command_refuses_to_listen_everywhere_without_keys(tmp_path: Path) -> None:
    arguments = ["serve", "--listen", "0.0.0.0:0", "--metrics", "", "--data", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-I", "-m", "penstock_broker", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == Exit.USAGE
    assert "penstock key create" in done.stderr


def test_everything_the_image_is_built_from_passes_dockerignore() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    project = (ROOT / "pyproject.toml").read_text()
    needed = {path.split("/")[0] for path in re.findall(r'"(\w+/penstock\w*)"', project)}
    assert ignored[0] == "*"
    assert needed | {"pyproject.toml", "README.md", "LICENSE"} <= kept


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_and_stop_at_the_first_error(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "\nset -euo pipefail\n" in script.read_text()


def test_ci_can_be_executed() -> None:
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_every_make_target_says_what_it_does() -> None:
    text = (ROOT / "Makefile").read_text()
    [phony] = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    described = set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    assert set(phony.split()) == described
