"""The store's schema, step by step, for Alembic. A step that was released is never changed."""
