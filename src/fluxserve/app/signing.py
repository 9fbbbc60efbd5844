"""Who signs pictures on this machine, by the settings."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from fluxserve.delivery import provenance
from fluxserve.delivery.authority import Authority, Credential, authority_folder, own_credential
from fluxserve.errors import ConfigurationError
from fluxserve.service.signing import Signing
from fluxserve.settings import Settings

logger = logging.getLogger(__name__)


def open_signing(settings: Settings) -> Signing:
    """What signs on a data folder whose lock is held; made at its first start. Raises ConfigurationError."""
    source = _source(settings)
    if settings.c2pa == "off":
        return Signing()
    required = settings.c2pa == "required"
    if reason := provenance.missing():
        if required:
            raise ConfigurationError(f"Pictures have to be signed (c2pa = required), but cannot be. {reason}")
        logger.warning("Pictures are not signed", extra={"action": "not_signing", "reason": reason})
        return Signing()
    return Signing(provenance.Signer(source, time.time), required=required)


def own_files(settings: Settings) -> tuple[Path, Path] | None:
    """The operator's certificate and key; None: an authority is made. Raises ConfigurationError for one alone."""
    certificate, key = settings.c2pa_certificate, settings.c2pa_key
    if certificate is not None and key is not None:
        return certificate, key
    if certificate is not None or key is not None:
        raise ConfigurationError("c2pa_certificate and c2pa_key belong together: set both, or none of them.")
    return None


def _source(settings: Settings) -> Callable[[float], Credential]:
    own = own_files(settings)
    return Authority(authority_folder(settings.data_dir)).credential if own is None else lambda _: own_credential(*own)
