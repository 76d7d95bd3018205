"""`penstock stream …`: every command and flag, what each prints for people and for scripts, and how each ends."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgpack
import pytest
import trio
from penstock import Client
from penstock_broker.cli.exits import Exit
from penstock_protocol import stream_messages as wire

from tests.broker.inside import Peer
from tests.broker_process import BrokerProcess
from tests.cli.runner import Penstock
from tests.cli.test_hostile import HOSTILE, assert_harmless
from tests.clients.aggregates import FOREIGN, FOREIGN_ROWS

STREAM_KEYS = ["name", "arn", "created_at", "modified_at", "open_shards", "settings", "tags"]
SHARD_KEYS = [
    "shard", "state", "low", "high", "parents", "created_at", "closed_at", "first", "end", "records", "size_bytes", "oldest_at",
]  # fmt: skip
DEFAULTS = {"mode": "provisioned", "enforce_shard_limits": False}
RECORD_KEYS = ["shard", "sequence", "key", "arrived_at", "data"]
HASHES = 1 << 128


@pytest.fixture
def name(penstock: Penstock) -> Iterator[str]:
    """An empty stream of the test's own, with one shard."""
    stream = f"s-{secrets.token_hex(4)}"
    assert penstock("stream", "create", stream).code == 0
    yield stream
    penstock("stream", "delete", stream, "--yes")


def put(penstock: Penstock, stream: str, *data: str, key: str = "k") -> None:
    assert penstock("stream", "put", stream, "--lines", "--key", key, stdin="\n".join(data).encode()).code == 0


def data_of(rows: list[dict[str, object]]) -> list[object]:
    return [row["data"] for row in rows]


def put_raw(url: str, request: wire.PutRecords) -> None:
    """A batch that no SDK would put."""

    async def say() -> None:
        host, _, port = url.removeprefix("penstock://").rpartition(":")
        peer = Peer(await trio.open_tcp_stream(host, int(port)), "raw")
        await peer.hello()
        await peer.call(request)
        await peer.close()

    trio.run(say)


# Streams


def test_create_takes_shards_settings_and_tags_and_tells_the_whole_stream(penstock: Penstock, name: str) -> None:
    options = ["--shards", "3", "--retention", "7200", "--max-record-bytes", "2048", "--tag", "team=blue", "--tag", "cost=a=b"]
    options += ["--mode", "on_demand", "--enforce-shard-limits"]
    (row,) = penstock.json("stream", "create", f"{name}-all", *options)
    assert list(row) == STREAM_KEYS
    assert row["name"] == f"{name}-all" and row["arn"].endswith(f":stream/{name}-all")
    assert datetime.fromisoformat(row["created_at"]).tzinfo is not None
    assert row["open_shards"] == 3
    assert row["tags"] == {"team": "blue", "cost": "a=b"}
    assert row["settings"] == {
        "retention_ms": 7_200_000,
        "max_record_bytes": 2048,
        "mode": "on_demand",
        "enforce_shard_limits": True,
    }
    assert penstock("stream", "create", f"{name}-all", *options).out.startswith(f"stream {name}-all is there: arn:")
    assert penstock("stream", "delete", f"{name}-all", "--json").row() == {"deleted": f"{name}-all"}


def test_creating_it_again_with_other_settings_is_refused(penstock: Penstock, name: str) -> None:
    done = penstock("stream", "create", name, "--shards", "2")
    assert done.code == Exit.FAILED and "ResourceInUse" in done.err and done.out == ""


def test_set_changes_what_is_named_and_takes_back_to_the_default(penstock: Penstock, name: str) -> None:
    (row,) = penstock.json("stream", "set", name, "--retention", "3600", "--max-record-bytes", "1024")
    assert row["settings"] == {"retention_ms": 3_600_000, "max_record_bytes": 1024, **DEFAULTS}
    (row,) = penstock.json("stream", "set", name, "--default", "retention")
    assert row["settings"] == {"retention_ms": 86_400_000, "max_record_bytes": 1024, **DEFAULTS}
    (row,) = penstock.json("stream", "set", name, "--mode", "on_demand", "--enforce-shard-limits")
    assert (row["settings"]["mode"], row["settings"]["enforce_shard_limits"]) == ("on_demand", True)
    (row,) = penstock.json("stream", "set", name, "--default", "mode", "--no-enforce-shard-limits")
    assert row["settings"] == {"retention_ms": 86_400_000, "max_record_bytes": 1024, **DEFAULTS}
    assert penstock("stream", "set", name, "--default", "max-record-bytes").out == f"stream {name} changed\n"
    nothing = penstock("stream", "set", name)
    assert nothing.code == Exit.USAGE and "name at least one setting" in nothing.err
    refused = penstock("stream", "set", name, "--retention", "59")
    assert refused.code == Exit.FAILED and "3600000" in refused.err


