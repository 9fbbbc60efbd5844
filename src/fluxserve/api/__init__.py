"""How callers speak: dialects over one service, the poll path, pictures, workers, administration.

A dialect parses, calls the service and renders, nothing more.
What it does not know: SQL, how a picture is drawn, where it is kept.
"""

from __future__ import annotations

from fluxserve.api.bfl import BFL
from fluxserve.api.cometapi import COMETAPI
from fluxserve.api.dialect import Dialect
from fluxserve.api.openai import OPENAI
from fluxserve.api.other_apis import OtherApi
from fluxserve.api.replicate import REPLICATE

#: Every dialect; the longer prefixes first.
DIALECTS: tuple[Dialect, ...] = (COMETAPI, BFL)
#: Other APIs over the same service.
OTHER_APIS: tuple[OtherApi, ...] = (OPENAI, REPLICATE)

__all__ = ["DIALECTS", "OTHER_APIS", "Dialect", "OtherApi"]
