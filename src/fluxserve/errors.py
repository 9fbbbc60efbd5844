"""Every error fluxserve raises, as one tree.

    FluxserveError
    ├── RequestError                    the caller's fault: told to the caller
    │   ├── MalformedJson               the body is not JSON
    │   ├── MalformedForm               the body is not the form that it says it is
    │   ├── InvalidRequest              JSON that breaks the schema (carries pydantic-shaped items)
    │   ├── FieldRefused                a field that does not fit the others, or a picture that does not fit it
    │   ├── ModelNotDrawn               a published model that nothing here can draw yet
    │   ├── NotAuthenticated            no key, a wrong key, or two keys that disagree
    │   ├── InsufficientCredits
    │   ├── LinkRefused                 a forged or expired link
    │   ├── NotFound
    │   │   ├── UnknownRoute
    │   │   ├── UnknownModel
    │   │   └── PictureGone             deleted after its retention time
    │   ├── UnknownFinetune             no such LoRA file here
    │   ├── FilesNotTaken               an upload of a file that a request is to name later
    │   ├── MethodNotAllowed
    │   ├── MisdirectedHost             a Host that is not ours
    │   ├── BodyTooLarge
    │   ├── BodyCutOff                  the caller went, or was turned away, before its body was whole
    │   ├── IdempotencyConflict         the same Idempotency-Key with another body
    │   ├── TooManyActiveTasks
    │   ├── TooManyRequests
    │   └── TooManyStreams
    ├── Unavailable                     our fault, for now: try again
    │   ├── DiskFull
    │   ├── QueueFull
    │   ├── BodiesFull
    │   ├── DecodersBusy
    │   ├── InputsFull
    │   ├── StreamsFull
    │   ├── StoreUnavailable
    │   ├── PictureOutOfReach
    │   ├── ModerationUnavailable       a judge that has to be asked does not answer
    │   ├── HeldTooLong                 a request that waits for its pictures has waited long enough
    │   └── ShuttingDown
    ├── ConfigurationError              stops the start and says what to change
    │   ├── UnknownSetting
    │   ├── DataFolderInUse
    │   ├── DatabaseDamaged
    │   ├── DatabaseTooNew
    │   ├── PublicBindWithoutKey
    │   ├── CheckpointMissing
    │   ├── CheckpointRefused           pickles or code, or files that are no FLUX.1 or do not fit each other
    │   ├── MemoryTooSmall              no memory plan fits the device, or the one that was named is not for it
    │   ├── LicenseNotAccepted
    │   ├── EngineNotInstalled
    │   └── ClassifierMissing           pictures cannot be looked at, and so are not drawn
    ├── EngineError                     drawing failed, after all that the engine can do about it
    │   ├── OutOfMemory
    │   ├── BadPicture                  numbers that are none, or a picture of one colour
    │   ├── InputDamaged                an input picture is gone, or is not the one that the task names
    │   └── DrawingFailed
    ├── OutboundError                   a call to an address that a caller chose
    │   ├── UrlRefused                  a URL that is not called, whatever answers there
    │   ├── OutboundFailed              no answer, or none that is taken
    │   └── PictureNotFetched           a picture that a request names by its URL could not be had
    ├── ModerationFailed                a picture could not be judged: nobody gets it
    ├── NotWritten                      a language model had no answer
    │   └── NobodyWrites                what draws the model has none
    ├── NotSigned                       a picture could not be given its C2PA manifest
    ├── ManifestUnreadable              a file that is no picture whose manifest could be read
    ├── SecretLost                      a sealed secret cannot be opened with what secrets.json holds
    ├── WaypointRefused                 a written-down trajectory cannot be taken up: its picture starts over
    └── WorkerProtocolError             the other end does not speak our protocol
        └── WorkerRefused               the server turned this worker away

What knows nothing here: HTTP. `api/responses.py` maps each class to a status.
A message never holds the text of a library's exception: such text can leak addresses, paths and data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

#: What a picture's facts and a result's details are made of.
Fact = str | int | float | bool | None
JsonValue = str | int | float | bool | None | Sequence["JsonValue"] | Mapping[str, "JsonValue"]


class FluxserveError(Exception):
    """The root: `message` may be shown to whoever asked; `retryable` says whether the same call may succeed later."""

    retryable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RequestError(FluxserveError):
    """The caller's fault."""


class MalformedJson(RequestError):
    """The request body is not JSON."""


class MalformedForm(RequestError):
    """The request body is not the form that its Content-Type announces."""


class InvalidRequest(RequestError):
    """JSON that breaks the schema; `items` are pydantic's `{type, loc, msg, input, ctx}`."""

    def __init__(self, message: str, items: Sequence[Mapping[str, JsonValue]]) -> None:
        super().__init__(message)
        self.items = tuple(items)


class FieldRefused(RequestError):
    """A field that does not fit the others, or a picture that does not fit it; `kind` is a word for programs."""

    def __init__(self, field: str, kind: str, message: str, value: JsonValue) -> None:
        super().__init__(message)
        self.field = field
        self.kind = kind
        self.value = value


class ModelNotDrawn(RequestError):
    """A published model that nothing here can draw yet."""


class NotAuthenticated(RequestError):
    """No key, a wrong key, or two keys that disagree."""


