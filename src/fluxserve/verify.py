"""What picture files say of themselves, and whether somebody who is trusted here has signed that: reports as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fluxserve.delivery import provenance
from fluxserve.delivery.authority import certificates_of
from fluxserve.delivery.provenance import Manifest
from fluxserve.engine import marks
from fluxserve.errors import ConfigurationError, ManifestUnreadable
from fluxserve.settings import Settings

#: What files say, in the order and words in which people are told.
_TOLD = {
    "DigitalSourceType": "source type",
    "Model": "model",
    "Seed": "seed",
    "AISystemUsed": "drawn by",
    "CreatorTool": "software",
    "AIPromptInformation": "prompt",
    "ExifSoftware": "EXIF",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a file says (`told`, by words for people) and its manifest."""

    file: Path
    told: dict[str, str]
    manifest: Manifest

    @property
    def is_trusted(self) -> bool:
        """Signed by an authority that is trusted, and not changed since."""
        return self.manifest.state == "trusted"

    @property
    def verdict(self) -> str:
        """One sentence."""
        signer, failures = self.manifest.signer, ", ".join(self.manifest.failures)
        return {
            "trusted": f"verified: signed by {signer}, unchanged since",
            "sound": f"unchanged since {signer} signed it, whose authority is not trusted here",
            "changed": f"NOT what was signed ({failures or 'damaged'})",
            "none": "not signed",
        }[self.manifest.state]

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Subject and text of each line but the first."""
        signed = [("signed claim", ", ".join((*self.manifest.source_types, *self.manifest.software)))]
        return [*self.told.items(), *(signed if signed[0][1] else []), ("signature", self.verdict)]


def anchors_of(settings: Settings, authority: Path | None) -> bytes:
    """The certificates to verify by: in a file, or those of this installation. Raises ConfigurationError."""
    if authority is None:
        return certificates_of(settings.data_dir, settings.c2pa_certificate)
    try:
        return authority.read_bytes()
    except OSError:
        raise ConfigurationError(f"The certificates in {authority} cannot be read.") from None


def examine(files: Sequence[Path], anchors: bytes) -> list[Report | ManifestUnreadable]:
    """A report on each file, or why there is none. Raises ConfigurationError."""
    reports: list[Report | ManifestUnreadable] = []
    for file in files:
        try:
            reports.append(_report(file, anchors))
        except ManifestUnreadable as error:
            reports.append(error)
    return reports


def _report(file: Path, anchors: bytes) -> Report:
    if not file.exists():
        raise ManifestUnreadable(f"There is no file {file}.")
    try:
        told, content = marks.read(file), file.read_bytes()
    except OSError:  # Pillow's error for what is no picture is one, too
        raise ManifestUnreadable(f"{file} is no JPEG, PNG or WebP that can be read.") from None
    return Report(
        file=file,
        told={words: told[name] for name, words in _TOLD.items() if name in told},
        manifest=provenance.read(content, anchors),
    )
