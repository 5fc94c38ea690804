"""Tenants, keys, models, data sets, jobs and their story, workers.

Revision: 0001
Follows: nothing
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "0001"
down_revision: str | None = None
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

Id = sa.String(48)
Time = sa.DateTime(timezone=True)
Json: sa.types.TypeEngine[Any] = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "tenants",
        sa.Column("id", Id, nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("created_at", Time, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tenants"),
        sa.UniqueConstraint("name", name="uq_tenants_name"),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.String(200), nullable=False),
        sa.Column("hostname", sa.String(200), nullable=False),
        sa.Column("device", sa.String(40), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("started_at", Time, nullable=False),
        sa.Column("heartbeat_at", Time, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
    )
    op.create_index("ix_workers_heartbeat_at", "workers", ["heartbeat_at"])
    op.create_table(
        "api_keys",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("prefix", sa.String(20), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("scopes", Json, nullable=False),
        sa.Column("created_at", Time, nullable=False),
        sa.Column("expires_at", Time),
        sa.Column("last_used_at", Time),
        sa.Column("revoked_at", Time),
        _of_tenant("api_keys"),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("secret_sha256", name="uq_api_keys_secret_sha256"),
    )
    op.create_index("ix_api_keys_tenant_id", "api_keys", ["tenant_id"])
    op.create_table(
        "datasets",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("format", sa.String(20), nullable=False),
        sa.Column("filename", sa.String(255)),
        sa.Column("bytes", sa.BigInteger()),
        sa.Column("sha256", sa.String(64)),
        sa.Column("storage_key", sa.String(300)),
        sa.Column("reference", sa.String(2000)),
        sa.Column("class_names", Json),
        sa.Column("metadata", Json, nullable=False),
        sa.Column("created_at", Time, nullable=False),
        sa.Column("deleted_at", Time),
        _of_tenant("datasets"),
        sa.PrimaryKeyConstraint("id", name="pk_datasets"),
    )
    op.create_index("ix_datasets_tenant_id_id", "datasets", ["tenant_id", "id"])
    op.create_table(
        "idempotency_records",
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("status_code", sa.Integer()),
        sa.Column("headers", Json),
        sa.Column("body", Json),
        sa.Column("created_at", Time, nullable=False),
        sa.Column("expires_at", Time, nullable=False),
        _of_tenant("idempotency_records"),
        sa.PrimaryKeyConstraint("tenant_id", "key", name="pk_idempotency_records"),
    )
    op.create_index("ix_idempotency_records_expires_at", "idempotency_records", ["expires_at"])
    op.create_table(
        "models",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("filename", sa.String(255), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("storage_key", sa.String(300), nullable=False),
        sa.Column("options", Json, nullable=False),
        sa.Column("metadata", Json, nullable=False),
        sa.Column("source_job_id", Id),
        sa.Column("created_at", Time, nullable=False),
        sa.Column("deleted_at", Time),
        _of_tenant("models"),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
    )
    op.create_index("ix_models_tenant_id_id", "models", ["tenant_id", "id"])
    op.create_index("ix_models_source_job_id", "models", ["source_job_id"])
    op.create_table(
        "jobs",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("name", sa.String(200)),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("verdict", sa.String(20)),
        sa.Column("model_id", Id, nullable=False),
        sa.Column("clean_dataset_id", Id, nullable=False),
        sa.Column("evaluation_dataset_id", Id),
        sa.Column("request", Json, nullable=False),
        sa.Column("metadata", Json, nullable=False),
        sa.Column("retry_of_id", Id),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.String(200)),
        sa.Column("lease_expires_at", Time),
        sa.Column("sent_at", Time),
        sa.Column("stage", sa.String(20)),
        sa.Column("progress", sa.Float(), nullable=False),
        sa.Column("error_code", sa.String(60)),
        sa.Column("error_message", sa.Text()),
        sa.Column("error_data", Json),
        sa.Column("summary", Json),
        sa.Column("created_at", Time, nullable=False),
        sa.Column("started_at", Time),
        sa.Column("finished_at", Time),
        sa.Column("updated_at", Time, nullable=False),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled')",
            name=op.f("ck_jobs_status"),
        ),
        _of_tenant("jobs"),
        _foreign_key("jobs", "model_id", "models"),
        _foreign_key("jobs", "clean_dataset_id", "datasets"),
        _foreign_key("jobs", "evaluation_dataset_id", "datasets"),
        _foreign_key("jobs", "retry_of_id", "jobs", ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_tenant_id_id", "jobs", ["tenant_id", "id"])
    op.create_index("ix_jobs_status_lease_expires_at", "jobs", ["status", "lease_expires_at"])
    op.create_index("ix_jobs_model_id", "jobs", ["model_id"])
    op.create_index("ix_jobs_clean_dataset_id", "jobs", ["clean_dataset_id"])
    op.create_index("ix_jobs_evaluation_dataset_id", "jobs", ["evaluation_dataset_id"])
    # Models and jobs point at each other, so this one waits until both are there.
    with op.batch_alter_table("models") as models:
        models.create_foreign_key(
            "fk_models_source_job_id_jobs", "jobs", ["source_job_id"], ["id"], ondelete="SET NULL"
        )
    op.create_table(
        "artifacts",
        sa.Column("id", Id, nullable=False),
        sa.Column("job_id", Id, nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("media_type", sa.String(100), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("storage_key", sa.String(300), nullable=False),
        sa.Column("created_at", Time, nullable=False),
        _foreign_key("artifacts", "job_id", "jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_artifacts"),
        sa.UniqueConstraint("job_id", "name", name="uq_artifacts_job_id_name"),
    )
    op.create_table(
        "job_events",
        sa.Column("job_id", Id, nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("type", sa.String(20), nullable=False),
        sa.Column("data", Json, nullable=False),
        sa.Column("at", Time, nullable=False),
        _foreign_key("job_events", "job_id", "jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "sequence", name="pk_job_events"),
    )
    op.create_table(
        "job_metrics",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("job_id", Id, nullable=False),
        sa.Column("stage", sa.String(20), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("at", Time, nullable=False),
        _foreign_key("job_metrics", "job_id", "jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_job_metrics"),
    )
    op.create_index(
        "ix_job_metrics_job_id_stage_name_epoch",
        "job_metrics",
        ["job_id", "stage", "name", "epoch"],
        unique=True,
    )


def downgrade() -> None:
    for table in ("job_metrics", "job_events", "artifacts"):
        op.drop_table(table)
    with op.batch_alter_table("models") as models:
        models.drop_constraint("fk_models_source_job_id_jobs", type_="foreignkey")
    for table in ("jobs", "models", "idempotency_records", "datasets", "api_keys"):
        op.drop_table(table)
    op.drop_table("workers")
    op.drop_table("tenants")


def _of_tenant(table: str) -> sa.ForeignKeyConstraint:
    return _foreign_key(table, "tenant_id", "tenants", ondelete="CASCADE")


def _foreign_key(
    table: str, column: str, target: str, *, ondelete: str | None = None
) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        [column], [f"{target}.id"], name=f"fk_{table}_{column}_{target}", ondelete=ondelete
    )
