"""Every setting, read once: defaults, then the TOML file, then `FLUXSERVE_*`, then the command line.

An unknown name stops the start, so that a misspelt setting is never silently ignored.
What it does not know: what a setting is used for.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from fluxserve.errors import ConfigurationError, JsonValue, UnknownSetting

ENV_PREFIX = "FLUXSERVE_"
#: Read by scripts, the client or before the settings themselves; not settings of the server.
OTHER_VARIABLES = frozenset(
    {"FLUXSERVE_CONFIG", "FLUXSERVE_PYTHON", "FLUXSERVE_TORCH_INDEX", "FLUXSERVE_URL", "FLUXSERVE_API_KEY"}
)
#: The checkpoint that ships inside the package.
MINI = "mini"
MAX_PORT = 65535

EngineChoice = Literal["auto", "diffusion", "fake", "none"]
#: `auto`, or a plan of `engine/plans`.
PlanChoice = Literal[
    "auto",
    "resident",
    "tiled",
    "float8",
    "float8-tiled",
    "int8",
    "int8-tiled",
    "encoder-blocks",
    "encoder-blocks-tiled",
    "float8-encoder-blocks",
    "float8-encoder-blocks-tiled",
    "turns",
    "turns-tiled",
    "float8-turns",
    "float8-turns-tiled",
    "float8-blocks",
    "float8-blocks-tiled",
    "blocks",
    "blocks-tiled",
]

#: What makes networks faster (docs/speed.md).
SpeedWord = Literal["auto", "plain", "compiled", "fused", "graphs", "channels-last", "float8-dynamic"]
AttentionChoice = Literal["auto", "torch", "cudnn", "flash", "flash3", "efficient", "math"]
Numerics = Literal["exact", "throughput"]
StepCacheChoice = Literal["off", "taylor", "first-block"]


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def is_port(text: str) -> bool:
    """Whether the text is the number of a port; systems take larger ones modulo 65536."""
    return re.fullmatch("[0-9]{1,5}", text) is not None and int(text) <= MAX_PORT


def _with_port(address: str) -> str:
    if not is_port(address.rpartition(":")[2]):
        raise PydanticCustomError("port", "the port has to be a number from 0 to 65535")
    return address


#: A list in the file, or one text with commas in the environment.
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
SpeedWords = Annotated[tuple[SpeedWord, ...], NoDecode, BeforeValidator(_split)]


class Composed(BaseModel):
    """A checkpoint with parts from elsewhere: `base` names one that has the rest, as a text would.

    `files`: single files whose parts are taken instead of the base's. `redux`: a folder that reads image prompts,
    `depth`: one that sees depth.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    base: str
    files: tuple[str, ...] = ()
    redux: str | None = None
    depth: str | None = None

    @model_validator(mode="after")
    def _has_more(self) -> Composed:
        if not self.files and self.redux is None and self.depth is None:
            raise PydanticCustomError(
                "composed", "name files, a redux or a depth beside the base, or the base alone as a text"
            )
        return self