def test_list_tells_the_streams_of_a_prefix(penstock: Penstock, name: str) -> None:
    penstock("stream", "create", f"{name}-b", "--shards", "2")
    rows = penstock.json("stream", "list", name)
    assert [(row["name"], row["open_shards"]) for row in rows] == [(name, 1), (f"{name}-b", 2)]
    assert all(list(row) == STREAM_KEYS for row in rows)
    table = [line.split() for line in penstock("stream", "list", name).out.splitlines()]
    assert table == [["stream", "open", "shards", "retention"], [name, "1", "1.0", "d"], [f"{name}-b", "2", "1.0", "d"]]
    assert penstock("stream", "list", "no-such").out == "no streams whose names start with no-such\n"
    assert penstock.json("stream", "list", "no-such") == []
    penstock("stream", "delete", f"{name}-b", "--yes")


def test_tags_are_added_replaced_and_removed(penstock: Penstock, name: str) -> None:
    assert penstock.json("stream", "tag", name, "a=1", "b=2") == [{"name": name, "tags": {"a": "1", "b": "2"}}]
    assert penstock.json("stream", "tag", name, "a=3") == [{"name": name, "tags": {"a": "3", "b": "2"}}]
    assert "a" in penstock("stream", "untag", name, "b").out
    assert penstock.json("stream", "untag", name, "a", "unknown") == [{"name": name, "tags": {}}]
    assert penstock("stream", "untag", name, "a").out == "no tags\n"


def test_delete_asks_first_and_takes_everything_with_it(penstock: Penstock, name: str) -> None:
    put(penstock, name, "x")
    done = penstock("stream", "delete", name, stdin=b"n\n")
    assert done.code == Exit.FAILED and "nothing was deleted" in done.err
    assert penstock("stream", "delete", name, stdin=b"y\n").out == f"stream {name} deleted\n"
    assert "StreamDoesNotExist" in penstock("stream", "show", name).err


# Shards


