"""Certificates for tests: an authority, and what it signs; good for an hour."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, as PEM text."""

    cert: str
    key: str


@dataclass
class Authority:
    """Signs certificates for hosts and addresses."""

    name: str = "the test's authority"
    _key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        use = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self._cert = self._builder(self.name, self._key, x509.BasicConstraints(ca=True, path_length=0)).add_extension(use, True)
        self.cert = self._cert.sign(self._key, hashes.SHA256()).public_bytes(PEM).decode()

    def sign(self, *names: str) -> Certificate:
        """Return a certificate for hosts' names or IP addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = x509.SubjectAlternativeName([_general(name) for name in names])
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = self._builder(names[0], key, x509.BasicConstraints(ca=False, path_length=None))
        cert = builder.add_extension(alternatives, False).add_extension(authority, False).sign(self._key, hashes.SHA256())
        plain = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return Certificate(cert.public_bytes(PEM).decode(), plain.decode())

    def _builder(self, name: str, key: ec.EllipticCurvePrivateKey, constraints: x509.BasicConstraints) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(_distinguished(name)).issuer_name(_distinguished(self.name)).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(minutes=5))
        builder = builder.not_valid_after(now + timedelta(hours=1)).add_extension(constraints, True)
        return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)


def encrypted(key: str) -> str:
    """Return a key that asks for a password."""
    loaded = serialization.load_pem_private_key(key.encode(), None)
    return loaded.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")).decode()


def _distinguished(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general(name: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
