"""Buffers: one line, or one line per message group of which one message is out at a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from penstock.buffers import Buffer, GroupBuffer
from penstock.types import ReceivedMessage
from penstock_protocol.queue_messages import Delivery


def messages(groups: str) -> list[ReceivedMessage]:
    """One message per letter, its group."""
    delivery = Delivery(bytes(16), 0, 0, 1, 1, 1, [group.encode() for group in groups], None, list(groups))
    return [ReceivedMessage(None, 1, delivery, place) for place in range(len(groups))]


def taken(buffer: Buffer[ReceivedMessage]) -> str:
    """The groups of what can be taken right now."""
    text = ""
    while (message := buffer.take()) is not None:
        text += message.group or ""
    return text


def test_a_line_gives_out_everything_in_order() -> None:
    buffer: Buffer[ReceivedMessage] = Buffer()
    buffer.add(messages("abc"))
    assert (len(buffer), buffer.available) == (3, 3)
    assert taken(buffer) == "abc"


def test_of_each_group_one_message_is_out_until_it_is_let_go() -> None:
    buffer: GroupBuffer[ReceivedMessage] = GroupBuffer()
    buffer.add(messages("aabab"))
    assert (len(buffer), buffer.available) == (5, 2)
    assert taken(buffer) == "ab"
    buffer.add(messages("ac"))
    assert taken(buffer) == "c"
    buffer.let_go("b")
    buffer.let_go("c")
    assert taken(buffer) == "b"
    assert [message.group for message in buffer] == ["a", "a", "a"]
    buffer.let_go("a")
    assert taken(buffer) == "a"


def test_groups_take_turns() -> None:
    buffer: GroupBuffer[ReceivedMessage] = GroupBuffer()
    buffer.add(messages("aaabbb"))
    order = ""
    for _ in range(6):
        message = buffer.take()
        assert message is not None
        order += message.group or ""
        buffer.let_go(message.group)
    assert order == "ababab"


def test_a_groups_line_is_taken_out_whether_its_first_is_out_or_not() -> None:
    buffer: GroupBuffer[ReceivedMessage] = GroupBuffer()
    buffer.add(messages("aab"))
    assert buffer.take() is not None
    assert len(buffer.take_line("a")) == 1
    assert len(buffer.take_line("b")) == 1
    assert buffer.take_line("c") == []
    buffer.let_go("a")
    assert (len(buffer), buffer.available, buffer.take()) == (0, 0, None)


@given(st.lists(st.tuples(st.sampled_from(["add", "take", "let go", "line", "remove", "clear"]), st.sampled_from("abc"))))
def test_no_message_is_lost_doubled_or_overtaken(steps: list[tuple[str, str]]) -> None:
    buffer: GroupBuffer[ReceivedMessage] = GroupBuffer()
    model: dict[str, list[ReceivedMessage]] = {"a": [], "b": [], "c": []}
    out: set[str] = set()
    for step, group in steps:
        line = model[group]
        if step == "add":
            new = messages(group * 2)
            buffer.add(list(new))
            line += new
        elif step == "take":
            message = buffer.take()
            can = {name for name, rest in model.items() if rest and name not in out}
            assert (message is not None) == bool(can)
            if message is not None:
                assert message.group in can and model[message.group].pop(0) is message
                out.add(message.group)
        elif step == "let go" and group in out:
            out.remove(group)
            buffer.let_go(group)
        elif step == "line":
            assert buffer.take_line(group) == line
            line.clear()
        elif step == "remove" and line:
            assert buffer.remove(line[-1]) and not buffer.remove(line.pop())
        elif step == "clear":
            assert len(buffer.clear()) == sum(map(len, model.values()))
            for rest in model.values():
                rest.clear()
        assert len(buffer) == sum(map(len, model.values()))
        assert buffer.available == len([name for name, rest in model.items() if rest and name not in out])
        assert sorted(map(id, buffer)) == sorted(id(message) for rest in model.values() for message in rest)
