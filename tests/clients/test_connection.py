"""The connection: finding the broker, hello, authentication, TLS, silence, and the end."""

from __future__ import annotations

import math
import os
import signal
import socket
import ssl
from pathlib import Path
from typing import cast

import anyio
import pytest
import trio
from penstock import AsyncClient
from penstock._async import link as link_module
from penstock.errors import (
    AuthenticationFailed,
    AuthenticationRequired,
    ClientClosed,
    ConnectionLost,
    InvalidName,
    InvalidRequest,
    NotConnected,
    PenstockError,
    QueueDoesNotExist,
    ResourceBusy,
)
from penstock.options import make_options
from penstock_protocol.operations import BY_CODE

from tests.clients.certificates import Authority
from tests.clients.fake_broker import AFTER, HOLD, SILENT, FakeBroker, turns

pytestmark = pytest.mark.anyio


async def test_a_client_finds_the_living_one_of_several_addresses(broker: FakeBroker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dead = listener.getsockname()[1]
    async with AsyncClient(f"penstock://127.0.0.1:{dead},127.0.0.1:{broker.port}") as client:
        await client.ping()


async def test_a_client_goes_on_when_its_broker_comes_back_on_the_same_address() -> None:
    with FakeBroker() as broker:
        broker.queue("jobs")
        async with AsyncClient(broker.url) as client, anyio.create_task_group() as tasks:
            await client.ping()
            broker.__exit__(None, None, None)
            tasks.start_soon(client.queue("jobs").send, b"waits")
            await turns()
            with FakeBroker(port=broker.port) as successor:
                successor.queue("jobs")
                await successor.until(lambda: successor.queue("jobs").bodies == [b"waits"])


async def test_a_broker_that_never_answers_the_hello_is_given_up() -> None:
    with FakeBroker(mute=True) as broker:
        async with AsyncClient(broker.url, connect_timeout=0.2) as client:
            with pytest.raises(NotConnected) as raised:
                await client.ping()
            await broker.until(lambda: broker.connections > 1)
    assert "no answer to the hello" in str(raised.value) or "still connecting" in str(raised.value)


async def test_something_that_is_no_broker_is_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        async with AsyncClient(f"penstock://127.0.0.1:{port}", connect_timeout=0.3) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, serve)
            with pytest.raises(NotConnected) as raised:
                await client.ping()
    assert "frame of" in str(raised.value) or "no answer" in str(raised.value)


async def test_a_silent_connection_is_pinged_and_then_given_up(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "KEEPALIVE_SECONDS", 0.1)
    async with AsyncClient(broker.url) as client:
        await client.ping()
        await broker.until(lambda: len(broker.asked("Ping")) >= 3)
        assert broker.connections == 1
        broker.fault("Ping", *[SILENT] * 3)
        await broker.until(lambda: broker.connections == 2)


async def test_a_consumer_moves_on_when_its_connection_went_silent(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "KEEPALIVE_SECONDS", 0.1)
    broker.fault("Consume", SILENT)
    async with AsyncClient(broker.url) as client, client.queue("jobs").consume() as messages:
        await broker.until(lambda: len(broker.asked("Consume")) == 1)
        broker.fault("Ping", *[SILENT] * 3)
        await client.queue("jobs").send(b"x")
        message = await messages.next()
        assert message is not None


async def test_requests_in_flight_never_exceed_what_the_broker_allows() -> None:
    with FakeBroker(max_in_flight=5) as broker:
        for number in range(40):
            broker.queue(f"queue-{number}")
        broker.fault("SendMessages", *[HOLD] * 40)
        async with AsyncClient(broker.url) as client, anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(client.queue(f"queue-{number}").send, b"x")
            for part in range(4, 44, 4):
                await broker.until(lambda part=part: len(broker.asked("SendMessages")) == part)  # type: ignore[misc]  # a default
                await turns()
                broker.release_held()
        assert broker.most_in_flight == 4
        assert all(queue.bodies == [b"x"] for queue in broker.queues.values())


async def test_a_cancelled_request_is_not_sent_again_over_the_next_connection(broker: FakeBroker) -> None:
    broker.fault("CreateQueue", SILENT)
    async with AsyncClient(broker.url) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.create_queue, "nobody-waits")
            await broker.until(lambda: len(broker.asked("CreateQueue")) == 1)
            tasks.cancel_scope.cancel()
        broker.drop_all()
        await broker.until(lambda: broker.connections == 2)
        await client.ping()
    assert len(broker.asked("CreateQueue")) == 1


# Errors


async def test_an_error_in_the_clients_block_leaves_it_as_it_is(broker: FakeBroker) -> None:
    with pytest.raises(QueueDoesNotExist) as raised:
        async with AsyncClient(broker.url) as client:
            await client.queue("nowhere").send(b"x")
    assert raised.value.code == 200
    assert not raised.value.retryable
    assert "Create the queue" in raised.value.advice


async def test_cancelling_the_clients_block_ends_it(broker: FakeBroker) -> None:
    with anyio.CancelScope() as scope:
        async with AsyncClient(broker.url) as client:
            await client.ping()
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught


