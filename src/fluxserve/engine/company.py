"""Who may share a forward pass: for each size as many pictures as the token budget allows and the self-test admits.

Passes of any number of pictures are tried first: they cost a picture alone nothing, and change no fingerprint. Where
the number shows in the bits, passes that are always filled up to one number are tried, if that costs a picture alone
little enough. Else, and at sizes that are not tested, pictures are drawn one at a time. Where memory runs out, half as
many are tried. For throughput nothing is tested: pictures share passes as far as the budget goes.
What it does not know: steps, trajectories.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Mapping, Set
from dataclasses import replace
from functools import partial

from fluxserve.catalogue import Size
from fluxserve.engine import forward, measured
from fluxserve.engine.budget import MOST_PICTURES, Budget, measure
from fluxserve.engine.checkpoints import Checkpoint, common_sizes
from fluxserve.engine.device import Runtime
from fluxserve.engine.forward import ALONE, Company
from fluxserve.engine.measured import Measured, SizeFound
from fluxserve.engine.networks import Network
from fluxserve.engine.recovery import release_memory, unless_out_of_memory

logger = logging.getLogger(__name__)
#: About the longest self-test of one size.
_TEST_S = 0.3


def find_company(checkpoint: Checkpoint, network: Network, runtime: Runtime, name: str) -> Mapping[Size, Company]:
    """The drawn sizes that are drawn in company. `name` is what is kept from one start to the next is kept under.

    It has to name everything that decides a pixel. A token budget that was set is tested at each start.
    """
    if runtime.speed.throughput:
        return _freely(checkpoint, network, runtime, name)
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


class Fitting:
    """How many of those that can share a pass fit into memory, where more of them did not."""

    def __init__(self) -> None:
        self._found: dict[Hashable, int] = {}

    def most(self, key: Hashable, most: int) -> int:
        """Of `most`, as many as are known to fit."""
        return min(most, self._found.get(key, most))

    def halve(self, key: Hashable, tried: int, size: Size) -> None:
        """From now on half as many share a pass: what did not fit once is not to fail again at every step."""
        self._found[key] = tried // 2
        logger.warning(
            "Memory ran out: at most %d pictures of %s share a forward pass from now on",
            tried // 2,
            size,
            extra={"action": "smaller_company", "tried": tried},
        )


class Freely(Mapping[Size, Company]):
    """For throughput: as many pictures of any size as the token budget allows, whatever that does to bits."""

    def __init__(self, checkpoint: Checkpoint, tokens: int, alone: Set[Size] = frozenset()) -> None:
        self._checkpoint = checkpoint
        self._tokens = tokens
        self._alone = alone

    def without(self, sizes: Set[Size]) -> Freely:
        """The same, but pictures of these drawn sizes are drawn alone."""
        return Freely(self._checkpoint, self._tokens, self._alone | sizes)

    def __getitem__(self, drawn: Size) -> Company:
        if drawn in self._alone:
            return ALONE
        return Company(most=max(1, min(self._tokens // self._checkpoint.tokens_at(drawn), MOST_PICTURES)))

    def __iter__(self) -> Iterator[Size]:
        return iter(common_sizes(self._checkpoint))

    def __len__(self) -> int:
        return len(common_sizes(self._checkpoint))


def without(company: Mapping[Size, Company], sizes: Set[Size]) -> Mapping[Size, Company]:
    """The same, but pictures of these drawn sizes are drawn alone."""
    if isinstance(company, Freely):
        return company.without(sizes)
    return {size: one for size, one in company.items() if size not in sizes}


def find_safely(checkpoint: Checkpoint, network: Network, runtime: Runtime, name: str) -> Mapping[Size, Company]:
    """As `find_company`; where passes that are compiled or recorded fail, each picture is drawn alone."""
    try:
        return find_company(checkpoint, network, runtime, name)
    except Exception:
        if not runtime.speed.makes_passes:
            raise
        logger.exception("Pictures in company fail here: each is drawn alone", extra={"action": "company_failed"})
    release_memory()
    return {}


def _freely(checkpoint: Checkpoint, network: Network, runtime: Runtime, name: str) -> Freely:
    """No pass has to show anything; the budget is kept as ever."""
    folder = None if runtime.token_budget else runtime.kept_in
    found = measured.read(folder, name)
    if found is None:
        tokens = _budget(checkpoint, network, runtime, common_sizes(checkpoint)[0]).tokens
        found = measured.keep(folder, name, Measured(tokens=tokens, sizes=()))
    logger.info("Pictures share forward passes freely", extra={"action": "token_budget", "tokens": found.tokens})
    return Freely(checkpoint, found.tokens)


def _budget(checkpoint: Checkpoint, network: Network, runtime: Runtime, smallest: Size) -> Budget:
    if runtime.token_budget:
        return Budget(tokens=runtime.token_budget, padded=runtime.token_budget)
    return measure(partial(_seconds_of, checkpoint, network, smallest), checkpoint.tokens_at(smallest))


def _find(checkpoint: Checkpoint, network: Network, runtime: Runtime) -> Measured:
    sizes = common_sizes(checkpoint)
    budget = _budget(checkpoint, network, runtime, sizes[0])
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
