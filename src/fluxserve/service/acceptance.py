"""From a checked request to what the store takes: resolved, priced, its pictures written, all that is equal known by.

A request whose pictures are all there takes its place at once; one that names some by URL is accepted at the most that
it can cost, and takes its place once they have come, as does one whose prompt is to be enriched.
What it does not know: whether the server is open for requests, and who is shown what.
"""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace

from fluxserve.catalogue import Generation, InputPicture, ModelSpec, Resolved, find, foresee, resolve
from fluxserve.catalogue.foreseeing import unseen_names
from fluxserve.catalogue.params import MAX_AREA
from fluxserve.delivery.addresses import Allowance
from fluxserve.delivery.outbound import fault_of
from fluxserve.errors import Fact, FieldRefused, FluxserveError, JsonValue, ModerationUnavailable
from fluxserve.service.finetunes import FinetuneHashes
from fluxserve.service.inputs import Inputs, pictures_of
from fluxserve.service.moderation import Moderation
from fluxserve.service.orders import Estimate, Order, refusal
from fluxserve.service.sharing import Sharing
from fluxserve.service.upsampling import FAILED, REFUSED, UNAVAILABLE, UNJUDGED, Enriched, Upsampling
from fluxserve.service.webhooks import Webhooks
from fluxserve.settings import Settings
from fluxserve.store.base import Store, TaskRecord, Verdict
from fluxserve.store.submissions import KeptInput, Preparation, Prepared, Refusal, Submission

#: The warning of a request that says what is tolerated where nothing is refused.
UNMODERATED = "safety_tolerance changes nothing: moderation is switched off here"


#: What is neither base64 nor an address that pictures are fetched from: file:///, ftp://.
_OTHER_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
NO_PICTURE = "Input should be base64, a data URI, or an http or https URL: nothing else is fetched"


