# The API, the migrations and the reconciler: no torch.
ARG BASE=debian:trixie-slim

# Debian's own Python: one party for the system and the interpreter, and its security updates.
FROM ${BASE} AS python
ENV DEBIAN_FRONTEND=noninteractive SOURCE_DATE_EPOCH=315532800
RUN apt-get update --quiet \
 && apt-get upgrade --quiet --yes \
 && apt-get install --quiet --yes --no-install-recommends ca-certificates python3 \
 && apt-get clean \
 && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/* /usr/share/doc/* /usr/share/man/* \
 && groupadd --gid 10001 sanitizer \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent \
      --shell /usr/sbin/nologin sanitizer \
 && install -d -o 10001 -g 10001 -m 0700 \
      /var/lib/sanitizer /var/lib/sanitizer/store /var/lib/sanitizer/work
ENV DEBIAN_FRONTEND= SOURCE_DATE_EPOCH=

FROM python AS build
RUN apt-get update --quiet \
 && apt-get install --quiet --yes --no-install-recommends python3-venv
# Layers that hold the same bytes whenever they are built: no clock and no cache in them.
ENV SOURCE_DATE_EPOCH=315532800 \
    PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    UV_NO_CACHE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never \
    PYTHONDONTWRITEBYTECODE=1 PYC_INVALIDATION_MODE=UNCHECKED_HASH
WORKDIR /build
COPY requirements/build.txt requirements/service.txt requirements/
COPY docker/settle.sh docker/
RUN python3 -m venv tools \
 && tools/bin/python -m pip install --quiet --require-hashes -r requirements/build.txt \
 && tools/bin/uv venv --quiet --python "$(command -v python3)" /opt/sanitizer \
 && tools/bin/uv pip install --quiet --python /opt/sanitizer --require-hashes \
      -r requirements/service.txt \
 && echo /opt/app > "$(/opt/sanitizer/bin/python -c 'import site; print(site.getsitepackages()[0])')/app.pth" \
 && sh docker/settle.sh /opt/sanitizer
COPY pyproject.toml README.md LICENSE ./
COPY sanitizer sanitizer
COPY service service
COPY worker worker
COPY migrations migrations
# The code lies beside the dependencies, so that a change of it makes one small layer anew.
# What is imported is compiled, which is a third of it all.
RUN tools/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir wheels . \
 && tools/bin/uv pip install --quiet --python /opt/sanitizer --no-deps --target /opt/app \
      wheels/*.whl \
 && sh docker/settle.sh /opt/app \
 && env --unset=PYTHONDONTWRITEBYTECODE /opt/sanitizer/bin/python -c \
      'import service.app, service.cli.founding, uvicorn.protocols.http.h11_impl, worker.reconcile' \
 && sh docker/settle.sh /opt/sanitizer /opt/app \
 && if /opt/sanitizer/bin/python -c 'import torch' 2>/dev/null; \
    then echo 'torch does not belong into this image' >&2; exit 1; fi

FROM python
LABEL org.opencontainers.image.title="Backdoor sanitizer: service" \
      org.opencontainers.image.description="The REST API that removes backdoors from image classifiers" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/sanitizer /opt/sanitizer
COPY --from=build /opt/app /opt/app
ENV PATH=/opt/app/bin:/opt/sanitizer/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1 \
    SANITIZER_STORAGE_URL=file:///var/lib/sanitizer/store
USER 10001:10001
WORKDIR /var/lib/sanitizer
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --retries=6 CMD ["python", "-m", "service.health.probe"]
CMD ["python", "-m", "uvicorn", "service.app:create_app", "--factory", "--no-access-log", \
     "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "20"]