def test_show_tells_shards_with_their_hashes_parents_and_oldest_record(penstock: Penstock, name: str) -> None:
    before = datetime.now(UTC) - timedelta(seconds=60)
    put(penstock, name, "one", "two")
    penstock("stream", "split", name, "0")
    penstock("stream", "tag", name, "team=blue")
    (row,) = penstock.json("stream", "show", name)
    assert list(row) == [*STREAM_KEYS, "shards"]
    parent, low, high = row["shards"]
    assert list(parent) == SHARD_KEYS
    assert (parent["state"], parent["first"], parent["end"], parent["parents"]) == ("closed", 0, 2, [])
    assert (parent["records"], parent["size_bytes"]) == (2, 8)
    assert before < datetime.fromisoformat(parent["oldest_at"]) < before + timedelta(hours=1)
    assert datetime.fromisoformat(parent["closed_at"]) >= datetime.fromisoformat(parent["created_at"])
    assert (low["state"], low["low"], low["high"], low["parents"]) == ("open", "0", str(HASHES // 2 - 1), [0])
    assert (high["low"], high["high"], high["oldest_at"], high["closed_at"]) == (str(HASHES // 2), str(HASHES - 1), None, None)
    shown = penstock("stream", "show", name).out
    for text in (
        "retention_ms",
        "86400000",
        "tag team",
        "blue",
        "hashes from",
        "0x00000000…",
        "0x7fffffff…",
        "0x80000000…",
        "closed",
    ):
        assert text in shown
    assert [one["shard"] for one in penstock.json("stream", "show", name, "--state", "open")[0]["shards"]] == [1, 2]


def test_shards_are_split_where_it_is_said_and_merged_again(penstock: Penstock, name: str) -> None:
    children = penstock.json("stream", "split", name, "0", "--at", "0x" + "f" * 32)
    assert all(list(child) == SHARD_KEYS for child in children)
    assert [(child["shard"], child["low"]) for child in children] == [(1, "0"), (2, str(HASHES - 1))]
    assert penstock("stream", "merge", name, "2", "1").out == "shards 2 and 1 are closed; what comes goes into 3\n"
    assert penstock("stream", "split", name, "3").out == "shard 3 is closed; what comes goes into 4 and 5\n"
    (child,) = penstock.json("stream", "merge", name, "4", "5")
    assert (child["shard"], child["parents"], child["high"]) == (6, [4, 5], str(HASHES - 1))
    closed = penstock("stream", "split", name, "0")
    assert closed.code == Exit.FAILED and "ShardClosed" in closed.err
    assert "ShardDoesNotExist" in penstock("stream", "split", name, "99").err
    assert "InvalidShardRange" in penstock("stream", "split", name, "6", "--at", "0").err
    penstock("stream", "reshard", name, "3")
    first, _, last = (one["shard"] for one in penstock.json("stream", "show", name, "--state", "open")[0]["shards"])
    assert "ShardsNotAdjacent" in penstock("stream", "merge", name, str(first), str(last)).err


def test_reshard_makes_so_many_open_shards(penstock: Penstock, name: str) -> None:
    assert penstock("stream", "reshard", name, "4").out == f"stream {name} has 4 open shards\n"
    (row,) = penstock.json("stream", "reshard", name, "2")
    assert list(row) == STREAM_KEYS and row["open_shards"] == 2


# Putting


@pytest.mark.parametrize("data", ["hello", "", "grüße 🎈", '{"a": "b"}', "-5", "two\nlines", "[bold]:smile:[/] \\[x] \\"])
def test_what_is_put_is_read(penstock: Penstock, name: str, data: str) -> None:
    done = penstock("stream", "put", "--json", name, "--key", "visitor 1", "--", data).row()
    assert list(done) == ["shard", "sequence"]
    (row,) = penstock.json("stream", "read", name)
    assert list(row) == RECORD_KEYS
    assert (row["data"], row["key"], row["shard"], row["sequence"]) == (data, "visitor 1", done["shard"], done["sequence"])
    assert datetime.fromisoformat(row["arrived_at"]).tzinfo is not None
    assert penstock("stream", "read", name).out.startswith(f"{data}  shard 0, 0, key visitor 1, 20")


def test_data_comes_from_a_file_from_standard_input_and_from_each_of_its_lines(
    penstock: Penstock, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"from a file\n")
    assert penstock("stream", "put", name, "--file", str(file)).out == "put into shard 0 as 0\n"
    assert penstock("stream", "put", name, "-", stdin=b"from\r\nstandard input").code == 0
    assert penstock.json("stream", "put", name, "--lines", stdin=b"one\ntwo\r\nthree") == [{"put": 3, "refused": 0}]
    assert penstock("stream", "put", name, "--lines", "--key", "k", stdin=b"x\n" * 12_000).out == "put 12,000 records\n"
    rows = penstock.json("stream", "read", name)
    assert data_of(rows) == ["from a file\n", "from\r\nstandard input", "one", "two", "three", *["x"] * 12_000]
    assert [row["sequence"] for row in rows] == list(range(12_005))


def test_a_key_chooses_the_shard_and_is_random_where_none_is_given(penstock: Penstock, name: str) -> None:
    penstock("stream", "reshard", name, "2")
    low, high = (one["shard"] for one in penstock.json("stream", "show", name, "--state", "open")[0]["shards"])
    for key in ("a", "b", "visitor 7"):
        expected = high if hashlib.md5(key.encode(), usedforsecurity=False).digest()[0] & 0x80 else low
        assert penstock("stream", "put", name, "x", "--key", key, "--json").row()["shard"] == expected
        assert penstock("stream", "put", name, "x", "--key", key, "--hash-key", "0", "--json").row()["shard"] == low
    assert penstock("stream", "put", name, "x", "--hash-key", "0x" + "f" * 32, "--json").row()["shard"] == high
    penstock("stream", "put", name, "--lines", stdin=b"y\n" * 200)
    random = [row for row in penstock.json("stream", "read", name) if row["data"] == "y"]
    assert len({row["key"] for row in random}) == 200 and {row["shard"] for row in random} == {low, high}


def test_a_record_may_be_put_after_another_of_its_key(penstock: Penstock, name: str) -> None:
    (first,) = penstock.json("stream", "put", name, "a", "--key", "k")
    place = f"{first['shard']}:{first['sequence']}"
    (second,) = penstock.json("stream", "put", name, "b", "--key", "k", "--after", place)
    assert second["sequence"] > first["sequence"]
    done = penstock("stream", "put", name, "c", "--key", "k", "--after", "0:99")
    assert done.code == Exit.FAILED and "InvalidRequest" in done.err
    assert data_of(penstock.json("stream", "read", name)) == ["a", "b"]
    for wrong in (["--after", "0", "--key", "k"], ["--after", "x:1", "--key", "k"], ["--after", place]):
        assert penstock("stream", "put", name, "c", *wrong).code == Exit.USAGE
    assert penstock("stream", "put", name, "--lines", "--key", "k", "--after", place).code == Exit.USAGE


def test_a_line_may_begin_with_its_key(penstock: Penstock, name: str) -> None:
    lines = b"ann: signed up: now\n: nobody\nbob:\nno separator\n\xff: bad\neve:last"
    done = penstock("stream", "put", name, "--lines", "--key-separator", ":", stdin=lines)
    assert (done.code, done.out) == (Exit.FAILED, "put 3 records\n")
    errors = done.err.splitlines()
    assert [error.partition(": ")[2].partition(":")[0] for error in errors] == ["line 2", "line 4", "line 5"]
    assert "InvalidRequest" in errors[0] and "no ':' after a key" in errors[1] and "not UTF-8" in errors[2]
    rows = penstock.json("stream", "read", name)
    assert [(row["key"], row["data"]) for row in rows] == [("ann", " signed up: now"), ("bob", ""), ("eve", "last")]


def test_a_refused_line_is_told_by_its_number_and_holds_up_no_other(penstock: Penstock, name: str) -> None:
    penstock("stream", "set", name, "--max-record-bytes", "1024")
    lines = b"\n".join([b"first", b"x" * 1025, b"third"])
    done = penstock("stream", "put", name, "--lines", "--key", "k", stdin=lines)
    assert (done.code, done.out) == (Exit.FAILED, "put 2 records\n")
    assert done.err.startswith("error: line 2: RecordTooLarge: ")
    assert data_of(penstock.json("stream", "read", name)) == ["first", "third"]
    done = penstock("stream", "put", name, "--lines", "--json", stdin=lines)
    assert (done.code, done.rows()) == (Exit.FAILED, [{"put": 2, "refused": 1}])


def test_exactly_one_source_of_the_data_is_given(penstock: Penstock, name: str) -> None:
    for arguments in ([], ["data", "--lines"], ["data", "--file", __file__], ["--file", __file__, "--lines"]):
        done = penstock("stream", "put", name, *arguments)
        assert done.code == Exit.USAGE and "exactly one" in done.err
    for arguments in (
        ["x", "--key-separator", ":"],
        ["--lines", "--key", "k", "--key-separator", ":"],
        ["--lines", "--key-separator", ""],
    ):
        done = penstock("stream", "put", name, *arguments)
        assert done.code == Exit.USAGE and "--key-separator" in done.err
    assert penstock("stream", "read", name).code == Exit.NOTHING


# Reading


def test_read_begins_where_it_is_told(penstock: Penstock, name: str) -> None:
    put(penstock, name, "a", "b")
    put(penstock, name, "c")

    def read(*options: str) -> list[object]:
        done = penstock("stream", "read", name, "--json", *options)
        assert done.code in (Exit.OK, Exit.NOTHING)
        return data_of(done.rows())

    assert read() == read("--shard", "0") == read("--from", "trim_horizon") == ["a", "b", "c"]
    assert read("--max", "1") == ["a"] and read("--max", "2") == ["a", "b"] and read("--max", "99") == ["a", "b", "c"]
    assert read("--shard", "0", "--from", "at:1") == ["b", "c"]
    assert read("--shard", "0", "--from", "after:1") == ["c"]
    assert read("--from", "latest") == [] and read("--shard", "0", "--from", "latest") == []
    now = datetime.now(UTC)
    for options in ([], ["--shard", "0"]):
        assert read("--from", (now - timedelta(hours=1)).isoformat(), *options) == ["a", "b", "c"]
        assert read("--from", (now + timedelta(hours=1)).isoformat(), *options) == []
    assert read("--from", (now - timedelta(hours=1)).astimezone().replace(tzinfo=None).isoformat()) == ["a", "b", "c"]


def test_read_and_tail_go_on_with_the_children_of_shards(penstock: Penstock, name: str) -> None:
    put(penstock, name, "one")
    penstock("stream", "split", name, "0")
    put(penstock, name, "two")
    penstock("stream", "merge", name, "1", "2")
    put(penstock, name, "three")
    assert data_of(penstock.json("stream", "read", name)) == ["one", "two", "three"]
    assert data_of(penstock.json("stream", "tail", name, "--from", "trim_horizon", "--max", "3")) == ["one", "two", "three"]
    assert data_of(penstock.json("stream", "read", name, "--shard", "0")) == ["one"]


def test_where_there_is_no_record_it_says_so(penstock: Penstock, name: str) -> None:
    done = penstock("stream", "read", name)
    assert (done.code, done.out, done.err) == (Exit.NOTHING, "no record\n", "")
    assert penstock("stream", "read", name, "--json")[:2] == (Exit.NOTHING, "")
    assert "ShardDoesNotExist" in penstock("stream", "read", name, "--shard", "9").err


def test_tail_follows_what_comes_also_into_new_shards_until_ctrl_c(penstock: Penstock, name: str) -> None:
    put(penstock, name, "before")
    process = penstock.process("stream", "tail", name, "--from", "trim_horizon", "--json")
    assert process.stdout is not None and process.stderr is not None
    assert json.loads(process.stdout.readline())["data"] == "before"
    with Client(penstock.url) as client:
        for number in range(3):
            client.stream(name).put(f"{number}", "k")
            assert json.loads(process.stdout.readline())["data"] == f"{number}"
        client.stream(name).split(0)
        client.stream(name).put("after the split", "k")
    assert json.loads(process.stdout.readline())["data"] == "after the split"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == Exit.INTERRUPTED
    assert process.stderr.read().strip() == b""


def test_tail_begins_with_what_comes_and_ends_after_so_many(penstock: Penstock, name: str) -> None:
    put(penstock, name, "before")
    process = penstock.process("stream", "tail", name, "--max", "2")
    assert process.stdout is not None
    with Client(penstock.url) as client:
        stream = client.stream(name)
        while process.poll() is None:  # (nobody is told when it has begun)
            stream.put("later", "k")
    lines = process.stdout.read().decode().splitlines()
    assert process.returncode == Exit.OK
    assert [line.partition("  ")[0] for line in lines] == ["later", "later"]


def test_a_reader_that_has_seen_enough_is_no_failure(penstock: Penstock, name: str) -> None:
    put(penstock, name, *["x" * 200] * 2_000)
    for command in (["read"], ["tail", "--from", "trim_horizon"]):
        process = penstock.process("stream", *command, name, "--json")
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == Exit.OK


def test_ctrl_c_ends_a_put_of_lines_quietly_and_keeps_what_was_told(penstock: Penstock, name: str) -> None:
    process = penstock.process("stream", "put", name, "--lines", stdin=subprocess.PIPE)
    assert process.stdin is not None and process.stderr is not None
    process.stdin.write(b"line\n" * 500)
    process.stdin.flush()
    with Client(penstock.url) as client, client.stream(name).read(0) as batches:
        count = 0
        while count < 500:  # all that was written is there; now it waits for more
            count += len(next(batches))
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == Exit.INTERRUPTED
    assert b"Traceback" not in process.stderr.read()


# What comes from outside


@pytest.mark.parametrize("content", HOSTILE)
def test_hostile_data_and_keys_are_written_out(penstock: Penstock, name: str, content: str) -> None:
    with Client(penstock.url) as client:
        client.stream(name).put(content, content)
    for command in (["read"], ["tail", "--from", "trim_horizon", "--max", "1"]):
        shown = penstock("stream", *command, name)
        assert shown.code == 0, shown
        assert_harmless(shown.out)
        if content.isprintable():
            assert shown.out.count(content) == 2  # markup is text
        scripted = penstock("stream", *command, name, "--json")
        assert_harmless(scripted.out)
        (line,) = scripted.out.splitlines()
        assert (json.loads(line)["data"], json.loads(line)["key"]) == (content, content)


def test_data_that_is_no_utf8_is_base64_and_marked(penstock: Penstock, name: str) -> None:
    raw = b"\xff\x00\x1b"
    penstock("stream", "put", name, "-", stdin=raw)
    (row,) = penstock.json("stream", "read", name)
    assert row["encoding"] == "base64" and base64.b64decode(row["data"]) == raw
    assert penstock("stream", "read", name).out.startswith("/wAb  (base64)  shard 0, 0, key ")


def test_a_batch_that_cannot_be_unpacked_is_told_and_hides_no_other(
    penstock: Penstock, name: str, cli_broker: BrokerProcess
) -> None:
    put(penstock, name, "before")
    put_raw(cli_broker.url, wire.PutRecords(name, 0, 2, wire.ZSTD, 10, b"\x1b[31mno frame"))
    put(penstock, name, "after")
    done = penstock("stream", "read", name, "--json")
    assert data_of(done.rows()) == ["before", "after"]
    assert done.code == Exit.FAILED
    assert done.err.startswith("error: shard 0, records 1 to 2: RecordsUnreadable: ")
    assert_harmless(done.err)
    assert penstock.json("stream", "show", name)[0]["shards"][0]["end"] == 4


def test_packed_records_of_others_are_shown(penstock: Penstock, name: str, cli_broker: BrokerProcess) -> None:
    blob = msgpack.packb([[b"a", b"b"], ["x", "y"]])
    put_raw(cli_broker.url, wire.PutRecords(name, 0, 2, wire.PLAIN, 4, blob))
    assert [(row["data"], row["key"]) for row in penstock.json("stream", "read", name)] == [("a", "x"), ("b", "y")]


def test_aggregated_records_are_shown_as_their_user_records_or_as_they_were_put(penstock: Penstock, name: str) -> None:
    penstock("stream", "put", name, "--key", "k", "-", stdin=FOREIGN)
    rows = penstock.json("stream", "read", name)
    assert [(row["sequence"], row["sub_sequence"], row["key"], row["data"]) for row in rows] == [
        (0, place, key, data.decode()) for place, (key, data) in enumerate(FOREIGN_ROWS)
    ]
    assert penstock("stream", "read", name).out.split("\n")[1].startswith("two  shard 0, 0.1, key k2, ")
    penstock("stream", "register", name, "c")
    for command in (["read"], ["read", "--group", "g"], ["tail", "--max", "1", "--from", "trim_horizon"]):
        (row,) = penstock.json("stream", *command, name, "--raw")
        assert list(row) == [*RECORD_KEYS, "encoding"] and base64.b64decode(row["data"]) == FOREIGN
    pushed = penstock.json("stream", "tail", name, "--consumer", "c", "--from", "trim_horizon", "--max", "1", "--raw")
    assert [base64.b64decode(row["data"]) for row in pushed] == [FOREIGN]
    assert len(penstock.json("stream", "tail", name, "--consumer", "c", "--from", "trim_horizon", "--max", "2")) == 2


# Consumer groups

GROUP_KEYS = ["stream", "group", "created_at", "members", "lag"]
PROGRESS_KEYS = ["shard", "member", "position", "end", "lag", "finished"]


def test_a_group_reads_on_where_it_was(penstock: Penstock, name: str) -> None:
    put(penstock, name, "a", "b", "c")
    assert data_of(penstock.json("stream", "read", name, "--group", "g", "--max", "2")) == ["a", "b"]
    put(penstock, name, "d")
    assert penstock("stream", "read", name, "--group", "g").out.split("\n")[0].split()[0] == "c"
    done = penstock("stream", "read", name, "--group", "g", "--json")
    assert (done.code, done.out) == (Exit.NOTHING, "")
    assert data_of(penstock.json("stream", "read", name, "--group", "h")) == ["a", "b", "c", "d"]
    assert penstock("stream", "read", name, "--group", "new", "--from", "latest").code == Exit.NOTHING


def test_groups_are_listed_with_members_and_lag(penstock: Penstock, name: str, cli_broker: BrokerProcess) -> None:
    assert penstock("stream", "groups", name).out.startswith("no consumer groups")
    assert penstock.json("stream", "groups", name) == []
    put(penstock, name, "a", "b", "c")
    penstock("stream", "read", name, "--group", "g", "--max", "1")
    with Client(cli_broker.url) as client, client.stream(name).consume("h", start="latest"):
        rows = penstock.json("stream", "groups", name)
        assert [list(row) for row in rows] == [GROUP_KEYS] * 2
        assert [(row["stream"], row["group"], len(row["members"]), row["lag"]) for row in rows] == [
            (name, "g", 0, 2), (name, "h", 1, 0)]  # fmt: skip
        table = [line.split() for line in penstock("stream", "groups", name).out.splitlines()]
        assert table == [["group", "members", "lag"], ["g", "0", "2"], ["h", "1", "0"]]


def test_a_group_is_shown_shard_by_shard(penstock: Penstock, name: str, cli_broker: BrokerProcess) -> None:
    put(penstock, name, "a", "b", "c")
    penstock("stream", "read", name, "--group", "g", "--max", "1")
    with Client(cli_broker.url) as client, client.stream(name).consume("g") as consumer:
        (row,) = penstock.json("stream", "group", name, "g")
        assert list(row) == [*GROUP_KEYS, "shards"]
        assert (row["members"], row["lag"]) == ([consumer.member], 2)
        (shard,) = row["shards"]
        assert list(shard) == PROGRESS_KEYS
        assert list(shard.values()) == [0, consumer.member, 1, 3, 2, False]
        assert consumer.member[:8] in penstock("stream", "group", name, "g").out
    penstock("stream", "split", name, "0")
    penstock("stream", "read", name, "--group", "g")
    out = penstock("stream", "group", name, "g").out
    assert ["0", "finished", "3", "3", "0"] in [line.split() for line in out.splitlines()]
    assert ["1", "-", "0", "0", "0"] in [line.split() for line in out.splitlines()]


def test_a_group_is_reset_to_the_oldest_records_the_tip_or_a_time(penstock: Penstock, name: str) -> None:
    put(penstock, name, "a", "b", "c")
    penstock("stream", "read", name, "--group", "g")
    for place, lag in (("trim_horizon", 3), ("latest", 0), ("2020-01-01T00:00:00+00:00", 3), ("2999-01-01", 0)):
        (row,) = penstock.json("stream", "reset", name, "g", "--to", place)
        assert (row["lag"], row["shards"][0]["lag"]) == (lag, lag)
    assert penstock("stream", "reset", name, "g", "--to", "trim_horizon").out == "group g is 3 records behind now\n"
    assert data_of(penstock.json("stream", "read", name, "--group", "g")) == ["a", "b", "c"]


def test_forget_asks_first_and_leaves_the_records(penstock: Penstock, name: str) -> None:
    put(penstock, name, "a")
    penstock("stream", "read", name, "--group", "g")
    done = penstock("stream", "forget", name, "g", stdin=b"n\n")
    assert done.code == Exit.FAILED and "nothing was" in done.err
    assert penstock("stream", "forget", name, "g", "--yes").out == "group g forgotten\n"
    for command in (["group", name, "g"], ["reset", name, "g", "--to", "latest"], ["forget", name, "g", "--yes"]):
        gone = penstock("stream", *command)
        assert gone.code == Exit.FAILED and "GroupDoesNotExist" in gone.err and gone.out == ""
    assert data_of(penstock.json("stream", "read", name, "--group", "g")) == ["a"]
    assert penstock.json("stream", "forget", name, "g") == [{"deleted": "g", "stream": name}]


# Registered consumers

CONSUMER_KEYS = ["stream", "name", "arn", "created_at", "subscriptions", "lag"]


def test_consumers_are_registered_listed_and_deregistered(penstock: Penstock, name: str, cli_broker: BrokerProcess) -> None:
    assert penstock("stream", "consumers", name).out.startswith("no registered consumers")
    assert penstock.json("stream", "consumers", name) == []
    (made,) = penstock.json("stream", "register", name, "audit")
    assert list(made) == CONSUMER_KEYS
    assert f"stream/{name}/consumer/audit:" in made["arn"]
    assert "registered: arn:aws:kinesis" in penstock("stream", "register", name, "audit").out
    put(penstock, name, "a", "b", "c")
    with Client(cli_broker.url) as client, client.stream(name).register_consumer("audit").subscribe(0) as records:
        assert records.next(0) is None
        put(penstock, name, "d")
        assert next(records).text == "d"
        assert penstock.json("stream", "consumers", name) == [{**made, "subscriptions": 1}]
        assert penstock("stream", "consumers", name).out.splitlines()[1].split()[:3] == ["audit", "1", "0"]
    done = penstock("stream", "deregister", name, "audit", stdin=b"n\n")
    assert done.code == Exit.FAILED and "nothing was" in done.err
    assert penstock("stream", "deregister", name, "audit", "--yes").out == "consumer audit deregistered\n"
    for command in (["deregister", name, "audit", "--yes"], ["tail", name, "--consumer", "audit"]):
        gone = penstock("stream", *command)
        assert gone.code == Exit.FAILED and "StreamConsumerDoesNotExist" in gone.err and gone.out == ""
    penstock("stream", "register", name, "audit")
    assert penstock.json("stream", "deregister", name, "audit") == [{"deregistered": "audit", "stream": name}]


def test_tail_is_pushed_to_as_a_registered_consumer_also_from_new_shards(penstock: Penstock, name: str) -> None:
    put(penstock, name, "a", "b")
    penstock("stream", "split", name, "0")
    put(penstock, name, "c", "d")
    penstock("stream", "register", name, "audit")
    tail = ["stream", "tail", name, "--consumer", "audit", "--from", "trim_horizon"]
    assert data_of(penstock.json(*tail, "--max", "3")) == ["a", "b", "c"]
    assert [line.split()[0] for line in penstock(*tail, "--max", "4").out.splitlines()] == ["a", "b", "c", "d"]


# How commands end


@pytest.mark.parametrize(
    "command",
    [
        ["show", "no-such"], ["put", "no-such", "x"], ["put", "no-such", "--lines"], ["read", "no-such"], ["tail", "no-such"],
        ["read", "no-such", "--shard", "0"], ["reshard", "no-such", "2"], ["split", "no-such", "0"],
        ["merge", "no-such", "0", "1"], ["set", "no-such", "--retention", "3600"], ["tag", "no-such", "a=b"],
        ["untag", "no-such", "a"], ["delete", "no-such", "--yes"], ["groups", "no-such"], ["group", "no-such", "g"],
        ["reset", "no-such", "g", "--to", "latest"], ["forget", "no-such", "g", "--yes"], ["read", "no-such", "--group", "g"],
        ["consumers", "no-such"], ["register", "no-such", "c"], ["deregister", "no-such", "c", "--yes"],
        ["tail", "no-such", "--consumer", "c"],
    ],
)  # fmt: skip
def test_without_such_a_stream_it_says_so(penstock: Penstock, command: list[str]) -> None:
    done = penstock("stream", *command, stdin=b"line")
    assert done.code == Exit.FAILED and "StreamDoesNotExist" in done.err and done.out == ""


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["create", "s", "--shards", "0"], "x>=1"),
        (["create", "s", "--retention", "soon"], "'soon' is not a number of seconds"),
        (["create", "s", "--tag", "team"], "'team' is not NAME=VALUE"),
        (["put", "s", "x", "--hash-key", "-1"], "2**128 - 1"),
        (["put", "s", "x", "--hash-key", str(HASHES)], "2**128 - 1"),
        (["put", "s", "x", "--hash-key", "many"], "'many' is not a number"),
        (["put", "s", "x", "--key", "\udcff"], "is not UTF-8"),
        (["read", "s", "--from", "yesterday"], "'yesterday' is not trim_horizon"),
        (["read", "s", "--from", "at:-1"], "'at:-1' is not trim_horizon"),
        (["read", "s", "--from", "at:1"], "give --shard"),
        (["read", "s", "--max", "0"], "x>=1"),
        (["tail", "s", "--from", "after:1"], "penstock stream read --shard"),
        (["split", "s", "x"], "'x' is not a valid integer"),
        (["reshard", "s", "0"], "x>=1"),
        (["merge", "s", "1"], "Missing argument"),
        (["read", "s", "--group", "g", "--shard", "0"], "has its own places"),
        (["read", "s", "--group", "g", "--from", "2020-01-01"], "has its own places"),
        (["reset", "s", "g"], "Missing option"),
        (["reset", "s", "g", "--to", "at:1"], "is a place in one shard"),
        (["reset", "s", "g", "--to", "soon"], "'soon' is not trim_horizon"),
    ],
)
def test_wrong_arguments_are_named(penstock: Penstock, command: list[str], text: str) -> None:
    done = penstock("stream", *command)
    assert (done.code, done.out) == (Exit.USAGE, "")
    assert text in done.err
