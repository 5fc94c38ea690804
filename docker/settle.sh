#!/bin/sh
# Makes folders the same bytes in every build: what an installer notes of itself goes, and every
# file gets one time.
set -eu
for folder in "$@"; do
  find "$folder" -name RECORD -exec sed -i '/\/uv_cache\.json,/d; /\/direct_url\.json,/d' {} +
  find "$folder" \( -name direct_url.json -o -name uv_cache.json -o -name .lock \) -delete
  find "$folder" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
done
