"""How commands end: each exit code of the table, and a sentence that says what to do."""

from __future__ import annotations

import os
import re
import secrets
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from penstock_broker.cli.exits import MEANING, Exit

from tests.broker_process import BrokerProcess, free_port
from tests.cli.runner import PENSTOCK, Penstock, command_tree, environment


def test_the_help_tells_every_code(penstock: Penstock) -> None:
    shown = penstock("--help").out
    assert set(MEANING) == set(Exit)
    for code, meaning in MEANING.items():
        assert re.search(rf"^ +{code.value}  {re.escape(meaning)}$", shown, re.MULTILINE)


def test_every_command_and_option_has_a_help(penstock: Penstock) -> None:
    for words, command in command_tree().items():
        shown = penstock(*words, "--help")
        assert shown.code == 0 and shown.out.startswith(" ".join(["Usage: penstock", *words]))
        for parameter in command.params:
            assert parameter.param_type_name == "argument" or getattr(parameter, "help", None), (words, parameter.name)
    assert penstock("--version").out.startswith("penstock, version ")


def test_every_command_that_asks_a_broker_takes_url_and_json_and_files_of_tls() -> None:
    others = [(), ("serve",), ("config",), ("demo",), ("queue",), ("stream",), ("key",)]
    asking = {words: command for words, command in command_tree().items() if words not in others}
    assert len(asking) > 15
    for words, command in asking.items():
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert {"--url", "--json", "--ca", "--cert", "--cert-key"} <= flags, words


def test_a_command_loads_only_what_it_needs(cli_broker: BrokerProcess) -> None:
    code = """
import sys
from penstock_broker.cli.main import cli
cli.main(["queue", "list"], standalone_mode=False)
print(sorted({"trio", "sqlalchemy", "alembic", "hypercorn"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(cli_broker.url), capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == b"[]"


def test_a_command_whose_modules_are_missing_says_what_to_install() -> None:
    code = """
import sys
sys.modules["sqlalchemy"] = None
sys.argv = ["penstock", "serve"]
from penstock._script import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("the command line needs: pip install 'penstock[broker]'") and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", [["ping"], ["queue", "list"], ["queue", "send", "q", "x"], ["key", "list"], ["bench", "--seconds", "0.1"]]
)
def test_where_no_broker_answers_it_says_how_to_start_one(command: list[str]) -> None:
    port = free_port()
    done = Penstock(f"penstock://127.0.0.1:{port}")(*command)
    assert (done.code, done.out) == (Exit.NOT_REACHABLE, "")
    assert f"127.0.0.1:{port}" in done.err and "penstock serve" in done.err


def test_the_url_on_the_command_line_beats_the_environment(penstock: Penstock) -> None:
    elsewhere = Penstock("penstock://127.0.0.1:1")
    assert elsewhere("ping", "--url", penstock.url).code == 0
    assert penstock("ping", env=environment()).code == Exit.NOT_REACHABLE  # nobody listens at the default: see the README's test
    (row,) = penstock.json("ping")
    assert list(row) == ["seconds"] and 0 < row["seconds"] < 10
    assert re.fullmatch(r"alive, [\d.]+ ms\n", penstock("ping").out)


@pytest.mark.parametrize(
    "command",
    [
        ["queue", "show", "no-such"], ["queue", "send", "no-such", "x"], ["queue", "send", "no-such", "--lines"],
        ["queue", "receive", "no-such"], ["queue", "peek", "no-such"], ["queue", "purge", "no-such", "--yes"],
        ["queue", "redrive", "no-such"], ["queue", "delete", "no-such", "--yes"], ["queue", "set", "no-such", "--delay", "1"],
        ["queue", "tag", "no-such", "a=b"], ["queue", "untag", "no-such", "a"], ["queue", "moves", "no-such"],
    ],
)  # fmt: skip
def test_without_such_a_queue_it_says_so(penstock: Penstock, command: list[str]) -> None:
    done = penstock(*command, stdin=b"line")
    assert done.code == Exit.FAILED and "QueueDoesNotExist" in done.err and done.out in ("", "sent 0 messages\n")


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["nonsense"], "No such command"),
        (["queue", "send"], "Missing argument"),
        (["queue", "create", "q", "--no-such"], "No such option"),
        (["queue", "create", "q", "--delay", "soon"], "'soon' is not a number of seconds"),
        (["queue", "create", "q", "--delay", "nan"], "'nan' is not a number of seconds"),
        (["queue", "create", "q", "--max-messages", "many"], "'many' is not a valid integer"),
        (["queue", "create", "q", "--tag", "team"], "'team' is not NAME=VALUE"),
        (["queue", "receive", "q", "--wait", "inf"], "'inf' is not a number of seconds"),
        (["queue", "receive", "q", "--wait=-1"], "'-1' is not a number of seconds"),
        (["queue", "receive", "q", "--max", "0"], "x>=1"),
        (["queue", "redrive", "q", "--rate=-1"], "x>=0"),
        (["key", "create", "--role", "king"], "'king' is not one of"),
        (["bench", "--size=-1"], "x>=0"),
        (["ping", "--url", "http://127.0.0.1"], "penstock://host:port"),
        (["ping", "--url", "penstock://host:port"], "is not host:port"),
        (["ping", "--ca", "/no/such/file"], "/no/such/file"),
        (["ping", "--cert-key", "/no/such/file"], "belongs to --cert"),
    ],
)
def test_wrong_arguments_are_named(penstock: Penstock, command: list[str], text: str) -> None:
    done = penstock(*command)
    assert (done.code, done.out) == (Exit.USAGE, "")
    assert text in done.err


