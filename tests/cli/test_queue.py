"""`penstock queue …`: every command and flag, and what each prints for people and for scripts."""

from __future__ import annotations

import base64
from datetime import datetime
from pathlib import Path

import pytest

from tests.cli.runner import Penstock

QUEUE_KEYS = ["name", "arn", "created_at", "modified_at", "visible", "in_flight", "delayed", "bytes", "oldest_age_seconds",
              "settings", "tags"]  # fmt: skip
MESSAGE_KEYS = ["message_id", "sequence", "receipt_handle", "receive_count", "sent_at", "group", "deduplication_id",
                "dead_letter_source", "attributes", "body"]  # fmt: skip
PEEKED_KEYS = ["message_id", "sequence", "state", "sent_at", "visible_at", "receive_count", "group", "deduplication_id",
               "dead_letter_source", "attributes", "body"]  # fmt: skip
MOVE_KEYS = ["task_id", "source", "destination", "state", "moved", "to_move", "failure"]


def receive_one(penstock: Penstock, name: str, *options: str) -> dict[str, object]:
    (row,) = penstock.json("queue", "receive", name, *options)
    return row


def test_create_takes_every_setting_and_tags_and_tells_the_whole_queue(penstock: Penstock, name: str) -> None:
    given = {
        "visibility-timeout": "1.5", "delay": "2", "retention": "3600", "receive-wait": "3", "max-message-bytes": "2048",
        "dead-letter-queue": name, "max-receive-count": "4", "max-in-flight": "50", "max-messages": "60", "max-bytes": "70000",
        "redrive-allow": "by_queue",
    }  # fmt: skip
    options = [part for flag, value in given.items() for part in (f"--{flag}", value)]
    sources = ["--redrive-source", "one", "--redrive-source", "two"]
    (row,) = penstock.json("queue", "create", f"{name}-all", *options, *sources, "--tag", "team=blue", "--tag", "cost=a=b")
    assert list(row) == QUEUE_KEYS
    assert row["name"] == f"{name}-all" and row["arn"].endswith(f":{name}-all")
    assert datetime.fromisoformat(row["created_at"]).tzinfo is not None
    assert row["tags"] == {"team": "blue", "cost": "a=b"}
    assert row["settings"] == {
        "visibility_timeout_ms": 1500, "delay_ms": 2000, "retention_ms": 3_600_000, "receive_wait_ms": 3000,
        "max_message_bytes": 2048, "dead_letter_queue": name, "max_receive_count": 4, "max_in_flight": 50,
        "max_messages": 60, "max_bytes": 70_000, "redrive_allow": "by_queue", "redrive_sources": ["one", "two"],
    }  # fmt: skip


def test_create_of_a_fifo_queue_takes_the_settings_that_only_those_have(penstock: Penstock, name: str) -> None:
    flags = ["--content-based-deduplication", "--deduplication-scope", "message_group"]
    (row,) = penstock.json("queue", "create", f"{name}.fifo", *flags, "--fifo-throughput-limit", "per_message_group")
    expected = {
        "content_based_deduplication": True,
        "deduplication_scope": "message_group",
        "fifo_throughput_limit": "per_message_group",
    }
    assert expected.items() <= row["settings"].items()


def test_creating_it_again_is_fine_with_the_same_settings_and_refused_with_others(penstock: Penstock, name: str) -> None:
    assert penstock("queue", "create", name).code == 0
    done = penstock("queue", "create", name, "--delay", "7")
    assert done.code == 1 and "ResourceInUse" in done.err and done.out == ""


def test_set_changes_what_is_named_and_takes_back_to_the_default(penstock: Penstock, name: str) -> None:
    (row,) = penstock.json("queue", "set", name, "--delay", "5", "--max-messages", "9")
    assert (row["settings"]["delay_ms"], row["settings"]["max_messages"]) == (5000, 9)
    (row,) = penstock.json("queue", "set", name, "--default", "delay", "--max-messages", "8")
    assert (row["settings"]["delay_ms"], row["settings"]["max_messages"]) == (0, 8)
    assert penstock("queue", "set", name, "--default", "max-messages").out == f"queue {name} changed\n"
    nothing = penstock("queue", "set", name)
    assert nothing.code == 2 and "name at least one setting" in nothing.err
    unknown = penstock("queue", "set", name, "--default", "dealy")
    assert unknown.code == 1 and "dealy" in unknown.err and "delay_ms" in unknown.err


