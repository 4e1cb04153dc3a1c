#!/usr/bin/env bash
# Recognises what a folder holds, once a night, whatever happens meanwhile. For cron:
#
#   15 2 * * * /path/to/nightly.sh /data/camera /data/results
#
# One batch a day. Run again after a power cut, or by hand, it adds only what is missing.
# SIGHTLINE_API: where the API is. SIGHTLINE_KEY: the key to send, if it needs one. SIGHTLINE: the program.
set -euo pipefail

folder=${1:?usage: nightly.sh FOLDER RESULTS [MODEL]}
results=${2:?usage: nightly.sh FOLDER RESULTS [MODEL]}
model=${3:-efficientnet-lite0}
sightline=${SIGHTLINE:-sightline}
id="nightly-$(date +%Y-%m-%d)"

mkdir -p "$results"
tar --create --file - --directory "$folder" . | "$sightline" batches send "$id" - --kind tar --model "$model"
until "$sightline" batches get "$id" --json | grep -qE '"state": "(finished|canceled)"'; do
    sleep 1
done
"$sightline" batches results "$id" --csv --out "$results/$id.csv"
# Fails, and cron says so, if an image of the batch has no result: with 1 if one has not ended, with 4 if one has failed.
"$sightline" batches verify "$id"