class Endpoint(BaseModel):
    """Something that is asked over HTTP at an address of the operator's own."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: str = Field(pattern=r"^https?://[^\s/?#@]+(/[^\s]*)?$")
    model: str | None = None
    key: SecretStr | None = None

    @property
    def host(self) -> str:
        """Without a port; an IPv6 address without its brackets."""
        return (urlsplit(self.url).hostname or "").lower()

    @property
    def bearer(self) -> list[tuple[bytes, bytes]]:
        """The header that shows the key, if there is one."""
        return [] if self.key is None else [(b"authorization", b"Bearer " + self.key.get_secret_value().encode())]


class Judge(Endpoint):
    """A judge of texts, pictures or both."""

    kind: Literal["openai", "http"] = "openai"
    asked_about: Literal["texts", "pictures", "both"] = "texts"


class Upsampler(Endpoint):
    """A language model that enriches prompts, behind an OpenAI-compatible endpoint: `url` up to its `/v1`."""


#: The `prompt_upsampler` that is a part of what draws.
CHECKPOINT: Final = "checkpoint"
#: The two kinds of a model's value; no names of settings.
_TEXT, _TABLE = "as a text", "as a table"
ModelValue = Annotated[
    Annotated[str, Tag(_TEXT)] | Annotated[Composed, Tag(_TABLE)],
    Discriminator(lambda value: _TABLE if isinstance(value, dict | Composed) else _TEXT),
]


class Settings(BaseSettings):
    """All settings of a server and its local workers. Durations in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8808, ge=0, le=MAX_PORT, description="Port to listen on; 0 picks a free one.")
    data_dir: Path = Field(Path("fluxserve-data"), description="Folder that holds the database, pictures and keys.")
    public_url: str | None = Field(
        None,
        pattern=r"^https?://[^/\s]+$",
        description="Origin of every link, such as https://flux.example.com; by default the request's own.",
    )
    trusted_proxies: Names = Field(
        ("127.0.0.1",),
        description="Addresses whose X-Forwarded-Proto and X-Forwarded-Host are believed, with commas.",
    )
    allowed_hosts: Names = Field(
        (),
        description="Host names a request may carry, with commas; empty: any. Set it where a server is public.",
    )
    admin_key: SecretStr | None = Field(
        None, min_length=16, description="Secret of whoever runs the server, for what is told to no key: /metrics."
    )
    cors_origins: Names = Field(
        (), description="Web origins that may read pictures and the API from a browser, with commas."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe line to log.")
    log_format: Literal["text", "json"] = Field("text", description="Log lines for people or for machines.")

    models: dict[str, ModelValue] = Field(
        {},
        description="Model name to checkpoint: `mini`, a folder in diffusers layout, or a repository in the hub cache; "
        "or a table of `base`, one of these, and `files`, safetensors in BFL's or ComfyUI's layout whose parts are "
        "taken instead of the base's, `redux`, a folder that lets it read image_prompt, or `depth`, one that sees "
        "depth.",
    )
    accept_licenses: Names = Field(
        (), description="Licences of weights that you accept, with commas, such as flux-1-dev or flux-2-dev."
    )
    engine: EngineChoice = Field(
        "auto", description="What local workers draw with; auto: diffusion where torch is installed, else none."
    )
    workers: int | None = Field(
        None,
        ge=0,
        le=64,
        description="Local worker processes; unset: one for each core of a CPU where networks are tiny, else one.",
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="Device to draw on.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Number format of the networks; auto: bfloat16 on a GPU, and on a CPU that multiplies it where "
        "networks are large, else float32.",
    )
    memory_plan: PlanChoice = Field(
        "auto",
        description="How each checkpoint is held on the device (docs/memory.md); auto: the fastest way that fits.",
    )
    memory_budget: int = Field(
        0,
        ge=0,
        description="Memory of the device that is planned with, for a checkpoint alone and for those that are there "
        "together; 0: all of it but 1 GiB, on a CPU but 2 GiB.",
    )
    host_weights: int = Field(
        0,
        ge=0,
        description="Most bytes of weights, of all local workers together, that wait in the machine's memory for their "
        "turn on a GPU; the rest is read again from its files. 0: two fifths of that memory.",
    )
    threads: int = Field(0, ge=0, description="CPU threads of a worker; 0: one for tiny networks, all cores else.")
    token_budget: int = Field(
        0, ge=0, description="Tokens of pictures and their texts in a forward pass; 0: measured at the first start."
    )
    speed: SpeedWords = Field(
        ("auto",),
        description="What makes networks faster (docs/speed.md), with commas: compiled, fused, graphs, channels-last, "
        "float8-dynamic, auto for what suits the device, or plain for none of it.",
    )
    attention: AttentionChoice = Field(
        "auto", description="Whose kernel computes attention; auto: cuDNN's on Hopper GPUs, else torch's own choice."
    )
    numerics: Numerics = Field(
        "exact",
        description="exact: pixels do not depend on company; throughput: they may, and such pictures answer no later "
        "equal request, but those that wait for the same drawing (docs/speed.md).",
    )
    step_cache: StepCacheChoice = Field(
        "off", description="Foretell some steps instead of making them, which changes pixels (docs/speed.md)."
    )
    prompt_cache: int = Field(
        64 * 2**20, ge=0, description="Most bytes of prompts that were read before, for each checkpoint of a worker."
    )
    finetunes: Path | None = Field(
        None,
        description="Folder of LoRA files in diffusers' layout (safetensors): NAME.safetensors is finetune_id NAME.",
    )
    finetune_cache: int = Field(
        2**29, ge=0, description="Most bytes of fine-tunes in memory, for each checkpoint of a worker."
    )
    fake_latency: float = Field(0.0, ge=0, le=60, description="Seconds a picture of the fake engine takes.")
    fake_steps: int = Field(0, ge=0, le=100, description="Steps of the fake engine; 0: as the request says.")

    prompt_in_pictures: bool = Field(
        False, description="Write the prompt into the XMP of each picture: whoever has the picture can read it."
    )
    c2pa: Literal["auto", "required", "off"] = Field(
        "auto",
        description="Sign pictures with a C2PA manifest (docs/provenance.md); auto: one that cannot be signed is "
        "delivered unsigned, with a warning; required: it fails instead, and without c2pa-python nothing starts.",
    )
    c2pa_certificate: Path | None = Field(
        None,
        description="PEM file of your own certificate, followed by those that lead to its authority; by default the "
        "server makes an authority of its own.",
    )
    c2pa_key: Path | None = Field(None, description="PEM file of that certificate's private key, without a passphrase.")

    moderation: Literal["on", "off"] = Field(
        "on",
        description="Refuse prompts and pictures by category and `safety_tolerance` (docs/moderation.md); on: nothing "
        "is delivered that was not looked at.",
    )
    moderation_refund: bool = Field(
        True, description="Give the credits of a picture back that was drawn and then refused; off: it is charged."
    )

    moderation_judges: tuple[Judge, ...] = Field(
        (),
        description="Judges that are asked beside our own (docs/moderation.md): tables of `url`, `kind` (openai or "
        "http), `model`, `key` and `asked_about` (texts, pictures or both).",
    )
    moderation_timeout: float = Field(
        10.0, gt=0, le=600, description="Longest look at a picture or a prompt; what takes longer is not delivered."
    )

    prompt_upsampler: Upsampler | Literal["checkpoint"] | None = Field(
        None,
        description="The language model that enriches prompts where requests want that (docs/upsampling.md): a table "
        "of `url`, `model` and `key` of an OpenAI-compatible endpoint, or `checkpoint` for the one that reads the "
        "prompts in FLUX.2 checkpoints; none: prompts are drawn as they stand.",
    )
    prompt_upsampler_timeout: float = Field(
        10.0, gt=0, le=600, description="Longest wait for an enriched prompt; then the prompt is drawn as it stands."
    )

    outbound_allow: Names = Field(
        (),
        description="Hosts and networks of your own that callers' URLs, of webhooks and of pictures, may lead to, by "
        "plain HTTP and on any port too, with commas: `hooks.lan,10.1.0.0/16`. All others have to be public.",
    )

    courier: bool = Field(
        True,
        description="Start a courier here as soon as there is a webhook or a picture by URL; off: `fluxserve courier` "
        "runs elsewhere.",
    )
    webhook_secret_header: bool = Field(
        False, description="Send a webhook's secret itself too, as X-Webhook-Secret, to receivers that want it so."
    )

    worker_listen: Annotated[str, AfterValidator(_with_port)] | None = Field(
        None, pattern=r"^[^:\s]+:\d+$", description="host:port for workers on other machines; needs worker_token."
    )
    worker_token: SecretStr | None = Field(None, description="Secret that workers on other machines present.")
    heartbeat: float = Field(5.0, gt=0, le=60, description="Time between two heartbeats of a worker.")
    lease: float = Field(30.0, gt=0, le=600, description="A worker silent for this long has lost its tasks.")
    step_patience: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="An engine silent for this long, and ten times longer than its steps took, hangs: it is replaced.",
    )
    worker_memory: int = Field(
        0, ge=0, description="A worker that holds more memory after a task draws no other and is replaced; 0: no limit."
    )
    device_memory: int = Field(
        0, ge=0, description="The same for what its engine holds on a GPU between two steps; 0: no limit."
    )
    orphan_grace: float = Field(30.0, ge=0, le=600, description="A worker without a server keeps drawing this long.")
    waypoint_interval: float = Field(
        5.0, ge=0, le=3600, description="A picture that takes longer is written down this often; 0: at each step."
    )
    waypoint_budget: int = Field(
        2**30, ge=0, description="Most disk for what is written down; the oldest goes first. 0: nothing is."
    )
    waypoint_patience: float = Field(
        60.0, ge=0, le=86_400, description="A task waits this long for a worker that can go on; then it starts over."
    )
    input_budget: int = Field(
        4 * 2**30,
        ge=0,
        description="Most disk for the input pictures of unfinished tasks; beyond it submits answer 503.",
    )
    drain: float = Field(15.0, ge=0, le=600, description="At shutdown, running tasks get this long to finish.")

    openai_model: str = Field(
        "flux-2-dev",
        description="The model that draws what requests of OpenAI's images API name by one of OpenAI's models, or by "
        "none; edits too, where it takes pictures.",
    )
    hold: float = Field(
        600.0, gt=0, le=3600, description="Longest a request of OpenAI's images API waits for its pictures."
    )
    processing_status: bool = Field(False, description="Answer Processing instead of Pending for running tasks.")
    max_body: int = Field(30 * 2**20, ge=1024, description="Largest request body.")
    max_bodies: int = Field(
        256 * 2**20,
        ge=1024,
        description="Most bytes of request bodies over 64 KiB in memory at once; beyond it submits answer 503.",
    )
    max_streams: int = Field(1000, ge=0, description="Most event streams at once; beyond it they answer 503.")
    max_account_streams: int = Field(
        32, ge=1, description="Most event streams at once of one account's tasks; beyond it they answer 429."
    )
    preview_memory: int = Field(
        64 * 2**20, ge=0, description="Most bytes of previews in memory; beyond it the oldest go. 0: there are none."
    )
    max_queue: int = Field(1_000_000, ge=1, description="Most unfinished tasks; beyond it submits answer 503.")
    model_limits: dict[str, int] = Field(
        {"flux-kontext-max": 6},
        description="Most unfinished tasks of a model that a key may have, where that is less than of all together. "
        "Keys without any limit have none of these.",
    )
    min_free_disk: int = Field(256 * 2**20, ge=0, description="Below this much free disk submits answer 503.")
    link_ttl: int = Field(600, ge=1, le=86_400, description="A link to a picture works this long; polls renew it.")
    picture_retention: int = Field(3600, ge=1, description="A task's picture is deleted this long after its end.")
    task_retention: int = Field(86_400, ge=1, description="Finished tasks can be polled this long.")
    result_cache: int = Field(
        2**30,
        ge=0,
        description="Most bytes of pictures that answer equal requests of their account; 0: each request is drawn.",
    )
    sweep_interval: float = Field(60.0, gt=0, description="Time between two sweeps of what is past its retention.")

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Those that the settings themselves name, and that may be called wherever they are."""
        upsampler = self.prompt_upsampler
        return (*self.moderation_judges, *((upsampler,) if isinstance(upsampler, Endpoint) else ()))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line over environment over file."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load(config: Path | None = None, overrides: Mapping[str, JsonValue | Path] | None = None) -> Settings:
    """Read the settings; `overrides` come from the command line. Raises ConfigurationError."""
    config = config or (Path(os.environ["FLUXSERVE_CONFIG"]) if os.environ.get("FLUXSERVE_CONFIG") else None)
    if config is not None and not config.is_file():
        raise ConfigurationError(f"There is no settings file at {config}.")
    _refuse_unknown_variables()

    class _FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=config)

    try:
        return _FromFile(**(dict(overrides or {})))  # type: ignore[arg-type]
    except ValidationError as error:
        raise _readable(error) from None
    except SettingsError as error:
        raise _not_json(error) from None
    except tomllib.TOMLDecodeError as error:  # its words name the line, and the file is the operator's own
        raise ConfigurationError(f"The settings file {config} is not valid TOML: {error}.") from None
    except ValueError:
        raise ConfigurationError(f"The settings file {config} is not valid TOML: it is no UTF-8 text.") from None


def _not_json(error: SettingsError) -> ConfigurationError:
    """Of a variable that holds a table, and cannot be read as one."""
    examples = {
        "model_limits": '{"flux-kontext-max": 6}',
        "models": '{"flux-dev": "mini"}',
        "prompt_upsampler": '{"url": "http://127.0.0.1:11434/v1", "model": "qwen3"}',
        "moderation_judges": '[{"url": "http://judge.lan/v1/moderations"}]',
    }
    name = next((name for name in examples if f'"{name}"' in str(error)), "models")
    return ConfigurationError(
        f"The variable {ENV_PREFIX}{name.upper()} is not valid JSON; write it like '{examples[name]}'."
    )


def _refuse_unknown_variables() -> None:
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | OTHER_VARIABLES
    names = {name: name.upper() for name in os.environ}  # they are read in any case
    unknown = sorted(name for name, upper in names.items() if upper.startswith(ENV_PREFIX) and upper not in known)
    if unknown:
        raise UnknownSetting(
            f"Unknown setting in the environment: {', '.join(unknown)}. docs/settings.md lists them all."
        )


def _readable(error: ValidationError) -> ConfigurationError:
    problems = [(_name(item["loc"]), item["type"], item["msg"]) for item in error.errors()]
    unknown = [name for name, kind, _ in problems if kind == "extra_forbidden"]
    if unknown:
        return UnknownSetting(f"Unknown setting: {', '.join(unknown)}. docs/settings.md lists them all.")
    return ConfigurationError("; ".join(f"Setting {name}: {message}" for name, _, message in problems) + ".")


def _name(place: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in place if part not in (_TEXT, _TABLE))
