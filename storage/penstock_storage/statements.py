"""The SQL of the hot paths, compiled once per database from SQLAlchemy constructs.

SQLAlchemy's own execution costs more per statement than SQLite does. So commits and loads of messages use the compiled
text with the driver's connection, and rows are plain tuples in the order that is written beside each statement; compiling
checks that order. What is rare is executed through SQLAlchemy as usual.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.compiler import SQLCompiler

from penstock_storage.schema import (
    credentials,
    deduplication,
    deliveries,
    fences,
    logs,
    quarantine,
    resources,
    segment_states,
    segments,
)

SEGMENT_HEAD = (
    segments.c.log_id,
    segments.c.due_ms,
    segments.c.first,
    segments.c.count,
    segments.c.size_bytes,
    segments.c.sent_ms,
    segments.c.head_checksum,
)
STATE = (
    segment_states.c.deleted,
    segment_states.c.deleted_count,
    segment_states.c.deleted_bytes,
    segment_states.c.checksum.label("state_checksum"),
)
LOCATED_WIDTH = len(SEGMENT_HEAD) + len(STATE)


def _insert(dialect: sa.Dialect, table: sa.Table) -> Any:
    # The two dialects' constructs have the same methods but no common base that types on_conflict_do_update.
    return postgresql.insert(table) if dialect.name == "postgresql" else sqlite.insert(table)


def _upsert(dialect: sa.Dialect, table: sa.Table) -> Any:
    insert = _insert(dialect, table)
    keys = [column.name for column in table.primary_key]
    return insert.on_conflict_do_update(
        index_elements=keys,
        set_={column.name: insert.excluded[column.name] for column in table.columns if column.name not in keys},
    )


def _text(dialect: sa.Dialect, statement: Any, *order: str) -> str:
    """The statement's SQL, after checking that its parameters come in the order given."""
    compiled = statement.compile(dialect=dialect, column_keys=list(order) if statement.is_insert else None)
    assert isinstance(compiled, SQLCompiler)
    if tuple(compiled.positiontup or ()) != order:
        raise AssertionError(f"parameters in the order {compiled.positiontup}, not {order}: {compiled}")
    return str(compiled)


@dataclasses.dataclass(frozen=True, slots=True)
class Statements:
    """SQL text for one dialect. The comment-like names in `compile_statements` give the order of parameters."""

    check_fence: str
    upsert_resource: str
    create_log: str
    delete_resource: str
    discard_log: str
    reserve: str
    trim: str
    swept: str
    forget_log: str
    insert_segment: str
    delete_segment: str
    rewrite_segment: str
    upsert_state: str
    delete_state: str
    upsert_delivery: str
    delete_delivery: str
    insert_deduplication: str
    forget_deduplication: str
    delete_deduplication: str
    upsert_credential: str
    delete_credential: str
    load_log: str
    load_totals: str
    load_states: str
    load_deliveries: str
    load_deduplication: str
    load_arrivals: str
    load_stream: str
    load_heads: str
    load_segments: str
    locate_segments: str
    load_segment_size: str
    load_quarantined: str
    insert_quarantine: str
    sweepable_logs: str
    sweepable_segments: str
    sweepable_states: str
    sweepable_deliveries: str
    sweepable_deduplication: str


