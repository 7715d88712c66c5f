"""TLS for the server's socket: version 1.2 or later, Python's choice of ciphers.

The files are those of any web server: PEM, the certificate's chain and its private key. They can be
read again while connections are open; those keep what they began with.
"""

import ssl
from collections.abc import Callable
from pathlib import Path

from app.errors import ConfigurationInvalid


class Certificate:
    """A certificate with its key, and the TLS context that shows it.

    Attributes:
        files: what it is read from.
        context: for the server; owned by the event loop.
    """

    def __init__(self, chain: Path, key: Path | None = None) -> None:
        """Read the files; without `key`, the private key stands in the chain's file.

        Raises:
            ConfigurationInvalid: they cannot be read, or do not belong together.
        """
        self.files = (chain,) if key is None else (chain, key)
        self.context = _context()
        self.prepare()()

    def prepare(self) -> Callable[[], None]:
        """Try the files, in any thread; the result, called on the loop, puts them in force.

        Raises:
            ConfigurationInvalid: they cannot be read, or do not belong together.
        """
        # On a context of its own: one that fails half-way is left with a certificate and no key.
        self._load(_context())
        return lambda: self._load(self.context)

    def _load(self, context: ssl.SSLContext) -> None:
        chain, key = self.files[0], self.files[-1]
        for file in self.files:
            try:
                file.open("rb").close()
            except OSError as error:
                raise ConfigurationInvalid(f"{file}: {error.strerror}") from None
        try:
            # A password is refused, and not asked for on a terminal that nobody looks at.
            context.load_cert_chain(chain, key, password="")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or "not PEM, or encrypted"
            names = " and ".join(map(str, self.files))
            detail = str(reason).lower().replace("_", " ")
            raise ConfigurationInvalid(
                f"{names}: no certificate with its private key ({detail})"
            ) from None


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context
