"""Streams through the blocking client: the same, with threads that share it, and after a fork."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from penstock import Client, Producer, PutFailed, PutResult, Reader, Stream
from penstock.errors import StreamDoesNotExist

from tests.clients.fake_broker import AFTER, BEFORE, HOLD
from tests.clients.fake_streams import StreamBroker
from tests.clients.test_forks import run


@pytest.fixture
def broker() -> Iterator[StreamBroker]:
    """A fake broker with the streams one (of one shard) and eight."""
    with StreamBroker() as fake:
        fake.stream("one")
        fake.stream("eight", 8)
        yield fake
        assert fake.violations == []


def test_records_make_their_round(broker: StreamBroker) -> None:
    with Client(broker.url) as client:
        stream = client.create_stream("round", 2)
        assert isinstance(stream, Stream) and client.stream("round") is stream
        result = stream.put("one", "k")
        assert result == PutResult(result.shard, 0)
        assert stream.put_many([(b"two", "k"), (b"three", "k")])[1] == PutResult(result.shard, 2)
        with stream.producer() as producer:
            assert isinstance(producer, Producer)
            producer.put(b"four", "k")
        with stream.read(result.shard, ("at", 1), idle_seconds=0) as reader:
            assert isinstance(reader, Reader)
            assert [record.text for batch in reader for record in batch] == ["two", "three", "four"]
        assert [record.sequence for batch in stream.tail("trim_horizon", idle_seconds=0) for record in batch] == [0, 1, 2, 3]
        assert list(client.streams()) == ["eight", "one", "round"]
        client.delete_stream("round")
        with pytest.raises(StreamDoesNotExist):
            stream.describe()


def test_puts_of_many_threads_travel_together(broker: StreamBroker) -> None:
    broker.fault("PutRecords", *[HOLD] * 4)
    with Client(broker.url) as client, ThreadPoolExecutor(64) as pool:
        stream = client.stream("one")
        stream.shard_map.get()
        first = [pool.submit(stream.put, b"first", "k") for _ in range(4)]
        broker.wait_until(lambda: len(broker.asked("PutRecords")) == 4)
        rest = [pool.submit(stream.put, b"%d" % number, "k") for number in range(60)]
        while len(stream._lanes._lane(0).open) < 60:
            threading.Event().wait(0.001)
        broker.release_held()
        results = [one.result().sequence for one in (*first, *rest)]
    assert sorted(results) == list(range(64))
    assert [message.count for message in broker.asked("PutRecords")] == [1, 1, 1, 1, 60]
    records = broker.stream("one").records
    assert [records[sequence][0] for sequence in results[4:]] == [b"%d" % number for number in range(60)]


def test_threads_that_share_a_stream_lose_and_double_nothing_over_lost_connections_and_splits(broker: StreamBroker) -> None:
    broker.fault("PutRecords", AFTER, BEFORE, AFTER)

    def work(number: int) -> None:
        for turn in range(50):
            stream.put(b"%d/%d" % (number, turn), f"key {number}")
            if (number, turn) in ((0, 10), (1, 20)):
                broker.split("one", number)

    with Client(broker.url) as client, ThreadPoolExecutor(16) as pool:
        stream = client.stream("one")
        stream.put(b"before", "k")
        for one in [pool.submit(work, number) for number in range(16)]:
            one.result()
        for number in range(16):
            found = [data for data, key in broker.stream("one").records if key == f"key {number}"]
            assert found == [b"%d/%d" % (number, turn) for turn in range(50)]


def test_threads_share_a_producer_and_its_failures_are_told_once(broker: StreamBroker) -> None:
    with Client(broker.url) as client, ThreadPoolExecutor(8) as pool:
        with client.stream("eight").producer(max_records=50, linger=0.001, buffer_bytes=10_000) as producer:

            def work(number: int) -> None:
                for turn in range(500):
                    producer.put(b"%d/%d" % (number, turn), f"key {number}")

            for one in [pool.submit(work, number) for number in range(8)]:
                one.result()
        assert (producer.delivered, producer.buffered_bytes) == (4_000, 0)
        for number in range(8):
            found = [data for data, key in broker.stream("eight").records if key == f"key {number}"]
            assert found == [b"%d/%d" % (number, turn) for turn in range(500)]
        broker.fault("PutRecords", StreamDoesNotExist())
        with pytest.raises(PutFailed) as raised, client.stream("one").producer() as producer:
            producer.put(b"x", "k")
        assert len(raised.value.records) == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "penstock-_keep_time"]


def test_closing_a_reader_in_another_thread_ends_who_waits(broker: StreamBroker) -> None:
    with Client(broker.url) as client, ThreadPoolExecutor(2) as pool:
        for close in ("reader", "client"):
            reader = client.stream("one").read(0)
            waiting = pool.submit(reader.next)
            broker.wait_until(lambda: broker.waiting_reads == 1)
            reader.close() if close == "reader" else client.close()
            assert waiting.result(10) is None
            broker.wait_until(lambda: broker.waiting_reads == 0)


def test_a_child_process_puts_through_its_own_connection_and_what_was_open_in_the_parent_says_so(broker: StreamBroker) -> None:
    script = """
        import os, sys
        from penstock import Client
        from penstock.errors import ClientClosed

        with Client(sys.argv[1]) as client:
            stream = client.stream("one")
            stream.put(b"parent", "k")
            reader = stream.read(0, idle_seconds=0)
            assert reader.next() is not None
            with stream.producer() as producer:
                pid = os.fork()
                if not pid:
                    stream.put(b"child", "k")
                    said = []
                    for use in (reader.next, lambda: producer.put(b"lost", "k")):
                        try:
                            use()
                        except ClientClosed as error:
                            said.append("fork" in str(error))
                    client.close()
                    os._exit(0 if said == [True, True] else 1)
                assert os.waitpid(pid, 0)[1] == 0
                producer.put(b"parent again", "k")
    """
    run(script, broker.url)
    assert [data for data, _ in broker.stream("one").records] == [b"parent", b"child", b"parent again"]
    assert broker.connections == 2
