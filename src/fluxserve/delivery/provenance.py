"""Signed provenance: a C2PA manifest in each picture that says what it is and what made it, and reading such manifests.

Signing adds to a file and changes nothing of its pixels. No thumbnail, title, time or network.
What it does not know: tasks, what else a file says of itself, and whose certificate signs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Literal

import msgspec

from fluxserve import __version__
from fluxserve.catalogue import OutputFormat
from fluxserve.catalogue.spec import SOURCE_TYPE
from fluxserve.delivery.authority import Credential
from fluxserve.errors import ConfigurationError, FluxserveError, JsonValue, ManifestUnreadable, NotSigned

if TYPE_CHECKING:
    import c2pa

logger = logging.getLogger(__name__)
INSTALL_HINT = "pip install c2pa-python"
#: After a renewal that failed, the next try; what signed before still holds.
_RENEWAL_PAUSE_S = 3600.0
_SOFTWARE = {"name": "fluxserve", "version": __version__}
_MANIFEST: Mapping[str, JsonValue] = {
    "claim_generator_info": [_SOFTWARE],
    "assertions": [
        {
            "label": "c2pa.actions.v2",
            "data": {
                "actions": [
                    {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE, "softwareAgent": _SOFTWARE},
                ]
            },
        }
    ],
}
_OFFLINE = {"remote_manifest_fetch": False, "ocsp_fetch": False}
#: What has just been signed is not read again: a credential is tried once, before it signs any picture.
_SIGNING = {
    "version": 1,
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"verify_after_sign": False, "verify_trust": False, **_OFFLINE},
}
#: A picture of one pixel, to try a credential on.
_TRIAL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415478da63f8ffff3f0005fe02fe0def46b8"
    "0000000049454e44ae426082"
)
#: `trusted`: signed, unchanged, and by one of the given authorities; `sound`: by another; `changed`: not what was
#: signed; `none`: not signed at all.
State = Literal["trusted", "sound", "changed", "none"]
_STATES: Mapping[str, State] = {"Trusted": "trusted", "Valid": "sound"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a file's manifest says, as far as `state` lets one believe it. `failures`: C2PA's own codes."""

    state: State
    signer: str = ""
    software: tuple[str, ...] = ()
    source_types: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()


def missing() -> str:
    """What keeps pictures from being signed here, and what to do; empty where nothing does."""
    try:
        import c2pa  # noqa: F401
    except ImportError:
        return f"c2pa-python is not installed: {INSTALL_HINT}."
    except (OSError, RuntimeError, AttributeError):
        return "c2pa-python is installed, but its library cannot be loaded on this system."
    return ""


class Signer:
    """Signs pictures. Any thread may call it, and several at once."""

    def __init__(self, credential: Callable[[float], Credential], now: Callable[[], float]) -> None:
        """Raises ConfigurationError where nothing can be signed with `credential`, which is asked again to renew."""
        self._source = credential
        self._now = now
        self._lock = threading.Lock()
        self._credential = credential(now())
        self._context = _context_of(self._credential)
        self._renew_at = self._credential.renew_at

    @property
    def credential(self) -> Credential:
        """What signs now."""
        return self._credential

    def sign(self, picture: bytes, suffix: OutputFormat) -> bytes:
        """The picture with a manifest. Raises NotSigned."""
        if self._now() >= self._renew_at:
            self._renew()
        try:
            return _signed(self._context, picture, suffix)
        except Exception as error:  # noqa: BLE001 - whatever the library stumbles over, the picture stays as it was
            logger.warning("Signing failed", extra={"action": "signing_failed", "error": type(error).__name__})
            raise NotSigned("The picture could not be signed.") from None

    def _renew(self) -> None:
        with self._lock:
            if self._now() < self._renew_at:  # another thread was faster
                return
            try:
                credential = self._source(self._now())
                self._context, self._credential = _context_of(credential), credential
                self._renew_at = credential.renew_at
            except FluxserveError as error:
                self._renew_at = self._now() + _RENEWAL_PAUSE_S
                logger.warning("Renewing failed", extra={"action": "renewal_failed", "reason": error.message})


