"""When a job may be tried again that a machine has failed; jobs for `auto` ask for no device.

Revision: 0005
Follows: 0004
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("not_before", sa.DateTime(timezone=True), nullable=True))
    # Revision 0002 took the wish from the request as it stood; no queue is called `auto`.
    op.execute("UPDATE jobs SET device = NULL WHERE device NOT IN ('cpu', 'cuda')")


def downgrade() -> None:
    op.drop_column("jobs", "not_before")
