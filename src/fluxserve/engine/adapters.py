"""Adapters: fine-tunes as one checkpoint's transformer draws with them, read from their files when first asked for.

What it does not know: trajectories, which pictures share a pass.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from fluxserve.catalogue import Finetune
from fluxserve.engine import lora
from fluxserve.engine.cache import Cache
from fluxserve.engine.device import Runtime
from fluxserve.engine.finetunes import Finetunes
from fluxserve.engine.lora import Lora
from fluxserve.errors import CheckpointMissing, CheckpointRefused, DrawingFailed, UnknownFinetune

if TYPE_CHECKING:
    from torch.nn import Module

logger = logging.getLogger(__name__)


class Adapters:
    """Those of `transformer`; what was read last is kept within the runtime's budget."""

    def __init__(self, transformer: Module, runtime: Runtime) -> None:
        self._transformer = transformer
        self._runtime = runtime
        self._finetunes = Finetunes(runtime.finetunes)
        self._read = Cache[Lora](runtime.finetune_cache)

    @property
    def transformer(self) -> Module:
        """Whose layers they change."""
        return self._transformer

    def get(self, finetune: Finetune) -> Lora:
        """What it changes; from one thread. Raises DrawingFailed where here is no such file, or none that fits."""
        try:
            self._check(finetune)
            return self._read.get(finetune.sha256, lambda _: self._load(finetune))
        except (UnknownFinetune, CheckpointMissing, CheckpointRefused) as error:
            reason = error.message
        logger.warning(
            "A fine-tune cannot be used: %s", reason, extra={"action": "finetune", "finetune": finetune.name}
        )
        raise DrawingFailed(
            f"The fine-tune {finetune.name} cannot be used here: its file is missing, has changed, or does not fit."
        )

    def applied(self, changes: Lora | None, strength: float) -> AbstractContextManager[None]:
        """See `lora.applied`."""
        return lora.applied(self._transformer, changes, strength)

    def _load(self, finetune: Finetune) -> Lora:
        runtime, file = self._runtime, self._finetunes.file(finetune.name)
        found = lora.load(file, self._transformer, runtime.torch_device, runtime.torch_dtype)
        self._check(finetune)  # it may have been exchanged while it was read
        return found

    def _check(self, finetune: Finetune) -> None:
        if self._finetunes.sha256(finetune.name) != finetune.sha256:
            raise CheckpointRefused(f"{finetune.name} is another file than when it was asked for.")
