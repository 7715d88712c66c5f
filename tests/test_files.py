"""Small files: bounded, regular, with or without a byte order mark."""

import io
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from app.files import MAX_KEY_PARTS, parse_toml, read_small_file


def test_a_file_is_read_up_to_its_limit(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_small_file(file, max_bytes=5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_small_file(file, max_bytes=4)


def test_a_symbolic_link_to_a_file_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_small_file(tmp_path / "link", max_bytes=5) == b"1"


def test_a_fifo_a_device_and_a_folder_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            read_small_file(path, max_bytes=5)


class WithoutContent(io.BytesIO):
    """What /proc/kmsg is like while there are no messages."""

    def read(self, _size: int | None = -1) -> Any:
        return None


def test_a_file_of_the_kernel_without_content_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    reader = WithoutContent()
    monkeypatch.setattr(os, "fdopen", lambda *_, **__: reader)
    with pytest.raises(BlockingIOError, match="no content yet"):
        read_small_file(tmp_path / "file", max_bytes=5)


def test_missing_file_is_reported_as_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such file"):
        read_small_file(tmp_path / "file", max_bytes=5)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_makes_no_difference(mark):
    assert parse_toml(mark + b"a = 'b.c.d'\n[e.f]\n") == {"a": "b.c.d", "e": {"f": {}}}


def test_a_key_within_the_limit_is_parsed():
    key = ".".join("a" for _ in range(MAX_KEY_PARTS))
    assert parse_toml(f"{key} = 1".encode())
    assert parse_toml(f"[{key}]".encode())


@pytest.mark.parametrize("part", ["a", '"a b"', "'a'", "a "])
@pytest.mark.parametrize("line", ["x = 1\n{} = 1", "x = 1\n[{}]", "x = 1\ny = {{ {} = 1 }}"])
def test_a_key_of_very_many_parts_is_refused_at_once(part, line):
    key = ".".join([part] * 40_000)
    began = time.process_time()
    with pytest.raises(ValueError, match=r"more than 8 parts \(at line 2\)"):
        parse_toml(line.format(key).encode())
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "content",
    [b"a" * 1_000_000, b"a " * 500_000, b'"' * 1_000_000, b"x = '" + b"a" * 900_000 + b"'"],
)
def test_the_check_of_keys_takes_time_in_proportion_to_the_file(content):
    began = time.process_time()
    with suppress(ValueError):
        parse_toml(content)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "content", [b"a", b"\xff", b"a = " + b"[" * 100_000], ids=["syntax", "not UTF-8", "nested"]
)
def test_what_is_not_toml_is_a_value_error(content):
    with pytest.raises(ValueError, match=r"."):
        parse_toml(content)
