"""The authority that signs pictures: made once, private, renewed in time; and the operator's own certificate."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from fluxserve.delivery import authority as house
from fluxserve.delivery import certificates
from fluxserve.delivery.authority import Authority, Credential, certificates_of, identity_of, own_credential
from fluxserve.errors import ConfigurationError

DAY, YEAR = 86_400.0, 365 * 86_400.0
NOW = 20_000 * DAY
FILES = {house.AUTHORITY_FILE, house.SIGNING_FILE, house.CERTIFICATES_FILE}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(house.authority_folder(tmp_path))


def folder_of(tmp_path: Path) -> Path:
    return tmp_path / "c2pa"


def loaded(pem: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem)


def test_an_authority_is_made_once_and_nobody_else_may_read_it(authority: Authority, tmp_path: Path) -> None:
    made = authority.credential(NOW)
    assert authority.credential(NOW + DAY) == made
    assert Authority(folder_of(tmp_path)).credential(NOW) == made
    assert {path.name for path in folder_of(tmp_path).iterdir()} == FILES
    assert folder_of(tmp_path).stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder_of(tmp_path).iterdir()} == {0o600}
    assert "PRIVATE" not in repr(made)
    assert certificates_of(tmp_path, None) == made.anchors
    assert identity_of(made.anchors) == made.identity


def test_every_installation_has_its_own_and_its_name_says_nothing_of_the_machine(tmp_path: Path) -> None:
    one, other = (Authority(tmp_path / name).credential(NOW) for name in ("one", "other"))
    assert one.identity != other.identity
    subjects = [loaded(credential.anchors)[0].subject.rfc4514_string() for credential in (one, other)]
    assert all(
        subject.startswith("CN=fluxserve authority ") and subject.endswith(",O=fluxserve") for subject in subjects
    )
    assert subjects[0] != subjects[1]


def test_what_signs_is_renewed_every_year_by_the_same_authority(authority: Authority) -> None:
    """A signature holds as long as its certificate: each picture's for nine years at least."""
    first = authority.credential(NOW + 12_345)
    assert first.renew_at == NOW + YEAR
    assert authority.credential(NOW + YEAR - 1) == first
    second = authority.credential(NOW + YEAR)
    assert (second.chain != first.chain, second.anchors, second.identity) == (True, first.anchors, first.identity)
    (leaf,), (root,) = loaded(second.chain), loaded(second.anchors)
    leaf.verify_directly_issued_by(root)
    ends = [certificate.not_valid_after_utc.timestamp() for certificate in (*loaded(first.chain), root)]
    assert ends == [NOW + 10 * YEAR, NOW + 30 * YEAR]


def test_an_authority_is_replaced_before_what_it_signs_would_outlive_it_and_its_certificate_stays(
    authority: Authority,
) -> None:
    first = authority.credential(NOW)
    assert authority.credential(NOW + 20 * YEAR - 1).identity == first.identity
    second = authority.credential(NOW + 20 * YEAR)
    assert second.identity != first.identity
    assert second.anchors.endswith(first.anchors)
    assert len(loaded(second.anchors)) == 2
    loaded(second.chain)[0].verify_directly_issued_by(loaded(second.anchors)[0])


@pytest.mark.parametrize("wrong", [0.0, NOW + 50 * YEAR])
def test_a_clock_that_was_wrong_at_the_first_start_does_no_lasting_harm(authority: Authority, wrong: float) -> None:
    authority.credential(wrong)
    leaf = loaded(authority.credential(NOW).chain)[0]
    assert leaf.not_valid_before_utc.timestamp() == NOW - DAY


@pytest.mark.parametrize("lost", sorted(FILES))
def test_a_lost_file_is_made_anew(authority: Authority, tmp_path: Path, lost: str) -> None:
    """Without the authority's key another authority signs, and the certificate of the last one is kept."""
    first = authority.credential(NOW)
    (folder_of(tmp_path) / lost).unlink()
    second = authority.credential(NOW)
    assert (second.identity == first.identity) == (lost != house.AUTHORITY_FILE)
    assert first.anchors in second.anchors
    loaded(second.chain)[0].verify_directly_issued_by(loaded(second.anchors)[0])


