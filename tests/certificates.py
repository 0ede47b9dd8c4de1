"""Certificates of an authority that no machine knows."""

from __future__ import annotations

from pathlib import Path

import trustme


def write_certificate(folder: Path, host: str) -> dict[str, Path]:
    """Writes a certificate for a host, with its authority's, and its key; as settings of a server."""
    authority = trustme.CA(key_type=trustme.KeyType.RSA)
    certificate = authority.issue_cert(host, key_type=trustme.KeyType.RSA)
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for blob in (*certificate.cert_chain_pems, authority.cert_pem):
        blob.write_to_path(folder / "certificate.pem", append=True)
    return {"private_key_file": folder / "key.pem", "certificate_file": folder / "certificate.pem"}