def test_what_the_broker_refuses_names_what_is_allowed(penstock: Penstock, name: str) -> None:
    for arguments, text in (
        (["receive", name, "--wait", "21"], "at most 20000"),
        (["receive", name, "--max", "10001"], "from 1 to 10000"),
        (["create", f"{name}-2", "--retention", "59"], "60000"),
        (["create", "no name"], "letters, digits"),
    ):
        done = penstock("queue", *arguments)
        assert done.code == Exit.FAILED and text in done.err


def test_a_reader_that_has_seen_enough_is_no_failure(penstock: Penstock, name: str) -> None:
    penstock("queue", "send", name, "--lines", stdin=b"x" * 200 + b"\n" + b"y" * 200 + b"\n" * 2000)
    for extra in ([], ["--json"]):
        process = penstock.process("queue", "peek", name, "--max", "2000", *extra)
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == Exit.OK


def test_messages_that_could_not_be_printed_are_not_deleted(penstock: Penstock, name: str) -> None:
    penstock("queue", "send", name, "precious")
    reader, writer = os.pipe()
    os.close(reader)
    with penstock.process("queue", "receive", name, "--delete", "--visibility-timeout", "0", stdout=writer) as process:
        os.close(writer)
        assert process.wait(30) == Exit.OK
    with Path("/dev/full").open("wb") as full:
        process = penstock.process("queue", "receive", name, "--delete", "--visibility-timeout", "0", stdout=full)
        assert b"No space left" in process.communicate(timeout=30)[1]
        assert process.returncode == Exit.FAILED
    (row,) = penstock.json("queue", "peek", name)
    assert (row["body"], row["receive_count"]) == ("precious", 2)


def test_ctrl_c_ends_quietly_with_its_own_code(penstock: Penstock, name: str) -> None:
    process = penstock.process("queue", "send", name, "--lines", "--json", stdin=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdin.write(b"line\n" * 500)
    process.stdin.flush()
    assert process.stdout.readline()  # a whole batch is there; now it waits for more
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == Exit.INTERRUPTED
    assert b"Traceback" not in process.stderr.read()
    assert penstock.json("queue", "show", name)[0]["visible"] == 500


def test_ctrl_c_ends_a_benchmark_and_leaves_no_queue(penstock: Penstock) -> None:
    process = penstock.process("bench", "--seconds", "60")
    while not penstock.json("queue", "list", "bench-"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == Exit.INTERRUPTED and b"Traceback" not in err
    assert penstock.json("queue", "list", "bench-") == []


def serve(folder: Path, *options: str, port: int | None = None) -> subprocess.CompletedProcess[str]:
    """A broker that does not start."""
    command = [*PENSTOCK, "serve", "--data", str(folder), "--metrics", "", "--listen", f"127.0.0.1:{port or free_port()}"]
    return subprocess.run([*command, *options], env=environment(), capture_output=True, text=True, timeout=60, check=False)


def test_serve_says_when_the_address_is_in_use(cli_broker: BrokerProcess, tmp_path: Path) -> None:
    done = serve(tmp_path, port=cli_broker.port)
    assert done.returncode == Exit.ADDRESS_IN_USE
    assert f"127.0.0.1:{cli_broker.port}" in done.stderr and "Traceback" not in done.stderr


def test_serve_and_offline_keys_say_when_another_broker_has_the_data(cli_broker: BrokerProcess) -> None:
    data = cli_broker.folder / "data"
    done = serve(data)
    assert done.returncode == Exit.STORE_LOCKED and "another" in done.stderr.lower() and "Traceback" not in done.stderr
    offline = Penstock(cli_broker.url)("key", "create", "--data", str(data))
    assert (offline.code, offline.out) == (Exit.STORE_LOCKED, "")


def test_serve_says_when_the_store_is_not_there_or_none(tmp_path: Path) -> None:
    url = f"postgresql+psycopg://me:secret@127.0.0.1:{free_port()}/db"
    for store, code in ((url, Exit.STORE_UNREACHABLE), ("mysql://me:secret@host/db", Exit.USAGE), ("nonsense", Exit.USAGE)):
        done = serve(tmp_path, "--store", store)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr and "secret" not in done.stderr


def test_serve_says_when_a_newer_penstock_wrote_the_data(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path)
    broker.start()
    assert broker.stop() == Exit.OK
    with sqlite3.connect(tmp_path / "data" / "penstock.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    done = serve(tmp_path / "data")
    assert done.returncode == Exit.SCHEMA_TOO_NEW and "newer Penstock" in done.stderr and "Traceback" not in done.stderr


def test_serve_refuses_other_addresses_without_keys_and_files_that_do_not_fit(tmp_path: Path) -> None:
    missing = str(tmp_path / secrets.token_hex(4))
    for options, text in (
        (["--listen", "0.0.0.0:0"], "penstock key create"),
        (["--tls-cert", missing, "--tls-key", missing], missing),
        (["--key-file", str(tmp_path)], str(tmp_path)),
        (["--config", missing], missing),
        (["--listen", "nowhere"], "host:port"),
    ):
        done = serve(tmp_path, *options)
        assert done.returncode == Exit.USAGE, done.stderr
        assert text in done.stderr and "Traceback" not in done.stderr
