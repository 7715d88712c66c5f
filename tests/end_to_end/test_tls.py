"""HTTPS on a real socket, with certificates made here."""

import os
import shutil
import socket
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from app.errors import ConfigurationInvalid
from app.server.tls import Certificate
from tests.end_to_end.test_docker import run_health_check
from tests.support.server import failed_start, running_server
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed"),
]


def certificate(
    folder: Path, *, name: str = "here", encrypted: bool = False, days: int = 2
) -> tuple[Path, Path]:
    """Make a self-signed certificate for 127.0.0.1 and its key."""
    chain, key = folder / f"{name}.pem", folder / f"{name}.key"
    secret = ("-passout", "pass:secret") if encrypted else ("-nodes",)
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-days", str(days), "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-out", str(chain), "-keyout", str(key), *secret),
        ],
        capture_output=True,
        check=True,
    )
    return chain, key


def trusting(chain: Path, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=chain)
    context.maximum_version = newest
    return context


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def server(store, files, tmp_path_factory):
    chain, key = files
    log = tmp_path_factory.mktemp("server") / "log"
    flags = ("--tls-cert", str(chain), "--tls-key", str(key), "--store-poll-s", "0.05")
    with running_server(store.folder, log, *flags, ca=chain) as server:
        yield server


def test_a_client_that_trusts_the_certificate_is_served(server, files):
    with httpx.Client(base_url=server.url, verify=trusting(files[0])) as client:
        example = client.get("/v1/models/tiny").json()["example_request"]
        answer = client.post("/v1/score", json=example)
        assert answer.status_code == 200
        assert f"curl -s {server.url}/v1" in client.get("/").text
    assert server.url.startswith("https://")


def test_a_client_that_does_not_trust_the_certificate_sends_nothing(server):
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{server.url}/livez")