def test_list_tells_the_queues_of_a_prefix(penstock: Penstock, name: str) -> None:
    penstock("queue", "create", f"{name}-b")
    penstock("queue", "send", f"{name}-b", "x")
    rows = penstock.json("queue", "list", name)
    assert [(row["name"], row["visible"]) for row in rows] == [(name, 0), (f"{name}-b", 1)]
    assert all(list(row) == QUEUE_KEYS for row in rows)
    table = penstock("queue", "list", name).out
    assert table.splitlines()[0].split() == ["queue", "visible", "in", "flight", "delayed", "oldest"]
    assert f"{name}-b" in table
    assert penstock("queue", "list", "no-such").out == "no queues whose names start with no-such\n"
    assert penstock.json("queue", "list", "no-such") == []


def test_show_tells_counts_settings_tags_and_whose_dead_letters_it_holds(penstock: Penstock, name: str) -> None:
    penstock("queue", "create", f"{name}-source", "--dead-letter-queue", name)
    penstock("queue", "tag", name, "team=blue")
    (row,) = penstock.json("queue", "show", name)
    assert list(row) == [*QUEUE_KEYS, "dead_letter_sources"]
    assert row["dead_letter_sources"] == [f"{name}-source"]
    shown = penstock("queue", "show", name).out
    for text in ("visible", "visibility_timeout_ms", "30000", "tag team", "blue", "dead letters of", f"{name}-source"):
        assert text in shown


def test_tags_are_added_replaced_and_removed(penstock: Penstock, name: str) -> None:
    assert penstock.json("queue", "tag", name, "a=1", "b=2") == [{"name": name, "tags": {"a": "1", "b": "2"}}]
    assert penstock.json("queue", "tag", name, "a=3") == [{"name": name, "tags": {"a": "3", "b": "2"}}]
    assert "a" in penstock("queue", "untag", name, "b").out
    assert penstock.json("queue", "untag", name, "a", "unknown") == [{"name": name, "tags": {}}]
    assert penstock("queue", "untag", name, "a").out == "no tags\n"


@pytest.mark.parametrize("body", ["hello", "", "grüße 🎈", '{"a": "b"}', "-5", "two\nlines", "[bold]:smile:[/] \\[x] \\"])
def test_what_is_sent_is_received(penstock: Penstock, name: str, body: str) -> None:
    (sent,) = penstock("queue", "send", "--json", name, "--", body).rows()
    assert list(sent) == ["message_id", "sequence"]
    row = receive_one(penstock, name)
    assert list(row) == MESSAGE_KEYS
    assert (row["body"], row["message_id"], row["sequence"]) == (body, sent["message_id"], sent["sequence"])
    assert (row["receive_count"], row["group"], row["deduplication_id"], row["attributes"]) == (1, None, None, {})


