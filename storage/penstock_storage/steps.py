"""Turns a Commit into statements with rows, checksums included. The hot path of every send, receive and delete."""

from __future__ import annotations

from penstock_storage import checksum
from penstock_storage.database import Step
from penstock_storage.interface import Commit
from penstock_storage.slots import slot_of
from penstock_storage.statements import Statements


def adds(commit: Commit) -> bool:
    """Whether it stores something new. All else shrinks the store or keeps what is there usable."""
    return bool(commit.insert_segments or commit.insert_deduplication or commit.upsert_resources or commit.upsert_credentials)


def steps_of(statements: Statements, commit: Commit) -> list[Step]:
    """The commit's statements, in the order of its fields."""
    steps: list[Step] = []
    add = steps.append
    if commit.upsert_resources:
        resources = commit.upsert_resources
        add(
            (
                statements.upsert_resource,
                [
                    (slot_of(r.log_id), r.resource_id, r.account, r.region, r.kind, r.name, r.log_id, r.attributes,
                     r.version, r.created_ms, r.modified_ms)
                    for r in resources
                ],
            )
        )  # fmt: skip
        add((statements.create_log, [(r.log_id, slot_of(r.log_id), 0, 0, 0, 0) for r in resources]))
    if commit.delete_resources:
        gone = commit.delete_resources
        add((statements.delete_resource, [(slot_of(r.log_id), r.resource_id) for r in gone]))
        add((statements.discard_log, [(r.log_id,) for r in gone]))
    if commit.reservations:
        add((statements.reserve, [(bound, log_id, bound) for log_id, bound in commit.reservations]))
    if commit.trims:
        add((statements.trim, [(bound, log_id, bound) for log_id, bound in commit.trims]))
    if commit.insert_segments:
        rows = []
        for s in commit.insert_segments:
            payload = _payload(s.payload)
            head = checksum.segment_head(s.log_id, s.due_ms, s.first, s.count, s.size_bytes, s.sent_ms)
            rows.append(
                (s.log_id, s.due_ms, s.first, s.count, s.size_bytes, s.sent_ms, head,
                 checksum.segment(head, payload), payload)
            )  # fmt: skip
        add((statements.insert_segment, rows))
    if commit.delete_segments:
        add((statements.delete_segment, [(k.log_id, k.due_ms, k.first) for k in commit.delete_segments]))
    if commit.rewrites:
        changes = []
        for s in commit.rewrites:
            payload = _payload(s.payload)
            head = checksum.segment_head(s.log_id, s.due_ms, s.first, s.count, s.size_bytes, s.sent_ms)
            changes.append(
                (s.size_bytes, s.sent_ms, head, checksum.segment(head, payload), payload,
                 s.log_id, s.due_ms, s.first, s.count)
            )  # fmt: skip
        add((statements.rewrite_segment, changes))
    if commit.upsert_states:
        add(
            (
                statements.upsert_state,
                [
                    (s.log_id, s.first, s.deleted_count, s.deleted_bytes,
                     checksum.state(s.log_id, s.first, s.deleted_count, s.deleted_bytes, s.deleted), s.deleted)
                    for s in commit.upsert_states
                ],
            )
        )  # fmt: skip
    if commit.delete_states:
        add((statements.delete_state, commit.delete_states))
    if commit.upsert_deliveries:
        add(
            (
                statements.upsert_delivery,
                [
                    (d.log_id, d.number, d.visible_ms,
                     checksum.delivery(d.log_id, d.number, d.visible_ms, d.runs), d.runs)
                    for d in commit.upsert_deliveries
                ],
            )
        )  # fmt: skip
    if commit.delete_deliveries:
        add((statements.delete_delivery, commit.delete_deliveries))
    if commit.insert_deduplication:
        add(
            (
                statements.insert_deduplication,
                [
                    (d.log_id, d.at_ms, d.number,
                     checksum.deduplication(d.log_id, d.at_ms, d.number, d.entries), d.entries)
                    for d in commit.insert_deduplication
                ],
            )
        )  # fmt: skip
    if commit.forget_deduplication:
        add((statements.forget_deduplication, commit.forget_deduplication))
    if commit.upsert_credentials:
        add(
            (
                statements.upsert_credential,
                [(c.key_id, c.account, c.role, c.description, c.sealed_secret, c.created_ms) for c in commit.upsert_credentials],
            )
        )
    if commit.delete_credentials:
        add((statements.delete_credential, [(key_id,) for key_id in commit.delete_credentials]))
    return steps


def _payload(payload: bytes | None) -> bytes:
    if payload is None:
        raise ValueError("a segment that was loaded without its payload cannot be written")
    return payload
