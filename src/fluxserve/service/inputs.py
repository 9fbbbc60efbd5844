"""Input pictures on the server: decoded as they come, kept within a budget, gone with their task.

Each task has files of its own, so that one that ends takes none from another. A file is safe on the disk before the
transaction that names it; what a crash leaves in between is swept.
What it does not know: what a picture is for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence

from fluxserve.catalogue import InputPicture, ModelSpec, Size
from fluxserve.catalogue.params import MASK, MASKED
from fluxserve.delivery.decoders import Decoders
from fluxserve.delivery.decoding import File, Unreadable
from fluxserve.delivery.storage import Storage, new_object_name
from fluxserve.engine import pixels
from fluxserve.errors import DiskFull, FieldRefused, InputDamaged, InputsFull, PictureGone
from fluxserve.store.base import Store, TaskRecord
from fluxserve.store.submissions import KeptInput

#: Pixels of all pictures of a request together: eight of four megapixels, and a little.
MAX_TOTAL_AREA = 40_000_000

_AT_ONCE = 3


class Inputs:
    """The input pictures of every unfinished task. Rows of the store decide; here they are in memory."""

    def __init__(self, *, store: Store, storage: Storage, decoders: Decoders, budget: int) -> None:
        self._store = store
        self._storage = storage
        self._decoders = decoders
        self._budget = budget
        self._kept: dict[str, tuple[KeptInput, ...]] = {}
        #: Bytes of what is kept and of what is written for a task that does not name it yet.
        self._used = 0
        #: The names of the latter.
        self._unnamed: set[str] = set()
        #: Requests whose pictures are held while they are decoded: enough to keep the decoders busy.
        self._decoding = asyncio.Semaphore(_AT_ONCE)

    async def load(self) -> None:
        """Know what an earlier server kept."""
        self._kept = {}
        self._used = 0
        for kept in await self._store.inputs():
            self._kept[kept.task_id] = (*self._kept.get(kept.task_id, ()), kept)
            self._used += kept.size

    async def decode(
        self,
        spec: ModelSpec,
        contents: Mapping[str, str | bytes],
        beside: Mapping[str, InputPicture | None] | None = None,
        *,
        masks_by_alpha: bool = False,
        measures: bool = False,
    ) -> dict[str, File]:
        """The pictures in these fields, texts of base64 or files. Raises FieldRefused and DecodersBusy.

        `beside`: the fields whose pictures come otherwise; None of one that is not here yet. `masks_by_alpha`: a mask
        that has an alpha channel is what that leaves out. `measures`: without pixels, by the header of each.
        """
        if not contents:
            return {}
        async with self._decoding:
            return await self._decode(
                spec, contents, beside or {}, masks_by_alpha=masks_by_alpha, measures=measures
            )  # fmt: skip

    async def _decode(
        self,
        spec: ModelSpec,
        contents: Mapping[str, str | bytes],
        beside: Mapping[str, InputPicture | None],
        *,
        masks_by_alpha: bool,
        measures: bool,
    ) -> dict[str, File]:
        decoded: dict[str, File] = {}
        area = sum(picture.size.area for picture in beside.values() if picture is not None)
        for param in spec.params:
            if (content := contents.get(param.name)) is None:
                continue
            has_mask = MASK in contents or MASK in beside
            with_mask = (param.name == MASKED and spec.param(MASK) is not None and not has_mask) or (
                param.name == MASK and masks_by_alpha
            )
            shown = content if isinstance(content, str) else ""
            try:
                found = await self._decoders.decode(
                    content, max_area=param.max_area, with_mask=with_mask, measures=measures
                )
            except Unreadable as error:
                raise FieldRefused(param.name, "picture", str(error), shown) from None
            decoded[param.name] = found.picture
            if found.mask is not None:
                decoded[MASK] = found.mask
            if area + sum(file.width * file.height for file in decoded.values()) > MAX_TOTAL_AREA:
                message = f"The pictures of a request should have at most {MAX_TOTAL_AREA // 10**6} megapixels"
                raise FieldRefused(param.name, "picture", message, shown)
        return decoded

    def could_hold(self, files: Mapping[str, File], kept: Sequence[KeptInput]) -> bool:
        """Whether there is room for them, and for what their task has already, where there is nothing else."""
        return sum(len(file.png) for file in files.values()) + sum(one.size for one in kept) <= self._budget

    async def write(self, task_id: str, files: Mapping[str, File]) -> tuple[KeptInput, ...]:
        """Files of the task's own, safe on the disk. Raises InputsFull or DiskFull, and then keeps none."""
        size = sum(len(file.png) for file in files.values())
        if size and self._used + size > self._budget:
            raise InputsFull("The pictures of waiting tasks take all the room there is for them. Try again later.")
        kept = tuple(
            KeptInput(task_id=task_id, name=name, object_name=new_object_name("png"), size=len(file.png))
            for name, file in files.items()
        )
        self._used += size
        self._unnamed |= {one.object_name for one in kept}
        try:
            for one in kept:
                await asyncio.to_thread(self._storage.put, one.object_name, files[one.name].png)
        except (DiskFull, OSError):
            await self.discard(kept)
            raise DiskFull("The disk for input pictures is full or out of reach. Try again later.") from None
        return kept

    def accept(self, task_id: str, kept: tuple[KeptInput, ...]) -> None:
        """The task that they were written for names them now."""
        self._unnamed -= {one.object_name for one in kept}
        if kept:
            self._kept[task_id] = (*self._kept.get(task_id, ()), *kept)

    async def read(self, record: TaskRecord) -> dict[str, bytes]:
        """The task's pictures by name, as files. Raises InputDamaged where one is gone."""
        kept = {one.name: one.object_name for one in self._kept.get(record.id, ())}
        try:
            return {
                picture.name: await asyncio.to_thread(self._read, kept[picture.name])
                for picture in record.generation.pictures
            }
        except (KeyError, PictureGone, OSError):
            raise InputDamaged("An input picture of this task is gone: send the request again.") from None

    def _read(self, object_name: str) -> bytes:
        return _content(self._storage, object_name)

    async def forget(self, task_ids: Iterable[str]) -> None:
        """These tasks have ended, and their rows with them."""
        for task_id in task_ids:
            if (kept := self._kept.pop(task_id, None)) is not None:
                await self.discard(kept)

    async def discard(self, kept: Sequence[KeptInput]) -> None:
        """Delete what no task needs."""
        self._used -= sum(one.size for one in kept)
        self._unnamed -= {one.object_name for one in kept}
        for one in kept:
            with contextlib.suppress(OSError):  # the sweeper tries again
                await asyncio.to_thread(self._storage.delete, one.object_name)

    async def sweep(self, written_before: float) -> int:
        """Delete the files of servers that died while they wrote or deleted; how many."""
        names = await asyncio.to_thread(lambda: set(self._storage.names_older_than(written_before)))
        unnamed = set(self._unnamed)  # before the store is looked at: what it names meanwhile is in neither else
        orphans = names - unnamed - {kept.object_name for kept in await self._store.inputs()}
        for name in orphans:
            await asyncio.to_thread(self._storage.delete, name)
        return len(orphans)


