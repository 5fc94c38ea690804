"""Which version runs, for figures and traces: the same for the service and the worker."""

import importlib.metadata

from prometheus_client import CollectorRegistry, Info

DISTRIBUTION = "backdoor-sanitizer"


def version() -> str:
    """The version that runs."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # run from a folder of files that nobody installed


def add_build_info(registry: CollectorRegistry) -> None:
    """Puts `sanitizer_build_info` into a registry."""
    build = Info("sanitizer_build", "The version that runs.", registry=registry)
    build.info({"version": version()})
