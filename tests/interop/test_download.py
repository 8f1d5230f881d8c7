import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from interop import download
from models.errors import UserError

CONTENT = bytes(range(256)) * 9000  # more than one chunk
DIGITS = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on this machine, the table pointing to it, the cache in a temporary folder; what it was asked for."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "file.bin").write_bytes(CONTENT)
    served = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "public")))
    threading.Thread(target=served.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{served.server_port}"
    files = {
        "whole": (f"{url}/file.bin", DIGITS),
        "prefix": (f"{url}/file.bin", DIGITS[:8]),
        "wrong": (f"{url}/file.bin", "0" * 8),
        "absent": (f"{url}/none.bin", DIGITS),
        "refused": ("http://127.0.0.1:1/file.bin", DIGITS),
    }
    monkeypatch.setattr(download, "PUBLIC_FILES", files)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield asked
    served.shutdown()
    served.server_close()


@pytest.mark.parametrize("name", ["whole", "prefix"])
def test_a_file_is_downloaded_once(name, server, tmp_path):
    path = download.public_file(name)
    assert path == tmp_path / "cache" / "tessera" / name
    assert path.read_bytes() == CONTENT
    assert download.sha256(path) == DIGITS
    assert download.public_file(name) == path
    assert server == ["/file.bin"]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong", f"has the SHA-256 {DIGITS}, which should begin with 00000000"),
        ("absent", "none.bin could not be downloaded .*bring the file to .*/cache/tessera/absent"),
        ("refused", "http://127.0.0.1:1/file.bin could not be downloaded .*refused.*cache/tessera/refused"),
        ("hole", "unknown public file 'hole'; did you mean 'whole'"),
    ],
)
def test_what_cannot_be_had_is_told_in_a_line_and_nothing_kept(name, message, server, tmp_path):
    with pytest.raises(UserError, match=message) as raised:
        download.public_file(name)
    assert "\n" not in str(raised.value)
    folder = tmp_path / "cache" / "tessera"
    assert not folder.exists() or not list(folder.iterdir())


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / ".cache" / "tessera"


def test_the_table_is_of_public_files_with_checksums():
    for name, (url, digits) in download.PUBLIC_FILES.items():
        assert url.startswith("https://")
        assert url.endswith(name)
        assert 8 <= len(digits) <= 64
        assert set(digits) <= set("0123456789abcdef")
