"""`fluxserve verify` and what `fluxserve doctor` says of signatures, on files and folders."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fluxserve import doctor
from fluxserve.app.signing import open_signing
from fluxserve.delivery.provenance import Signer
from fluxserve.engine import pixels
from fluxserve.engine.marks import Mark
from fluxserve.errors import ConfigurationError, ManifestUnreadable
from fluxserve.service.signing import Signing
from fluxserve.settings import Settings
from fluxserve.verify import Report, anchors_of, examine
from sample_pictures import picture

MARK = Mark(drawn_by="fluxserve-mini", model="flux-dev", seed=7)
PLAIN = pixels.encode(pixels.from_image(picture()), "jpeg", MARK)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, engine="none")


def signed(signing: Signing, file: Path) -> Path:
    signer = signing._signer
    assert isinstance(signer, Signer)
    file.write_bytes(signer.sign(PLAIN, "jpeg"))
    return file


def the_report(file: Path, anchors: bytes) -> Report:
    (report,) = examine([file], anchors)
    assert isinstance(report, Report)
    return report


def provenance_of(settings: Settings) -> doctor.Finding:
    (finding,) = [finding for finding in doctor.examine(settings) if finding.subject == "provenance"]
    return finding


def test_a_picture_of_this_installation_is_verified_and_says_what_it_is(settings: Settings, tmp_path: Path) -> None:
    file = signed(open_signing(settings), tmp_path / "picture.jpeg")
    report = the_report(file, anchors_of(settings, None))
    assert report.is_trusted
    told = dict(report.lines)
    assert (told["model"], told["seed"], told["drawn by"]) == ("flux-dev", "7", "fluxserve-mini")
    assert told["source type"].endswith("/trainedAlgorithmicMedia")
    assert "trainedAlgorithmicMedia, fluxserve " in told["signed claim"]
    assert told["signature"].startswith("verified: signed by fluxserve pictures ")


def test_what_is_not_verified_says_why(settings: Settings, tmp_path: Path) -> None:
    file = signed(open_signing(settings), tmp_path / "picture.jpeg")
    anchors = anchors_of(settings, None)
    assert "not trusted here" in the_report(file, b"").verdict
    content = file.read_bytes()
    file.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    assert the_report(file, anchors).verdict == "NOT what was signed (assertion.dataHash.mismatch)"
    file.write_bytes(PLAIN)
    assert (the_report(file, anchors).verdict, the_report(file, anchors).is_trusted) == ("not signed", False)


def test_a_file_that_cannot_be_read_keeps_no_other_from_being_looked_at(settings: Settings, tmp_path: Path) -> None:
    good, bad = signed(open_signing(settings), tmp_path / "picture.jpeg"), tmp_path / "bad.png"
    bad.write_bytes(b"not a picture")
    no_picture, missing, report = examine([bad, tmp_path / "nowhere.png", good], anchors_of(settings, None))
    assert isinstance(no_picture, ManifestUnreadable)
    assert f"{bad} is no JPEG" in no_picture.message
    assert isinstance(missing, ManifestUnreadable)
    assert "There is no file" in missing.message
    assert isinstance(report, Report)
    assert report.is_trusted


def test_others_verify_by_a_file_of_certificates(settings: Settings, tmp_path: Path) -> None:
    file = signed(open_signing(settings), tmp_path / "picture.jpeg")
    elsewhere = Settings(data_dir=tmp_path / "elsewhere")
    assert anchors_of(elsewhere, None) == b""
    anchors = anchors_of(elsewhere, tmp_path / "c2pa" / "certificates.pem")
    assert the_report(file, anchors).is_trusted
    with pytest.raises(ConfigurationError, match="cannot be read"):
        anchors_of(elsewhere, tmp_path / "nothing.pem")


def test_an_operators_certificate_signs_where_one_is_set(settings: Settings, tmp_path: Path) -> None:
    open_signing(settings)
    own, folder = tmp_path / "own.pem", tmp_path / "c2pa"
    leaf = (folder / "signing.pem").read_bytes()
    own.write_bytes(leaf + (folder / "certificates.pem").read_bytes())
    with_own = Settings(
        data_dir=tmp_path / "another", engine="none", c2pa_certificate=own, c2pa_key=folder / "signing.pem"
    )
    file = signed(open_signing(with_own), tmp_path / "picture.jpeg")
    assert not (tmp_path / "another").exists()
    assert the_report(file, anchors_of(with_own, None)).is_trusted
    assert str(own) in provenance_of(with_own).text


def test_a_certificate_without_its_key_stops_the_start(settings: Settings, tmp_path: Path) -> None:
    alone = settings.model_copy(update={"c2pa_key": tmp_path / "key.pem"})
    with pytest.raises(ConfigurationError, match="belong together"):
        open_signing(alone)
    assert provenance_of(alone).grade == "bad"


def test_without_the_library_pictures_stay_unsigned_unless_they_have_to_be(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = settings.data_dir / "plain.jpeg"
    file.write_bytes(PLAIN)
    monkeypatch.setitem(sys.modules, "c2pa", None)
    assert open_signing(settings).identity == ""
    assert "pip install c2pa-python" in caplog.records[-1].reason  # type: ignore[attr-defined]
    assert (provenance_of(settings).grade, "not signed" in provenance_of(settings).text) == ("note", True)
    required = settings.model_copy(update={"c2pa": "required"})
    with pytest.raises(ConfigurationError, match="pip install c2pa-python"):
        open_signing(required)
    assert provenance_of(required).grade == "bad"
    with pytest.raises(ConfigurationError, match="pip install c2pa-python"):
        examine([file], b"")


def test_the_doctor_says_where_the_certificate_is(settings: Settings, tmp_path: Path) -> None:
    assert "first start" in provenance_of(settings).text
    assert not (tmp_path / "c2pa").exists()
    identity = open_signing(settings).identity
    found = provenance_of(settings)
    assert (found.grade, str(tmp_path / "c2pa" / "certificates.pem") in found.text) == ("ok", True)
    assert identity in found.text
    off = provenance_of(settings.model_copy(update={"c2pa": "off"}))
    assert (off.grade, "c2pa = off" in off.text) == ("note", True)
