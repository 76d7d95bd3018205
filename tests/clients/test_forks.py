"""Forks: prefork servers and task queues import an application, client and all, and fork then."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from tests.clients.fake_broker import FakeBroker

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def run(script: str, *arguments: str) -> str:
    """What a script prints; a process of its own, for this one has threads of all kinds. It must end, and well."""
    flags = ("-W", "error", "-W", "ignore:.*fork.*:DeprecationWarning")
    command = [sys.executable, *flags, "-c", textwrap.dedent(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_a_client_goes_on_in_parent_and_children_whatever_its_threads_were_doing(broker: FakeBroker) -> None:
    script = """
        import os, sys, threading
        from penstock import Client

        with Client(sys.argv[1]) as client:
            queue = client.queue("jobs")
            go_on = True

            def send(number):
                turn = 0
                while go_on:
                    queue.send(f"parent/{number}/{turn}")
                    turn += 1

            threads = [threading.Thread(target=send, args=[number]) for number in range(4)]
            for thread in threads:
                thread.start()
            children = []
            for child in range(10):
                pid = os.fork()
                if not pid:
                    for turn in range(20):
                        queue.send(f"child/{child}/{turn}")
                    client.close()
                    os._exit(0)
                children.append(pid)
            assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 10
            queue.send("last")
            go_on = False
            for thread in threads:
                thread.join()
    """
    run(script, broker.url)
    bodies = broker.queue("jobs").bodies
    assert len(set(bodies)) == len(bodies)
    assert {body for body in bodies if body.startswith(b"child")} == {
        b"child/%d/%d" % (child, turn) for child in range(10) for turn in range(20)
    }
    assert b"last" in bodies
    producers = {one.message.producer for one in broker.seen if one.operation == "Hello"}
    assert len(producers) == 11


def test_a_client_made_before_the_workers_were_forked_has_no_threads_to_lose(broker: FakeBroker) -> None:
    script = """
        import multiprocessing, sys, threading
        from penstock import Client

        client = Client(sys.argv[1])
        queue = client.queue("jobs")
        assert threading.active_count() == 1

        def task(number):
            queue.send(str(number))

        if __name__ == "__main__":
            with multiprocessing.get_context("fork").Pool(3) as pool:
                pool.map(task, range(30))
    """
    run(script, broker.url)
    assert sorted(map(int, broker.queue("jobs").bodies)) == list(range(30))


def test_a_child_deletes_what_the_parent_received_and_leaves_its_consumer_alone(broker: FakeBroker) -> None:
    broker.queue("jobs")
    script = """
        import os, sys
        from penstock import Client, ClientClosed

        with Client(sys.argv[1]) as client:
            queue = client.queue("jobs")
            queue.send_many([b"received", b"pushed", b"pushed too"])
            [message] = queue.receive()
            with queue.consume() as messages:
                first = messages.next()
                pid = os.fork()
                if not pid:
                    message.delete()
                    try:
                        messages.next()
                    except ClientClosed as error:
                        print(error, flush=True)
                    messages.close()
                    client.close()
                    os._exit(0)
                assert os.waitpid(pid, 0)[1] == 0
                first.delete()
                assert messages.next().body == b"pushed too"
    """
    assert "after the fork" in run(script, broker.url)
    assert broker.queue("jobs").visible == [b"pushed too"]
    assert broker.connections == 2


def test_an_asynchronous_client_says_in_a_child_what_to_do(broker: FakeBroker) -> None:
    script = """
        import os, sys
        import trio
        from penstock import AsyncClient, ClientClosed

        async def main():
            async with AsyncClient(sys.argv[1]) as client:
                queue = client.queue("jobs")
                await queue.send(b"parent")
                pid = os.fork()
                if not pid:
                    try:
                        queue.send(b"child").send(None)
                    except ClientClosed as error:
                        print(error, flush=True)
                    os._exit(0)
                assert os.waitpid(pid, 0)[1] == 0
                await queue.send(b"parent still")

        trio.run(main)
    """
    assert "make a new one here" in run(script, broker.url)
    assert broker.queue("jobs").bodies == [b"parent", b"parent still"]


def test_a_client_that_was_closed_before_the_fork_stays_closed(broker: FakeBroker) -> None:
    script = """
        import os, sys
        from penstock import Client, ClientClosed

        client = Client(sys.argv[1])
        client.ping()
        client.close()
        pid = os.fork()
        if not pid:
            try:
                client.ping()
            except ClientClosed:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
    """
    run(script, broker.url)


def test_a_connection_imports_nothing_for_a_fork_in_that_moment_leaves_an_import_that_never_ends(broker: FakeBroker) -> None:
    script = """
        import sys
        from penstock import Client

        before = set(sys.modules)
        with Client(sys.argv[1]) as client:
            queue = client.queue("jobs")
            queue.send("x")
            for message in queue.receive():
                message.delete()
        print(sorted(set(sys.modules) - before))
    """
    assert run(script, broker.url) == "[]\n"
