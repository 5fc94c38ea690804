"""The worker: `celery -A worker.app worker`."""

from service.settings import Settings
from worker.tasks import make_app

app = make_app(Settings())
