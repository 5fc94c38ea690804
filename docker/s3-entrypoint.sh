#!/bin/sh
# Serves a folder as S3; a bucket is a folder in it. The key goes by the environment: a command line
# can be read by every process beside it.
set -eu
mkdir -p "/var/lib/s3/${S3_BUCKET:?}"
# Quotes, since rclone reads a list of pairs here.
export RCLONE_AUTH_KEY="\"${S3_ACCESS_KEY_ID:?},${S3_SECRET_ACCESS_KEY:?}\""
unset S3_ACCESS_KEY_ID S3_SECRET_ACCESS_KEY
exec rclone serve s3 --addr 0.0.0.0:9000 --config /dev/null --cache-dir /tmp/rclone /var/lib/s3
