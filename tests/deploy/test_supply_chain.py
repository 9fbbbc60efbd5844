"""What is installed is locked, listed and looked up, and a container of it may change nothing (S16, S17)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import judge_audit
import locked
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
COMPOSE = (ROOT / "deploy" / "compose.yaml").read_text("utf-8")


def test_every_file_of_every_package_is_pinned_by_its_hash() -> None:
    for path in (locked.DEV, locked.RUN, locked.BUILD):
        packages = locked.read(path)
        assert len(packages) == path.read_text("utf-8").count("==") >= 5
        assert [one.name for one in packages.values() if not one.hashes] == []


def test_a_container_installs_what_runs_and_nothing_that_only_tests_need() -> None:
    assert {path: path.read_text("utf-8") for path in locked.ROOTS} == {
        path: locked.text_of(path) for path in locked.ROOTS
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    names = set(locked.read(locked.RUN))
    wanted = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["local"]]
    assert {locked.canonicalize_name(Requirement(line).name) for line in wanted} - {"torch"} <= names
    assert names.isdisjoint({"pytest", "mypy", "ruff", "hypothesis", "schemathesis", "trustme"})


def test_the_bill_of_materials_names_everything_that_is_locked_and_what_of_it_runs() -> None:
    run = subprocess.run(
        [shutil.which("python", path=str(ROOT / ".venv/bin")) or "python", "scripts/locked.py", "sbom"],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    bill = json.loads(run.stdout)
    assert (bill["bomFormat"], bill["specVersion"], bill["metadata"]["component"]["name"]) == (
        "CycloneDX", "1.6", "fluxserve",
    )  # fmt: skip
    scopes = {one["purl"]: one["scope"] for one in bill["components"] if "purl" in one}
    dev, run_only = locked.read(locked.DEV), locked.read(locked.RUN)
    assert set(scopes) == {f"pkg:pypi/{one.name}@{one.version}" for one in dev.values()} | {
        f"pkg:pypi/torch@{locked.torch_version()}"
    }
    required = {purl for purl, scope in scopes.items() if scope == "required"}
    assert len(required) == len(run_only) + 1
    references = [one["bom-ref"] for one in bill["components"]]
    assert len(references) == len(set(references))
    (edges,) = bill["dependencies"]
    assert set(edges["dependsOn"]) == required | {"mini"}


def report(**of_pillow: object) -> str:
    entries = [{"name": "anyio", "version": "4.16.0", "vulns": []}, {"name": "Pillow", **of_pillow}]
    return json.dumps({"dependencies": entries, "fixes": []})


EXPECTED = {"anyio": "4.16.0", "pillow": "13.0.0"}


def test_an_audit_that_looked_at_everything_and_found_nothing_passes() -> None:
    assert judge_audit.problems([report(version="13.0.0", vulns=[])], EXPECTED) == []


@pytest.mark.parametrize(
    ("reports", "problem"),
    [
        ([report(version="13.0.0", skip_reason="no answer")], "pillow 13.0.0 was not looked up: no answer"),
        ([report(version="12.0.0", vulns=[])], "pillow 13.0.0 was not looked up"),
        (
            [report(version="13.0.0", vulns=[{"id": "CVE-1", "fix_versions": ["13.0.1"]}])],
            "pillow 13.0.0: CVE-1, mended in ['13.0.1']",
        ),
        ([json.dumps({"dependencies": [{"name": "anyio", "version": "4.16.0", "vulns": []}]})], "was not looked up"),
    ],
)
def test_an_audit_that_found_something_or_could_not_look_fails(reports: list[str], problem: str) -> None:
    (told,) = judge_audit.problems(reports, EXPECTED)
    assert problem in told


@pytest.mark.parametrize("nothing", ["", "{}", "[]", "null", "ERROR: no network"])
def test_an_audit_without_a_report_fails_for_every_package(nothing: str) -> None:
    assert len(judge_audit.problems([nothing], EXPECTED)) == len(EXPECTED)


def instructions(word: str) -> list[str]:
    """The arguments of each instruction of the stage that runs."""
    final = DOCKERFILE.replace("\\\n", " ").rpartition("\nFROM ")[2]
    return re.findall(rf"^{word}\s+(.*)$", final, re.MULTILINE)


def test_the_container_runs_as_nobody_special_and_is_looked_after() -> None:
    (user,) = instructions("USER")
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)  # a number: orchestrators can see that it is not root
    assert len(instructions("HEALTHCHECK")) == len(instructions("ENTRYPOINT")) == 1
    assert instructions("VOLUME") == ["/data"]
    assert not [line for line in DOCKERFILE.splitlines() if re.search(r"ADD |curl|wget|sudo|chmod 777", line)]
    assert "--require-hashes -r requirements/run.lock" in DOCKERFILE
    assert f"ARG TORCH_VERSION={locked.torch_version()}" in DOCKERFILE


def test_the_composed_container_may_change_nothing_but_its_data() -> None:
    for line in ("read_only: true", "cap_drop: [ALL]", 'security_opt: ["no-new-privileges:true"]', "- data:/data"):
        assert f"    {line}\n" in COMPOSE.replace("      - ", "    - "), line
    assert '"127.0.0.1:8808:8808"' in COMPOSE


@pytest.mark.long
def test_the_image_is_built_and_its_user_can_write_nowhere_else() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no Docker daemon answers here")
    build = [docker, "build", "-q", "-f", "deploy/Dockerfile", "."]
    image = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    run = [
        docker,
        "run",
        "--rm",
        "--read-only",
        "--cap-drop",
        "ALL",
        "--tmpfs",
        "/tmp",
        "--entrypoint",
        "sh",
        image,
        "-c",
    ]
    told = subprocess.run([*run, "id -u; touch /opt/x /x || true"], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "10001"
    assert told.stderr.count("Read-only file system") == 2
