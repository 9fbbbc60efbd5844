"""What a picture's file says of its origin: that it is AI generated, by what, and from which seed. EXIF and XMP.

No time, host, account or task is in it, and of the prompt nothing unless the operator wants that.
What it does not know: how files are encoded, and how they are signed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree as ET
from xml.sax.saxutils import quoteattr

from PIL import ExifTags, Image

from fluxserve import __version__
from fluxserve.catalogue import Generation
from fluxserve.catalogue.spec import SOURCE_TYPE

#: The keyword of a PNG's text that holds XMP.
PNG_XMP = "XML:com.adobe.xmp"
_NAMESPACES = {
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "fluxserve": "https://github.com/fluxserve/fluxserve/ns/1.0/",
}
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
#: What XML 1.0 has no way to write.
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What a file says. `drawn_by` names the weights, `model` what was asked for; `prompt` None: nothing of it."""

    drawn_by: str
    model: str
    seed: int
    has_inputs: bool = False
    prompt: str | None = None

    @property
    def exif(self) -> Image.Exif:
        """Software and Model, in the words that the published code for FLUX writes."""
        exif = Image.Exif()
        exif[ExifTags.Base.Model] = self.drawn_by
        exif[ExifTags.Base.Software] = self.software
        return exif

    @property
    def software(self) -> str:
        """The EXIF Software, which says it all in one line."""
        return f"AI generated;{'img2img' if self.has_inputs else 'txt2img'};{self.drawn_by}"

    @property
    def xmp(self) -> bytes:
        """The packet: IPTC's properties for AI, and ours for what IPTC has none for."""
        properties = {
            "xmp:CreatorTool": f"fluxserve {__version__}",
            "Iptc4xmpExt:DigitalSourceType": SOURCE_TYPE,
            "Iptc4xmpExt:AISystemUsed": self.drawn_by,
            "fluxserve:Model": self.model,
            "fluxserve:Seed": str(self.seed),
        }
        if self.prompt is not None:
            properties["Iptc4xmpExt:AIPromptInformation"] = self.prompt
        return _packet(properties)


def mark_of(generation: Generation, drawn_by: str, *, tells_prompt: bool) -> Mark:
    """The mark of a picture that was drawn by these weights."""
    return Mark(
        drawn_by=drawn_by,
        model=generation.model,
        seed=generation.seed,
        has_inputs=bool(generation.pictures),
        prompt=generation.prompt if tells_prompt else None,
    )


def _packet(properties: Mapping[str, str]) -> bytes:
    names = "".join(f" xmlns:{prefix}={quoteattr(name)}" for prefix, name in _NAMESPACES.items())
    values = "".join(f" {name}={quoteattr(_UNWRITABLE.sub('�', value))}" for name, value in properties.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}">'
        f'<rdf:Description rdf:about=""{names}{values}/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


def read(file: Path) -> dict[str, str]:
    """What a picture's XMP and EXIF say, by the names above without their prefixes. Raises OSError for no picture."""
    with Image.open(BytesIO(file.read_bytes()), formats=("JPEG", "PNG", "WEBP")) as image:
        exif, packet = image.getexif(), image.info.get("xmp", image.info.get(PNG_XMP, b""))
    told = told_by(packet if isinstance(packet, bytes) else str(packet).encode())
    for tag in (ExifTags.Base.Software, ExifTags.Base.Model):
        if tag in exif:
            told[f"Exif{tag.name}"] = str(exif[tag])
    return told


def told_by(packet: bytes) -> dict[str, str]:
    """The properties in our namespaces; none where the packet cannot be read, or brings entities of its own."""
    if b"<!" in packet:
        return {}
    try:
        tree = ET.fromstring(packet)  # noqa: S314 - without a document type there is nothing to expand
    except ET.ParseError:
        return {}
    told: dict[str, str] = {}
    for description in tree.iter(f"{{{_RDF}}}Description"):
        found = [*description.attrib.items(), *((child.tag, child.text or "") for child in description)]
        for name, value in found:
            namespace, _, word = name.removeprefix("{").partition("}")
            if namespace in _NAMESPACES.values():
                told[word] = value
    return told
