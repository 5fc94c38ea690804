"""What finished jobs took, so that the next one can be estimated.

Revision: 0003
Follows: 0002
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

Id = sa.String(48)
Json: sa.types.TypeEngine[Any] = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "job_costs",
        sa.Column("job_id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("device", sa.String(10), nullable=False),
        sa.Column("architecture", sa.String(80), nullable=False),
        sa.Column("model_sha256", sa.String(64), nullable=False),
        sa.Column("measured", Json, nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_job_costs_job_id_jobs", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="fk_job_costs_tenant_id_tenants", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", name="pk_job_costs"),
    )
    for columns in (
        ["device", "job_id"],
        ["tenant_id", "device", "architecture", "job_id"],
        ["tenant_id", "model_sha256", "job_id"],
    ):
        op.create_index(f"ix_job_costs_{'_'.join(columns)}", "job_costs", columns)


def downgrade() -> None:
    op.drop_table("job_costs")