def _context_of(credential: Credential) -> c2pa.Context:
    """What signs with a credential, once it has done so in a way that verifies. Raises ConfigurationError."""
    import c2pa

    try:
        info = c2pa.C2paSignerInfo(credential.algorithm.encode(), credential.chain, credential.key, None)
        context = c2pa.Context.from_dict(_SIGNING, signer=c2pa.Signer.from_info(info))
        tried = read(_signed(context, _TRIAL, "png"), credential.anchors)
    except Exception as error:  # noqa: BLE001 - the library tells only in words why it refuses a certificate
        logger.warning("C2PA refuses the certificate", extra={"action": "certificate_refused", "reason": str(error)})
        raise _refused() from None
    if tried.state not in ("trusted", "sound"):
        logger.warning(
            "C2PA refuses the certificate",
            extra={"action": "certificate_refused", "reason": ", ".join(tried.failures)},
        )
        raise _refused()
    return context


def _refused() -> ConfigurationError:
    return ConfigurationError(
        "C2PA refuses the certificate that is to sign pictures; the line above says why. It has to be valid now, "
        "issued by another, and for digital signatures with the purpose emailProtection (docs/provenance.md)."
    )


def _signed(context: c2pa.Context, picture: bytes, suffix: OutputFormat) -> bytes:
    import c2pa

    kind, file = f"image/{suffix}", BytesIO()
    with c2pa.Builder({**_MANIFEST, "format": kind}, context=context) as builder:
        builder.sign(kind, BytesIO(picture), file)
    return file.getvalue()


def read(file: bytes, anchors: bytes) -> Manifest:
    """What a file's manifest says and whether that holds, by the authorities in `anchors` (PEM). Asks no network.

    Raises ConfigurationError where c2pa-python is missing, ManifestUnreadable where the file is no picture.
    """
    if reason := missing():
        raise ConfigurationError(reason)
    import c2pa

    trust = {"trust_anchors": anchors.decode()} if anchors else {}
    settings = {"version": 1, "trust": trust, "verify": {"verify_trust": True, **_OFFLINE}}
    try:
        with c2pa.Context.from_dict(settings) as context, c2pa.Reader(BytesIO(file), context=context) as reader:
            return _manifest(msgspec.json.decode(reader.json(), type=_Store))
    except c2pa.C2paError.ManifestNotFound:
        return Manifest(state="none")
    except c2pa.C2paError.NotSupported:
        raise ManifestUnreadable("This is no JPEG, PNG or WebP.") from None
    except (c2pa.C2paError, msgspec.DecodeError) as error:  # a manifest that cannot be read is not what was signed
        return Manifest(state="changed", failures=(type(error).__name__.strip("_"),))


class _Action(msgspec.Struct, frozen=True, rename="camel"):
    digital_source_type: str = ""
    software_agent: dict[str, str] | str = ""

    @property
    def software(self) -> str:
        agent = self.software_agent
        return agent if isinstance(agent, str) else " ".join(filter(None, (agent.get("name"), agent.get("version"))))


class _Actions(msgspec.Struct, frozen=True):
    actions: tuple[_Action, ...] = ()


class _Assertion(msgspec.Struct, frozen=True):
    label: str
    data: msgspec.Raw = msgspec.Raw(b"{}")

    @property
    def actions(self) -> tuple[_Action, ...]:
        is_about_actions = self.label.startswith("c2pa.actions")
        return msgspec.json.decode(self.data, type=_Actions).actions if is_about_actions else ()


class _Signature(msgspec.Struct, frozen=True):
    issuer: str | None = None
    common_name: str | None = None


class _Active(msgspec.Struct, frozen=True):
    assertions: tuple[_Assertion, ...] = ()
    signature_info: _Signature = _Signature()


class _Status(msgspec.Struct, frozen=True):
    code: str


class _Results(msgspec.Struct, frozen=True):
    failure: tuple[_Status, ...] = ()


class _Validation(msgspec.Struct, frozen=True, rename="camel"):
    active_manifest: _Results = _Results()


class _Store(msgspec.Struct, frozen=True):
    """The part of what the library tells of a file that is used here."""

    active_manifest: str = ""
    manifests: dict[str, _Active] = {}
    validation_results: _Validation = _Validation()
    validation_state: str = ""


def _manifest(store: _Store) -> Manifest:
    active = store.manifests.get(store.active_manifest, _Active())
    actions = tuple(action for assertion in active.assertions for action in assertion.actions)
    signature = active.signature_info
    return Manifest(
        state=_STATES.get(store.validation_state, "changed"),
        signer=", ".join(filter(None, (signature.common_name, signature.issuer))),
        software=tuple(dict.fromkeys(action.software for action in actions if action.software)),
        source_types=tuple(
            dict.fromkeys(action.digital_source_type for action in actions if action.digital_source_type)
        ),
        failures=tuple(dict.fromkeys(status.code for status in store.validation_results.active_manifest.failure)),
    )
