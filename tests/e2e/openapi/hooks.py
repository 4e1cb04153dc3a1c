"""What a client of Sightline sends: images that are images, times that are times.

Read by schemathesis, which makes everything else up from the API's description.
"""

import io
import json
import os
import struct
import tarfile
import zipfile
import zlib

import schemathesis
from hypothesis import strategies as st

MODELS = ["efficientnet-lite0", "ssdlite-mobilenetv2"]


def png(width, height, shade):
    """A grey image of one shade."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = (b"\0" + bytes([shade]) * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


images = st.builds(png, st.integers(1, 48), st.integers(1, 48), st.integers(0, 255))
names = st.text("abcdefghij0123456789", min_size=1, max_size=8).map(lambda name: name + ".png")
files = st.dictionaries(names, images, min_size=1, max_size=3)


def tar(entries):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def zipped(entries):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return out.getvalue()


for kind in ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "application/octet-stream"]:
    # What an image is follows from its bytes, whatever its type says.
    schemathesis.openapi.media_type(kind, images)
schemathesis.openapi.media_type("application/x-tar", files.map(tar))
schemathesis.openapi.media_type("application/zip", files.map(zipped))

timespans = st.builds("{}{}".format, st.integers(1, 3000), st.sampled_from(["", "s", "ms"]))
schemathesis.openapi.format("timespan", st.sampled_from(["30s", "1m", "7m", "2000s"]))
schemathesis.openapi.format("moment-or-timespan", st.one_of(timespans, st.just("2126-12-24T18:00:00Z")))
pairs = st.dictionaries(st.text("abc", min_size=1, max_size=5), st.text(max_size=9), max_size=3)
schemathesis.openapi.format("json-object-of-strings", pairs.map(json.dumps))
schemathesis.openapi.format("cursor", st.just("1795708800123_efficientnet-lite0.0199d2a4-6f3e-7c41-9a52-1b6f0c8d7e21"))
# A name that nobody can own: no stranger's server is called.
schemathesis.openapi.format("uri", st.just("https://hooks.invalid/done"))


@schemathesis.serializer("application/x-ndjson")
def lines(ctx, value):
    return (json.dumps(value) + "\n").encode()


@schemathesis.deserializer("application/x-ndjson")
def jobs(ctx, response):
    return [json.loads(line) for line in response.content.decode().splitlines()]


def whole(value):
    """Numbers as people write them: 1.0 is a count to JSON Schema, and to nobody else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return value


def operation_of(ctx):
    return ctx.operation.definition.raw.get("operationId")


@schemathesis.hook
def map_query(ctx, query):
    """Most requests name a model that there is."""
    if isinstance(query, dict) and operation_of(ctx) in ("submitJob", "createBatch", "putBatch"):
        if "topic" not in query and query.get("model") not in MODELS:
            query["model"] = MODELS[0]
        if "webhook_events" in query:
            query.setdefault("webhook", "https://hooks.invalid/done")
    return query


@schemathesis.hook
def before_call(ctx, case, kwargs):
    """Makes of what is allowed one by one what is allowed together. What is wrong on purpose stays so."""
    if case.media_type != "application/json" or not isinstance(case.body, dict):
        return
    if case.meta is None or case.meta.generation.mode.is_negative:
        return
    # A full queue makes the sender of a batch wait, by design.
    case.body = whole({name: value for name, value in case.body.items() if name != "max_bytes"})


@schemathesis.hook
def filter_path_parameters(ctx, path_parameters):
    """The key that everything is asked with is not revoked on the way."""
    return not path_parameters or path_parameters.get("id") != os.environ["OWN_KEY_ID"]


@schemathesis.hook("before_call")
def keep_own_key(ctx, case, kwargs):
    """The same where an id comes from an answer."""
    own = os.environ["OWN_KEY_ID"]
    if case.path_parameters and case.path_parameters.get("id") == own:
        case.path_parameters["id"] = own[::-1]
