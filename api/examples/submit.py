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
                raise Refused(error) from error
            time.sleep(float(error.headers.get("Retry-After", 1)))
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"{API} does not answer: {error}")
            time.sleep(1)


class Refused(Exception):
    """A refusal: `document` says why, with a `code` that stays the same."""

    def __init__(self, error):
        body = error.read().decode(errors="replace")
        try:
            self.document = json.loads(body)
        except ValueError:
            self.document = {"code": f"http_{error.code}", "detail": body}
        super().__init__(self.document.get("detail"))


def recognise(model, path):
    """From a file to its finished job."""
    with open(path, "rb") as file:
        image = file.read()
    # Sent again, it is the same job.
    key = f"submit-py-{model}-{hashlib.sha256(image).hexdigest()}"
    headers = {"Idempotency-Key": key, "Content-Type": "application/octet-stream"}
    try:
        job = ask(f"/v1/jobs?model={model}", image, headers)
        while job["state"] in ("queued", "running"):
            job = ask(f"/v1/jobs/{job['id']}?wait=30")
        return job
    except Refused as refused:
        # One bad file is that file alone; without a key all of them would be.
        if refused.document.get("status") in (401, 403):
            sys.exit(str(refused))
        return {"state": "refused", "error": {"code": refused.document.get("code"), "message": str(refused)}}


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    model, paths = sys.argv[1], sys.argv[2:]
    succeeded = True
    with ThreadPoolExecutor(8) as pool:
        for path, job in zip(paths, pool.map(lambda path: recognise(model, path), paths)):
            succeeded &= job["state"] == "succeeded"
            line = {"file": path, "id": job.get("id"), "state": job["state"]}
            print(json.dumps(line | {name: job[name] for name in ("result", "error") if name in job}))
    sys.exit(0 if succeeded else 1)


if __name__ == "__main__":
    main()
