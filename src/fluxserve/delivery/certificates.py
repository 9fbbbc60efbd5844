"""Certificates and keys as values: making those of an installation's own authority, and judging any.

What it does not know: files, and what is signed.
"""

from __future__ import annotations

import datetime as dt
import secrets
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAY = dt.timedelta(days=1)
_YEAR = 365 * _DAY
#: How long an authority, and what signs for it, holds; and after how long what signs is replaced.
AUTHORITY_LIFE, SIGNING_LIFE, SIGNING_USE = 30 * _YEAR, 10 * _YEAR, _YEAR
#: Others' clocks may be behind.
EARLIER = _DAY
#: C2PA's names for how keys on these curves sign.
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_LEAST_RSA_BITS = 2048
Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        """Both, in one text."""
        return key_pem(self.key) + pem(self.certificate)

    def is_good(self, now: dt.datetime, *, left: dt.timedelta) -> bool:
        """It holds, and will for so long; a clock that was wrong when it was made shows here."""
        certificate = self.certificate
        return certificate.not_valid_before_utc <= now and now + left < certificate.not_valid_after_utc

    def is_issued_by(self, authority: Pair) -> bool:
        """Whether it signs for this authority."""
        try:
            self.certificate.verify_directly_issued_by(authority.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True


def new_authority(now: dt.datetime) -> Pair:
    """An authority that no other has the name of. The name says nothing of the machine."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"fluxserve authority {secrets.token_hex(4)}")
    builder = _builder(name, name, key, now, AUTHORITY_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return Pair(key, builder.sign(key, hashes.SHA256()))


def new_signing(now: dt.datetime, authority: Pair) -> Pair:
    """What signs pictures for an authority.

    C2PA wants a purpose; of those that its library takes, this is the one that every release of it has taken.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(_common_name(authority.certificate).replace("authority", "pictures"))
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = _builder(name, authority.certificate.subject, key, now, SIGNING_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(purposes, critical=False).add_extension(issuer, critical=False)
    return Pair(key, builder.sign(authority.key, hashes.SHA256()))


def algorithm(key: Key) -> str | None:
    """C2PA's name for how such a key signs; None: it does not."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return _CURVES.get(key.curve.name)
    return "ps256" if key.key_size >= _LEAST_RSA_BITS else None


def belongs(key: Key, certificate: x509.Certificate) -> bool:
    """Whether the certificate is about this key."""
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(*form) == certificate.public_key().public_bytes(*form)


def identity(certificate: x509.Certificate) -> str:
    """SHA-256 in hex, as tools print it."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def pem(certificate: x509.Certificate) -> bytes:
    """As text."""
    return certificate.public_bytes(Encoding.PEM)


def key_pem(key: Key) -> bytes:
    """As text, not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: dt.datetime,
    life: dt.timedelta,
) -> x509.CertificateBuilder:  # fmt: skip
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + life)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "fluxserve"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _common_name(certificate: x509.Certificate) -> str:
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
