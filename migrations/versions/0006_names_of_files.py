"""Whose file it is, found by its name: the store is compared with the rows again and again.

Revision: 0006
Follows: 0005
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

COLUMNS = (
    # First, as workers write: one that ends a job changes its row and then adds a model. In another
    # order each would wait for the other.
    ("jobs", "checkpoint_key"),
    ("models", "storage_key"),
    ("datasets", "storage_key"),
    ("artifacts", "storage_key"),
)


def upgrade() -> None:
    for table, column in COLUMNS:
        op.create_index(f"ix_{table}_{column}", table, [column])


def downgrade() -> None:
    for table, column in COLUMNS:
        op.drop_index(f"ix_{table}_{column}", table)
