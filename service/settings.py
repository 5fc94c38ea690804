"""Settings of the service and the worker, read from `SANITIZER_DATABASE_URL` and so on."""

from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.db.session import SessionFactory, make_engine, make_session_factory

MIB = 1 << 20
GIB = 1 << 30


class Settings(BaseSettings):
    """What an operator can set. The service and the worker read the same."""

    model_config = SettingsConfigDict(
        env_prefix="SANITIZER_",
        env_file=".env",
        env_ignore_empty=True,  # as Compose passes what nobody set
        extra="ignore",
        frozen=True,
    )

    # Where things are
    database_url: SecretStr = Field(
        default=SecretStr("sqlite:///var/sanitizer.db"),
        description="SQLAlchemy URL: sqlite:///... or postgresql+psycopg://...",
    )
    broker_url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"), description="Redis or Valkey."
    )
    storage_url: str = Field(
        default="file:var/store",
        description="Where files lie: file:FOLDER, or s3://BUCKET/PREFIX.",
    )
    s3_endpoint: str | None = Field(
        default=None,
        description="Address of an S3-speaking server, as https://HOST:PORT. Unset: Amazon's, by "
        "region.",
    )
    s3_public_endpoint: str | None = Field(
        default=None,
        description="The address of the same server that clients of the API reach, for presigned "
        "downloads. Unset: `s3_endpoint`.",
    )
    s3_region: str = Field(default="us-east-1", description="Region of the bucket.")
    s3_access_key_id: str | None = Field(
        default=None, description="Unset: from the machine's role, as Amazon's own tools do."
    )
    s3_secret_access_key: SecretStr | None = Field(
        default=None, description="Belongs to `s3_access_key_id`."
    )
    presigned_seconds: float = Field(
        default=0,
        ge=0,
        le=7 * 24 * 3600,
        description="Downloads from S3 are redirected to an address that is good for so long; 0: "
        "they go through the API.",
    )
    reference_roots: tuple[Path, ...] = Field(
        default=(),
        description="Folders that `file://` references of data sets may point into, as a "
        "JSON list. Worker and "
        "service must see the same. Empty: no references.",
    )

    # Limits of the API
    max_model_bytes: int = Field(
        default=4 * GIB, ge=1, description="Of one uploaded model; larger ones get 413."
    )
    max_dataset_bytes: int = Field(
        default=16 * GIB, ge=1, description="Of one uploaded data set; larger ones get 413."
    )
    max_request_bytes: int = Field(
        default=12 * MIB, ge=1, description="Of a JSON body: eight probes with pictures fit."
    )
    max_queued_jobs: int = Field(
        default=100, ge=1, description="Per tenant; more are refused with 429."
    )
    idempotency_hours: float = Field(
        default=24, gt=0, description="How long an answer is kept for its Idempotency-Key."
    )

    # Life of a job
    lease_seconds: float = Field(
        default=60, gt=0, description="A worker that is silent for this long loses its job."
    )
    heartbeat_seconds: float = Field(
        default=10,
        gt=0,
        description="How often a worker reports and renews its leases: at most a third of "
        "`lease_seconds`.",
    )
    reconcile_seconds: float = Field(
        default=15, gt=0, description="How often lost jobs are looked for."
    )
    resend_seconds: float = Field(
        default=60, gt=0, description="A queued job whose message is this old gets another."
    )
    max_attempts: int = Field(default=3, ge=1, description="Tries where the machine is at fault.")
    retry_seconds: float = Field(
        default=30,
        ge=0,
        description="Before a job is tried again that a machine has failed; twice as long after "
        "each further try.",
    )
    cancel_grace_seconds: float = Field(
        default=5, gt=0, description="Between asking the child to stop and killing it."
    )
    orphan_hours: float = Field(
        default=24,
        gt=0,
        description="Files in the store that no row names are removed at this age.",
    )
    job_timeout_seconds: float = Field(
        default=24 * 3600, gt=0, description="A run that takes longer is ended; the job fails."
    )

    # The worker
    work_dir: Path = Field(
        default=Path("var/work"), description="Job folders: a disk of the worker."
    )
    device: str = Field(
        default="auto",
        pattern="^(auto|cpu|cuda)$",
        description="Where jobs compute that do not say: auto, cpu or cuda.",
    )
    only_asked_for: bool = Field(
        default=False,
        description="The worker takes jobs alone that name a device it has, and leaves those that "
        "name none to others: for the CPU workers of a fleet with GPUs.",
    )
    slots: int = Field(default=1, ge=1, description="Jobs at a time in one worker: one per device.")
    threads_per_job: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads of one child. Unset: the cores divided by the slots.",
    )
    job_memory_bytes: int = Field(
        default=16 * GIB,
        ge=1,
        description="Limit on the private memory (RLIMIT_DATA) of one child.",
    )
    job_file_bytes: int = Field(
        default=32 * GIB, ge=1, description="Limit on one file a child writes."
    )

    child_command: tuple[str, ...] = Field(
        default=(),
        description="What starts the sanitizer, as a JSON list; it is followed by `run SPEC.json "
        "--out DIR --work DIR --exit-with-parent`. Empty: this Python with `-m sanitizer`. For "
        'putting each run into a sandbox: ["bwrap", ..., "python", "-P", "-m", "sanitizer"].',
    )
    child_isolation: str = Field(
        default="auto",
        pattern="^(auto|required|off)$",
        description="Whether each run is shut into its own files and, unless it shares several "
        "devices, out of TCP, by the kernel's Landlock. auto: as far as this kernel can, but not "
        "with a `child_command` nor on CUDA devices, where it was not tried yet; required: always, "
        "and a worker that cannot do all of it does not start; off.",
    )

    checkpoint_seconds: float = Field(
        default=30, ge=0, description="At most this much work of a run is lost to a kill."
    )
    checkpoint_store_seconds: float = Field(
        default=60,
        ge=0,
        description="A run's checkpoint goes to the store at most this often, so that another host "
        "can go on from it; 0: never.",
    )

    alive_file: Path | None = Field(
        default=None,
        description="A file that a worker, or the reconciler, touches while its main loop turns; "
        "`python -m worker.alive FILE` looks at its age. Unset: none.",
    )

    # Figures and traces
    worker_metrics_host: str = Field(
        default="127.0.0.1", description="Where a worker answers Prometheus."
    )
    worker_metrics_port: int = Field(
        default=0, ge=0, le=65535, description="Its port; 0: it does not answer."
    )
    tracing_endpoint: str | None = Field(
        default=None,
        pattern="^https?://",
        description="Where traces go by OTLP over HTTP, as http://HOST:4318. Unset: nowhere. Needs "
        "the extra `tracing`.",
    )

    # Logs
    log_level: str = Field(
        default="INFO",
        pattern="^(DEBUG|INFO|WARNING|ERROR)$",
        description="DEBUG, INFO, WARNING or ERROR.",
    )
    log_json: bool = Field(default=True, description="JSON lines; off: for reading in a terminal.")

    @model_validator(mode="after")
    def _check_heartbeat(self) -> Self:
        """One that is late, or fails, must not cost a lease."""
        if self.heartbeat_seconds > self.lease_seconds / 3:
            raise ValueError(
                "expected heartbeat_seconds to be at most a third of lease_seconds, got "
                f"{self.heartbeat_seconds:g} and {self.lease_seconds:g}"
            )
        return self

    @cached_property
    def sessions(self) -> SessionFactory:
        """The session factory of `database_url`; one engine a process."""
        return make_session_factory(make_engine(self.database_url.get_secret_value()))
