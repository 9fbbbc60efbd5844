"""Signed provenance: every format verifies by our authority, the pixels stay, and whatever is changed shows."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import random
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from PIL import Image

from fluxserve import __version__
from fluxserve.catalogue import OutputFormat
from fluxserve.delivery import certificates
from fluxserve.delivery.authority import Authority, Credential, own_credential
from fluxserve.delivery.certificates import Key, Pair, key_pem, pem
from fluxserve.delivery.provenance import Signer, read
from fluxserve.errors import ConfigurationError, ManifestUnreadable, NotSigned
from sample_pictures import file_of, picture

FORMATS: tuple[OutputFormat, ...] = ("jpeg", "png", "webp")
AI = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)


@pytest.fixture(scope="module")
def credential(tmp_path_factory: pytest.TempPathFactory) -> Credential:
    return Authority(tmp_path_factory.mktemp("authority")).credential(NOW.timestamp())


@pytest.fixture(scope="module")
def signer(credential: Credential) -> Signer:
    return Signer(lambda _: credential, NOW.timestamp)


def plain(output_format: OutputFormat) -> bytes:
    noise = Image.frombytes("RGB", (32, 24), random.Random(7).randbytes(32 * 24 * 3))
    return file_of(noise, output_format.upper(), quality=95)


def manifest_in(file: bytes, output_format: OutputFormat) -> tuple[int, int]:
    """Where the manifest's own segment or chunk begins and ends in a signed file."""
    begin = {"jpeg": file.find(b"\xff\xeb"), "png": file.find(b"caBX") - 4, "webp": file.find(b"C2PA")}[output_format]
    match output_format:
        case "jpeg":
            return begin, begin + 2 + int.from_bytes(file[begin + 2 : begin + 4])
        case "png":
            return begin, begin + 12 + int.from_bytes(file[begin : begin + 4])
        case "webp":
            size = int.from_bytes(file[begin + 4 : begin + 8], "little")
            return begin, begin + 8 + size + size % 2


def pixels(file: bytes) -> bytes:
    return Image.open(BytesIO(file)).convert("RGB").tobytes()


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_signed_picture_verifies_and_says_that_fluxserve_generated_it(
    signer: Signer, credential: Credential, output_format: OutputFormat
) -> None:
    file = signer.sign(plain(output_format), output_format)
    found = read(file, credential.anchors)
    assert (found.state, found.failures) == ("trusted", ())
    assert (found.source_types, found.software) == ((AI,), (f"fluxserve {__version__}",))
    assert found.signer.startswith("fluxserve pictures ")
    assert pixels(file) == pixels(plain(output_format))
    assert read(plain(output_format), credential.anchors).state == "none"


def test_a_jpeg_gets_a_segment_and_nothing_else_changes(signer: Signer) -> None:
    before, after = plain("jpeg"), signer.sign(plain("jpeg"), "jpeg")
    begin, end = manifest_in(after, "jpeg")
    assert after[:begin] + after[end:] == before


@pytest.mark.parametrize("output_format", FORMATS)
def test_others_see_a_sound_signature_by_somebody_they_do_not_know(
    signer: Signer, tmp_path: Path, output_format: OutputFormat
) -> None:
    stranger = Authority(tmp_path / "stranger").credential(NOW.timestamp())
    file = signer.sign(plain(output_format), output_format)
    for anchors in (b"", stranger.anchors):
        found = read(file, anchors)
        assert (found.state, found.failures) == ("sound", ("signingCredential.untrusted",))


@pytest.mark.parametrize("output_format", FORMATS)
def test_no_byte_of_a_picture_can_be_changed_unseen(
    signer: Signer, credential: Credential, output_format: OutputFormat, long: bool
) -> None:
    """Every byte outside the manifest; what the manifest says has a test of its own."""
    rng = random.Random(7)
    file = signer.sign(plain(output_format), output_format)
    begin, end = manifest_in(file, output_format)
    places = [place for place in range(len(file)) if not begin <= place < end]
    assert len(places) >= len(plain(output_format))
    for place in rng.sample(places, len(places) if long else 100):
        changed = bytearray(file)
        changed[place] ^= 1 << rng.randrange(8)
        with contextlib.suppress(ManifestUnreadable):
            assert read(bytes(changed), credential.anchors).state in ("changed", "none"), place


