"""Access keys: who gets in, and what a role may do. The matrix follows from the table of operations."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest
import structlog
from penstock_broker.access import Keyring, authorize, load_sealing_key, proof_of, public_key
from penstock_protocol import queue_messages as q
from penstock_protocol import session_messages as s
from penstock_protocol import stream_messages as st
from penstock_protocol.codec import Message
from penstock_protocol.errors import (
    AuthenticationFailed,
    AuthenticationRequired,
    InvalidRequest,
    KeyDoesNotExist,
    NotPermitted,
    PenstockError,
    ProtocolError,
    QueueDoesNotExist,
)
from penstock_protocol.operations import OPERATIONS, ROLES, Operation, Permission
from penstock_storage.memory import MemoryDisk, MemoryStore

from tests.broker.inside import SEALING_KEY, Peer, bodies_of, house, make_key, on_jumping_clock

ASKED = [one for one in OPERATIONS if one.name not in ("Hello", "Authenticate")]

ALLOWED = {
    "admin": {"Ping", "Cancel", "CreateKey", "ListKeys", "DeleteKey", "CreateQueue", "DeleteQueue", "ListQueues", "DescribeQueue",
              "SetQueueSettings", "TagQueue", "UntagQueue", "PurgeQueue", "SendMessages", "ReceiveMessages", "DeleteMessages",
              "ChangeVisibility", "PeekMessages", "Consume", "Credit", "StartMoveTask", "CancelMoveTask", "ListMoveTasks",
              "ListDeadLetterSources", "CreateStream", "DeleteStream", "ListStreams", "DescribeStream", "SetStreamSettings",
              "TagStream", "UntagStream", "ListShards", "SplitShard", "MergeShards", "SetShardCount", "PutRecords",
              "OpenIterator", "ReadRecords", "GroupHeartbeat", "ListGroups", "DescribeGroup", "ResetGroup", "DeleteGroup",
              "RegisterStreamConsumer", "DescribeStreamConsumer", "ListStreamConsumers", "DeregisterStreamConsumer",
              "SubscribeToShard"},
    "reader": {"Ping", "Cancel", "ListQueues", "DescribeQueue", "PeekMessages", "ListMoveTasks", "ListDeadLetterSources",
               "ListStreams", "DescribeStream", "ListShards", "ListGroups", "DescribeGroup", "DescribeStreamConsumer",
               "ListStreamConsumers"},
}  # fmt: skip
"""Written down once more: an operation that is added gets a role in PROTOCOL.md first, then here."""
ALLOWED["user"] = ALLOWED["admin"] - {"CreateKey", "ListKeys", "DeleteKey"}
ALLOWED["producer"] = ALLOWED["reader"] | {"SendMessages", "PutRecords"}
ALLOWED["consumer"] = ALLOWED["reader"] | {"ReceiveMessages", "DeleteMessages", "ChangeVisibility", "Consume", "Credit",
                                           "OpenIterator", "ReadRecords", "GroupHeartbeat", "SubscribeToShard"}  # fmt: skip

SAMPLES: dict[str, Message] = {
    "Ping": s.Empty(),
    "CreateKey": s.CreateKey("reader"),
    "ListKeys": s.Empty(),
    "DeleteKey": s.KeyId("PSKNOBODY"),
    "CreateQueue": q.CreateQueue("new"),
    "DeleteQueue": q.QueueName("jobs"),
    "ListQueues": q.ListQueues(),
    "DescribeQueue": q.QueueName("jobs"),
    "SetQueueSettings": q.SetQueueSettings("jobs", [q.Setting("delay_ms", 0)]),
    "TagQueue": q.TagQueue("jobs", [q.Tag("a", "b")]),
    "UntagQueue": q.UntagQueue("jobs", ["a"]),
    "PurgeQueue": q.QueueName("jobs"),
    "SendMessages": q.SendMessages("jobs", [b"x"]),
    "ReceiveMessages": q.ReceiveMessages("jobs", 1),
    "DeleteMessages": q.DeleteMessages("jobs", [q.Receipt(bytes(16), 0, b"\1")]),
    "ChangeVisibility": q.ChangeVisibility("jobs", [q.Receipt(bytes(16), 0, b"\1")], [0]),
    "PeekMessages": q.PeekMessages("jobs"),
    "Consume": q.Consume("jobs", 1),
    "StartMoveTask": q.StartMoveTask("dead"),
    "CancelMoveTask": q.MoveTaskId("move-0"),
    "ListMoveTasks": q.ListMoveTasks("jobs"),
    "ListDeadLetterSources": q.QueueName("dead"),
    "CreateStream": st.CreateStream("new"),
    "DeleteStream": st.StreamName("clicks"),
    "ListStreams": st.ListStreams(),
    "DescribeStream": st.StreamName("clicks"),
    "SetStreamSettings": st.SetStreamSettings("clicks", [q.Setting("retention_ms", 7_200_000)]),
    "TagStream": st.TagStream("clicks", [q.Tag("a", "b")]),
    "UntagStream": st.UntagStream("clicks", ["team"]),
    "ListShards": st.ListShards("clicks"),
    "SplitShard": st.SplitShard("clicks", 0),
    "MergeShards": st.MergeShards("clicks", 0, 1),
    "SetShardCount": st.SetShardCount("clicks", 3),
    "PutRecords": st.PutRecords("clicks", 0, 1, 0, 2, msgpack.packb([[b"x"], ["k"]])),
    "OpenIterator": st.OpenIterator("clicks", 0, "trim_horizon"),
    "ReadRecords": st.ReadRecords(bytes(32)),
    "GroupHeartbeat": st.GroupHeartbeat("clicks", "new", bytes(16), joining=True),
    "ListGroups": st.StreamName("clicks"),
    "DescribeGroup": st.GroupName("clicks", "team"),
    "ResetGroup": st.ResetGroup("clicks", "team", "latest"),
    "DeleteGroup": st.GroupName("clicks", "team"),
    "RegisterStreamConsumer": st.StreamConsumerName("clicks", "new"),
    "DescribeStreamConsumer": st.StreamConsumerName("clicks", "audit"),
    "ListStreamConsumers": st.StreamName("clicks"),
    "DeregisterStreamConsumer": st.StreamConsumerName("clicks", "audit"),
    "SubscribeToShard": st.SubscribeToShard("clicks", "audit", 0, 1),
}


async def _state(owner: Peer) -> list[object]:
    """Whatever a request that is refused must not change."""
    return [
        dataclasses.replace(await owner.describe("jobs"), now_ms=0),
        await owner.call(q.ListQueues()),
        await owner.call(st.ListStreams()),
        await owner.call(st.StreamName("clicks"), "DescribeStream"),
        await owner.call(st.ListShards("clicks")),
        await owner.call(st.StreamName("clicks"), "ListGroups"),
        await owner.call(st.GroupName("clicks", "team"), "DescribeGroup"),
        await owner.call(st.StreamName("clicks"), "ListStreamConsumers"),
        (await owner.call(s.Empty(), "ListKeys")),
    ]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("operation", ASKED, ids=lambda operation: operation.name)
@on_jumping_clock
async def test_a_role_may_do_what_its_permissions_say_and_nothing_else(operation: Operation, role: str) -> None:
    disk = MemoryDisk()
    admin, key = make_key(disk, "admin", number=1), make_key(disk, role)
    async with house(disk) as one:
        owner = one.connect()
        await owner.log_in(*admin)
        await owner.create("dead")
        await owner.create("jobs", dead_letter_queue="dead")
        await owner.send("jobs", b"kept")
        await owner.call(st.CreateStream("clicks", 2, tags=[q.Tag("team", "shop")]))
        await owner.call(st.GroupHeartbeat("clicks", "team", bytes(range(16)), joining=True))
        await owner.call(st.StreamConsumerName("clicks", "audit"), "RegisterStreamConsumer")
        before = await _state(owner)
        peer = one.connect()
        await peer.log_in(*key)
        allowed = operation.name in ALLOWED[role]
        if operation.one_way:
            waiting = await peer.say(s.Empty(), "Ping")
            await peer.say(s.Cancel(999) if operation.name == "Cancel" else q.Credit(999, 1))
            await peer.wait(waiting)
            return  # what it names is always a request of the same connection, which was allowed
        correlation = await peer.say(SAMPLES[operation.name], operation.name)
        if operation.name == "Consume" and allowed:
            assert bodies_of((await peer.wait(correlation)).deliveries) == [b"kept"]
        elif operation.pushes and allowed:
            assert await peer.wait(correlation) == st.PushedRecords(0, [], 0, 0)
        elif allowed:
            try:
                await peer.wait(correlation)
            except PenstockError as error:  # (Some samples name what does not exist.)
                assert type(error) is not NotPermitted
        else:
            with pytest.raises(NotPermitted, match=operation.permission.value):
                await peer.wait(correlation)
            assert await _state(owner) == before
            assert await peer.call(s.Empty(), "Ping") == s.Empty(), "the connection goes on"


def test_the_matrix_names_every_operation_and_role() -> None:
    assert set(ALLOWED) == set(ROLES)
    assert ALLOWED["admin"] == {operation.name for operation in ASKED}
    assert set(SAMPLES) == {operation.name for operation in ASKED if not operation.one_way}
    assert all(permission in ROLES["admin"] for permission in Permission)


def test_an_unknown_role_may_do_nothing() -> None:
    for operation in ASKED:
        with pytest.raises(NotPermitted):
            authorize("emperor", operation)


# Getting in


async def _refused(peer: Peer, proof: bytes) -> AuthenticationFailed:
    await peer.say(s.Authenticate(proof))
    error = await peer.end()
    assert type(error) is AuthenticationFailed
    return error


@on_jumping_clock
async def test_every_wrong_way_in_gets_the_same_answer() -> None:
    disk = MemoryDisk()
    key_id, secret = make_key(disk, "admin")
    other_id, other_secret = make_key(disk, "user", number=2)
    right = secret.encode()
    async with house(disk) as one:
        said = set()
        cases: dict[str, tuple[str, Callable[[bytes, bytes], bytes]]] = {
            "a wrong secret": (key_id, lambda c, p: proof_of(b"wrong", c, p)),
            "no secret": (key_id, lambda c, p: proof_of(b"", c, p)),
            "another key's secret": (key_id, lambda c, p: proof_of(other_secret.encode(), c, p)),
            "an unknown key": ("PSKNOBODY", lambda c, p: proof_of(right, c, p)),
            "a key in other letters": (key_id.lower(), lambda c, p: proof_of(right, c, p)),
            "another challenge": (key_id, lambda c, p: proof_of(right, bytes(32), p)),
            "another producer": (key_id, lambda c, p: proof_of(right, c, bytes(16))),
            "the secret itself": (key_id, lambda c, p: right),
            "nothing": (key_id, lambda c, p: b""),
            "half a proof": (key_id, lambda c, p: proof_of(right, c, p)[:16]),
            "a long proof": (key_id, lambda c, p: proof_of(right, c, p) * 100),
            "the other's proof under this name": (other_id, lambda c, p: proof_of(right, c, p)),
        }
        for name, proof in cases.values():
            peer = one.connect()
            reply = await peer.hello(key_id=name)
            assert len(reply.challenge) == 32
            said.add(str(await _refused(peer, proof(reply.challenge, peer.producer))))
        assert len(said) == 1
        assert one.broker.counters.connections_failed == {"AuthenticationFailed": len(cases)}


@on_jumping_clock
async def test_a_proof_is_good_for_one_challenge_only() -> None:
    disk = MemoryDisk()
    key_id, secret = make_key(disk, "admin")
    async with house(disk) as one:
        first = one.connect()
        overheard = await first.hello(key_id=key_id)
        proof = proof_of(secret.encode(), overheard.challenge, first.producer)
        await first.call(s.Authenticate(proof))
        second = one.connect()
        second.producer = first.producer
        reply = await second.hello(key_id=key_id)
        assert reply.challenge != overheard.challenge
        await _refused(second, proof)
        assert await first.call(s.Empty(), "Ping") == s.Empty()


@on_jumping_clock
async def test_with_keys_nobody_gets_in_without_one() -> None:
    disk = MemoryDisk()
    make_key(disk, "reader")
    async with house(disk) as one:
        peer = one.connect()
        await peer.write(peer.hello_bytes())
        assert isinstance(await peer.end(), AuthenticationRequired)


@on_jumping_clock
async def test_authentication_cannot_be_tried_twice_on_one_connection() -> None:
    disk = MemoryDisk()
    key_id, secret = make_key(disk, "admin")
    async with house(disk) as one:
        peer = one.connect()
        reply = await peer.hello(key_id=key_id)
        good = s.Authenticate(proof_of(secret.encode(), reply.challenge, peer.producer))
        await peer.write(peer.pack(s.Authenticate(bytes(32)))[1] + peer.pack(good)[1] + peer.pack(q.CreateQueue("mine"))[1])
        assert isinstance(await peer.end(), AuthenticationFailed)
        assert len(one.broker.catalog) == 0


@on_jumping_clock
async def test_an_authentication_of_the_wrong_type_is_refused() -> None:
    disk = MemoryDisk()
    key_id, _ = make_key(disk, "admin")
    for body in (b"\x90", b"\x91\xc0", b"\x91\xa3abc", b"\x91\x01", b"\xc1"):
        async with house(disk) as one:
            peer = one.connect()
            await peer.hello(key_id=key_id)
            await peer.write(b"\0\0\0" + bytes([len(body)]) + b"\1\0\0\2" + bytes(7) + b"\2" + body)
            assert isinstance(await peer.end(), InvalidRequest | ProtocolError)


# Tenants


@on_jumping_clock
async def test_a_key_opens_its_own_account_only() -> None:
    disk = MemoryDisk()
    ours, theirs = make_key(disk, "admin", "111111111111"), make_key(disk, "admin", "222222222222")
    async with house(disk) as one:
        we, they = one.connect(), one.connect()
        await we.log_in(*ours)
        await they.log_in(*theirs)
        await we.create("jobs")
        await we.send("jobs", b"ours")
        with pytest.raises(QueueDoesNotExist):
            await they.describe("jobs")
        await they.create("jobs")
        await they.send("jobs", b"theirs")
        assert bodies_of(await we.receive("jobs")) == [b"ours"]
        assert (await they.describe("jobs")).arn.split(":")[4] == "222222222222"
        keys = (await they.call(s.Empty(), "ListKeys")).keys
        assert [key.key_id for key in keys] == [theirs[0]]
        with pytest.raises(KeyDoesNotExist):
            await they.call(s.KeyId(ours[0]))
        intruder = one.connect()
        reply = await intruder.hello(key_id=theirs[0], account="111111111111")
        await _refused(intruder, proof_of(theirs[1].encode(), reply.challenge, intruder.producer))


@on_jumping_clock
async def test_regions_are_apart() -> None:
    async with house() as one:
        here, there = await one.client(region="here"), await one.client(region="there")
        await here.create("jobs")
        with pytest.raises(QueueDoesNotExist):
            await there.describe("jobs")
        assert (await here.describe("jobs")).arn == "arn:aws:sqs:here:000000000000:jobs"


# The life of a key


@on_jumping_clock
async def test_a_new_key_lets_in_and_from_the_first_on_one_is_needed() -> None:
    async with house() as one:
        first = await one.client()
        key = await first.call(s.CreateKey("consumer", "for the workers"))
        assert (key.role, key.description) == ("consumer", "for the workers") and key.key_id and key.secret
        stranger = one.connect()
        await stranger.write(stranger.hello_bytes())
        assert isinstance(await stranger.end(), AuthenticationRequired)
        worker = one.connect()
        await worker.log_in(key.key_id, key.secret)
        with pytest.raises(NotPermitted):
            await worker.create("jobs")
        (listed,) = (await first.call(s.Empty(), "ListKeys")).keys
        assert (listed.key_id, listed.secret) == (key.key_id, ""), "the secret is told once"


@on_jumping_clock
async def test_a_deleted_key_lets_nobody_in_and_keys_survive_a_restart() -> None:
    disk = MemoryDisk()
    admin = make_key(disk, "admin")
    async with house(disk) as one:
        owner = one.connect()
        await owner.log_in(*admin)
        keys = [await owner.call(s.CreateKey("user")) for _ in range(2)]
        await owner.call(s.KeyId(keys[0].key_id))
        with pytest.raises(KeyDoesNotExist):
            await owner.call(s.KeyId(keys[0].key_id))
    async with house(disk) as one:
        gone = one.connect()
        reply = await gone.hello(key_id=keys[0].key_id)
        await _refused(gone, proof_of(keys[0].secret.encode(), reply.challenge, gone.producer))
        kept = one.connect()
        await kept.log_in(keys[1].key_id, keys[1].secret)
        assert await kept.call(s.Empty(), "Ping") == s.Empty()


@on_jumping_clock
async def test_the_end_of_the_last_key_opens_the_broker_to_nobody() -> None:
    disk = MemoryDisk()
    key_id, secret = make_key(disk, "admin")
    async with house(disk) as one:
        owner = one.connect()
        await owner.log_in(key_id, secret)
        await owner.call(s.KeyId(key_id))
        for _ in range(2):
            stranger = one.connect()
            await stranger.write(stranger.hello_bytes())
            assert isinstance(await stranger.end(), AuthenticationRequired)
            with pytest.raises(KeyDoesNotExist):
                await owner.call(s.KeyId(key_id))
        another = await owner.call(s.CreateKey("user"))
        user = one.connect()
        await user.log_in(another.key_id, another.secret)


@on_jumping_clock
async def test_whoever_is_in_stays_in_when_the_key_is_deleted() -> None:
    disk = MemoryDisk()
    admin = make_key(disk, "admin")
    user = make_key(disk, "user")
    async with house(disk) as one:
        owner, worker = one.connect(), one.connect()
        await owner.log_in(*admin)
        await worker.log_in(*user)
        await owner.call(s.KeyId(user[0]))
        assert await worker.call(s.Empty(), "Ping") == s.Empty()


# Secrets


@on_jumping_clock
async def test_secrets_are_in_no_log_and_no_store() -> None:
    disk = MemoryDisk()
    admin = make_key(disk, "admin")
    with structlog.testing.capture_logs() as logs:
        async with house(disk) as one:
            owner = one.connect()
            await owner.log_in(*admin)
            key = await owner.call(s.CreateKey("user"))
            user = one.connect()
            await user.log_in(key.key_id, key.secret)
            wrong = one.connect()
            reply = await wrong.hello(key_id=key.key_id)
            await _refused(wrong, proof_of(b"wrong", reply.challenge, wrong.producer))
            rubbish = await one.connect().hello(key_id=key.key_id)
            assert rubbish.challenge
            rows = one.broker.keyring.rows()
    shown = repr(logs) + repr(rows) + repr(MemoryStore(disk).load_credentials()) + repr([public_key(row) for row in rows])
    assert logs
    for secret in (admin[1], key.secret):
        assert len(secret) >= 40
        assert secret not in shown
        assert secret.encode().hex() not in shown


def test_a_sealed_secret_opens_with_its_key_file_and_under_its_own_id_only() -> None:
    chance = random.Random(1)
    ring = Keyring(SEALING_KEY, [])
    row, secret = ring.make("0", "user", "", 1, chance.randbytes(64))
    ring.add(row)
    challenge, producer = chance.randbytes(32), chance.randbytes(16)
    proof = proof_of(secret.encode(), challenge, producer)
    assert ring.check(row.key_id, challenge, producer, proof) is row
    with pytest.raises(AuthenticationFailed):
        Keyring(bytes(32), [row]).check(row.key_id, challenge, producer, proof)
    moved = type(row)("PSKOTHER", row.account, "admin", row.description, row.sealed_secret, 1)
    with pytest.raises(AuthenticationFailed):
        Keyring(SEALING_KEY, [moved]).check("PSKOTHER", challenge, producer, proof)
    assert secret.encode() not in row.sealed_secret


def test_two_keys_never_look_alike() -> None:
    ring, chance = Keyring(SEALING_KEY, []), random.Random(2)
    made = [ring.make("0", "user", "", 1, chance.randbytes(64)) for _ in range(100)]
    assert len({row.key_id for row, _ in made}) == len({secret for _, secret in made}) == 100


def test_the_sealing_key_is_made_once_for_its_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "sealing.key"
    key = load_sealing_key(path)
    assert len(key) == 32 and load_sealing_key(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(b"short")
    with pytest.raises(ValueError, match="32 bytes"):
        load_sealing_key(path)


def test_a_broker_that_is_killed_while_it_makes_its_sealing_key_starts_again(tmp_path: Path) -> None:
    path = tmp_path / "sealing.key"
    code = (
        "import os, sys, pathlib; from penstock_broker.access import load_sealing_key; "
        "os.fsync = lambda _: os._exit(9); load_sealing_key(pathlib.Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == 9 and not path.exists()
    assert len(load_sealing_key(path)) == 32
