"""Settings: where each comes from, and what is said when one is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fluxserve.errors import ConfigurationError, UnknownSetting
from fluxserve.settings import ENV_PREFIX, OTHER_VARIABLES, Composed, Settings, load

SECRET = "open-sesame-4711"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Where this test's settings file goes."""
    return tmp_path / "fluxserve.toml"


def refusal(config: Path | None = None, **overrides: str | int | None) -> str:
    """What is said instead of a start."""
    with pytest.raises(ConfigurationError) as caught:
        load(config, overrides)
    return caught.value.message


def test_without_any_settings_everything_has_its_default() -> None:
    settings = load()
    assert (settings.host, settings.port, settings.data_dir) == ("127.0.0.1", 8808, Path("fluxserve-data"))
    assert (settings.models, settings.engine, settings.worker_token) == ({}, "auto", None)


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("port = 1\nworkers = 1\nhost = '1.1.1.1'\nlink_ttl = 1")
    monkeypatch.setenv("FLUXSERVE_PORT", "2")
    monkeypatch.setenv("FLUXSERVE_WORKERS", "2")
    settings = load(config, {"port": 3})
    assert (settings.port, settings.workers, settings.host, settings.link_ttl) == (3, 2, "1.1.1.1", 1)


def test_the_environment_may_name_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("port = 1234")
    monkeypatch.setenv("FLUXSERVE_CONFIG", str(config))
    assert load().port == 1234


