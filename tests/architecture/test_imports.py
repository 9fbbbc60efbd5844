"""The house rules that a program can check: who imports whom, what stays out of the source, how long a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "fluxserve"
SOURCES = sorted(PACKAGE.rglob("*.py"))
#: The engine's packages, and what must not be loaded by a process that only answers HTTP.
HEAVY = ("torch", "diffusers", "transformers", "safetensors")
LIGHT_MODULES = (
    "fluxserve.catalogue",
    "fluxserve.settings",
    "fluxserve.store",
    "fluxserve.service",
    "fluxserve.api",
    "fluxserve.worker",
    "fluxserve.engine",
    "fluxserve.fleet",
    "fluxserve.client",
    "fluxserve.app.server",
    "fluxserve.generate",
    "fluxserve.doctor",
    "fluxserve.moderation.text",
    "fluxserve.verify",
    "fluxserve.cli",
)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_rooms_import_only_downwards() -> None:
    program = "from importlinter.cli import lint_imports_command as run; run()"
    command = [sys.executable, "-c", program, "--no-cache", "--no-logo"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_a_process_without_an_engine_loads_no_torch(module: str) -> None:
    assert [name for name in HEAVY if name in loaded_by(module)] == []


def test_the_command_line_alone_loads_no_server() -> None:
    """Every worker starts with it."""
    assert [name for name in ("fastapi", "uvicorn", "httpx") if name in loaded_by("fluxserve.cli")] == []


def test_the_client_alone_loads_nothing_else_of_ours() -> None:
    ours = [name for name in loaded_by("fluxserve.client") if name.split(".")[0] == "fluxserve"]
    assert [name for name in ours if not name.startswith("fluxserve.client")] == ["fluxserve"]


def loaded_by(module: str) -> list[str]:
    """Every module a fresh interpreter holds after importing `module`."""
    program = f"import sys, {module}; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_file_is_at_most_500_lines_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_every_module_says_what_it_does(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


FORBIDDEN_MODULES = {"pickle", "dill", "joblib", "marshal", "shelve", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "os.system", "os.popen", "torch.load", "yaml.load"}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_nothing_that_can_run_code_from_data_is_used(path: Path) -> None:
    assert list(dangers(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from yaml import load", "eval('1')", "torch.load(path)", "run(command, shell=True)"],
)
def test_the_search_for_dangers_finds_one(code: str) -> None:
    assert len(list(dangers(ast.parse(code)))) == 1


def dangers(tree: ast.AST) -> Iterator[str]:
    """Imports and calls through which data could become code, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").split(".")[0]]
        elif isinstance(node, ast.Call):
            names = []
            shell = any(word.arg == "shell" for word in node.keywords)
            if shell or ast.unparse(node.func) in FORBIDDEN_CALLS:
                yield f"line {node.lineno}: {ast.unparse(node)}"
        else:
            continue
        yield from (f"line {node.lineno}: {name}" for name in names if name in FORBIDDEN_MODULES)


#: What a caller might find out byte by byte, were it compared by a comparison that stops at the first difference.
SECRETS = {
    "admin_key",
    "api_key",
    "capability",
    "digest",
    "mac",
    "pepper",
    "sealed",
    "secret",
    "signature",
}
#: What changes the form of a text and not what it is.
FORMS = {"decode", "encode", "get_secret_value", "hex", "strip"}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_secret_is_compared_but_in_constant_time(path: Path) -> None:
    assert list(leaks(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "code",
    [
        "mac == signature(key)",
        "given != self._pepper",
        "if given == hmac.digest(key, text, name): pass",
        "given.encode() == settings.admin_key.get_secret_value().encode()",
    ],
)
def test_the_search_for_such_a_comparison_finds_one(code: str) -> None:
    assert len(list(leaks(ast.parse(code)))) == 1


def leaks(tree: ast.AST) -> Iterator[str]:
    """Comparisons of secrets by == and !=, with their lines."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Compare) and any(isinstance(one, ast.Eq | ast.NotEq) for one in node.ops)):
            continue
        if SECRETS & {name_of(side) for side in (node.left, *node.comparators)}:
            yield f"line {node.lineno}: {ast.unparse(node)}"


def name_of(node: ast.expr) -> str:
    """The last name of a value, or of the function that gives it."""
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr in FORMS:
            return name_of(node.func.value)
        return name_of(node.func)
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name.strip("_")


# Written in pieces, so that this file does not find itself.
PLACES = re.compile(
    "|".join(
        [
            r"pypi" + r"\.org",
            r"files\.python" + r"hosted",
            r"download\.py" + r"torch",
            r"registry\.npm" + r"js",
            r"/ro" + r"ot/",
            r"/ho" + r"me/[a-z]",
            r"/wo" + r"rk/",
            r"/Us" + r"ers/[A-Za-z]",
        ]
    )
)
TEXTS = {".py", ".md", ".toml", ".sql", ".in", ".lock", ".sh", ".yml", ".yaml", ".json", ".html", ".js", ".css", ""}


def tracked_texts() -> list[Path]:
    run = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        pytest.skip("not a git checkout: nothing says which files are tracked")
    return [ROOT / name for name in run.stdout.split("\0") if name and Path(name).suffix in TEXTS]


def test_no_tracked_file_names_a_registry_or_a_place_on_one_machine() -> None:
    found = [
        f"{relative(path)}: {match.group()}"
        for path in tracked_texts()
        if path.is_file()
        for match in PLACES.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []
