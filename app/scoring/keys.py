"""Bearer keys (RFC 6750): who may score.

A key is a name and a secret. Logs and metrics show the name. Of the secret only the SHA-256 is
kept. A fast hash is enough, because secrets are long and random: they cannot be guessed. The secret
of a request is hashed and compared with every key in constant time, so that neither the response
nor its time tells how similar it is to a key.
"""

import re
from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path

from app.errors import ConfigurationInvalid, Unauthorized
from app.files import read_small_file

MOST_KEYS = 64  # each costs 0.06 µs a request, and is a label of a metric
LARGEST_FILE = 1 << 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SECRET = re.compile(r"[A-Za-z0-9._~+/-]{20,256}=*")  # b64token of RFC 6750, of a minimum length
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")

Entries = tuple[tuple[str, bytes], ...]
"""Names, each with the SHA-256 of a secret; a name may have two while its secret is changed."""


class Keys:
    """The keys of a server. Without keys, every client may score."""

    name = "keys"

    def __init__(self, *, text: str | None = None, file: Path | None = None) -> None:
        """Read the keys from `text`, or from a file that can be read again.

        Raises:
            ConfigurationInvalid: the text or the file has no key, or something that is not a key.
        """
        self.files: tuple[Path, ...] = () if file is None else (file,)
        self._entries: Entries = ()
        if file is not None:
            self.prepare()()
        elif text is not None:
            self._entries = _entries("GATEHOUSE_KEYS", text)

    @property
    def are_required(self) -> bool:
        """Whether requests need a key."""
        return bool(self._entries)

    def name_of(self, authorization: bytes | None) -> str:
        """Return the name of the key in an `authorization` header; empty if no key is needed.

        Raises:
            Unauthorized: it has no key, or an unknown one.
        """
        if not self._entries:
            return ""
        scheme, _, secret = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer":
            raise Unauthorized("API key required: send the header authorization: Bearer <key>")
        presented = sha256(secret.strip()).digest()
        name = ""
        for key, digest in self._entries:  # all of them, so that the time is constant
            if compare_digest(presented, digest):
                name = key
        if not name:
            raise Unauthorized("invalid API key", presented=True)
        return name

    def prepare(self) -> Callable[[], None]:
        """Read the file, in any thread; the result, called on the loop, applies it.

        Raises:
            ConfigurationInvalid: it cannot be read, or has something that is not a key.
        """
        (file,) = self.files
        try:
            content = read_small_file(file, max_bytes=LARGEST_FILE)
        except OSError as error:
            raise ConfigurationInvalid(f"{file}: {error.strerror}") from None
        entries = _entries(str(file), content.decode("utf-8-sig", "replace"))

        def apply() -> None:
            self._entries = entries

        return apply


def _entries(source: str, text: str) -> Entries:
    """Read `name:secret`, separated by spaces, commas or lines; a line from # on is a comment."""
    words = re.sub(r"#.*", "", text).replace(",", " ").split()
    if not 1 <= len(words) <= MOST_KEYS:
        raise ConfigurationInvalid(f"{source}: has {len(words)} keys, not 1 to {MOST_KEYS}")
    return tuple(_entry(f"{source}: key {place}", word) for place, word in enumerate(words, 1))


def _entry(place: str, word: str) -> tuple[str, bytes]:
    """Read one key. Errors name only its place, since any part of the text may be the secret."""
    name, colon, secret = word.partition(":")
    if not colon:
        raise ConfigurationInvalid(f"{place}: must be name:secret")
    if not _NAME.fullmatch(name):
        raise ConfigurationInvalid(f"{place}: a name has 1 to 64 letters, digits, '.', '_' or '-'")
    if digest := _DIGEST.fullmatch(secret):
        return name, bytes.fromhex(digest[1])
    if not _SECRET.fullmatch(secret):
        rule = (
            "a secret has 20 to 256 letters, digits or any of -._~+/, or is sha256:<64 hex digits>"
        )
        raise ConfigurationInvalid(f"{place}: {rule}")
    return name, sha256(secret.encode()).digest()