async def damages(store: Store, storage: Storage) -> list[str]:
    """Input pictures of unfinished tasks that are gone, or not those that their task names, as sentences.

    Every file is read; those of tasks that end meanwhile are left out.
    """
    found: dict[KeptInput, str] = {}
    for kept in await store.inputs():
        (record,) = await store.get_many([kept.task_id])
        pictures = () if record is None else record.generation.pictures
        named = next((one for one in pictures if one.name == kept.name), None)
        fault = await asyncio.to_thread(_fault, storage, kept, named)
        if fault is not None:
            found[kept] = f"Task {kept.task_id}: the file of its {kept.name} {fault}."
    still = set(await store.inputs())
    return [sentence for kept, sentence in found.items() if kept in still]


def _fault(storage: Storage, kept: KeptInput, named: InputPicture | None) -> str | None:
    """What is wrong with a file; None: nothing."""
    try:
        content = _content(storage, kept.object_name)
    except (PictureGone, OSError):
        return "is gone or cannot be read"
    if named is None:
        return "is of no picture that the task names"
    try:
        pixels.decode(content, named)
    except InputDamaged:
        return "holds another picture, or is damaged"
    return None if len(content) == kept.size else "has another size than was written down"


def _content(storage: Storage, object_name: str) -> bytes:
    with storage.open(object_name) as file:
        return file.read(file.size)


def pictures_of(files: Mapping[str, File]) -> dict[str, InputPicture]:
    """The pictures as a Generation names them."""
    return {
        name: InputPicture(name=name, size=Size(file.width, file.height), sha256=file.sha256)
        for name, file in files.items()
    }
