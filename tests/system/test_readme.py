"""The README, as written: its blocks run in order against a broker at the default address, and its tables agree with the code."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from penstock_broker.config import OPTIONS

from tests.cli.runner import command_tree

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
EXPECTED = [
    "hello\none\ntwo\nthree\n",
    "hello 99\n",
    "processed better\n",
    "2 processed, 1 in the dead-letter queue\n",
    "['signed up', 'logged in']\n",
    "1000 processed\n",
    "moved 1 messages\n",
    "deleted 0 messages\n",
    "alive, ",
    "ready\n",
    "penstock_queue_messages{",
    "web shop",
]
"""What the blocks print, in this order (among more)."""


def own_network() -> list[str]:
    """What runs a command in a network of its own, so that port 4567 is free; nothing where that is not allowed."""
    command = ["unshare", "--net"]
    tools = shutil.which("unshare") and shutil.which("ip")
    if os.geteuid() == 0 and tools and not subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        return [*command, "bash", "-c", 'ip link set lo up && exec "$@"', "--"]
    return []


def script(folder: Path) -> str:
    """All blocks as one script: the Python ones as files, the shell ones as they stand."""
    lines = ["set -euo pipefail"]
    for number, (language, text) in enumerate(BLOCKS):
        if language == "python":
            file = folder / f"block{number}.py"
            file.write_text(text)
            lines.append(f"python -W error {file}")
        elif language == "shell":
            lines.append(text)
    return "\n".join(lines)


def commands(folder: Path) -> dict[str, str]:
    """An environment whose `penstock` and `python` are those under test, and which knows no broker."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    environment.pop("PYTHONUNBUFFERED", None)  # or it mixes the words of lines that two threads print at once
    (folder / "bin").mkdir()
    for name, arguments in (("python", ""), ("penstock", " -m penstock_broker")):
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable}{arguments} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    return {**environment, "PATH": f"{folder / 'bin'}:{environment['PATH']}"}


def refuse_a_taken_port() -> None:
    """Without a network of its own the test needs the default ports of this machine."""
    for port in (4567, 4568):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                message = f"port {port} is in use, and a network namespace needs root"
                if os.environ.get("CI") == "true":
                    pytest.fail(message)
                pytest.skip(message)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_newcomer_can_run_the_readme_from_top_to_bottom(tmp_path: Path) -> None:
    serve_and_run = """
    penstock serve >broker.log 2>&1 &
    broker=$!
    trap 'kill $broker; wait $broker' EXIT
    until penstock ping >ping.log 2>&1; do kill -0 $broker; done
    bash blocks.sh
    """
    (tmp_path / "blocks.sh").write_text(script(tmp_path))
    network = own_network()
    if not network:
        refuse_a_taken_port()
    done = subprocess.run(
        [*network, "bash", "-euc", serve_and_run],
        cwd=tmp_path,
        env=commands(tmp_path),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "broker.log").read_text()
    place = 0
    for text in EXPECTED:
        found = done.stdout.find(text, place)
        assert found >= 0, f"{text!r} is missing after {done.stdout[:place]!r} in {done.stdout[place:]!r}"
        place = found + len(text)
    greeting = (tmp_path / "broker.log").read_text()
    assert "penstock://127.0.0.1:4567" in greeting and "http://127.0.0.1:4568/metrics" in greeting


def test_blocks_that_install_name_targets_and_extras_that_exist() -> None:
    assert {language for language, _ in BLOCKS} == {"sh", "python", "shell"}
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) - {"and"} <= targets
    project = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"\.\[(\w+)\]", README):
        assert re.search(rf"^{extra} = ", project, re.MULTILINE), extra


def test_links_and_folders_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert (ROOT / target).exists(), target
    for folder in re.findall(r"`(\w+)/`", README):
        assert (ROOT / folder).is_dir(), folder


def test_the_table_of_settings_is_whole() -> None:
    table = README.partition("| Setting |")[2].partition("\n\n")[0]
    named = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split(" | ")[0])]
    assert named == [option.name for option in OPTIONS]


def test_every_command_it_mentions_exists() -> None:
    tree = command_tree()
    for words in re.findall(r"penstock (queue|key) (\w+)", README):
        assert words in tree
    for word in re.findall(r"penstock (serve|demo|bench|ping|config)\b", README):
        assert (word,) in tree
