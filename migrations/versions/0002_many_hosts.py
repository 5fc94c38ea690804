"""What a job needs to move between hosts: its kind of device, its checkpoint, its trace.

Revision: 0002
Follows: 0001
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("device", sa.String(10), nullable=True))
    op.add_column("jobs", sa.Column("checkpoint_key", sa.String(300), nullable=True))
    op.add_column("jobs", sa.Column("checkpoint_sha256", sa.String(64), nullable=True))
    op.add_column("jobs", sa.Column("traceparent", sa.String(55), nullable=True))
    # Jobs that wait while this runs keep their wish for a device.
    if op.get_bind().dialect.name == "postgresql":
        op.execute("UPDATE jobs SET device = request ->> 'device'")
    else:
        op.execute("UPDATE jobs SET device = json_extract(request, '$.device')")


def downgrade() -> None:
    for column in ("traceparent", "checkpoint_sha256", "checkpoint_key", "device"):
        op.drop_column("jobs", column)
