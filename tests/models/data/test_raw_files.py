"""Downloads over HTTP: redirects, failures that leave nothing, and damaged archives."""

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from models import __main__ as cli
from models.data import movielens, raw_files
from models.data.schema import DataInvalid

CONTENT = bytes(range(256)) * 500


class Handler(BaseHTTPRequestHandler):
    """`/moved` redirects to `/file`; `/cut` and `/chunks` end too early."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        match self.path:
            case "/file":
                self._send(200, {"content-length": str(len(CONTENT))}, CONTENT)
            case "/moved":
                self._send(302, {"location": "/file", "content-length": "0"}, b"")
            case "/cut":
                self._send(200, {"content-length": str(len(CONTENT))}, CONTENT[:1000])
            case "/chunks":
                self._send(200, {"transfer-encoding": "chunked"}, b"800\r\n" + CONTENT[:10])
            case _:
                self._send(404, {"content-length": "0"}, b"")
        self.close_connection = True

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["file", "moved"])
def test_a_file_is_received_whole_also_after_a_redirect(tmp_path, url, path):
    target = tmp_path / "new" / "data.zip"
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert raw_files.download(f"{url}/{path}", target, digest) == target
    assert target.read_bytes() == CONTENT
    assert raw_files.download(f"{url}/absent", target) == target  # it is kept
    assert [path.name for path in target.parent.iterdir()] == ["data.zip"]


@pytest.mark.parametrize(
    ("path", "sha256", "reason"),
    [
        ("cut", None, "received 1,000 of 128,000 bytes"),
        ("chunks", None, "IncompleteRead"),
        ("absent", None, "HTTP Error 404: Not Found"),
        ("file", "0" * 64, f"its SHA-256 is {hashlib.sha256(CONTENT).hexdigest()}, expected 000"),
    ],
)
def test_a_failed_download_says_why_and_leaves_nothing(tmp_path, url, path, sha256, reason):
    with pytest.raises(OSError, match="download failed") as caught:
        raw_files.download(f"{url}/{path}", tmp_path / "data.zip", sha256)
    assert reason in str(caught.value)
    assert str(caught.value).endswith("download it yourself and use --source FILE")
    assert list(tmp_path.iterdir()) == []


def test_no_network_is_one_line_and_exit_status_1(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(movielens, "URL", "http://127.0.0.1:9/ml-100k.zip")
    assert cli.main(["fetch", "movielens-100k", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "download failed: <urlopen error [Errno 111] Connection refused>" in error
    assert error.count("\n") == 1


def test_a_changed_file_is_not_used(tmp_path, capsys, monkeypatch, url):
    monkeypatch.setattr(movielens, "URL", f"{url}/file")
    assert cli.main(["fetch", "movielens-100k", "--out", str(tmp_path)]) == 1
    assert f"expected {movielens.SHA256}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_archive_is_named(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("u.data", "1\t2\t3\t4\n" * 1000)
    content = bytearray(buffer.getvalue())
    content[45] ^= 255
    (tmp_path / "raw.zip").write_bytes(content)
    with pytest.raises(DataInvalid, match=r"raw\.zip: the archive is damaged: .*; delete it"):
        raw_files.find(tmp_path, ("u.data",))
