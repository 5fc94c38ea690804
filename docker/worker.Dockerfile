# The worker: torch for CPU and CUDA.
#
# TORCH_BACKEND, one of uv's names (`cpu`, `cu130`, ...), takes that build of the locked versions of
# torch and torchvision from PyTorch's own index; `cpu` makes the image several GB smaller. Left
# empty: the locked files of the ordinary index, which compute on CUDA devices and on CPUs.
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
ARG TORCH_BACKEND=
COPY requirements/build.txt requirements/worker.txt requirements/
COPY docker/install_worker.py docker/settle.sh docker/
RUN python3 -m venv tools \
 && tools/bin/python -m pip install --quiet --require-hashes -r requirements/build.txt \
 && tools/bin/uv venv --quiet --python "$(command -v python3)" /opt/sanitizer \
 && tools/bin/python docker/install_worker.py tools/bin/uv /opt/sanitizer "$TORCH_BACKEND" \
 && echo /opt/app > "$(/opt/sanitizer/bin/python -c 'import site; print(site.getsitepackages()[0])')/app.pth" \
 && sh docker/settle.sh /opt/sanitizer
COPY pyproject.toml README.md LICENSE ./
COPY sanitizer sanitizer
COPY service service
COPY worker worker
COPY migrations migrations
RUN tools/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir wheels . \
 && tools/bin/uv pip install --quiet --python /opt/sanitizer --no-deps --compile-bytecode \
      --target /opt/app wheels/*.whl \
 && sh docker/settle.sh /opt/app \
 && /opt/sanitizer/bin/python -c 'import sanitizer.pipeline, worker.tasks'

FROM python
LABEL org.opencontainers.image.title="Backdoor sanitizer: worker" \
      org.opencontainers.image.description="Runs the jobs of the backdoor sanitizer, on CPUs and CUDA devices" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/sanitizer /opt/sanitizer
COPY --from=build /opt/app /opt/app
# What the NVIDIA container runtime gives to a container that is given a device.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PATH=/opt/app/bin:/opt/sanitizer/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1 \
    SANITIZER_STORAGE_URL=file:///var/lib/sanitizer/store \
    SANITIZER_WORK_DIR=/var/lib/sanitizer/work \
    SANITIZER_ALIVE_FILE=/tmp/worker-alive
USER 10001:10001
WORKDIR /var/lib/sanitizer
EXPOSE 9100
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s --retries=3 \
  CMD ["python", "-m", "worker.alive", "/tmp/worker-alive"]
CMD ["python", "-m", "worker", "--loglevel", "WARNING"]
