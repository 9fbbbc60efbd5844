"""The keys in memory: every request is checked here, against digests, without touching the disk."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from fluxserve.accounts import api_keys
from fluxserve.accounts.api_keys import ApiKey
from fluxserve.accounts.limits import Bucket, Rate, rate_of, take
from fluxserve.errors import TooManyRequests
from fluxserve.store.base import KeyEntry, NewKey, Store

#: Unfinished tasks that a key made by `keys create` may have, unless told otherwise; the hosted API's number.
DEFAULT_MAX_ACTIVE = 24
#: The share of the drawing that a key has beside others, unless told otherwise.
DEFAULT_WEIGHT = 1.0
#: Wrong keys that an address may try in a minute; right ones are let in whatever else it tried.
WRONG_PER_MINUTE = 300
#: Addresses whose wrong keys are counted; beyond it the one that was longest quiet is forgotten.
_MOST_ADDRESSES = 10_000


class Keyring:
    """Finds the key behind a text and keeps to its rate."""

    def __init__(self, store: Store, pepper: bytes, steady: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._steady = steady
        self._wrong: OrderedDict[str, Bucket] = OrderedDict()
        self._pepper = pepper
        self._keys: dict[bytes, ApiKey] = {}
        self._buckets: dict[str, Bucket] = {}

    async def load(self) -> None:
        """Read the keys from the store."""
        self._keys = {entry.digest: entry.key for entry in await self._store.keys() if not entry.key.is_revoked}

    @property
    def is_empty(self) -> bool:
        """Nobody can ask for anything yet."""
        return not self._keys

    def find(self, text: str) -> ApiKey | None:
        """The key, if it exists and is not revoked. Looked up by digest, so that no comparison leaks timing."""
        return self._keys.get(api_keys.digest(text, self._pepper))

    def spend_request(self, key: ApiKey, now: float) -> None:
        """Count one submit against the key's rate; raises TooManyRequests."""
        if key.rate_per_minute is None:
            return
        bucket, wait = take(self._buckets.get(key.id), rate_per_minute=key.rate_per_minute, now=now)
        self._buckets[key.id] = bucket
        if wait:
            raise TooManyRequests(
                f"This key may submit {key.rate_per_minute} tasks a minute. Try again in {math.ceil(wait)} s.", wait
            )

    def rate(self, key: ApiKey) -> Rate | None:
        """How much of its rate the key had left at its last submit; None: it has no limit."""
        if key.rate_per_minute is None:
            return None
        return rate_of(self._buckets.get(key.id), key.rate_per_minute)

    def count_wrong(self, address: str) -> None:
        """An address came with a key that is none; raises TooManyRequests where it does so all the time."""
        bucket, wait = take(self._wrong.get(address), rate_per_minute=WRONG_PER_MINUTE, now=self._steady())
        self._wrong[address] = bucket
        self._wrong.move_to_end(address)
        if len(self._wrong) > _MOST_ADDRESSES:
            self._wrong.popitem(last=False)
        if wait:
            raise TooManyRequests("Too many wrong keys came from this address. Try again in a moment.", wait)

    async def create(
        self,
        *,
        name: str,
        account: str | None,
        grant: int | None,
        max_active: int | None,
        max_work: float | None = None,
        rate_per_minute: int | None,
        weight: float,
        now: float,
        text: str | None = None,
    ) -> tuple[str, KeyEntry]:
        """Make a key of `text` or a new one; what is returned is the only copy. `grant` None: an unlimited account."""
        text = text or api_keys.new_key()
        key_id = api_keys.new_key_id()
        entry = await self._store.create_key(
            NewKey(
                id=key_id,
                digest=api_keys.digest(text, self._pepper),
                name=name,
                account=account or f"account-{key_id}",
                unlimited=grant is None,
                grant=grant or 0,
                max_active=max_active,
                max_work=max_work,
                rate_per_minute=rate_per_minute,
                weight=weight,
                now=now,
            )
        )
        self._keys[entry.digest] = entry.key
        return text, entry

    async def revoke(self, key_id: str, now: float) -> KeyEntry | None:
        """Close a key at once; None when there is none of that id."""
        entry = await self._store.revoke_key(key_id, now)
        if entry is not None:
            self._keys.pop(entry.digest, None)
        return entry

    async def entries(self) -> list[KeyEntry]:
        """Every key, revoked ones too."""
        return await self._store.keys()
