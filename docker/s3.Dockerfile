# An S3 server over a folder (rclone, MIT), for one machine and for tests: no redundancy.
ARG BASE=debian:trixie-slim

FROM ${BASE} AS build
RUN apt-get update --quiet \
 && apt-get install --quiet --yes --no-install-recommends ca-certificates python3-venv
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY requirements/s3.txt requirements/
RUN python3 -m venv tools \
 && tools/bin/python -m pip install --quiet --require-hashes -r requirements/s3.txt

FROM ${BASE}
LABEL org.opencontainers.image.title="Backdoor sanitizer: S3 server for one machine" \
      org.opencontainers.image.licenses="Apache-2.0 AND MIT"
RUN groupadd --gid 10001 s3 \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent \
      --shell /usr/sbin/nologin s3 \
 && install -d -o 10001 -g 10001 -m 0700 /var/lib/s3
COPY --from=build /build/tools/bin/rclone /usr/local/bin/rclone
COPY --chmod=0755 docker/s3-entrypoint.sh /usr/local/bin/s3-entrypoint
USER 10001:10001
EXPOSE 9000
HEALTHCHECK --interval=5s --timeout=5s --retries=6 CMD ["bash", "-c", "</dev/tcp/127.0.0.1/9000"]
CMD ["s3-entrypoint"]
