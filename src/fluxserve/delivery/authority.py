"""Who signs pictures: a certificate authority of this installation's own, or the operator's certificate.

The authority is made at the first start and kept in a private folder: its key and certificate in one file, the key and
certificate that sign in another, and in a third every certificate of the authority there ever was, for those who
verify. Without a timestamp a signature holds as long as its certificate, so that is long, and renewed early: a picture
can be verified for at least nine years.
What it does not know: pictures, and what a signature is made of.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fluxserve.delivery.certificates import (
    EARLIER,
    SIGNING_LIFE,
    SIGNING_USE,
    Key,
    Pair,
    algorithm,
    belongs,
    identity,
    key_pem,
    new_authority,
    new_signing,
    pem,
)
from fluxserve.delivery.files import sync_folder, write_new
from fluxserve.errors import ConfigurationError

logger = logging.getLogger(__name__)
_DAY_S = 86_400
AUTHORITY_FILE, SIGNING_FILE, CERTIFICATES_FILE = "authority.pem", "signing.pem", "certificates.pem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What signs pictures: a key, and its certificate with those that lead to its authority, all in PEM.

    `anchors`: certificates by which others verify, newest first, as far as they are known here. `identity`: SHA-256 in
    hex of the certificate that stands for this installation. Past `renew_at` (Unix seconds) another one signs.
    """

    key: bytes = field(repr=False)
    chain: bytes
    algorithm: str
    anchors: bytes
    identity: str
    renew_at: float


class Authority:
    """An authority in a folder of its own. One process at a time uses it: the one that holds the data folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def credential(self, now: float) -> Credential:
        """What signs now: made where it is missing, worn out or of another authority. Raises ConfigurationError."""
        moment = dt.datetime.fromtimestamp(now // _DAY_S * _DAY_S, dt.UTC)  # the day alone: certificates are public
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            authority = self._authority(moment)
            signing = self._signing(moment, authority)
            anchors = self._anchors(authority.certificate)
        except OSError:
            raise ConfigurationError(
                f"What signs pictures cannot be kept in {self._folder}: check the data folder, or set c2pa = off."
            ) from None
        return Credential(
            key=key_pem(signing.key),
            chain=pem(signing.certificate),
            algorithm=algorithm(signing.key) or "",
            anchors=anchors,
            identity=identity(authority.certificate),
            renew_at=(signing.certificate.not_valid_before_utc + EARLIER + SIGNING_USE).timestamp(),
        )

    def _authority(self, now: dt.datetime) -> Pair:
        pair = self._load(AUTHORITY_FILE)
        if pair is None or not pair.is_good(now, left=SIGNING_LIFE):
            pair = new_authority(now)
            self._anchors(pair.certificate)  # first: what is signed from now on has to be verifiable
            self._keep(AUTHORITY_FILE, pair.pem)
            logger.debug("A certificate authority was made", extra={"action": "authority_made"})
        return pair

    def _signing(self, now: dt.datetime, authority: Pair) -> Pair:
        pair = self._load(SIGNING_FILE)
        left = SIGNING_LIFE - SIGNING_USE
        if pair is None or not pair.is_good(now, left=left) or not pair.is_issued_by(authority):
            pair = new_signing(now, authority)
            self._keep(SIGNING_FILE, pair.pem)
        return pair

    def _anchors(self, certificate: x509.Certificate) -> bytes:
        """Every certificate of the authority there was, the newest first; this one is among them."""
        path = self._folder / CERTIFICATES_FILE
        kept = path.read_bytes() if path.exists() else b""
        if pem(certificate) not in kept:
            kept = pem(certificate) + kept
            self._keep(CERTIFICATES_FILE, kept)
        return kept

    def _load(self, name: str) -> Pair | None:
        path = self._folder / name
        if not path.exists():
            return None
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(f"The key in {path} can be read by other users. Run: chmod 600 {path}")
        content = path.read_bytes()
        try:
            key = load_pem_private_key(content, None)
            certificate = x509.load_pem_x509_certificate(content)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise _damaged(path) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not belongs(key, certificate):
            raise _damaged(path)
        return Pair(key, certificate)

    def _keep(self, name: str, content: bytes) -> None:
        """Write beside and rename: whole or not at all."""
        tmp = self._folder / f".{name}.{secrets.token_hex(8)}"
        try:
            write_new(tmp, content)
            tmp.replace(self._folder / name)
        finally:
            tmp.unlink(missing_ok=True)
        sync_folder(self._folder)


def own_credential(certificate: Path, key: Path) -> Credential:
    """The operator's certificate (PEM, its authorities after it) and key. Raises ConfigurationError."""
    chain, private = _own_chain(certificate), _own_key(key)
    if not belongs(private, chain[0]):
        raise ConfigurationError(
            f"The key in {key} is not that of the first certificate in {certificate}: the one that signs comes first."
        )
    told = [one for one in chain if one is chain[0] or one.issuer != one.subject]  # no root is believed for being sent
    return Credential(
        key=key_pem(private),
        chain=b"".join(map(pem, told)),
        algorithm=algorithm(private) or "",
        anchors=_own_anchors(chain),
        identity=identity(chain[0]),
        renew_at=math.inf,
    )


def certificates_of(data_dir: Path, own: Path | None) -> bytes:
    """What verifies this installation's pictures, in PEM; nothing where nothing does. Raises ConfigurationError."""
    if own is not None:
        return _own_anchors(_own_chain(own))
    path = authority_folder(data_dir) / CERTIFICATES_FILE
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError:
        raise ConfigurationError(f"The certificates in {path} cannot be read: check who owns the file.") from None


def identity_of(certificates: bytes) -> str:
    """SHA-256 in hex of the first of these certificates. Raises ConfigurationError."""
    try:
        return identity(x509.load_pem_x509_certificates(certificates)[0])
    except ValueError:
        raise ConfigurationError(
            f"{CERTIFICATES_FILE} of the data folder is damaged: delete it, and the next start writes it anew."
        ) from None


def authority_folder(data_dir: Path) -> Path:
    """Where a data folder keeps its authority."""
    return data_dir / "c2pa"


def _own_anchors(chain: list[x509.Certificate]) -> bytes:
    """The authorities of an operator's certificate, the highest first."""
    return b"".join(map(pem, reversed(chain[1:])))


def _own_chain(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError:
        raise ConfigurationError(f"The certificate in {path} cannot be read: check c2pa_certificate.") from None
    except ValueError:
        raise ConfigurationError(f"There are no certificates in PEM in {path}: check c2pa_certificate.") from None


def _own_key(path: Path) -> Key:
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError:
        raise ConfigurationError(f"The key in {path} cannot be read: check c2pa_key.") from None
    except TypeError:
        raise ConfigurationError(f"The key in {path} has a passphrase: c2pa_key takes one without.") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError(f"There is no private key in PEM in {path}: check c2pa_key.") from None
    if not isinstance(key, Key) or algorithm(key) is None:
        raise ConfigurationError(
            f"The key in {path} is of no kind that C2PA signs with: P-256, P-384, P-521, Ed25519, or RSA of 2048 bits."
        )
    return key


def _damaged(path: Path) -> ConfigurationError:
    return ConfigurationError(
        f"The key in {path} is damaged. Restore the file from a backup, or delete it: then another one is made, and "
        f"what was signed before still verifies by {CERTIFICATES_FILE} beside it."
    )
