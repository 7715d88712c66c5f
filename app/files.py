"""Small files that people write: read within bounds, and parsed whatever editor wrote them."""

import errno
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

MAX_KEY_PARTS = 8
"""tomllib takes a minute for a dotted key of 40,000 parts: its time grows with their square."""


def read_small_file(path: Path, *, max_bytes: int) -> bytes:
    """Read a regular file of at most `max_bytes`. A pipe or a device would block or never end.

    Raises:
        OSError: it cannot be read, is not a regular file, or is larger; `strerror` says which.
    """
    # Without O_NONBLOCK, opening a pipe waits for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(max_bytes + 1)
            if content is None:  # a file of the kernel that has nothing to say now
                raise OSError(errno.EAGAIN, "has no content yet", str(path))
    finally:
        os.close(descriptor)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {max_bytes} bytes", str(path))
    return content


def reason_without_path(error: OSError) -> str:
    """Return why a file cannot be read, with its name but without its folder.

    Callers of the API may see the reason, and must not see where the server keeps its files.
    """
    name = "" if error.filename is None else f"{Path(str(error.filename)).name}: "
    return f"{name}{error.strerror or error}"


def parse_toml(content: bytes) -> dict[str, Any]:
    """Parse TOML in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: it is not TOML, has a very long dotted key, or is nested too deeply.
    """
    text = content.decode("utf-8-sig")
    _check_key_lengths(text)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("arrays or tables are nested too deeply") from None


_TOML_TOKEN = re.compile(
    r"""
      (?P<text>    \"""(?:\\.|[^\\])*?(?:\"{3,5}|\Z) | '''.*?(?:'{3,5}|\Z) | \#[^\n]* )
    | (?P<part>    "(?:\\.|[^"\\\n])*"? | '[^'\n]*'? | [A-Za-z0-9_-]+ )
    | (?P<dot>     \. )
    | (?P<space>   [ \t]+ )
    | (?P<other>   [^.\#"'A-Za-z0-9_ \t-]+ | . )
    """,
    re.VERBOSE | re.DOTALL,
)
"""A multi-line string or comment, a part of a key (or a value), or something between them.

Every alternative consumes what it has scanned, also an unclosed string, so reading a text takes
linear time. A number such as 1.5 looks like a key of two parts, which does no harm.
"""


def _check_key_lengths(text: str) -> None:
    """Refuse a key with too many dotted parts, before tomllib spends its time on it."""
    parts = 0
    after_dot = False
    for token in _TOML_TOKEN.finditer(text):
        kind = token.lastgroup
        if kind == "space":
            continue
        if kind == "part":
            parts = parts + 1 if after_dot else 1
        elif kind != "dot":
            parts = 0
        after_dot = kind == "dot"
        if parts > MAX_KEY_PARTS:
            line = text.count("\n", 0, token.start()) + 1
            raise ValueError(f"a key has more than {MAX_KEY_PARTS} parts (at line {line})")
