"""A bucket of Google Cloud Storage on this machine, in memory: the part of its JSON API that
fsspec, TensorStore and tensorboardX use. `Bucket.environment` points them at it."""

import base64
import contextlib
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

BUCKET = "bucket"


class Bucket(ThreadingHTTPServer):
    """Objects by name, each with the number of the write that made it; and what was asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.uploads: dict[str, tuple[str, bytearray, str | None]] = {}
        self.asked: list[str] = []
        self.writes = 0
        self.refused = ""  # nobody has the right to write names in which this is found

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, address):
        """A client that hangs up is none."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, address)

    def environment(self) -> dict[str, str]:
        """What sends the clients here, without credentials and asking nobody else."""
        return {
            "STORAGE_EMULATOR_HOST": self.address,
            "TENSORSTORE_GCS_HTTP_URL": self.address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "abc",
            "GOOGLE_CLOUD_PROJECT": "project",
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks by gRPC what kind a bucket is
        }

    def names(self) -> list[str]:
        with self.lock:
            return sorted(self.objects)

    def content(self, name: str) -> bytes:
        return self.objects[name][0]

    def write(self, name: str, content: bytes, match: str | None) -> dict | None:
        """Stores an object; None if it is not of the generation that `match` asks for."""
        with self.lock:
            if match is not None and int(match) != self.objects.get(name, (b"", 0))[1]:
                return None
            self.writes += 1
            self.objects[name] = bytes(content), self.writes
            return describe(name, *self.objects[name])


