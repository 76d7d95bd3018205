"""What was pushed and not taken out yet: in the order it came, or by message group.

No I/O and no locks: a consumer owns its buffer and guards it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from penstock.types import ReceivedMessage

M = TypeVar("M", bound=ReceivedMessage)


class Buffer(Generic[M]):
    """Messages in the order they came."""

    def __init__(self) -> None:
        self._messages: deque[M] = deque()

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[M]:
        return iter(self._messages)

    @property
    def available(self) -> int:
        """How many can be taken right now."""
        return len(self._messages)

    def add(self, messages: list[M]) -> None:
        """Puts messages at the end."""
        self._messages.extend(messages)

    def take(self) -> M | None:
        """The next message; None when there is none to give out right now."""
        return self._messages.popleft() if self._messages else None

    def remove(self, message: M) -> bool:
        """Takes out this message; whether it was there."""
        if message not in self._messages:
            return False
        self._messages.remove(message)
        return True

    def clear(self) -> list[M]:
        """Takes out everything."""
        left = list(self)
        self._messages.clear()
        return left


class GroupBuffer(Buffer[M]):
    """Messages of a FIFO queue for several hands: while one message of a group is out, no other of it is given out, until
    `let_go`. Groups take turns."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: dict[str | None, deque[M]] = {}
        self._free: deque[str | None] = deque()
        self._busy: set[str | None] = set()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[M]:
        return (message for line in self._lines.values() for message in line)

    @property
    def available(self) -> int:
        """How many can be taken right now: one of each group that is not out."""
        return len(self._free)

    def add(self, messages: list[M]) -> None:
        """Puts messages at the ends of their groups' lines."""
        for message in messages:
            group = message.group
            line = self._lines.get(group)
            if line is None:
                line = self._lines[group] = deque()
                if group not in self._busy:
                    self._free.append(group)
            line.append(message)
        self._count += len(messages)

    def take(self) -> M | None:
        """The first message of the group whose turn it is; the group is out from now on."""
        if not self._free:
            return None
        group = self._free.popleft()
        line = self._lines[group]
        message = line.popleft()
        if not line:
            del self._lines[group]
        self._busy.add(group)
        self._count -= 1
        return message

    def let_go(self, group: str | None) -> None:
        """The message that was out is done with."""
        self._busy.discard(group)
        if group in self._lines:
            self._free.append(group)

    def take_line(self, group: str | None) -> list[M]:
        """Takes out everything of a group."""
        line = self._lines.pop(group, None)
        if line is None:
            return []
        if group not in self._busy:
            self._free.remove(group)
        self._count -= len(line)
        return list(line)

    def remove(self, message: M) -> bool:
        """Takes out this message; whether it was there."""
        line = self._lines.get(message.group, ())
        if message not in line:
            return False
        rest = [one for one in self.take_line(message.group) if one is not message]
        self.add(rest)
        return True

    def clear(self) -> list[M]:
        """Takes out everything. Who is out stays out."""
        left = list(self)
        self._lines.clear()
        self._free.clear()
        self._count = 0
        return left
