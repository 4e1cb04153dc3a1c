#!/usr/bin/env bash
# Uploads one image with curl, waits for its result and prints the best label.
#
#   api/examples/submit.sh IMAGE [MODEL]
#
# SIGHTLINE_API: where the API is. SIGHTLINE_KEY: the key to send, if it needs one.
set -euo pipefail

image=${1:?usage: submit.sh IMAGE [MODEL]}
model=${2:-efficientnet-lite0}
api=${SIGHTLINE_API:-http://127.0.0.1:8080}
auth=()
[ -z "${SIGHTLINE_KEY:-}" ] || auth=(-H "Authorization: Bearer $SIGHTLINE_KEY")

# The same image sent again, for instance because the answer was lost, is the same job.
key="submit-sh-$model-$(sha256sum "$image" | cut -d' ' -f1)"

ask() { # ask PATH CURL-OPTIONS...: the answer, or what is wrong and an end
    local path=$1 answer
    shift
    answer=$(curl --silent --show-error --fail-with-body --retry 5 --retry-connrefused "${auth[@]}" "$@" "$api$path") || {
        echo "$answer" >&2
        exit 1
    }
    echo "$answer"
}

job=$(ask "/v1/jobs?model=$model" -H "Idempotency-Key: $key" -H "Prefer: wait=30" --data-binary "@$image")
id=$(sed -n 's/.*"id":"\([^"]*\)".*/\1/p' <<< "$job")

while ! grep -qE '"state":"(succeeded|failed|canceled)"' <<< "$job"; do
    job=$(ask "/v1/jobs/$id?wait=30")
done

if ! grep -q '"state":"succeeded"' <<< "$job"; then
    echo "$job" >&2
    exit 1
fi
python3 -c '
import json, sys
job = json.load(sys.stdin)
best = (job["result"].get("predictions") or job["result"].get("detections") or [{"label": "nothing", "score": 1}])[0]
print(job["id"], best["label"], round(best["score"], 3))
' <<< "$job"
