"""Which jobs repeat one, found without a look at all: a job that goes is taken out of these.

Revision: 0004
Follows: 0003
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_index("ix_jobs_retry_of_id", "jobs", ["retry_of_id"])


def downgrade() -> None:
    op.drop_index("ix_jobs_retry_of_id", "jobs")