def compile_statements(dialect: sa.Dialect) -> Statements:
    """Compiles everything for a dialect whose parameters are positional."""
    b = sa.bindparam
    zero, one = sa.literal_column("0", sa.BigInteger), sa.literal_column("1", sa.BigInteger)
    shared = dialect.name == "postgresql"

    living = sa.and_(logs.c.log_id == b("log_id"), logs.c.garbage == zero)
    fence: sa.Select[Any] = sa.select(one.label("held")).where(
        fences.c.node == b("node"), fences.c.incarnation == b("incarnation")
    )
    if shared:
        # No row must make the statement fail, not merely return nothing: COMMIT is already on its way behind it.
        held = fence.with_for_update(read=True).subquery()
        fence = sa.select((one / sa.func.count()).label("held")).select_from(held)

    seg, state = segments.c, segment_states.c
    stated = segments.outerjoin(segment_states, sa.and_(state.log_id == seg.log_id, state.first == seg.first))
    alive = sa.and_(logs.c.log_id == seg.log_id, logs.c.garbage == zero)
    with_state = stated.join(logs, sa.and_(alive, seg.first >= logs.c.trimmed))
    # The sum keeps SQLite from walking the index from the trim point on instead of looking each number up.
    by_number = stated.join(logs, sa.and_(alive, seg.first + zero >= logs.c.trimmed))
    located = sa.select(*SEGMENT_HEAD, *STATE).select_from(by_number)
    whole_columns = sa.select(*SEGMENT_HEAD, *STATE, seg.checksum, seg.payload)
    whole = whole_columns.select_from(with_state)

    taken = (
        sa.select(deliveries.c.number, deliveries.c.visible_ms, deliveries.c.checksum, deliveries.c.runs)
        .select_from(deliveries.join(logs, sa.and_(logs.c.log_id == deliveries.c.log_id, logs.c.garbage == zero)))
        .where(
            deliveries.c.log_id == b("log_id"),
            deliveries.c.number > b("after"),
            deliveries.c.number >= logs.c.trimmed,
        )
        .order_by(deliveries.c.number)
    )
    taken_limit: tuple[str, ...] = ()

    if shared:
        taken, taken_limit = taken.limit(b("limit", type_=sa.BigInteger)), ("limit",)
        # The driver fetches whole results, so the limit on bytes has to be the server's.
        candidates = (
            sa.select(seg.due_ms, seg.first, sa.func.octet_length(seg.payload).label("length"))
            .select_from(segments.join(logs, sa.and_(logs.c.log_id == seg.log_id, seg.first >= logs.c.trimmed)))
            .where(
                seg.log_id == b("log_id"),
                sa.tuple_(seg.due_ms, seg.first)
                > sa.tuple_(b("after_due_ms", type_=sa.BigInteger), b("after_first", type_=sa.BigInteger)),
                seg.due_ms <= b("until_due_ms"),
            )
            .order_by(seg.due_ms, seg.first)
            .limit(b("max_segments", type_=sa.BigInteger))
            .cte("candidates")
        )
        summed = sa.func.sum(candidates.c.length).over(order_by=(candidates.c.due_ms, candidates.c.first))
        chosen = sa.select(candidates.c.due_ms, candidates.c.first, (summed - candidates.c.length).label("before")).cte("chosen")
        arrivals = (
            whole.join(chosen, sa.and_(chosen.c.due_ms == seg.due_ms, chosen.c.first == seg.first))
            .where(seg.log_id == b("same_log_id"), chosen.c.before < b("max_bytes", type_=sa.BigInteger))
            .order_by(seg.due_ms, seg.first)
        )
        arrival_order: tuple[str, ...] = (
            "log_id", "after_due_ms", "after_first", "until_due_ms", "max_segments", "same_log_id", "max_bytes",
        )  # fmt: skip
        these_firsts = seg.first == sa.func.any(b("firsts", type_=postgresql.ARRAY(sa.BigInteger)))
    else:
        # SQLite's cursor goes on only as far as it is read.
        arrivals = whole.where(
            seg.log_id == b("log_id"),
            sa.tuple_(seg.due_ms, seg.first)
            > sa.tuple_(b("after_due_ms", type_=sa.BigInteger), b("after_first", type_=sa.BigInteger)),
            seg.due_ms <= b("until_due_ms"),
        ).order_by(seg.due_ms, seg.first)
        arrival_order = ("log_id", "after_due_ms", "after_first", "until_due_ms")
        these_firsts = seg.first.in_(sa.select(sa.func.json_each(b("firsts", type_=sa.Text)).table_valued("value").c.value))

    # A scalar that is computed once, rather than a join: so it bounds the walk along segments_by_first in every plan.
    earlier = segments.alias("earlier")
    reached = sa.select(sa.func.max(earlier.c.first)).where(
        earlier.c.log_id == logs.c.log_id,
        earlier.c.first <= b("same_position", type_=sa.BigInteger),
        earlier.c.first >= logs.c.trimmed,
    )
    start = sa.select(sa.func.coalesce(reached.scalar_subquery(), logs.c.trimmed)).where(
        logs.c.log_id == b("same_log_id"), logs.c.garbage == zero
    )
    from_start = sa.and_(seg.log_id == b("log_id"), seg.first >= start.scalar_subquery())
    heads = sa.select(*SEGMENT_HEAD).where(from_start).order_by(seg.first)
    # The segment at the start may end before the position. Its head comes all the same, to be verified: its count may be
    # what has decayed. Nothing here can overflow, whatever the count is.
    contains = b("position", type_=sa.BigInteger) - seg.first < seg.count
    stream: sa.Select[Any] = (
        sa.select(*SEGMENT_HEAD, seg.checksum, sa.case((contains, seg.payload)).label("payload"))
        .where(from_start)
        .order_by(seg.first)
    )
    heads_order: tuple[str, ...] = ("log_id", "same_position", "same_log_id")
    stream_order: tuple[str, ...] = ("position", "log_id", "same_position", "same_log_id")
    if shared:
        later = seg.first > b("after", type_=sa.BigInteger)
        heads = heads.where(later).limit(b("max_segments", type_=sa.BigInteger))
        rows = stream.where(later).limit(b("max_segments", type_=sa.BigInteger)).subquery("rows")
        length = sa.func.coalesce(sa.func.octet_length(rows.c.payload), zero)
        page = sa.select(rows, (sa.func.sum(length).over(order_by=rows.c.first) - length).label("before")).subquery("page")
        stream = (
            sa.select(*(page.c[column.name] for column in rows.c))
            .where(page.c.before < b("max_bytes", type_=sa.BigInteger))
            .order_by(page.c.first)
        )
        heads_order += ("after", "max_segments")
        stream_order += ("after", "max_segments", "max_bytes")

    def upsert(table: sa.Table) -> str:
        return _text(dialect, _upsert(dialect, table), *(column.name for column in table.columns))

    def insert(table: sa.Table) -> str:
        return _text(dialect, _insert(dialect, table), *(column.name for column in table.columns))

    def text(statement: Any, *order: str) -> str:
        return _text(dialect, statement, *order)

    def sweepable(table: sa.Table, number: Any, *key: Any) -> str:
        chosen = sa.select(table.c.log_id, *key).where(table.c.log_id == b("log_id"), number < b("before"))
        # Not .limit(): the SQLite dialect adds an OFFSET parameter of its own.
        limit = sa.text("LIMIT :room").bindparams(sa.bindparam("room", type_=sa.BigInteger))
        return text(chosen.suffix_with(limit), "log_id", "before", "room")

    return Statements(
        check_fence=text(fence, "node", "incarnation"),
        upsert_resource=upsert(resources),
        create_log=text(
            _insert(dialect, logs).on_conflict_do_nothing(index_elements=["log_id"]),
            "log_id", "slot", "reserved", "trimmed", "swept", "garbage",
        ),
        delete_resource=text(
            sa.delete(resources).where(resources.c.slot == b("slot"), resources.c.resource_id == b("resource_id")),
            "slot", "resource_id",
        ),
        discard_log=text(sa.update(logs).where(logs.c.log_id == b("b_log_id")).values(garbage=one), "b_log_id"),
        reserve=text(
            sa.update(logs)
            .where(logs.c.log_id == b("b_log_id"), logs.c.reserved < b("same"))
            .values(reserved=b("bound")),
            "bound", "b_log_id", "same",
        ),
        trim=text(
            sa.update(logs)
            .where(logs.c.log_id == b("b_log_id"), logs.c.trimmed < b("same"))
            .values(trimmed=b("bound")),
            "bound", "b_log_id", "same",
        ),
        swept=text(
            sa.update(logs).where(logs.c.log_id == b("b_log_id")).values(swept=b("bound")), "bound", "b_log_id"
        ),
        forget_log=text(
            sa.delete(logs).where(logs.c.log_id == b("log_id"), logs.c.garbage == one), "log_id"
        ),
        insert_segment=insert(segments),
        delete_segment=text(
            sa.delete(segments).where(
                seg.log_id == b("log_id"), seg.due_ms == b("due_ms"), seg.first == b("first")
            ),
            "log_id", "due_ms", "first",
        ),
        rewrite_segment=text(
            sa.update(segments)
            .where(
                seg.log_id == b("b_log_id"), seg.due_ms == b("b_due_ms"), seg.first == b("b_first"),
                seg.count == b("b_count"),
            )
            .values(
                size_bytes=b("b_size_bytes"), sent_ms=b("b_sent_ms"), head_checksum=b("b_head_checksum"),
                checksum=b("b_checksum"), payload=b("b_payload"),
            ),
            "b_size_bytes", "b_sent_ms", "b_head_checksum", "b_checksum", "b_payload",
            "b_log_id", "b_due_ms", "b_first", "b_count",
        ),
        upsert_state=upsert(segment_states),
        delete_state=text(
            sa.delete(segment_states).where(state.log_id == b("log_id"), state.first == b("first")),
            "log_id", "first",
        ),
        upsert_delivery=upsert(deliveries),
        delete_delivery=text(
            sa.delete(deliveries).where(deliveries.c.log_id == b("log_id"), deliveries.c.number == b("number")),
            "log_id", "number",
        ),
        insert_deduplication=insert(deduplication),
        forget_deduplication=text(
            sa.delete(deduplication).where(
                deduplication.c.log_id == b("log_id"), deduplication.c.at_ms < b("before_ms")
            ),
            "log_id", "before_ms",
        ),
        delete_deduplication=text(
            sa.delete(deduplication).where(
                deduplication.c.log_id == b("log_id"), deduplication.c.at_ms == b("at_ms"),
                deduplication.c.number == b("number"),
            ),
            "log_id", "at_ms", "number",
        ),
        upsert_credential=upsert(credentials),
        delete_credential=text(sa.delete(credentials).where(credentials.c.key_id == b("key_id")), "key_id"),
        load_log=text(sa.select(logs.c.reserved, logs.c.trimmed).where(living), "log_id"),
        load_totals=text(
            sa.select(
                sa.func.sum(seg.count), sa.func.sum(seg.size_bytes),
                sa.func.sum(sa.case((seg.due_ms > b("now_ms"), seg.count), else_=zero)),
                sa.func.max(seg.due_ms),
            ).where(seg.log_id == b("log_id"), seg.first >= b("trimmed")),
            "now_ms", "log_id", "trimmed",
        ),
        load_states=text(
            sa.select(
                state.first, state.deleted_count, state.deleted_bytes, state.checksum, state.deleted, seg.due_ms
            )
            .select_from(
                segment_states.outerjoin(segments, sa.and_(state.log_id == seg.log_id, state.first == seg.first))
            )
            .where(state.log_id == b("log_id"), state.first >= b("trimmed")),
            "log_id", "trimmed",
        ),
        load_deliveries=text(taken, "log_id", "after", *taken_limit),
        load_deduplication=text(
            sa.select(
                deduplication.c.at_ms, deduplication.c.number, deduplication.c.checksum, deduplication.c.entries
            )
            .select_from(
                deduplication.join(logs, sa.and_(logs.c.log_id == deduplication.c.log_id, logs.c.garbage == zero))
            )
            .where(deduplication.c.log_id == b("log_id"), deduplication.c.at_ms >= b("since_ms"))
            .order_by(deduplication.c.at_ms, deduplication.c.number),
            "log_id", "since_ms",
        ),
        load_arrivals=text(arrivals, *arrival_order),
        load_stream=text(stream, *stream_order),
        load_heads=text(heads, *heads_order),
        load_segments=text(
            whole_columns.select_from(by_number).where(seg.log_id == b("log_id"), these_firsts), "log_id", "firsts"
        ),
        locate_segments=text(located.where(seg.log_id == b("log_id"), these_firsts), "log_id", "firsts"),
        load_segment_size=text(
            sa.select(seg.count, seg.size_bytes).where(
                seg.log_id == b("log_id"), seg.due_ms == b("due_ms"), seg.first == b("first")
            ),
            "log_id", "due_ms", "first",
        ),
        load_quarantined=text(
            sa.select(quarantine.c.kind, quarantine.c.key_1, quarantine.c.key_2).where(
                quarantine.c.log_id == b("log_id")
            ),
            "log_id",
        ),
        insert_quarantine=text(
            _insert(dialect, quarantine).on_conflict_do_nothing(
                index_elements=[column.name for column in quarantine.primary_key]
            ),
            *(column.name for column in quarantine.columns),
        ),
        sweepable_logs=text(
            sa.select(logs.c.log_id, logs.c.trimmed, logs.c.garbage).where(
                sa.or_(logs.c.garbage == one, logs.c.trimmed > logs.c.swept)
            )
        ),
        sweepable_segments=sweepable(segments, seg.first, seg.due_ms, seg.first),
        sweepable_states=sweepable(segment_states, state.first, state.first),
        sweepable_deliveries=sweepable(deliveries, deliveries.c.number, deliveries.c.number),
        sweepable_deduplication=sweepable(
            deduplication, deduplication.c.number, deduplication.c.at_ms, deduplication.c.number
        ),
    )  # fmt: skip