@pytest.mark.parametrize("name", [house.AUTHORITY_FILE, house.SIGNING_FILE])
def test_a_key_that_others_can_read_or_that_is_damaged_is_named(
    authority: Authority, tmp_path: Path, name: str
) -> None:
    authority.credential(NOW)
    path = folder_of(tmp_path) / name
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match=f"chmod 600 {path}"):
        authority.credential(NOW)
    path.chmod(0o600)
    content = path.read_bytes()
    other = certificates.new_authority(dt.datetime.now(dt.UTC))
    for damaged in (content[:100], b"", certificates.key_pem(other.key) + content.partition(b"-----BEGIN C")[2]):
        path.write_bytes(damaged)
        with pytest.raises(ConfigurationError, match="is damaged"):
            authority.credential(NOW)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "c2pa").write_text("a file in its place")
    with pytest.raises(ConfigurationError, match="c2pa = off"):
        Authority(folder_of(tmp_path)).credential(NOW)


def test_before_the_first_start_there_is_nothing_to_verify_by(tmp_path: Path) -> None:
    assert certificates_of(tmp_path, None) == b""


def own(tmp_path: Path, *pems: bytes) -> tuple[Path, Path, Credential]:
    """An operator's files: a certificate with more of them after it, and its key."""
    made = Authority(tmp_path / "elsewhere").credential(NOW)
    certificate, key = tmp_path / "own.pem", tmp_path / "own.key"
    certificate.write_bytes(b"".join((made.chain, *(pems or (made.anchors,)))))
    key.write_bytes(made.key)
    return certificate, key, made


def test_an_operators_certificate_signs_and_its_root_is_an_anchor_but_not_sent(tmp_path: Path) -> None:
    certificate, key, made = own(tmp_path)
    ours = own_credential(certificate, key)
    assert (ours.chain, ours.key, ours.anchors, ours.algorithm) == (made.chain, made.key, made.anchors, "es256")
    assert ours.renew_at == float("inf")
    assert certificates_of(tmp_path, certificate) == made.anchors


def test_what_is_wrong_with_an_operators_files_is_named(tmp_path: Path) -> None:
    certificate, key, made = own(tmp_path)
    locked = serialization.load_pem_private_key(made.key, None).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    cases = {
        "cannot be read": (tmp_path / "none.pem", key),
        "key in .* cannot be read": (certificate, tmp_path / "none.key"),
        "no certificates in PEM": (key, key),
        "no private key in PEM": (certificate, certificate),
        "the one that signs comes first": (folder_of(tmp_path).parent / "elsewhere" / house.CERTIFICATES_FILE, key),
    }
    for message, files in cases.items():
        with pytest.raises(ConfigurationError, match=message):
            own_credential(*files)
    key.write_bytes(locked)
    with pytest.raises(ConfigurationError, match="passphrase"):
        own_credential(certificate, key)
    for unusable in (ec.generate_private_key(ec.SECP256K1()), dsa.generate_private_key(2048)):
        key.write_bytes(
            unusable.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        with pytest.raises(ConfigurationError, match="no kind that C2PA signs with"):
            own_credential(certificate, key)


def test_c2pa_knows_keys_by_these_names() -> None:
    curves = (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())
    names = [certificates.algorithm(ec.generate_private_key(curve)) for curve in curves]
    assert names == ["es256", "es384", "es512"]
    assert certificates.algorithm(ed25519.Ed25519PrivateKey.generate()) == "ed25519"
    assert certificates.algorithm(rsa.generate_private_key(65537, 2048)) == "ps256"
    assert certificates.algorithm(rsa.generate_private_key(65537, 1024)) is None  # noqa: S505 - that is the point
