"""Kinesalite, an emulator of Kinesis on LevelDB: boto3, which is how applications speak to Kinesis.

Batches: PutRecords of 500, its limit, from 4 threads. Singles pipelined: PutRecord from 16 threads. Read back: GetRecords of
10,000. LevelDB is not told to sync: what is answered survives a crash of the server, not a power cut. There is no tip to wait
at: readers of Kinesis poll.
"""

from __future__ import annotations

import itertools
import secrets
import time
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from benchmarks.meter import Meter, Work
from benchmarks.peer_redis import threads

SENDERS, SINGLES_SENDERS = 4, 16
KEYS = 10_000
ERRORS = (BotoCoreError, ClientError)


def _client(port: int) -> Any:
    return boto3.session.Session().client(
        "kinesis",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id="bench",
        aws_secret_access_key="bench",
        config=Config(parameter_validation=False, retries={"max_attempts": 0}),
    )


def prepare(port: int, work: Work) -> None:
    """Makes the stream and waits until it is there."""
    client = _client(port)
    client.create_stream(StreamName=work.queue, ShardCount=work.shards)
    while client.describe_stream_summary(StreamName=work.queue)["StreamDescriptionSummary"]["StreamStatus"] != "ACTIVE":
        time.sleep(0.05)


def append(meter: Meter, port: int, work: Work) -> None:
    """Puts records."""
    body = secrets.token_bytes(work.size_bytes)
    count = SENDERS if work.batch > 1 else SINGLES_SENDERS
    clients = [_client(port) for _ in range(count)]
    numbers = itertools.count()

    def loop(number: int) -> None:
        client = clients[number]
        while not meter.stopped:
            if work.batch > 1:
                records = [{"Data": body, "PartitionKey": f"key-{next(numbers) % KEYS}"} for _ in range(work.batch)]
                failed = client.put_records(StreamName=work.queue, Records=records)["FailedRecordCount"]
                meter.sent(work.batch - failed, number)
            else:
                client.put_record(StreamName=work.queue, Data=body, PartitionKey=f"key-{next(numbers) % KEYS}")
                meter.sent(1, number)

    meter.ready()
    threads(count, loop)


def read(meter: Meter, port: int, work: Work) -> None:
    """Reads the `total` records that are there, again and again."""
    client = _client(port)
    (shard,) = client.list_shards(StreamName=work.queue)["Shards"]
    meter.ready()
    while not meter.stopped:
        place = {"StreamName": work.queue, "ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON"}
        iterator, count = client.get_shard_iterator(**place)["ShardIterator"], 0
        while count < work.total and not meter.stopped:
            reply = client.get_records(ShardIterator=iterator, Limit=10_000)
            iterator = reply["NextShardIterator"]
            count += len(reply["Records"])
            meter.done(len(reply["Records"]))