@pytest.mark.parametrize("said", [b"trainedAlgorithmicMedia", b"softwareAgent", b"fluxserve pictures", b"c2pa.created"])
def test_what_a_manifest_says_cannot_be_changed_unseen(signer: Signer, credential: Credential, said: bytes) -> None:
    changed = signer.sign(plain("jpeg"), "jpeg").replace(said, said[:-1] + b"?")
    assert read(changed, credential.anchors).state == "changed"


def test_a_manifest_does_not_fit_another_picture(signer: Signer, credential: Credential) -> None:
    other = file_of(picture(32, 24), "JPEG", quality=95)
    signed = signer.sign(plain("jpeg"), "jpeg")
    begin, end = manifest_in(signed, "jpeg")
    moved = other[:begin] + signed[begin:end] + other[begin:]
    assert read(moved, credential.anchors).failures == ("assertion.dataHash.mismatch",)


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_manifest_is_small_and_says_nothing_of_the_machine(signer: Signer, output_format: OutputFormat) -> None:
    before = plain(output_format)
    file = signer.sign(before, output_format)
    assert len(file) - len(before) < 4096
    assert socket.gethostname().encode() not in file
    assert b"thumbnail" not in file
    assert b"title" not in file


@pytest.mark.parametrize("file", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_not_signed_and_harms_nobody(signer: Signer, file: bytes) -> None:
    for output_format in FORMATS:
        with pytest.raises(NotSigned):
            signer.sign(file, output_format)
    assert signer.sign(plain("png"), "png")


def test_what_is_no_picture_is_not_read() -> None:
    with pytest.raises(ManifestUnreadable):
        read(b"not a picture", b"")


def test_a_signer_renews_its_credential_in_time_and_old_pictures_still_verify(tmp_path: Path) -> None:
    authority, times = Authority(tmp_path / "c2pa"), [(NOW - 500 * DAY).timestamp()]
    signer = Signer(authority.credential, lambda: times[0])
    first, old = signer.credential, signer.sign(plain("png"), "png")
    times[0] = NOW.timestamp()
    new = signer.sign(plain("png"), "png")
    assert signer.credential.chain != first.chain
    assert [read(file, signer.credential.anchors).state for file in (old, new)] == ["trusted", "trusted"]


def test_a_renewal_that_fails_is_tried_again_later_and_what_signed_before_goes_on(credential: Credential) -> None:
    times, asked = [NOW.timestamp()], []

    def ask(now: float) -> Credential:
        asked.append(now)
        if len(asked) == 2:
            raise ConfigurationError("The disk is full.")
        return credential

    signer = Signer(ask, lambda: times[0])
    for later in (0.0, 10.0, 3599.0, 3600.0):
        times[0] = credential.renew_at + later
        assert read(signer.sign(plain("png"), "png"), credential.anchors).state == "trusted"
    assert [moment - credential.renew_at for moment in asked[1:]] == [0.0, 3600.0]


def own(key: Key, *, life: dt.timedelta = 30 * DAY, purpose: str = "1.3.6.1.5.5.7.3.4") -> Credential:
    """An operator's certificate of some other authority."""
    root = certificates.new_authority(NOW)
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "a studio")])
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    purposes = x509.ExtendedKeyUsage([x509.ObjectIdentifier(purpose)])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(root.key.public_key())
    builder = x509.CertificateBuilder(
        issuer_name=root.certificate.subject, subject_name=name, public_key=key.public_key(),
        serial_number=x509.random_serial_number(), not_valid_before=NOW - 2 * DAY, not_valid_after=NOW + life,
    )  # fmt: skip
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(usage, critical=True).add_extension(purposes, critical=False)
    leaf = builder.add_extension(issuer, critical=False).sign(root.key, hashes.SHA256())
    return Credential(
        key=key_pem(key), chain=pem(leaf), algorithm=certificates.algorithm(key) or "", anchors=pem(root.certificate),
        identity=certificates.identity(leaf), renew_at=math.inf,
    )  # fmt: skip


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-384", "P-521", "Ed25519", "RSA"],
)
def test_an_operators_key_of_every_kind_signs(key: Key) -> None:
    credential = own(key)
    found = read(Signer(lambda _: credential, NOW.timestamp).sign(plain("webp"), "webp"), credential.anchors)
    assert (found.state, found.signer) == ("trusted", "a studio")