def handshake(server, context: ssl.SSLContext) -> tuple[str, bytes]:
    """Return the TLS version that is agreed on, and the certificate that the server presents."""
    host, port = server.url.removeprefix("https://").split(":")
    with (
        socket.create_connection((host, int(port)), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        return secure.version() or "", secure.getpeercert(binary_form=True) or b""


def test_tls_1_2_is_the_oldest_version(server, files):
    assert handshake(server, trusting(files[0]))[0] == "TLSv1.3"
    assert handshake(server, trusting(files[0], ssl.TLSVersion.TLSv1_2))[0] == "TLSv1.2"
    old = trusting(files[0])
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        old.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        handshake(server, old)


def test_plain_http_gets_no_response(server):
    with pytest.raises(httpx.TransportError):
        httpx.get(server.url.replace("https", "http") + "/livez")


def test_the_health_check_of_the_image_uses_https_too(server, files, tmp_path):
    port = int(server.url.rpartition(":")[2])
    assert run_health_check(tmp_path, port, GATEHOUSE_TLS_CERT=str(files[0])) == 0
    assert run_health_check(tmp_path, port) != 0


def expiry(server, chain: Path) -> float:
    text = httpx.get(f"{server.url}/metrics", verify=trusting(chain)).text
    name = "gatehouse_certificate_expiry_timestamp_seconds"
    (value,) = [line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(value)


def test_new_certificate_is_used_without_a_restart(server, files, tmp_path):
    before, expired = handshake(server, trusting(files[0]))[1], expiry(server, files[0])
    for new, old in zip(certificate(tmp_path, name="newer", days=30), files, strict=True):
        shutil.copy(new, old)
    wait_until(lambda: handshake(server, anyone())[1] != before, "the new certificate is used")
    assert httpx.get(f"{server.url}/livez", verify=trusting(files[0])).status_code == 200
    assert expiry(server, files[0]) - expired == pytest.approx(28 * 86_400, abs=3600)


def test_what_is_agreed_on_is_the_same_after_a_reload(tmp_path):
    """A reload presents the new certificate and keeps protocol and version."""
    chain, key = certificate(tmp_path)
    subject = Certificate(chain, key)
    new_chain, new_key = certificate(tmp_path, name="newer")
    for new, old in ((new_chain, chain), (new_key, key)):
        shutil.copy(new, old)
    subject.prepare()()
    client = trusting(new_chain)
    client.set_alpn_protocols(["h2", "http/1.1"])
    presented = in_memory(subject.context, client)
    assert presented.selected_alpn_protocol() == "http/1.1"
    assert presented.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(
        new_chain.read_text()
    )


def in_memory(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Shake hands without a socket and return the client's side."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    there = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for side in (here, there):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return here


@pytest.mark.parametrize("days", [1, 400, 20_000])  # from 2050 on, the date has another form
def test_the_expiry_is_that_of_the_certificate(tmp_path, days):
    chain, key = certificate(tmp_path, days=days)
    told = subprocess.run(
        ["openssl", "x509", "-noout", "-enddate", "-in", str(chain)],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = ssl.cert_time_to_seconds(told.stdout.strip().removeprefix("notAfter="))
    assert Certificate(chain, key).expires_unix_s == expected


def test_the_certificate_of_a_chain_that_expires_first_counts(tmp_path):
    chain, key = certificate(tmp_path, days=100)
    other, _ = certificate(tmp_path, name="issuer", days=10)
    alone = Certificate(other, tmp_path / "issuer.key").expires_unix_s
    chain.write_text(chain.read_text() + other.read_text())
    assert Certificate(chain, key).expires_unix_s == alone


def test_files_that_change_while_they_are_applied_do_not_break_the_context(tmp_path):
    """What `prepare` has checked is applied, whatever the files are by then."""
    chain, key = certificate(tmp_path)
    subject = Certificate(chain, key)
    presented = ssl.PEM_cert_to_DER_cert(chain.read_text())
    apply = subject.prepare()
    trusted = trusting(chain)
    chain.write_text("gone")
    key.unlink()
    apply()
    assert in_memory(subject.context, trusted).getpeercert(binary_form=True) == presented


def anyone() -> ssl.SSLContext:
    """Return a client's context that trusts every certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def test_a_certificate_whose_key_is_not_there_yet_changes_nothing(tmp_path):
    """As when the two files are written one after the other."""
    chain, key = certificate(tmp_path)
    new_chain, new_key = certificate(tmp_path, name="newer")
    both = Certificate(chain, key)
    shutil.copy(new_chain, chain)
    with pytest.raises(ConfigurationInvalid, match="no certificate with its private key"):
        both.prepare()
    shutil.copy(new_key, key)
    both.prepare()()


def test_certificate_and_key_may_be_in_one_file(tmp_path):
    chain, key = certificate(tmp_path)
    chain.write_bytes(chain.read_bytes() + key.read_bytes())
    assert Certificate(chain).files == (chain,)


@pytest.mark.parametrize(
    "wrong", ["missing", "no PEM", "another key", "encrypted key", "no key", "fifo"]
)
def test_files_that_cannot_be_used_end_with_exit_code_2_and_one_line(store, tmp_path, wrong):
    chain, key = certificate(tmp_path, encrypted=wrong == "encrypted key")
    match wrong:
        case "missing":
            chain.unlink()
        case "no PEM":
            chain.write_bytes(b"\x00\xffnothing")
        case "another key":
            _, key = certificate(tmp_path, name="other")
        case "no key":
            key = chain
        case "fifo":
            chain.unlink()
            os.mkfifo(chain)
    flags = ("--tls-cert", str(chain), "--tls-key", str(key))
    finished = failed_start("--store", str(store.folder), "--port", "0", *flags)
    assert finished.returncode == 2
    *logged, last = finished.stderr.splitlines()
    assert last.startswith(f"gatehouse: {chain}")
    assert not any("Traceback" in line for line in logged)
