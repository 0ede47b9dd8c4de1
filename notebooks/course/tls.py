"""Makes a self-signed certificate, and finds out which TLS version a port speaks (chapter 12)."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa


def self_signed(folder: Path) -> dict[str, Path]:
    """Writes key.pem and certificate.pem, for 127.0.0.1 and 30 days; returns both as a server's settings."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)  # TorchServe reads RSA keys only
    me = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    loopback = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(subject_name=me, issuer_name=me, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(loopback, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)  # signs no other
        .sign(key, hashes.SHA256())
    )
    certificate.verify_directly_issued_by(certificate)  # its own key signed it
    pem = serialization.Encoding.PEM
    pkcs8, no_password = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    settings = {"certificate_file": folder / "certificate.pem", "private_key_file": folder / "key.pem"}
    settings["private_key_file"].touch(mode=0o600)
    settings["private_key_file"].write_bytes(key.private_bytes(pem, pkcs8, no_password))
    settings["certificate_file"].write_bytes(certificate.public_bytes(pem))
    return settings


def handshake(port: int, certificate: Path, at_least: str = "TLSv1_2") -> str:
    """Returns the TLS version that a port of loopback agrees to, or the kind of the error.

    Args:
        port: where to connect.
        certificate: the file of the certificate to trust.
        at_least: the oldest version that is offered, by its name in `ssl.TLSVersion`.
    """
    context = ssl.create_default_context(cafile=certificate)
    context.minimum_version = ssl.TLSVersion[at_least]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        try:
            with context.wrap_socket(connection, server_hostname="127.0.0.1") as secured:
                return str(secured.version())
        except OSError as error:  # ssl.SSLError is one
            return type(error).__name__