def test_a_certificate_two_steps_from_its_root_verifies_by_the_root_alone(tmp_path: Path) -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
    names = [
        x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, name)]) for name in ("root", "between", "studio")
    ]
    chain = []
    for level, (issuer, key, name) in enumerate(zip((0, 0, 1), keys, names, strict=True)):
        is_authority = level < 2
        builder = x509.CertificateBuilder(
            issuer_name=names[issuer], subject_name=name, public_key=key.public_key(),
            serial_number=x509.random_serial_number(), not_valid_before=NOW - DAY, not_valid_after=NOW + DAY,
        )  # fmt: skip
        usage = x509.KeyUsage(not is_authority, False, False, False, False, is_authority, is_authority, False, False)
        limit = 1 - level if is_authority else None
        builder = builder.add_extension(x509.BasicConstraints(ca=is_authority, path_length=limit), critical=True)
        builder = builder.add_extension(usage, critical=True)
        if not is_authority:
            purposes = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(purposes, critical=False)
        found = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        by = x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[issuer].public_key())
        builder = builder.add_extension(found, critical=False).add_extension(by, critical=False)
        chain.insert(0, pem(builder.sign(keys[issuer], hashes.SHA256())))
    certificate, key_file = tmp_path / "own.pem", tmp_path / "own.key"
    certificate.write_bytes(b"".join(chain))
    key_file.write_bytes(key_pem(keys[2]))
    credential = own_credential(certificate, key_file)
    assert (credential.chain, credential.anchors) == (chain[0] + chain[1], chain[2] + chain[1])
    file = Signer(lambda _: credential, NOW.timestamp).sign(plain("jpeg"), "jpeg")
    assert [read(file, anchors).state for anchors in (credential.anchors, chain[2], b"")] == [
        "trusted", "trusted", "sound",
    ]  # fmt: skip


def test_many_threads_sign_at_once(signer: Signer, credential: Credential) -> None:
    with ThreadPoolExecutor(8) as threads:
        files = list(
            threads.map(lambda number: signer.sign(plain(FORMATS[number % 3]), FORMATS[number % 3]), range(48))
        )
    assert len({*files}) == 48
    assert {read(file, credential.anchors).state for file in files} == {"trusted"}


def test_a_certificate_that_c2pa_refuses_stops_the_start(
    credential: Credential, caplog: pytest.LogCaptureFixture
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    root = certificates.new_authority(NOW)
    refused = (
        own(key, life=-DAY),
        own(key, purpose="1.3.6.1.5.5.7.3.1"),
        replace(own(key), key=key_pem(ec.generate_private_key(ec.SECP256R1()))),
        replace(credential, key=key_pem(root.key), chain=pem(root.certificate)),
        replace(credential, chain=b"no certificate"),
    )
    for one in refused:
        caplog.clear()
        with pytest.raises(ConfigurationError, match="C2PA refuses the certificate"):
            Signer(lambda _, one=one: one, NOW.timestamp)  # type: ignore[misc]
        assert "PRIVATE" not in caplog.text
        assert caplog.records[-1].reason  # type: ignore[attr-defined]


def test_a_pair_says_nothing_of_its_key() -> None:
    pair = certificates.new_authority(NOW)
    assert isinstance(pair, Pair)
    assert "key" not in repr(pair).replace("public_key", "")
