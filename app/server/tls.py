"""TLS for the server's socket: version 1.2 or later, Python's choice of ciphers.

The files are those of any web server, in PEM: the certificate's chain and its private key. They can
be reloaded while connections are open; open connections keep their certificate.
"""

import base64
import math
import re
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from app.errors import ConfigurationInvalid
from app.files import read_small_file

_MAX_FILE_BYTES = 1 << 20
_PEM_CERTIFICATE = re.compile(r"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([^-]+)-----END")
_UTC_TIME, _VERSION_TAG = 0x17, 0xA0


class Certificate:
    """A certificate with its key, and the TLS context that presents it.

    Attributes:
        files: the files that it is read from.
        context: for the server; owned by the event loop.
        expires_unix_s: when the first certificate of the chain expires.
    """

    name = "certificate"

    def __init__(self, chain: Path, key: Path | None = None) -> None:
        """Read the files; without `key`, the private key is in the chain's file.

        Raises:
            ConfigurationInvalid: they cannot be read, or do not belong together.
        """
        self.files = (chain,) if key is None else (chain, key)
        self.context, self.expires_unix_s = self._load()
        self._current = self.context
        # Each handshake uses the newest context. Loading new files into the old context could fail
        # half-way, and leave it with a certificate and no key.
        self.context.sni_callback = self._select_context

    def prepare(self) -> Callable[[], None]:
        """Read and check the files, in any thread; the result, called on the loop, applies them.

        Raises:
            ConfigurationInvalid: they cannot be read, or do not belong together.
        """
        return partial(self._apply, *self._load())

    def _apply(self, context: ssl.SSLContext, expires_unix_s: float) -> None:
        self._current, self.expires_unix_s = context, expires_unix_s

    def _select_context(
        self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: object
    ) -> None:
        connection.context = self._current

    def _load(self) -> tuple[ssl.SSLContext, float]:
        chain, key = self.files[0], self.files[-1]
        contents = {file: _read(file) for file in self.files}
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            # An encrypted key fails with this password; without one, OpenSSL would ask a terminal.
            context.load_cert_chain(chain, key, password="")
            return context, _expiry_unix_s(contents[chain].decode("latin-1"))
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or "not PEM, or encrypted"
            names = " and ".join(map(str, self.files))
            detail = str(reason).lower().replace("_", " ")
            raise ConfigurationInvalid(
                f"{names}: no certificate with its private key ({detail})"
            ) from None


def _read(file: Path) -> bytes:
    try:
        return read_small_file(file, max_bytes=_MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigurationInvalid(f"{file}: {error.strerror}") from None


def _expiry_unix_s(chain: str) -> float:
    """Return when the first of the certificates in a PEM text expires; NaN if it is unreadable."""
    try:
        return min(
            _not_after(base64.b64decode(certificate))
            for certificate in _PEM_CERTIFICATE.findall(chain)
        )
    except (ValueError, IndexError):
        return math.nan  # OpenSSL has taken the certificate: only the metric is lost


def _not_after(certificate: bytes) -> float:
    """Return the end of a certificate's validity (RFC 5280, section 4.1), in Unix time (s)."""
    _, certificate = _element(certificate)[:2]
    _, fields = _element(certificate)[:2]
    tag, _, after_version = _element(fields)
    if tag == _VERSION_TAG:  # it is optional
        fields = after_version
    for _ in ("serial number", "signature", "issuer"):
        fields = _element(fields)[2]
    _, validity, _ = _element(fields)
    tag, content, _ = _element(_element(validity)[2])
    digits = content.decode("ascii")
    if tag == _UTC_TIME:  # a year of two digits: 50 and above are in the last century
        digits = ("19" if digits >= "50" else "20") + digits
    return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _element(der: bytes) -> tuple[int, bytes, bytes]:
    """Split the first element off: its tag, its content, and what follows it (X.690)."""
    tag, length, start = der[0], der[1], 2
    if length & 0x80:  # the low bits count the bytes of the length
        start += length & 0x7F
        length = int.from_bytes(der[2:start], "big")
    return tag, der[start : start + length], der[start + length :]