class Acceptance:
    """Takes orders to the store, and prepared tasks. Used from the event loop only."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        inputs: Inputs,
        sharing: Sharing,
        webhooks: Webhooks,
        moderation: Moderation,
        upsampling: Upsampling,
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._store = store
        self._inputs = inputs
        self._sharing = sharing
        self._webhooks = webhooks
        self._moderation = moderation
        self._upsampling = upsampling
        self._allowance = Allowance.parse(settings.outbound_allow)
        self._finetunes = FinetuneHashes(settings.finetunes)
        self._model_limits = settings.model_limits
        self._now = now
        self._rng = rng

    async def accept(self, order: Order) -> tuple[TaskRecord, bool]:
        """The order's task, and whether it is new; a used idempotency key answers the task it made before."""
        self._check_addresses(order)
        files = await self._inputs.decode(
            order.spec, order.pictures, dict.fromkeys(order.urls), masks_by_alpha=order.masks_by_alpha
        )
        pictures = pictures_of(files)
        resolved = await self._resolved(order, pictures)
        refused = await self._moderation.judge_prompt(
            resolved.generation, has_pictures=bool(order.urls or resolved.generation.pictures)
        )
        task_id = str(uuid.uuid4())
        inputs = await self._inputs.write(task_id, {} if refused else files)
        submission = self._submission(task_id, order, resolved, order.hash(pictures), inputs)
        if refused is not None:
            submission = _refused(submission, refused)
        try:
            submitted = (await self._store.submit_many([submission]))[0]
        except FluxserveError:  # nothing was written down
            await self._inputs.discard(inputs)
            raise
        record, is_new = submitted.record, submitted.verdict is Verdict.ACCEPTED
        await self._hand_over(task_id, inputs, is_named=is_new and record is not None and record.state.is_active)
        if record is None:
            raise refusal(submission, submitted)
        return record, is_new

    async def estimate(self, order: Order) -> Estimate:
        """What the order would cost; its pictures are measured by their headers alone. Raises as `accept`."""
        self._check_addresses(order)
        measured = await self._inputs.decode(order.spec, order.pictures, dict.fromkeys(order.urls), measures=True)
        pictures = pictures_of(measured)
        resolved = await self._resolved(order, pictures)
        return Estimate(
            cost=resolved.cost,
            input_area=sum(one.size.area for one in pictures.values())
            + MAX_AREA * len(unseen_names(order.spec, pictures, tuple(order.urls))),
            size=resolved.generation.size,
            at_most=bool(order.urls),
        )

    def _check_addresses(self, order: Order) -> None:
        self._webhooks.check(order.text("webhook_url"))
        for name, text in order.pictures.items():
            if isinstance(text, str) and _OTHER_URL.match(text):
                raise FieldRefused(name, "picture_url", NO_PICTURE, text)
        for name, url in order.urls.items():
            if (fault := fault_of(url, self._allowance, secure=False)) is not None:
                raise FieldRefused(name, "picture_url", fault, url)

    async def prepare(
        self,
        record: TaskRecord,
        request: Preparation,
        pictures: Mapping[str, InputPicture],
        inputs: tuple[KeptInput, ...],
        enriched: Enriched | None,
    ) -> TaskRecord | None:
        """All pictures of a task are there; `pictures` and their files `inputs` are those that were fetched.

        `enriched`: its prompt, where it was to be enriched; one that is refused is not drawn, but what it was made of.
        None where it has ended, and then the files are the caller's still. Raises FieldRefused where they do not fit.
        """
        finetune, spec = record.generation.finetune, find(record.generation.model)
        resolved = resolve(
            spec,
            request.values,
            pictures={**{one.name: one for one in record.generation.pictures}, **pictures},
            ignored=request.ignored,
            rng=self._rng,
            finetune_sha256=None if finetune is None else finetune.sha256,
        )
        warnings = self._warnings(resolved, spec, request.values)
        if enriched is not None:
            generation, warning = await self._with_prompt(resolved.generation, enriched)
            resolved = replace(resolved, generation=generation)
            warnings += (warning,) if warning else ()
        recipe = self._sharing.recipe(record.account_id, resolved.generation)
        new = Prepared(
            id=record.id,
            key_id=record.key_id,
            generation=resolved.generation,
            inputs=inputs,
            warnings=warnings,
            recipe=recipe,
            repeatable=recipe is not None and request.repeatable,
            fingerprints=self._sharing.fingerprints(record.generation.model),
            cost=resolved.cost,
            work=resolved.work,
            weight=request.weight,
            now=self._now(),
        )
        prepared = (await self._store.prepare_many([new]))[0]
        if prepared is not None:
            await self._hand_over(record.id, inputs, is_named=prepared.state.is_active)
        return prepared

    async def _with_prompt(self, generation: Generation, enriched: Enriched) -> tuple[Generation, str]:
        """A generation with an enriched prompt, or as it was and why."""
        if enriched.warning:
            return generation, enriched.warning
        drawn = replace(generation, prompt=enriched.prompt)
        try:
            refused = await self._moderation.judge_prompt(drawn, has_pictures=bool(drawn.pictures))
        except ModerationUnavailable:
            return generation, FAILED.format(UNJUDGED)
        return (generation, REFUSED) if refused else (drawn, "")

    async def _hand_over(self, task_id: str, inputs: tuple[KeptInput, ...], *, is_named: bool) -> None:
        """Files that were written belong to the task that names them, else they go."""
        if is_named:
            self._inputs.accept(task_id, inputs)
        else:
            await self._inputs.discard(inputs)

    async def _resolved(self, order: Order, pictures: Mapping[str, InputPicture]) -> Resolved:
        sha256 = await self._finetunes.sha256(order.text("finetune_id"))
        if order.urls:
            return foresee(
                order.spec, order.values, pictures=pictures, unseen=tuple(order.urls), ignored=order.ignored,
                rng=self._rng, finetune_sha256=sha256,
            )  # fmt: skip
        return resolve(
            order.spec, order.values, pictures=pictures, ignored=order.ignored, rng=self._rng, finetune_sha256=sha256,
        )  # fmt: skip

    def _submission(
        self, task_id: str, order: Order, resolved: Resolved, request_hash: bytes, inputs: tuple[KeptInput, ...]
    ) -> Submission:
        upsamples = self._upsampling.is_on and order.spec.wants_upsampling(order.values)
        waits = bool(order.urls) or upsamples
        recipe = None if waits else self._sharing.recipe(order.key.account_id, resolved.generation)
        return Submission(
            id=task_id,
            account_id=order.key.account_id,
            key_id=order.key.id,
            generation=resolved.generation,
            inputs=inputs,
            preparation=_preparation(order, resolved, upsamples=upsamples) if waits else None,
            refusal=None,
            extras=order.extras,
            warnings=self._warnings(resolved, order.spec, order.values),
            dialect=order.dialect,
            origin=order.origin,
            webhook_url=order.text("webhook_url"),
            sealed_secret=self._webhooks.seal(order.text("webhook_secret"), task_id),
            idempotency_key=order.idempotency_key,
            request_hash=request_hash,
            recipe=recipe,
            repeatable=recipe is not None and order.has_seed,
            fingerprints=self._sharing.fingerprints(order.spec.name),
            cost=resolved.cost,
            work=resolved.work,
            weight=order.key.weight,
            max_active=order.key.max_active,
            max_work=order.key.max_work,
            max_of_model=self._limit_of(order),
            now=self._now(),
        )

    def _warnings(self, resolved: Resolved, spec: ModelSpec, values: Mapping[str, JsonValue]) -> tuple[str, ...]:
        told = list(resolved.warnings)
        if "safety_tolerance" in values and not self._moderation.is_on:
            told.append(UNMODERATED)
        if spec.wants_upsampling(values) and not self._upsampling.is_on:
            told.append(UNAVAILABLE)
        return tuple(told)

    def _limit_of(self, order: Order) -> int | None:
        return None if order.key.max_active is None else self._model_limits.get(order.spec.name)


def _refused(submission: Submission, refusal: Refusal) -> Submission:
    """It ends as it comes, costs nothing, and has nothing to do with any other."""
    return replace(
        submission, refusal=refusal, preparation=None, recipe=None, repeatable=False, fingerprints=(), cost=0
    )


def _preparation(order: Order, resolved: Resolved, *, upsamples: bool) -> Preparation:
    """What is to be kept of the order until its pictures and its prompt are there."""
    values: dict[str, Fact] = {**order.drawn_from, "seed": resolved.generation.seed}
    return Preparation(
        values=values, urls=order.urls, ignored=order.ignored, repeatable=order.has_seed, weight=order.key.weight,
        upsamples=upsamples,
    )  # fmt: skip
