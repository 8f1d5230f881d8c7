"""Google Cloud Storage in a thread: what of its JSON API the clients of tensorstore, gcsfs and Google ask for.

A bucket has any name and is there. Objects appear whole, get a new generation with every write, and are listed at once,
as the real ones.
"""

import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class Buckets(ThreadingHTTPServer):
    """A server on a port of its own.

    Attributes:
      objects: "bucket/name" -> (generation, bytes).
      held: a part of the name of objects whose writes are never answered; None for none.
      waiting: set when such a write has come.
      closed: a part of the name of objects whose writes are refused; None for none.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects, self.uploads, self.lock, self.generation = {}, {}, threading.RLock(), 0
        self.held, self.waiting, self.closed = None, threading.Event(), None
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        # Of tensorstore, of the others, and what keeps them from looking for credentials.
        self.environment = {
            "TENSORSTORE_GCS_HTTP_URL": self.address, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "STORAGE_EMULATOR_HOST": self.address, "FSSPEC_GCS_TOKEN": "anon", "GOOGLE_CLOUD_PROJECT": "tests",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }  # fmt: skip
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # clients drop what they no longer need
            super().handle_error(request, client_address)

    def names(self, beginning):
        """Of the objects below gs://`beginning`, with what follows it."""
        with self.lock:
            return sorted(name.removeprefix(beginning) for name in self.objects if name.startswith(beginning))

    def put(self, name, content):
        with self.lock:
            self.generation += 1
            self.objects[name] = (self.generation, content)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ROUTES = (
        ("POST", r"/batch/storage/v1", "batch"),
        ("GET", r"/storage/v1/b/([^/]+)", "bucket"),
        ("GET", r"/storage/v1/b/([^/]+)/o/?", "listing"),
        ("POST|PUT", r"/upload/storage/v1/b/([^/]+)/o", "upload"),
        ("POST", r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)", "copy"),
        ("POST", r"/storage/v1/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)", "move"),
        ("GET", r"/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)", "read"),
        ("DELETE", r"/storage/v1/b/([^/]+)/o/([^/]+)", "delete"),
    )

    def handle_any(self):
        url = urlsplit(self.path)
        self.asked = {name: values[-1] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for methods, pattern, name in self.ROUTES:
            found = re.fullmatch(pattern, url.path)
            if found and self.command in methods.split("|"):
                return getattr(self, name)(*map(unquote, found.groups()))
        return self.answer(501, {"error": {"code": 501, "message": f"{self.command} {self.path}"}})

    do_GET = do_POST = do_PUT = do_DELETE = handle_any

    def log_message(self, *_):
        pass

    def answer(self, code, content=b"", **headers):
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json", **headers}
        self.send_response(code)
        for name, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content)

    def missing(self):
        self.answer(404, {"error": {"code": 404, "message": "Not Found"}})

    def describe(self, name):
        bucket, _, key = name.partition("/")
        generation, content = self.server.objects[name]
        return {
            "kind": "storage#object", "bucket": bucket, "name": key, "size": str(len(content)),
            "generation": str(generation), "metageneration": "1", "contentType": "application/octet-stream",
            "updated": "2026-01-01T00:00:00.000Z", "timeCreated": "2026-01-01T00:00:00.000Z",
        }  # fmt: skip

    def mismatched(self, name):
        """Whether the object is of another generation than the request is for."""
        generation = self.server.objects.get(name, (0, b""))[0]
        return int(self.asked.get("ifGenerationMatch", generation)) != generation

    def bucket(self, bucket):
        self.answer(200, {"kind": "storage#bucket", "name": bucket, "id": bucket, "location": "US"})

    def listing(self, bucket):
        prefix, delimiter = self.asked.get("prefix", ""), self.asked.get("delimiter", "")
        first, last = self.asked.get("startOffset", ""), self.asked.get("endOffset", "\U0010ffff")
        items, folders = [], set()
        with self.server.lock:
            for name in self.server.names(f"{bucket}/"):
                if not (name.startswith(prefix) and first <= name < last):
                    continue
                head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
                if found:
                    folders.add(f"{prefix}{head}{delimiter}")
                else:
                    items.append(self.describe(f"{bucket}/{name}"))
        self.answer(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)})

    def upload(self, bucket):
        kind, content = self.asked.get("uploadType", "resumable"), self.body
        if kind == "resumable" and "upload_id" not in self.asked:
            name = self.asked.get("name") or json.loads(self.body)["name"]
            with self.server.lock:
                number = str(len(self.server.uploads))
                self.server.uploads[number] = [name, b""]
            place = f"{self.server.address}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={number}"
            return self.answer(200, {}, Location=place)
        if kind == "resumable":
            upload = self.server.uploads[self.asked["upload_id"]]
            upload[1] += content
            name, content = upload
            if self.headers["Content-Range"].endswith("/*"):
                return self.answer(308, Range=f"bytes=0-{len(content) - 1}")
        elif kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            _, described, rest = self.body.split(b"--" + boundary, 2)
            name = json.loads(re.split(rb"\r?\n\r?\n", described, maxsplit=1)[1])["name"]
            content = re.split(rb"\r?\n\r?\n", rest, maxsplit=1)[1].rsplit(b"\n--" + boundary + b"--", 1)[0]
        else:
            name = self.asked["name"]
        return self.write(f"{bucket}/{name}", content)

    def write(self, name, content):
        if self.server.closed is not None and self.server.closed in name:
            return self.answer(403, {"error": {"code": 403, "message": "the bucket is closed"}})
        if self.server.held and self.server.held in name:
            self.server.waiting.set()
            threading.Event().wait()
        with self.server.lock:
            if self.mismatched(name):
                return self.answer(412)
            self.server.put(name, content)
            described = self.describe(name)
        return self.answer(200, described)

    def copy(self, bucket, name, other_bucket, other):
        with self.server.lock:
            found = self.server.objects.get(f"{bucket}/{name}")
            if found is None:
                return self.missing()
            self.server.put(f"{other_bucket}/{other}", found[1])
            described = self.describe(f"{other_bucket}/{other}")
        return self.answer(200, {"kind": "storage#rewriteResponse", "done": True, "resource": described})

    def move(self, bucket, name, other):
        with self.server.lock:
            found = self.server.objects.pop(f"{bucket}/{name}", None)
            if found is None:
                return self.missing()
            self.server.put(f"{bucket}/{other}", found[1])
            described = self.describe(f"{bucket}/{other}")
        return self.answer(200, described)

    def read(self, bucket, name):
        with self.server.lock:
            found, described = self.server.objects.get(f"{bucket}/{name}"), None
            if found is not None:
                described = self.describe(f"{bucket}/{name}")
        if found is None:
            return self.missing()
        if self.asked.get("alt") != "media":
            return self.answer(200, described)
        generation, content = found
        if int(self.asked.get("ifGenerationNotMatch", -1)) == generation:
            return self.answer(304)
        if self.mismatched(f"{bucket}/{name}"):
            return self.answer(412)
        headers, size = {"x_goog_generation": generation}, len(content)
        part = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            return self.answer(200, content, **headers)
        first = int(part[1]) if part[1] else size - int(part[2])
        last = min(int(part[2]), size - 1) if part[1] and part[2] else size - 1
        if first > last:
            return self.answer(416)
        return self.answer(206, content[first : last + 1], Content_Range=f"bytes {first}-{last}/{size}", **headers)

    def removed(self, bucket, name):
        with self.server.lock:
            return self.server.objects.pop(f"{bucket}/{name}", None) is not None

    def delete(self, bucket, name):
        return self.answer(204) if self.removed(bucket, name) else self.missing()

    def batch(self):
        wanted = re.findall(r"DELETE /storage/v1/b/([^/]+)/o/([^ ?]+)", self.body.decode())
        codes = [204 if self.removed(*map(unquote, names)) else 404 for names in wanted]
        parts = "".join(f"--batch\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {code} -\r\n\r\n" for code in codes)
        self.answer(200, f"{parts}--batch--".encode(), Content_Type="multipart/mixed; boundary=batch")