class InsufficientCredits(RequestError):
    """The account cannot pay for this task."""


class LinkRefused(RequestError):
    """A link that is forged or has expired."""


class NotFound(RequestError):
    """What was asked for is not here."""


class UnknownRoute(NotFound):
    """No such path."""


class UnknownModel(NotFound):
    """No such model in the catalogue."""


class PictureGone(NotFound):
    """The picture was deleted after its retention time."""


class UnknownFinetune(RequestError):
    """No such LoRA file in the folder of fine-tunes."""


class FilesNotTaken(RequestError):
    """Files are not kept apart from requests: they come within one."""


class MethodNotAllowed(RequestError):
    """The path exists, the method does not."""


class MisdirectedHost(RequestError):
    """The request's Host is malformed or not one of ours."""


class BodyTooLarge(RequestError):
    """The body is over the limit."""


class BodyCutOff(RequestError):
    """The body never became whole; whoever sent it has gone and hears nothing."""


class IdempotencyConflict(RequestError):
    """The same Idempotency-Key was used with another body."""


class TooManyActiveTasks(RequestError):
    """The key has as many unfinished tasks as it may."""

    retryable = True


class TooManyRequests(RequestError):
    """The key submits faster than it may."""

    retryable = True

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooManyStreams(RequestError):
    """As many event streams as the account may have are open."""

    retryable = True


class Unavailable(FluxserveError):
    """Our fault, for now."""

    retryable = True


class DiskFull(Unavailable):
    """Too little disk space is left to accept work safely."""


class QueueFull(Unavailable):
    """More tasks wait than this server may hold."""


class BodiesFull(Unavailable):
    """The large request bodies that are being read would together take too much memory."""


class DecodersBusy(Unavailable):
    """Input pictures come faster than they can be read, or cannot be read at all for now."""


class InputsFull(Unavailable):
    """The input pictures of waiting tasks take as much disk as they may."""


class StreamsFull(Unavailable):
    """As many event streams as the server holds are open."""


class StoreUnavailable(Unavailable):
    """The database could not take the write; nothing was changed."""


class PictureOutOfReach(Unavailable):
    """The file of a picture cannot be read for now."""


class ModerationUnavailable(Unavailable):
    """A judge that has to be asked about the prompt does not answer; nothing was accepted."""


class HeldTooLong(Unavailable):
    """A request that is held until its pictures are drawn was held as long as it may be."""


class ShuttingDown(Unavailable):
    """The server is stopping and takes no new tasks."""


class ConfigurationError(FluxserveError):
    """Stops the start; the message says what to change."""


class UnknownSetting(ConfigurationError):
    """A setting that does not exist."""


class DataFolderInUse(ConfigurationError):
    """Another server holds the data folder."""


class DatabaseDamaged(ConfigurationError):
    """The database failed its check; the message names the restore command."""


class DatabaseTooNew(ConfigurationError):
    """The database was written by a newer fluxserve."""


class PublicBindWithoutKey(ConfigurationError):
    """A public address while no key exists."""


class CheckpointMissing(ConfigurationError):
    """No checkpoint at the place the settings name."""


class CheckpointRefused(ConfigurationError):
    """The checkpoint holds pickles or code, or files that are not whole, not FLUX, or not made for each other."""


class MemoryTooSmall(ConfigurationError):
    """No memory plan of the checkpoint fits the device, or the one that was named is none for it."""


class LicenseNotAccepted(ConfigurationError):
    """The weights' licence has to be accepted first."""


class EngineNotInstalled(ConfigurationError):
    """The engine needs packages that are not installed."""


class ClassifierMissing(ConfigurationError):
    """What looks at pictures is not installed, or not what was tested."""


class EngineError(FluxserveError):
    """Drawing failed."""


class OutOfMemory(EngineError):
    """The device ran out of memory."""


class BadPicture(EngineError):
    """Numbers that are none, or a picture of one colour."""


class InputDamaged(EngineError):
    """An input picture is gone, or is not the one that the task names."""


class DrawingFailed(EngineError):
    """The engine could not draw this task."""


class NotWritten(FluxserveError):
    """A language model of a worker did not answer."""


class NobodyWrites(NotWritten):
    """Whoever draws the model has no language model of its own."""


class OutboundError(FluxserveError):
    """A call to an address that a caller chose."""


class UrlRefused(OutboundError):
    """A URL that is not called, whatever answers there."""


class OutboundFailed(OutboundError):
    """No answer came, or none that is taken; `kind` is a word for programs. One kind hides what cannot be reached."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class PictureNotFetched(OutboundError):
    """A picture that a request names by its URL could not be had; the message names the field."""


class ModerationFailed(FluxserveError):
    """A picture could not be judged: nobody gets it."""


class NotSigned(FluxserveError):
    """A picture could not be given its C2PA manifest."""


class ManifestUnreadable(FluxserveError):
    """A file that is no picture whose manifest could be read."""


class SecretLost(FluxserveError):
    """A sealed secret cannot be opened: secrets.json is another than it was sealed with."""


class WaypointRefused(FluxserveError):
    """A trajectory that was written down cannot be taken up: its picture starts over."""


class WorkerProtocolError(FluxserveError):
    """The other end does not speak our protocol."""


class WorkerRefused(WorkerProtocolError):
    """The server turned this worker away."""