async def test_cleanup_in_a_cancelled_block_still_reaches_the_broker(broker: FakeBroker) -> None:
    with anyio.CancelScope() as scope:
        async with AsyncClient(broker.url, request_timeout=10) as client:
            try:
                await client.ping()
                scope.cancel()
                await anyio.sleep_forever()
            finally:
                with anyio.move_on_after(10, shield=True):
                    await client.queue("jobs").send(b"cleaned up")
    assert scope.cancelled_caught
    assert broker.queue("jobs").bodies == [b"cleaned up"]


async def test_what_cannot_be_encoded_is_refused_and_disturbs_nobody_else(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        other = client.queue("jobs")
        await other.send(b"before")
        with pytest.raises(InvalidRequest, match=r"^DescribeQueue cannot be sent: "):
            await client.queue("jobs\udc80").describe()
        with pytest.raises(InvalidRequest, match=r"^SendMessages cannot be sent: "):
            await client.queue("jobs\udc80").send(b"x")
        with pytest.raises(InvalidRequest, match=r"^ReceiveMessages cannot be sent: "):
            await other.receive(1, attempt_id=cast(str, object()))
        with pytest.raises(InvalidRequest, match=r"^ReceiveMessages cannot be sent: "):
            await other.receive(2**70)
        await other.send(b"after")
    assert broker.queue("jobs").bodies == [b"before", b"after"]


async def test_what_cannot_be_encoded_is_refused_too_when_it_has_waited_for_the_connection(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:  # (It is connected by nobody's request but these.)
        with pytest.raises(InvalidRequest):
            await client.queue("jobs\udc80").describe()
        await client.ping()


@pytest.mark.parametrize("seconds", [math.inf, math.nan, -1.0, 1e300])
async def test_a_time_that_is_none_is_refused_with_its_name(broker: FakeBroker, seconds: float) -> None:
    async with AsyncClient(broker.url) as client:
        with pytest.raises(ValueError, match=r"^wait_seconds = .*; it must be a number of seconds"):
            await client.queue("jobs").receive(wait_seconds=seconds)
        with pytest.raises(ValueError, match=r"^retention = .*; it must be a number of seconds"):
            await client.create_queue("new", retention=seconds)


async def test_what_was_refused_by_nature_is_not_asked_again(broker: FakeBroker) -> None:
    broker.fault("CreateQueue", InvalidName("no spaces"))
    async with AsyncClient(broker.url) as client:
        with pytest.raises(InvalidName, match="no spaces"):
            await client.create_queue("a b")
    assert len(broker.asked("CreateQueue")) == 1


async def test_a_busy_resource_is_asked_again(broker: FakeBroker) -> None:
    broker.fault("CreateQueue", ResourceBusy())
    async with AsyncClient(broker.url) as client:
        await client.create_queue("later")
    assert len(broker.asked("CreateQueue")) == 2


async def test_what_may_not_be_done_twice_ends_with_its_connection(broker: FakeBroker) -> None:
    broker.fault("StartMoveTask", AFTER)
    async with AsyncClient(broker.url) as client:
        with pytest.raises(ConnectionLost) as raised:
            await client.queue("jobs").redrive()
    assert not raised.value.retryable
    assert "StartMoveTask" in str(raised.value)


async def test_a_client_that_was_never_opened_says_how_to(broker: FakeBroker) -> None:
    with pytest.raises(ClientClosed, match="`with` block"):
        await AsyncClient(broker.url).queue("jobs").send(b"x")


async def test_requests_that_wait_when_the_client_closes_are_told(broker: FakeBroker) -> None:
    broker.fault("Ping", SILENT)
    async with anyio.create_task_group() as tasks, AsyncClient(broker.url) as client:

        async def ping() -> None:
            with pytest.raises(ClientClosed):
                await client.ping()

        tasks.start_soon(ping)
        await broker.until(lambda: len(broker.asked("Ping")) == 1)


async def test_every_error_of_the_protocol_is_exported_with_a_remedy() -> None:
    import penstock.errors
    from penstock_protocol.errors import TABLE

    for code, cls in TABLE.items():
        assert getattr(penstock.errors, cls.__name__) is cls
        assert cls.__name__ in penstock.errors.__all__
        assert cls.code == code and cls.advice
    own = [getattr(penstock.errors, name) for name in penstock.errors.__all__]
    codes = [cls.code for cls in own if isinstance(cls, type) and issubclass(cls, PenstockError) and cls is not PenstockError]
    assert len(codes) == len(set(codes))


async def test_every_operation_of_the_table_has_a_method_that_uses_it(broker: FakeBroker) -> None:
    handshake = {"Hello", "Authenticate"}
    source = "".join(path.read_text() for path in (Path(link_module.__file__).parent).glob("*.py"))
    missing = [
        operation.name
        for operation in BY_CODE.values()
        if operation.name not in handshake
        and f'"{operation.name}"' not in source
        and f"{operation.request.__name__}(" not in source
    ]
    assert missing == []


# Who we are


async def test_a_key_proves_who_we_are() -> None:
    with FakeBroker(key=("id", "secret")) as broker:
        async with AsyncClient(broker.url, key_id="id", secret="secret") as client:
            await client.ping()
        async with AsyncClient(f"penstock://id:secret@127.0.0.1:{broker.port}") as client:
            await client.ping()


async def test_a_wrong_secret_is_told_at_once() -> None:
    with FakeBroker(key=("id", "secret")) as broker:
        async with AsyncClient(broker.url, key_id="id", secret="guess") as client:
            with pytest.raises(AuthenticationFailed):
                await client.ping()
        async with AsyncClient(broker.url) as client:
            with pytest.raises(AuthenticationRequired):
                await client.ping()


async def test_tls_protects_the_connection_and_verifies_the_broker(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with FakeBroker(tls=authority.server()) as broker:
        broker.queue("jobs")
        async with AsyncClient(broker.url, tls=authority.client()) as client:
            await client.queue("jobs").send_many([os.urandom(100_000)] * 30)
        async with AsyncClient(broker.url, connect_timeout=0.3) as client:
            with pytest.raises(NotConnected):
                await client.ping()
    assert len(broker.queue("jobs").bodies) == 30


async def test_mutual_tls_shows_the_clients_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with FakeBroker(tls=authority.server(mutual=True)) as broker:
        async with AsyncClient(broker.url, tls=authority.client(certified=True)) as client:
            await client.ping()
        async with AsyncClient(broker.url, tls=authority.client(), connect_timeout=0.3) as client:
            with pytest.raises(NotConnected):
                await client.ping()


# Options


async def test_arguments_win_over_the_url_which_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_URL", "penstock://envkey:envsecret@host-of-env")
    monkeypatch.setenv("PENSTOCK_KEY_ID", "k")
    monkeypatch.setenv("PENSTOCK_SECRET", "s")

    def options(url: str | None = None, key_id: str | None = None, secret: str | None = None) -> tuple[object, str, str]:
        made = make_options(url, key_id, secret, None, "", "", 5, 30)
        return made.addresses, made.key_id, made.secret

    assert options() == ((("host-of-env", 4567),), "envkey", "envsecret")
    assert options("penstock://a:1,b,[::1]:2/") == ((("a", 1), ("b", 4567), ("::1", 2)), "k", "s")
    assert options("penstock://u%40x:p%2Fw@a") == ((("a", 4567),), "u@x", "p/w")
    assert options("penstock://u:p@a", "key", "word") == ((("a", 4567),), "key", "word")


@pytest.mark.parametrize("url", ["localhost:4567", "http://localhost", "penstock://host:notaport", "penstock://host:99999"])
async def test_an_address_that_is_none_is_refused_with_what_is_expected(url: str) -> None:
    with pytest.raises(ValueError, match="penstock://"):
        make_options(url, None, None, None, "", "", 5, 30)


@pytest.mark.parametrize("url", ["http://key:topsecret@host", "key:topsecret@host", "penstock:/key:top@secret@host"])
async def test_a_wrong_address_is_told_without_the_secret_in_it(url: str) -> None:
    with pytest.raises(ValueError, match="penstock://host:port") as raised:
        make_options(url, None, None, None, "", "", 5, 30)
    assert "secret" not in str(raised.value) and "host" in str(raised.value)


@pytest.mark.parametrize("seconds", [math.nan, -1.0])
async def test_a_timeout_is_a_number_of_seconds(seconds: float) -> None:
    for name in ("connect_timeout", "request_timeout"):
        with pytest.raises(ValueError, match=rf"{name} = .*; it must be a number of seconds"):
            AsyncClient(**{name: seconds})  # type: ignore[arg-type]


async def test_the_tls_scheme_alone_verifies_against_the_machines_authorities() -> None:
    tls = make_options("penstocks://host", None, None, None, "", "", 5, 30).tls
    assert tls is not None
    assert tls.verify_mode == ssl.CERT_REQUIRED and tls.check_hostname


async def test_secrets_do_not_show_in_the_options_text() -> None:
    assert "hush" not in repr(make_options("penstock://key:hush@host", None, None, None, "", "", 5, 30))


# Ctrl-C


@pytest.mark.parametrize("anyio_backend", ["trio"])  # asyncio cancels the main task, wherever a Ctrl-C meets it
def test_a_ctrl_c_that_meets_the_connection_at_work_leaves_it_for_cleanup(broker: FakeBroker, anyio_backend: str) -> None:
    del anyio_backend

    async def interrupted() -> None:
        async with AsyncClient(broker.url, request_timeout=10) as client:
            try:
                await client.ping()
                client.link.after_pause(lambda: signal.raise_signal(signal.SIGINT))
                await trio.sleep_forever()
            finally:
                with trio.move_on_after(10, shield=True):
                    await client.queue("jobs").send(b"cleaned up")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have ignored it
    try:
        with pytest.raises(KeyboardInterrupt):
            trio.run(interrupted)
    finally:
        signal.signal(signal.SIGINT, before)
    assert broker.queue("jobs").bodies == [b"cleaned up"]
