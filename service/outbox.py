"""What a request wants done once its transaction is committed: messages sent, files removed."""

from dataclasses import dataclass, field

import structlog
from sqlalchemy.orm import Session

from service import queue
from service.db.repository import DATABASE_AWAY
from service.db.session import transaction
from service.jobs import service as jobs
from service.services import Services
from service.storage import StorageError

_KEY = "outbox"

log = structlog.get_logger(__name__)


@dataclass
class _Outbox:
    jobs_to_send: list[tuple[str, str | None]] = field(default_factory=list)
    jobs_to_wake: list[str] = field(default_factory=list)
    files_to_remove: list[str] = field(default_factory=list)


def send_job(session: Session, job_id: str, device: str | None) -> None:
    """The job's message goes after the commit to the workers that have the device."""
    _of(session).jobs_to_send.append((job_id, device))


def wake(session: Session, job_id: str) -> None:
    """Whoever streams the job's events is told after the commit that there are new ones."""
    _of(session).jobs_to_wake.append(job_id)


def remove_file(session: Session, key: str) -> None:
    """The file leaves the store after the commit."""
    _of(session).files_to_remove.append(key)


def deliver(services: Services, session: Session) -> None:
    """Does what was asked for; call it after the commit.

    Nothing here fails the request: the work is stored, and reconcile sends what was not sent.
    """
    outbox = _of(session)
    for job_id, device in outbox.jobs_to_send:
        log.info("job submitted", job_id=job_id)
        try:
            with services.tracing.sending(queue.queue_of(device), job_id):
                queue.send_job(services.queue, job_id, device)
            with transaction(services.write_sessions) as later:
                jobs.mark_sent(later, job_id)
        except queue.BrokerUnavailable as error:
            log.warning("broker down, the job is sent later", job_id=job_id, reason=str(error))
        except DATABASE_AWAY as error:
            log.warning("the sending could not be noted", job_id=job_id, reason=str(error))
        except Exception:
            log.exception("the job is sent later", job_id=job_id)
    for job_id in outbox.jobs_to_wake:
        queue.publish_wakeup(services.queue, job_id)
    for position, key in enumerate(outbox.files_to_remove):
        try:
            services.store.delete(key)
        except StorageError as error:
            log.error("a file could not be removed from the store", key=key, reason=str(error))
            if type(error) is StorageError:
                # It does not answer: each of the others would be waited for as long. Workers
                # collect what no row names.
                left = len(outbox.files_to_remove) - position - 1
                log.error("other files were not tried", files=left)
                break


def _of(session: Session) -> _Outbox:
    outbox: _Outbox = session.info.setdefault(_KEY, _Outbox())
    return outbox
