"""The broker's settings: a flag beats the environment, which beats the file, which beats the default; misfits are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from penstock_broker import config
from penstock_broker.config import OPTIONS, ConfigurationError, Option

from tests.cli.runner import Penstock, environment

ROWS = pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
ALLOWED: dict[str, list[Any]] = {
    "listen": ["127.0.0.1:1", "[::1]:2", "host:65535"],
    "metrics": ["127.0.0.1:1", "", "host:65535"],
    "insecure": [True, False, True],
    "max_connections": [1, 2, 1_000_000],
    "max_frame_bytes": [2**16, 2**17, 2**30],
    "memory_bytes": [2**20, 2**21, 2**40],
    "metrics_max_queues": [0, 1, 100_000],
    "drain_seconds": [0.0, 1.5, 3600.0],
    "log_format": ["human", "json", "human"],
    "log_level": ["debug", "warning", "error"],
}
"""Three values of each option that is not just a text, the ends of its range among them."""
REFUSED: dict[str, list[Any]] = {
    "listen": ["", "4567", "host", "host:", ":1", "host:65536", "host:-1", "host:²", "host:1x"],
    "metrics": ["4568", "host:65536"],
    "insecure": ["maybe", "2"],
    "max_connections": [0, 1_000_001, "many", "1.5", ""],
    "max_frame_bytes": [2**16 - 1, 2**30 + 1, "16 MiB"],
    "memory_bytes": [2**20 - 1, 2**40 + 1, "nan"],
    "metrics_max_queues": [-1, 100_001],
    "drain_seconds": [-0.1, 3600.1, "nan", "inf", "soon"],
    "log_format": ["xml", "", "JSON"],
    "log_level": ["trace", "INFO"],
}


def three(option: Option) -> list[Any]:
    """Three values that it takes."""
    return ALLOWED.get(option.name, ["one", "two", "three"])


def write(path: Path, values: dict[str, Any]) -> str:
    """A TOML file (whose texts, numbers and truths are JSON's)."""
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    return str(path)


def partners(option: Option) -> dict[str, Any]:
    """What an option of TLS needs beside it."""
    return {name: "partner" for name in ("tls_cert", "tls_key") if option.name.startswith("tls_") and name != option.name}


def test_every_option_that_is_no_plain_text_is_tried_here() -> None:
    assert {option.name for option in OPTIONS if option.parse is not config._text} == set(ALLOWED) == set(REFUSED)


@ROWS
def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(option: Option, tmp_path: Path) -> None:
    in_file, in_environment, as_flag = three(option)
    more = partners(option)
    file = write(tmp_path / "penstock.toml", {**more, option.name: in_file})
    variables = {option.variable: str(in_environment)}
    for flags, env, path, value, origin in (
        ({option.name: as_flag}, variables, file, as_flag, option.flag),
        ({option.name: None}, variables, file, in_environment, option.variable),
        ({}, {}, file, in_file, file),
        ({}, {"PENSTOCK_CONFIG": file}, None, in_file, file),
    ):
        loaded = config.load({**more, **flags}, env, path)
        assert loaded.values[option.name] == value and type(loaded.values[option.name]) is type(value)
        assert loaded.origins[option.name] == origin
    default = config.load({}, {}, None)
    assert (default.values[option.name], default.origins[option.name]) == (option.default, "default")


@ROWS
def test_a_value_that_does_not_fit_is_named_with_its_key_its_origin_and_what_is_allowed(option: Option, tmp_path: Path) -> None:
    for value in [*REFUSED.get(option.name, []), [1], {}, "nul\0nul"]:
        in_toml = write(tmp_path / "penstock.toml", {option.name: value}) if value != {} else None
        places: list[tuple[dict[str, Any], dict[str, str], str | None, str]] = []
        if in_toml:
            places.append(({}, {}, in_toml, in_toml))
        if not isinstance(value, list | dict):
            places.append(({option.name: str(value)}, {}, None, option.flag))
            places.append(({}, {option.variable: str(value)}, None, option.variable))
        for flags, env, file, origin in places:
            with pytest.raises(ConfigurationError) as caught:
                config.load(flags, env, file)
            text = str(caught.value)
            assert text.startswith(f"{option.name} = ") and f"(from {origin})" in text
            assert "it must be " in text and len(text.partition("it must be ")[2]) > 5


@ROWS
def test_serve_and_config_have_a_flag_for_it_whose_help_names_variable_and_default(penstock: Penstock, option: Option) -> None:
    for command in ("serve", "config"):
        shown = " ".join(penstock(command, "--help").out.split())
        assert f"{option.flag} " in shown
        assert f"[{option.variable}; default {option.default!r}]" in shown


def test_all_options_at_once_through_the_command_line(penstock: Penstock, tmp_path: Path) -> None:
    values = {option.name: three(option)[1] for option in OPTIONS}
    file = write(tmp_path / "all.toml", values)
    rows = penstock("config", "--config", file, "--json").rows()
    assert [list(row) for row in rows] == [["name", "value", "origin"]] * len(OPTIONS)
    assert {row["name"]: row["value"] for row in rows} == values
    assert {row["origin"] for row in rows} == {file}
    variables = {option.variable: str(values[option.name]) for option in OPTIONS}
    rows = penstock("config", "--json", env=environment(**variables)).rows()
    assert {row["name"]: row["value"] for row in rows} == values
    flags = [part for name, value in values.items() if name != "insecure" for part in (f"--{name.replace('_', '-')}", str(value))]
    rows = penstock("config", "--json", *flags, "--insecure").rows()
    assert {row["name"]: row["value"] for row in rows} == {**values, "insecure": True}


def test_what_config_prints_is_a_file_that_config_reads(penstock: Penstock, tmp_path: Path) -> None:
    printed = penstock("config", "--listen", "[::1]:99", "--data", 'a "b" \\c', "--insecure", "--drain-seconds", "0.5").out
    file = tmp_path / "printed.toml"
    file.write_text(printed)
    again = penstock("config", "--config", str(file)).out
    settings = [[line.partition("  # ")[0] for line in text.splitlines()] for text in (printed, again)]
    assert settings[0] == settings[1] and len(settings[0]) == len(OPTIONS)


def test_a_stores_password_is_not_shown(penstock: Penstock) -> None:
    for extra in ([], ["--json"]):
        shown = penstock("config", "--store", "postgresql+psycopg://me:se@cret@host/db", *extra).out
        assert "cret" not in shown and "host/db" in shown


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"listne = 1", "unknown key 'listne'"),
        (b"listen", "no valid TOML"),
        (b"\xff", "no valid TOML"),
        (b"tls_cert = 'x'", "belong together"),
        (b"tls_key = 'x'", "belong together"),
        (b"tls_client_ca = 'x'", "needs tls_cert"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(penstock: Penstock, tmp_path: Path, content: bytes, text: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    for command in ("config", "serve"):
        done = penstock(command, "--config", str(file))
        assert (done.code, done.out) == (2, "")
        assert text in done.err and "serve --help" in done.err
    assert penstock("config", "--config", str(tmp_path)).code == 2
    assert penstock("config", "--config", str(tmp_path / "missing")).code == 2
