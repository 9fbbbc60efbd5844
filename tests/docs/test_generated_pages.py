"""The generated pages are in step with the code, and the code says enough to generate them from."""

from __future__ import annotations

from pathlib import Path

import generate_docs
import pytest

from fluxserve import errors
from fluxserve.api.responses import STATUSES
from fluxserve.catalogue import MODELS
from fluxserve.errors import FluxserveError, RequestError
from fluxserve.settings import OTHER_VARIABLES, Settings

ROOT = Path(__file__).resolve().parents[2]


def test_the_generated_pages_are_current() -> None:
    assert generate_docs.stale_pages() == [], "run scripts/docs"


def test_a_page_that_was_edited_by_hand_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_docs, "DOCS", tmp_path)
    assert generate_docs.main(["--check"]) == 1
    assert generate_docs.main([]) == 0
    assert generate_docs.main(["--check"]) == 0
    page = tmp_path / "models.md"
    page.write_text(page.read_text() + "by hand\n")
    assert generate_docs.stale_pages() == ["models.md"]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_says_what_it_is_for(name: str) -> None:
    description = Settings.model_fields[name].description or ""
    assert description.endswith("."), f"{name} needs a description: a sentence"


@pytest.mark.parametrize("name", MODELS)
def test_every_model_and_parameter_says_what_it_is_for(name: str) -> None:
    spec = MODELS[name]
    assert spec.help.endswith(".")
    assert [param.name for param in spec.params if not param.help.endswith(".")] == []


def test_every_error_says_what_it_means_and_stands_in_the_tree() -> None:
    tree = list(generate_docs.error_tree())
    assert [error.__name__ for _, error in tree if not (error.__doc__ or "").strip()] == []
    drawn = Path(errors.__file__).read_text(encoding="utf-8").split('"""')[1]
    assert [error.__name__ for _, error in tree if error.__name__ not in drawn] == []
    assert {error.__module__ for _, error in tree} == {"fluxserve.errors"}


def test_every_error_a_caller_can_cause_has_a_status_of_its_own_or_of_its_kind() -> None:
    roots = {RequestError, FluxserveError}
    callers = [error for _, error in generate_docs.error_tree() if issubclass(error, RequestError)]
    assert [error for error in callers if not any(kind in STATUSES for kind in set(error.__mro__) - roots)] == [
        RequestError
    ]


@pytest.mark.parametrize("name", sorted(OTHER_VARIABLES))
def test_every_other_variable_is_explained_somewhere(name: str) -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    assert any(name in page.read_text(encoding="utf-8") for page in pages if page.is_file())
