"""Fair queues: a group id on a standard queue names a tenant, and quiet tenants are served before noisy ones (SEMANTICS 2.1)."""

from __future__ import annotations

from collections import Counter

from penstock_broker.queues import limits

from tests.model.bench import Bench, bodies_of, receipts_of


def _queue(**backlog: int) -> Bench:
    bench = Bench()
    for tenant, count in backlog.items():
        _send(bench, tenant, count)
    return bench


def _send(bench: Bench, tenant: str, count: int) -> None:
    group = None if tenant == "none" else tenant
    bench.send(*[tenant.encode()] * count, groups=[group] * count)
    bench.commit()


def _served(bench: Bench, most: int) -> list[str]:
    return [body.decode() for body in bodies_of(bench.receive(most, visibility_ms=3_600_000))]


def _make_noisy(bench: Bench, tenant: str, in_flight: int = 60) -> None:
    _send(bench, tenant, in_flight)
    assert Counter(_served(bench, in_flight)) == {tenant: in_flight}


def test_tenants_take_turns_while_all_are_quiet() -> None:
    bench = _queue(a=5, b=5, c=5)
    assert [Counter(_served(bench, 1) + _served(bench, 1) + _served(bench, 1)) for _ in range(5)] == [Counter("abc")] * 5


def test_a_quiet_tenant_that_comes_late_is_served_before_a_noisy_ones_backlog() -> None:
    bench = _queue()
    _make_noisy(bench, "noisy")
    _send(bench, "noisy", 500)
    _send(bench, "quiet", 3)
    assert _served(bench, 1) + _served(bench, 1) + _served(bench, 1) == ["quiet"] * 3
    assert _served(bench, 1) == ["noisy"], "when no quiet one waits"


def test_a_tenant_with_few_messages_in_flight_is_never_noisy() -> None:
    bench = _queue()
    _make_noisy(bench, "busy", limits.NOISY_IN_FLIGHT - 1)
    _send(bench, "busy", 10)
    _send(bench, "quiet", 10)
    served = Counter(name for _ in range(10) for name in _served(bench, 1))
    assert served["busy"] >= 1


def test_a_tenant_with_a_tenth_of_all_in_flight_or_less_is_not_noisy() -> None:
    bench = _queue()
    for number in range(10):
        _make_noisy(bench, f"t{number}", 40)
    for number in range(10):
        _send(bench, f"t{number}", 1)
    assert len(set(_served(bench, 10))) == 10, "each has a tenth: all take turns"


def test_among_noisy_ones_the_least_in_flight_comes_first() -> None:
    bench = _queue()
    _make_noisy(bench, "loud", 90)
    _make_noisy(bench, "louder", 200)
    _send(bench, "louder", 5)
    _send(bench, "loud", 5)
    assert _served(bench, 1) == ["loud"]


def test_messages_without_a_group_are_one_more_quiet_participant() -> None:
    bench = _queue()
    _make_noisy(bench, "noisy")
    _send(bench, "noisy", 100)
    bench.send(*[b"none"] * 5)
    bench.commit()
    assert [name for _ in range(5) for name in _served(bench, 1)] == ["none"] * 5


def test_noise_ends_when_nothing_of_it_is_left() -> None:
    bench = _queue()
    _send(bench, "noisy", 60)
    deliveries = bench.receive(60)
    bench.delete(*[receipt for delivery in deliveries for receipt in receipts_of(delivery)])
    _send(bench, "noisy", 2)
    _send(bench, "quiet", 2)
    assert set(_served(bench, 1) + _served(bench, 1)) == {"noisy", "quiet"}


def test_nobody_waits_for_ever_behind_quiet_ones_that_have_nothing() -> None:
    bench = _queue()
    _make_noisy(bench, "noisy")
    _send(bench, "noisy", 40)
    assert len(_served(bench, 40)) == 40


def _work_for(bench: Bench, tenants: dict[str, int], minutes: int) -> None:
    """So many messages of each are received together, and deleted after that time."""
    for tenant, count in tenants.items():
        _send(bench, tenant, count)
    deliveries = bench.receive(sum(tenants.values()), visibility_ms=3_600_000)
    bench.commit()
    bench.now_ms += minutes * limits.MINUTE_MS
    bench.delete(*[receipt for delivery in deliveries for receipt in receipts_of(delivery)])
    bench.commit()


def _is_slow(bench: Bench) -> bool:
    """Whether the tenant `slow` is passed over for one that came later."""
    _send(bench, "slow", 1)
    _send(bench, "other", 1)
    return _served(bench, 1) == ["other"]


def test_a_small_part_of_all_processing_time_is_no_noise_also_when_most_of_it_had_no_group() -> None:
    for others in ("none", "many"):
        for count, slow in ((4, False), (400, True)):
            bench = _queue()
            _send(bench, "slow", 1)
            assert _served(bench, 1) == ["slow"], "it is in flight, so that the tenant is not forgotten"
            _work_for(bench, {"slow": count, others: 900}, minutes=20)
            assert _is_slow(bench) == slow


def test_a_noisy_tenant_is_quiet_again_when_it_has_sent_nothing_for_five_minutes() -> None:
    for pause_ms, first in ((limits.NOISE_LASTS_MS - 1, "quiet"), (limits.NOISE_LASTS_MS, "noisy")):
        bench = _queue()
        _send(bench, "noisy", 65)
        assert len(_served(bench, 60)) == 60
        bench.now_ms += pause_ms
        _send(bench, "quiet", 1)
        assert _served(bench, 1) == [first]


def test_a_tenant_goes_on_being_noisy_while_it_sends_although_its_messages_stay_in_the_store() -> None:
    bench = _queue()
    _send(bench, "noisy", 65)
    assert len(_served(bench, 60)) == 60
    bench.queue._more = True  # (as if older messages were in the store only)
    bench.now_ms += limits.NOISE_LASTS_MS
    _send(bench, "noisy", 1)
    _send(bench, "quiet", 1)
    assert _served(bench, 1) == ["quiet"]
