"""A name belongs to one resource.

Earlier, a create whose outcome was unknown and the one after it could leave two rows of one name, of which only the newer one
was ever seen. The older ones get names of their own here, with their messages: whoever misses nothing deletes them.
"""

from __future__ import annotations

import logging

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

logger = logging.getLogger("penstock_storage.migrations")  # Alembic gives this module a name of its own

NAME = ("account", "region", "kind", "name")
NAME_LENGTH = 80


def upgrade() -> None:
    """Renames what is there twice, then lets it not happen again."""
    resources = sa.table("resources", *(sa.column(column) for column in (*NAME, "slot", "resource_id")))
    connection = op.get_bind()
    name = [resources.c[column] for column in NAME]
    twice = connection.execute(sa.select(*name).group_by(*name).having(sa.func.count() > 1)).all()
    for row in twice:
        these = sa.and_(*(column == value for column, value in zip(name, row, strict=True)))
        ids = connection.execute(sa.select(resources.c.resource_id).where(these)).scalars()
        for resource_id in sorted(ids)[:-1]:
            new = another_name(row.name, resource_id)
            connection.execute(sa.update(resources).where(these, resources.c.resource_id == resource_id).values(name=new))
            logger.warning("the store had two resources of one name: the older %s %s is %s now", row.kind, row.name, new)
    op.create_index("resources_by_name", "resources", list(NAME), unique=True)


def another_name(name: str, resource_id: int) -> str:
    """What fits the rules of names, and is nobody's."""
    stem, dot, suffix = name.partition(".")
    ending = f"-older-{resource_id}{dot}{suffix}"
    return stem[: NAME_LENGTH - len(ending)] + ending
