#!/usr/bin/env python3
"""Uploads images with nothing but the standard library and prints a line for each result.

    api/examples/submit.py MODEL IMAGE...

SIGHTLINE_API says where the API is, SIGHTLINE_KEY which key to send, if it needs one. Ends with 0 only if every
image has succeeded.
"""
import hashlib
import json
import os
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

API = os.environ.get("SIGHTLINE_API", "http://127.0.0.1:8080")
KEY = os.environ.get("SIGHTLINE_KEY")
PATIENCE = 300  # seconds


def ask(path, body=None, headers=None):
    """One request; what may pass is tried again until it does."""
    headers = dict(headers or {})
    if KEY:
        headers["Authorization"] = f"Bearer {KEY}"
    deadline = time.monotonic() + PATIENCE
    while True:
        request = urllib.request.Request(API + path, data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=90) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code not in (429, 502, 503, 504) or time.monotonic() > deadline:
                sys.exit(f"{path}: {error.read().decode(errors='replace')}")
            time.sleep(float(error.headers.get("Retry-After", 1)))
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"{API} does not answer: {error}")
            time.sleep(1)


def recognise(model, path):
    """From a file to its finished job."""
    with open(path, "rb") as file:
        image = file.read()
    # Sent again, it is the same job.
    key = f"submit-py-{model}-{hashlib.sha256(image).hexdigest()}"
    job = ask(f"/v1/jobs?model={model}", image, {"Idempotency-Key": key, "Content-Type": "application/octet-stream"})
    while job["state"] in ("queued", "running"):
        job = ask(f"/v1/jobs/{job['id']}?wait=30")
    return job


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    model, paths = sys.argv[1], sys.argv[2:]
    succeeded = True
    with ThreadPoolExecutor(8) as pool:
        for path, job in zip(paths, pool.map(lambda path: recognise(model, path), paths)):
            succeeded &= job["state"] == "succeeded"
            print(json.dumps({"file": path, "id": job["id"], "state": job["state"], "result": job.get("result")}))
    sys.exit(0 if succeeded else 1)


if __name__ == "__main__":
    main()
