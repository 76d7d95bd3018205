"""What comes out of messages is shown and never obeyed: no escape sequence and no markup reaches the terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import unicodedata

import pytest

from tests.cli.runner import PENSTOCK, Penstock, environment

HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;new title\x07",
    "\x1b]8;;http://evil\x07link\x1b]8;;\x07",
    "\x1b[2J\x1b[H gone",
    "\x9b31m and \x9d0;title\x9c",
    "over\rwritten\b\b\x7f",
    "one line\u2028or\u2029two\x85three\x0bfour\x0cfive\x1csix",
    "\u202edlrow\u2066",
    "[bold red]no[/] [link=http://evil]no[/link] \\[x] [/] \\",
    ":smile: [blink]no",
    "nul\x00nul",
]


def assert_harmless(text: str) -> None:
    """Nothing in it but printable characters, tabs and newlines."""
    for character in text:
        assert character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Zl", "Zp", "Cs"), repr(character)


@pytest.mark.parametrize("body", HOSTILE)
def test_a_hostile_body_is_written_out(penstock: Penstock, name: str, body: str) -> None:
    penstock("queue", "send", name, "-", "--attribute", "kind=" + (body.replace("\x00", "") or "x"), stdin=body.encode())
    for command in (["peek", name], ["receive", name, "--visibility-timeout", "0"]):
        shown = penstock("queue", *command)
        assert shown.code == 0, shown
        assert_harmless(shown.out)
        if body.isprintable():
            assert body in shown.out  # markup is text
        scripted = penstock("queue", *command, "--json")
        assert_harmless(scripted.out)
        (line,) = scripted.out.splitlines()
        assert json.loads(line)["body"] == body


def test_a_terminal_gets_no_sequence_out_of_a_body(penstock: Penstock, name: str) -> None:
    body = "".join(HOSTILE).replace("\x00", "")
    penstock("queue", "send", name, "-", stdin=body.encode())
    leader, follower = pty.openpty()
    process = penstock.process("queue", "receive", name, stdout=follower, stderr=follower, stdin=follower)
    os.close(follower)
    written = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while piece := os.read(leader, 65_536):
            written += piece
    os.close(leader)
    assert process.wait(30) == 0
    assert b"\x1b[" in written  # ours: the heading is dim
    for sequence in (b"\x1b]", b"\x1b[31m", b"\x1b[2J", b"\x07", b"\xc2\x9b", b"\b"):
        assert sequence not in written
    assert b"\\x1b[31mred" in written and b"[link=http://evil]" in written


def test_hostile_arguments_are_quoted_in_the_error(penstock: Penstock) -> None:
    for name in (*HOSTILE[:-1], "\udcff"):
        done = penstock("queue", "show", "--", name)
        assert done.code in (1, 2)
        assert_harmless(done.err)
        assert "error:" in done.err.lower()


def test_where_the_output_is_no_utf8_json_stays_json(penstock: Penstock, name: str) -> None:
    penstock("queue", "send", name, "grüße")
    process = penstock.process("queue", "peek", name, "--json")
    assert json.loads(process.communicate(timeout=30)[0])["body"] == "grüße"
    ascii_only = environment(penstock.url, PYTHONIOENCODING="ascii")
    done = subprocess.run([*PENSTOCK, "queue", "peek", name, "--json"], env=ascii_only, capture_output=True, check=True)
    assert json.loads(done.stdout.decode("ascii"))["body"] == "grüße"
    done = subprocess.run([*PENSTOCK, "queue", "peek", name], env=ascii_only, capture_output=True, check=True)
    assert b"gr\\xfc\\xdfe" in done.stdout
