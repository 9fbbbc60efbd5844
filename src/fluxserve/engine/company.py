"""Who may share a forward pass: for each size as many pictures as the token budget allows and the self-test admits.

Passes of any number of pictures are tried first: they cost a picture alone nothing, and change no fingerprint. Where
the number shows in the bits, passes that are always filled up to one number are tried, if that costs a picture alone
little enough. Else, and at sizes that are not tested, pictures are drawn one at a time. Where memory runs out, half as
many are tried.
What it does not know: steps, trajectories.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from fluxserve.catalogue import Size
from fluxserve.engine import forward, measured
from fluxserve.engine.budget import MOST_PICTURES, Budget, measure
from fluxserve.engine.checkpoints import Checkpoint, drawn_size
from fluxserve.engine.device import Runtime
from fluxserve.engine.forward import ALONE, Company
from fluxserve.engine.measured import Measured, SizeFound
from fluxserve.engine.networks import Network
from fluxserve.engine.recovery import unless_out_of_memory

logger = logging.getLogger(__name__)
#: Common sizes: what they are drawn at is tested.
_COMMON = (Size(256, 256), Size(512, 512), Size(768, 1024), Size(1024, 768), Size(1024, 1024))
#: About the longest self-test of one size.
_TEST_S = 0.3


def find_company(checkpoint: Checkpoint, network: Network, runtime: Runtime, name: str) -> Mapping[Size, Company]:
    """The drawn sizes that are drawn in company. `name` is what is kept from one start to the next is kept under.

    It has to name everything that decides a pixel. A token budget that was set is tested at each start.
    """
    folder = None if runtime.token_budget else runtime.kept_in
    found = measured.read(folder, name)
    if found is None:
        found = measured.keep(folder, name, _find(checkpoint, network, runtime))
    logger.info(
        "Pictures in a forward pass: %s, other sizes one",
        ", ".join(f"{one.size} {one.most}{' (padded)' if one.padded else ''}" for one in found.sizes) or "one",
        extra={"action": "token_budget", "tokens": found.tokens},
    )
    return {_size(one.size): Company(most=one.most, padded=one.padded) for one in found.sizes}


def _find(checkpoint: Checkpoint, network: Network, runtime: Runtime) -> Measured:
    sizes = sorted({drawn_size(checkpoint, size) for size in _COMMON}, key=lambda size: size.area)
    if runtime.token_budget:
        budget = Budget(tokens=runtime.token_budget, padded=runtime.token_budget)
    else:
        smallest = sizes[0]
        budget = measure(partial(_seconds_of, checkpoint, network, smallest), checkpoint.tokens_at(smallest))
    found = [(size, _sound(checkpoint, network, budget, size)) for size in sizes]
    return Measured(
        tokens=budget.tokens,
        sizes=tuple(
            SizeFound(size=str(size), most=company.most, padded=company.padded)
            for size, company in found
            if company != ALONE
        ),
    )


def _sound(checkpoint: Checkpoint, network: Network, budget: Budget, size: Size) -> Company:
    tokens = checkpoint.tokens_at(size)
    holds = partial(forward.holds, network, size, per_picture=checkpoint.rows_per_picture, seconds=_TEST_S)
    for most, padded in ((budget.tokens // tokens, False), (budget.padded // tokens, True)):
        company = Company(most=min(most, MOST_PICTURES), padded=padded)
        sound = None
        while sound is None and company.most > 1:
            sound = unless_out_of_memory(partial(holds, company))
            if sound:
                return company
            company = replace(company, most=company.most // 2)
    return ALONE


def _seconds_of(checkpoint: Checkpoint, network: Network, size: Size, count: int) -> float | None:
    per_picture = checkpoint.rows_per_picture
    return unless_out_of_memory(partial(forward.seconds_of, network, size, count, per_picture=per_picture))


def _size(text: str) -> Size:
    width, _, height = text.partition("x")
    return Size(int(width), int(height))