def test_a_body_comes_from_a_file_from_standard_input_and_from_each_of_its_lines(
    penstock: Penstock, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "body"
    file.write_bytes(b"from a file\n")
    assert penstock("queue", "send", name, "--file", str(file)).out.startswith("sent ")
    assert penstock("queue", "send", name, "-", stdin=b"from\r\nstandard input").code == 0
    assert len(penstock.json("queue", "send", name, "--lines", stdin=b"one\ntwo\r\nthree")) == 3
    assert penstock("queue", "send", name, "--lines", stdin=b"x\n" * 1100).out == "sent 1,100 messages\n"
    rows = penstock.json("queue", "receive", name, "--max", "10000")
    bodies = [row["body"] for row in rows]
    assert bodies == ["from a file\n", "from\r\nstandard input", "one", "two", "three", *["x"] * 1100]


def test_a_refused_line_is_told_by_its_number_and_holds_up_no_other(penstock: Penstock, name: str) -> None:
    penstock("queue", "set", name, "--max-message-bytes", "1024")
    lines = b"\n".join([b"first", b"x" * 1025, b"third"])
    done = penstock("queue", "send", name, "--lines", stdin=lines)
    assert done.code == 1
    assert done.out == "sent 2 messages\n"
    assert done.err.startswith("error: line 2: MessageTooLarge: ")
    assert [row["body"] for row in penstock.json("queue", "peek", name)] == ["first", "third"]


def test_exactly_one_source_of_the_body_is_given(penstock: Penstock, name: str) -> None:
    for arguments in ([], ["body", "--lines"], ["body", "--file", __file__], ["--file", __file__, "--lines"]):
        done = penstock("queue", "send", name, *arguments)
        assert done.code == 2 and "exactly one" in done.err
    assert penstock("queue", "send", name, "--file", "/no/such/file").code == 2
    assert penstock("queue", "peek", name).code == 4


def test_a_body_that_is_no_utf8_is_base64_and_marked(penstock: Penstock, name: str) -> None:
    raw = b"\xff\x00\x1b"
    penstock("queue", "send", name, "-", stdin=raw)
    (peeked,) = penstock.json("queue", "peek", name)
    row = receive_one(penstock, name)
    for found in (peeked, row):
        assert found["encoding"] == "base64"
        assert base64.b64decode(str(found["body"])) == raw
    penstock("queue", "send", name, "-", stdin=raw)
    assert penstock("queue", "receive", name).out.endswith("/wAb  (base64)\n")


def test_attributes_have_types(penstock: Penstock, name: str) -> None:
    given = ["kind=greeting", "count:Number=3", "share:Number.float=0.5", "raw:Binary=AAE=", "odd:String.x=a=b"]
    penstock("queue", "send", name, "x", *(part for one in given for part in ("--attribute", one)))
    row = receive_one(penstock, name)
    expected = {"kind": "greeting", "count": 3, "share": 0.5, "raw": {"base64": "AAE="}, "odd": "a=b"}
    assert row["attributes"] == expected
    for wrong, text in (("kind", "NAME=VALUE"), ("=x", "NAME=VALUE"), ("raw:Binary=?", "not base64")):
        done = penstock("queue", "send", name, "x", "--attribute", wrong)
        assert done.code == 2 and text in done.err
    for refused in ("n:Number=three", "n:Text=three", "n="):
        assert penstock("queue", "send", name, "x", "--attribute", refused).code == 1


def test_group_and_deduplication_id_travel_along(penstock: Penstock, name: str) -> None:
    queue = f"{name}.fifo"
    penstock("queue", "create", queue)
    for body in ("first", "again"):
        assert penstock("queue", "send", queue, body, "--group", "ann", "--deduplication-id", "1").code == 0
    row = receive_one(penstock, queue)
    assert (row["body"], row["group"], row["deduplication_id"]) == ("first", "ann", "1")
    assert penstock("queue", "receive", queue).code == 4
    refused = penstock("queue", "send", queue, "x")
    assert refused.code == 1 and "group" in refused.err


def test_a_delayed_message_waits_and_its_state_can_be_asked_for(penstock: Penstock, name: str) -> None:
    penstock("queue", "send", name, "later", "--delay", "600")
    penstock("queue", "send", name, "taken")
    penstock("queue", "receive", name)
    penstock("queue", "send", name, "now")
    for state, body in (("delayed", "later"), ("in_flight", "taken"), ("visible", "now")):
        (row,) = penstock.json("queue", "peek", name, "--state", state)
        assert list(row) == PEEKED_KEYS
        assert (row["body"], row["state"]) == (body, state)
        assert body in penstock("queue", "peek", name, "--state", state).out
    assert len(penstock.json("queue", "peek", name)) == 3
    assert len(penstock.json("queue", "peek", name, "--max", "2")) == 2
    assert penstock("queue", "peek", name, "--state", "lost").code == 2


def test_peek_goes_over_many_pages(penstock: Penstock, name: str) -> None:
    penstock("queue", "send", name, "--lines", stdin=b"x\n" * 1200)
    assert len(penstock.json("queue", "peek", name, "--max", "1100")) == 1100


def test_receive_deletes_only_when_told_to(penstock: Penstock, name: str) -> None:
    penstock("queue", "send", name, "--lines", stdin=b"a\nb\nc")
    kept = penstock("queue", "receive", name, "--visibility-timeout", "0")
    assert "receipt_handle" in kept.out
    gone = penstock("queue", "receive", name, "--max", "2", "--wait", "1", "--delete")
    assert gone.code == 0 and "receipt_handle" not in gone.out
    (row,) = penstock.json("queue", "show", name)
    assert (row["visible"], row["in_flight"]) == (1, 0)


def test_nothing_to_receive_is_exit_code_four_with_nothing_on_a_scripts_output(penstock: Penstock, name: str) -> None:
    for command in ("receive", "peek", "moves"):
        quiet = penstock("queue", command, name, "--json")
        assert (quiet.code, quiet.out, quiet.err) == (4, "", "")
        assert penstock("queue", command, name).code == 4
    assert penstock("queue", "receive", name).out == "no message\n"


def test_a_receipt_handle_settles_or_releases_its_message_from_another_process(penstock: Penstock, name: str) -> None:
    penstock("queue", "send", name, "--lines", stdin=b"a\nb")
    first, second = (str(row["receipt_handle"]) for row in penstock.json("queue", "receive", name, "--max", "2"))
    assert penstock.json("queue", "settle", name, first) == [{"settled": 1}]
    assert penstock.json("queue", "release", name, second, "--after", "600") == [{"released": 1, "after_seconds": 600}]
    assert penstock("queue", "receive", name).code == 4
    assert penstock("queue", "release", name, second).out == "released 1 messages\n"
    row = receive_one(penstock, name)
    assert (row["body"], row["receive_count"]) == ("b", 2)
    expired = penstock("queue", "settle", name, second)
    assert expired.code == 1 and "ReceiptHandleExpired" in expired.err
    for forged in ("nonsense", "", "ä"):
        assert penstock("queue", "settle", name, forged).code == 2


def dead_letters(penstock: Penstock, name: str, count: int) -> str:
    """A queue whose messages have all ended in `name`, its dead-letter queue."""
    source = f"{name}-source"
    flags = ["--dead-letter-queue", name, "--max-receive-count", "1", "--visibility-timeout", "0"]
    penstock("queue", "create", source, *flags)
    penstock("queue", "send", source, "--lines", stdin=b"x\n" * count)
    while penstock("queue", "receive", source, "--max", "1000").code == 0:
        pass
    # A receive that moves its messages to the dead-letter queue answers before they are there: it promises nothing of them.
    while penstock.json("queue", "show", name)[0]["visible"] < count:
        pass
    return source


def test_redrive_moves_dead_letters_back_and_moves_remembers_it(penstock: Penstock, name: str) -> None:
    source = dead_letters(penstock, name, 3)
    assert receive_one(penstock, name, "--visibility-timeout", "0")["dead_letter_source"] == source
    (row,) = penstock.json("queue", "redrive", name)
    assert list(row) == MOVE_KEYS
    assert (row["source"], row["destination"], row["state"], row["moved"], row["failure"]) == (name, None, "COMPLETED", 3, None)
    assert penstock.json("queue", "show", source)[0]["visible"] == 3
    assert penstock.json("queue", "moves", name) == [row]
    assert "COMPLETED" in penstock("queue", "moves", name).out
    assert penstock("queue", "redrive", name).out == "moved 0 messages\n"
    assert penstock("queue", "moves", name, "--cancel").code == 4


def test_redrive_goes_elsewhere_slowly_and_can_be_cancelled(penstock: Penstock, name: str) -> None:
    source = dead_letters(penstock, name, 50)
    (row,) = penstock.json("queue", "redrive", name, "--to", source, "--rate", "1", "--no-wait")
    assert (row["state"], row["destination"], row["to_move"]) == ("RUNNING", source, 50)
    (cancelled,) = penstock.json("queue", "moves", name, "--cancel")
    assert cancelled["state"] in ("CANCELLING", "CANCELLED")
    assert cancelled["moved"] < 50
    refused = penstock("queue", "redrive", source)
    assert refused.code == 1 and "NotADeadLetterQueue" in refused.err


def test_purge_and_delete_ask_and_scripts_are_not_asked(penstock: Penstock, name: str) -> None:
    penstock("queue", "send", name, "--lines", stdin=b"a\nb\nc")
    for answer in (b"n\n", b"\n", b""):
        for command in ("purge", "delete"):
            done = penstock("queue", command, name, stdin=answer)
            assert (done.code, done.out) == (1, "")
            assert name in done.err and "nothing was deleted" in done.err
    assert penstock("queue", "purge", name, stdin=b"y\n").out == "deleted 3 messages\n"
    penstock("queue", "send", name, "x")
    assert penstock.json("queue", "purge", name) == [{"purged": 1}]
    assert penstock("queue", "purge", name, "--yes").out == "deleted 0 messages\n"
    assert penstock.json("queue", "delete", name) == [{"deleted": name}]
    penstock("queue", "create", name)
    assert penstock("queue", "delete", name, "--yes").out == f"queue {name} deleted\n"
    assert penstock("queue", "show", name).code == 1