def test_a_file_named_on_the_command_line_wins_over_the_environments(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("port = 1")
    monkeypatch.setenv("FLUXSERVE_CONFIG", str(tmp_path / "not there.toml"))
    assert load(config).port == 1


def test_the_file_is_read_anew_by_each_load(config: Path) -> None:
    config.write_text("port = 1")
    assert load(config).port == 1
    config.write_text("port = 2")
    assert load(config).port == 2
    assert load().port == 8808


def test_models_are_a_table_in_the_file_and_json_in_the_environment(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text('[models]\n"flux-pro-1.1" = "/weights/dev"\nflux-dev = "mini"')
    assert load(config).models == {"flux-pro-1.1": "/weights/dev", "flux-dev": "mini"}
    monkeypatch.setenv("FLUXSERVE_MODELS", '{"flux-dev": "/weights/dev"}')
    assert load(config).models == {"flux-pro-1.1": "/weights/dev", "flux-dev": "/weights/dev"}


def test_a_model_may_be_a_table_of_a_base_and_files_in_the_file_and_in_the_environment(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text('[models]\nflux-dev = {base = "/weights/dev", files = ["a.safetensors"]}')
    assert load(config).models == {"flux-dev": Composed(base="/weights/dev", files=("a.safetensors",))}
    monkeypatch.setenv(
        "FLUXSERVE_MODELS", '{"flux-pro": {"base": "mini", "files": ["b.safetensors", "c.safetensors"]}}'
    )
    settings = load(config)
    assert settings.models["flux-pro"] == Composed(base="mini", files=("b.safetensors", "c.safetensors"))
    assert Settings(models=settings.model_dump(mode="json")["models"]) == Settings(models=settings.models)


@pytest.mark.parametrize("text", ["a.example, b.example", "a.example,,b.example,", " a.example ,b.example"])
def test_a_list_is_one_text_with_commas_in_the_environment(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSERVE_ALLOWED_HOSTS", text)
    assert load().allowed_hosts == ("a.example", "b.example")


def test_a_list_may_be_a_list_or_one_text_in_the_file_and_empty(config: Path) -> None:
    config.write_text("allowed_hosts = ['a', 'b']\ncors_origins = 'https://a, https://b'\naccept_licenses = ''")
    settings = load(config)
    assert settings.allowed_hosts == ("a", "b")
    assert settings.cors_origins == ("https://a", "https://b")
    assert settings.accept_licenses == ()


@pytest.mark.parametrize("content", ["prot = 1", "[server]\nport = 1", "port = 1\n[models]\n[extra]\na = 1"])
def test_an_unknown_name_in_the_file_stops_the_start(config: Path, content: str) -> None:
    config.write_text(content)
    with pytest.raises(UnknownSetting, match=r"Unknown setting: (prot|server|extra)"):
        load(config)


@pytest.mark.parametrize("name", ["FLUXSERVE_PROT", "FLUXSERVE_", "FLUXSERVE_Prot", "fluxserve_prot"])
def test_an_unknown_name_in_the_environment_stops_the_start(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(UnknownSetting, match=f"Unknown setting in the environment: {name}"):
        load()


def test_an_unknown_name_on_the_command_line_stops_the_start() -> None:
    with pytest.raises(UnknownSetting, match="Unknown setting: prot"):
        load(overrides={"prot": 1})


@pytest.mark.parametrize("name", sorted(OTHER_VARIABLES - {"FLUXSERVE_CONFIG"}))
def test_variables_of_scripts_and_the_client_do_not_stop_the_start(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "anything")
    assert load().model_fields_set == set()


def test_every_setting_can_come_from_the_environment_under_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = Settings.model_construct().model_dump()
    texts = {
        "admin_key": "sixteen-letters-",
        "models": "{}",
        "moderation_judges": "[]",
        "prompt_upsampler": '{"url": "http://127.0.0.1:11434/v1"}',
        "public_url": "https://flux.example.com",
        "speed": "auto, fused",
        "worker_listen": "127.0.0.1:9000",
        "workers": "3",
    }
    for name, default in defaults.items():
        text = "a" if default in ((), None) else json.dumps(default) if isinstance(default, dict) else str(default)
        monkeypatch.setenv(ENV_PREFIX + name.upper(), texts.get(name, text))
    assert load().model_fields_set == set(defaults)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("port = 70000", "Setting port: Input should be less than or equal to 65535."),
        ("port = 'many'", "Setting port: Input should be a valid integer"),
        ("lease = 0", "Setting lease: Input should be greater than 0."),
        ("engine = 'magic'", "Setting engine: Input should be 'auto', 'diffusion', 'fake' or 'none'."),
        ("public_url = 'https://x.example/path'", "Setting public_url: String should match pattern"),
        ("models = 'mini'", "Setting models: Input should be a valid dictionary."),
        ("[models]\nflux-dev = 5", "Setting models.flux-dev: Input should be a valid string."),
        ("[models]\nflux-dev = {base = 'mini'}", "Setting models.flux-dev: name files, a redux or a depth"),
        ("[models]\nflux-dev = {files = ['a']}", "Setting models.flux-dev.base: Field required."),
        (
            "[models]\nflux-dev = {base = 'mini', files = []}",
            "Setting models.flux-dev: name files, a redux or a depth",
        ),
        ("[models]\nflux-dev = {base = 'mini', files = ['a'], vae = 'b'}", "Unknown setting: models.flux-dev.vae."),
        ("allowed_hosts = [1]", "Setting allowed_hosts.0: Input should be a valid string."),
        ("worker_listen = '127.0.0.1:99999'", "Setting worker_listen: the port has to be a number from 0 to 65535."),
        ("worker_listen = '127.0.0.1'", "Setting worker_listen: the port has to be a number from 0 to 65535."),
        ("port = -1\nworkers = -1", "; Setting workers: "),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_setting(config: Path, content: str, words: str) -> None:
    config.write_text(content)
    assert words in refusal(config)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"port = ", "end of document"),
        (b"\xff\xfe", "no UTF-8 text"),
        (b"host = 'a'\n{}", "line 2"),
    ],
)
def test_a_file_that_is_no_toml_is_named_and_the_place_too(config: Path, content: bytes, words: str) -> None:
    config.write_bytes(content)
    assert refusal(config).startswith(f"The settings file {config} is not valid TOML: ")
    assert words in refusal(config)


def test_a_file_that_is_not_there_is_named(config: Path, tmp_path: Path) -> None:
    assert refusal(config) == f"There is no settings file at {config}."
    assert refusal(tmp_path) == f"There is no settings file at {tmp_path}."


def test_models_in_the_environment_that_are_no_json_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSERVE_MODELS", "flux-dev=mini")
    assert "FLUXSERVE_MODELS is not valid JSON" in refusal()
    monkeypatch.delenv("FLUXSERVE_MODELS")
    monkeypatch.setenv("FLUXSERVE_MODEL_LIMITS", "flux-dev=2")
    assert "FLUXSERVE_MODEL_LIMITS is not valid JSON; write it like '{" in refusal()
    monkeypatch.delenv("FLUXSERVE_MODEL_LIMITS")
    monkeypatch.setenv("FLUXSERVE_MODERATION_JUDGES", "http://judge.lan")
    assert "FLUXSERVE_MODERATION_JUDGES is not valid JSON; write it like '[{" in refusal()


def test_a_secret_is_masked_wherever_settings_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSERVE_WORKER_TOKEN", SECRET)
    settings = load()
    assert settings.worker_token is not None
    assert settings.worker_token.get_secret_value() == SECRET
    for shown in (repr(settings), str(settings), settings.model_dump_json(), f"{settings.worker_token}"):
        assert SECRET not in shown


def test_a_refusal_never_repeats_a_secret(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSERVE_WORKER_TOKEN", SECRET)
    assert SECRET not in refusal(port="x")
    monkeypatch.delenv("FLUXSERVE_WORKER_TOKEN")
    config.write_text(f"worker_token = ['{SECRET}']")
    assert SECRET not in refusal(config)
    assert "worker_token" in refusal(config)


def test_settings_never_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().port = 1  # type: ignore[misc]