def describe(name: str, content: bytes, generation: int) -> dict:
    """An object as the API describes it."""
    crc32c = google_crc32c.Checksum(content).digest()
    return {
        "kind": "storage#object",
        "id": f"{BUCKET}/{name}/{generation}",
        "name": name,
        "bucket": BUCKET,
        "generation": str(generation),
        "metageneration": "1",
        "size": str(len(content)),
        "crc32c": base64.b64encode(crc32c).decode(),
        "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
        "timeCreated": "2026-01-01T00:00:00.000Z",
        "updated": "2026-01-01T00:00:00.000Z",
        "contentType": "application/octet-stream",
        "storageClass": "STANDARD",
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Bucket

    def log_message(self, *_):
        pass

    def answer(self, status: int, content: bytes | dict = b"", **headers: str):
        if isinstance(content, dict):
            content = json.dumps(content).encode()
            headers.setdefault("content_type", "application/json; charset=UTF-8")
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def fail(self, status: int, message: str):
        self.answer(status, {"error": {"code": status, "message": message, "errors": []}})

    def handle_any(self):
        url = urlsplit(self.path)
        asked = {name: values[-1] for name, values in parse_qs(url.query, True).items()}
        body = self.read_body()
        with self.server.lock:
            self.server.asked.append(f"{self.command} {unquote(self.path)}")
        if url.path.startswith("/batch/"):
            return self.batch(body)
        found = re.fullmatch(
            r"(/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/([^/]+)(/.*)?)?)?", url.path
        )
        if found is None:
            return self.fail(400, f"no such call: {self.path}")
        where, bucket, name, then = found.groups()
        if unquote(bucket) != BUCKET:
            return self.fail(404, "The specified bucket does not exist.")
        name = unquote(name) if name else None
        if where == "/upload":
            return self.upload(asked, body)
        if name is None:
            if "/o" in url.path:
                return self.list_objects(asked)
            return self.answer(200, {"kind": "storage#bucket", "name": BUCKET, "id": BUCKET})
        if then:
            return self.copy(name, then)
        return self.one(name, asked)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = handle_any

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def one(self, name: str, asked: dict[str, str]):
        """Reads, describes or deletes an object."""
        with self.server.lock:
            found = self.server.objects.get(name)
            if self.command == "DELETE" and found:
                del self.server.objects[name]
        if found is None:
            return self.fail(404, f"No such object: {BUCKET}/{name}")
        content, generation = found
        if self.command == "DELETE":
            return self.answer(204)
        if asked.get("alt") != "media":
            return self.answer(200, describe(name, content, generation))
        if asked.get("ifGenerationNotMatch") == str(generation):
            return self.answer(304)
        headers = {"x_goog_generation": str(generation), "x_goog_metageneration": "1"}
        headers["x_goog_hash"] = f"crc32c={describe(name, content, generation)['crc32c']}"
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            return self.answer(200, content, **headers)
        first = int(span[1]) if span[1] else max(len(content) - int(span[2]), 0)
        last = min(int(span[2]) if span[1] and span[2] else len(content), len(content) - 1)
        if first >= len(content):
            return self.fail(416, "Requested range not satisfiable")
        headers["content_range"] = f"bytes {first}-{last}/{len(content)}"
        return self.answer(206, content[first : last + 1], **headers)

    def list_objects(self, asked: dict[str, str]):
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        with self.server.lock:
            found = {k: v for k, v in sorted(self.server.objects.items()) if k.startswith(prefix)}
        first, end = asked.get("startOffset", ""), asked.get("endOffset")
        items, prefixes = [], set()
        for name, (content, generation) in found.items():
            rest = name[len(prefix) :]
            if name < first or (end and name >= end):
                continue
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(describe(name, content, generation))
        page = {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}
        return self.answer(200, {name: part for name, part in page.items() if part})

    def upload(self, asked: dict[str, str], body: bytes):
        """An object at once, with its description before it, or piece by piece."""
        kind, name = asked.get("uploadType"), asked.get("name")
        match = asked.get("ifGenerationMatch")
        if "upload_id" in asked:
            return self.resume(asked["upload_id"], body)
        if kind == "multipart":
            mark = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            _, about, content, _ = re.split(rb"(?:^|\r?\n)--" + re.escape(mark), body)
            name = json.loads(about.strip().partition(b"\n")[2].strip() or b"{}").get("name", name)
            body = re.split(rb"\r?\n\r?\n", content, maxsplit=1)[1]
        if kind == "resumable":
            name = name or json.loads(body)["name"]
        if self.server.refused and self.server.refused in name:
            return self.fail(403, f"not allowed to write {name}")
        if kind == "resumable":
            key = str(len(self.server.uploads))
            self.server.uploads[key] = name, bytearray(), match
            at = f"{self.server.address}/upload/storage/v1/b/{BUCKET}/o?upload_id={key}"
            return self.answer(200, location=at)
        return self.written(name, body, match)

    def resume(self, key: str, body: bytes):
        name, content, match = self.server.uploads[key]
        content += body
        if self.headers.get("Content-Range", "").endswith("/*"):
            return self.answer(308, range=f"bytes=0-{len(content) - 1}")
        return self.written(name, content, match)

    def written(self, name: str, content: bytes, match: str | None):
        described = self.server.write(name, content, match)
        if described is None:
            return self.fail(412, "At least one of the pre-conditions did not hold.")
        return self.answer(200, described, x_goog_generation=described["generation"])

    def copy(self, name: str, then: str):
        """Copies an object, or gives it another name."""
        to = re.fullmatch(r"/(?:(rewriteTo|copyTo)/b/[^/]+|moveTo)/o/([^/]+)", then)
        found = self.server.objects.get(name)
        if to is None or found is None:
            return self.fail(404, f"No such object: {BUCKET}/{name}")
        described = self.server.write(unquote(to[2]), found[0], None)
        if to[1] is None:
            with self.server.lock:
                self.server.objects.pop(name)
        done = {"kind": "storage#rewriteResponse", "done": True, "resource": described}
        return self.answer(200, done if to[1] == "rewriteTo" else described)

    def batch(self, body: bytes):
        """Deletions, several in one call."""
        mark, parts = "batch_answer", []
        named = re.findall(rb"DELETE (\S+) HTTP", body)
        tags = re.findall(rb"Content-ID: *<([^>]+)>", body)
        for place, tag in zip(named, tags):
            name = unquote(re.search(r"/o/([^/?]+)", place.decode())[1])
            with self.server.lock:
                gone = self.server.objects.pop(name, None)
            status = "204 No Content" if gone else "404 Not Found"
            parts.append(
                f"--{mark}\r\nContent-Type: application/http\r\n"
                f"Content-ID: <response-{tag.decode()}>\r\n\r\n"
                f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n\r\n"
            )
        text = "".join(parts) + f"--{mark}--\r\n"
        self.answer(200, text.encode(), content_type=f"multipart/mixed; boundary={mark}")


@contextlib.contextmanager
def running_bucket() -> Iterator[Bucket]:
    """A bucket that answers while this is open."""
    bucket = Bucket()
    thread = threading.Thread(target=bucket.serve_forever, daemon=True)
    thread.start()
    try:
        yield bucket
    finally:
        bucket.shutdown()
        bucket.server_close()
        thread.join()
