"""Which memory plan a device gets for the published weights, and what is said of each; nothing is loaded."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fluxserve.catalogue import MODELS
from fluxserve.doctor import examine_models
from fluxserve.engine import plans
from fluxserve.engine.checkpoints import Checkpoint, find
from fluxserve.engine.needs import needs
from fluxserve.engine.plans import PLANS, Needs, peak
from fluxserve.engine.published import SHAPES, build
from fluxserve.errors import MemoryTooSmall
from fluxserve.settings import PlanChoice, Settings

RESERVE = 2**30
WORDS = {shape.title: word for word, shape in SHAPES.items()}
NAMES = ("FLUX.1-dev", "FLUX.1-schnell", "FLUX.2-dev", "FLUX.2-klein-4B", "FLUX.2-klein-9B")
#: A card's GiB -> its plan, in bfloat16.
CHOSEN = {
    "FLUX.1-dev": {
        8: "float8-blocks", 12: "float8-blocks", 16: "float8-encoder-blocks-tiled", 24: "float8-tiled",
        48: "resident", 80: "resident",
    },
    "FLUX.1-schnell": {
        8: "float8-blocks", 12: "float8-blocks", 16: "float8-encoder-blocks-tiled", 24: "float8-tiled",
        48: "resident", 80: "resident",
    },
    "FLUX.2-dev": {
        8: "float8-blocks", 12: "float8-blocks", 16: "float8-blocks", 24: "float8-blocks",
        48: "float8-encoder-blocks", 80: "float8-tiled",
    },
    "FLUX.2-klein-4B": {
        8: "float8-blocks", 12: "encoder-blocks-tiled", 16: "float8-tiled", 24: "resident", 48: "resident",
        80: "resident",
    },
    "FLUX.2-klein-9B": {
        8: "float8-blocks", 12: "float8-blocks", 16: "float8-encoder-blocks-tiled", 24: "encoder-blocks-tiled",
        48: "resident", 80: "resident",
    },
}  # fmt: skip
#: Numbers of the transformers as they are published, in millions.
MILLIONS = {
    "FLUX.1-dev": 11_901, "FLUX.1-schnell": 11_891, "FLUX.2-dev": 32_223, "FLUX.2-klein-4B": 3_876,
    "FLUX.2-klein-9B": 9_079,
}  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    home = tmp_path_factory.mktemp("published")
    return {name: find(str(build(home / name, WORDS[name]))) for name in NAMES}


@pytest.fixture(scope="module")
def needed(published: dict[str, Checkpoint]) -> dict[str, Needs]:
    return {name: needs(checkpoint, 2) for name, checkpoint in published.items()}


@pytest.mark.parametrize("name", NAMES)
def test_each_card_gets_the_fastest_plan_whose_expected_peak_fits(name: str, needed: dict[str, Needs]) -> None:
    for memory, plan in CHOSEN[name].items():
        room = memory * 2**30 - RESERVE
        chosen = plans.choose(needed[name], "cuda", room, "auto", name)
        assert (memory, chosen.name) == (memory, plan)
        assert peak(chosen, needed[name]) <= room
        faster = list(plans.possible("cuda"))[: list(PLANS).index(plan)]
        assert all(peak(one, needed[name]) > room for one in faster)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_counted_as_they_were_published(name: str, needed: dict[str, Needs]) -> None:
    transformer = needed[name].stages[plans.Stage.PREDICT]
    elements = transformer.rest.elements + sum(block.elements for block in transformer.blocks)
    assert elements // 10**6 == pytest.approx(MILLIONS[name], abs=1)


def test_eight_bits_are_half_of_sixteen_and_a_scale_for_each_row(needed: dict[str, Needs]) -> None:
    whole, eighth = (
        plans.weights(PLANS[name], needed["FLUX.1-dev"], plans.Stage.PREDICT) for name in ("resident", "float8")
    )
    assert 0.5 < eighth / whole < 0.52


def test_machines_with_one_memory_have_no_plans_that_move_weights_and_apple_none_of_eight_bits() -> None:
    resident = ["resident", "tiled", "float8", "float8-tiled"]
    assert [one.name for one in plans.possible("cpu")] == [*resident, "int8", "int8-tiled"]
    assert [one.name for one in plans.possible("mps")] == ["resident", "tiled"]
    assert {one.name for one in plans.possible("cuda")} == {*PLANS} - {"int8", "int8-tiled"}


def test_products_in_eight_bits_are_for_a_cpu_and_only_where_they_are_named(needed: dict[str, Needs]) -> None:
    name = "FLUX.1-dev"
    least = peak(PLANS["int8-tiled"], needed[name])
    assert least < peak(PLANS["float8-tiled"], needed[name])  # nothing is cast
    with pytest.raises(MemoryTooSmall, match="float8-tiled"):
        plans.choose(needed[name], "cpu", least, "auto", name)
    assert plans.choose(needed[name], "cpu", least, "int8", name).int8
    with pytest.raises(MemoryTooSmall, match="int8 is no plan for cuda"):
        plans.choose(needed[name], "cuda", 2**50, "int8", name)


def test_the_setting_names_every_plan() -> None:
    assert set(PlanChoice.__args__) == {"auto", *PLANS}  # type: ignore[attr-defined]


def test_what_does_not_fit_is_refused_with_what_it_takes(needed: dict[str, Needs]) -> None:
    with pytest.raises(MemoryTooSmall, match=r"float8-tiled\) takes 7\d\.\d GiB of memory on cpu, and 62\.0 GiB"):
        plans.choose(needed["FLUX.2-dev"], "cpu", 62 * 2**30, "auto", "FLUX.2-dev")
    with pytest.raises(MemoryTooSmall, match="choose auto or one of resident, tiled, float8"):
        plans.choose(needed["FLUX.2-dev"], "cpu", 2**50, "turns", "FLUX.2-dev")


def test_a_plan_that_is_named_is_taken(needed: dict[str, Needs]) -> None:
    assert plans.choose(needed["FLUX.1-dev"], "cuda", 2**30, "turns-tiled", "FLUX.1-dev").name == "turns-tiled"


def test_checking_tells_of_every_checkpoint_and_goes_on_after_a_bad_one(
    published: dict[str, Checkpoint], tmp_path: Path
) -> None:
    cut = build(tmp_path / "cut", "klein-4b")
    with (cut / "transformer/diffusion_pytorch_model.safetensors").open("ab") as file:
        file.truncate(10**9)
    pickled = build(tmp_path / "pickled", "klein-4b")
    (pickled / "vae/model.bin").touch()
    settings = Settings(
        models=dict.fromkeys(MODELS, str(published["FLUX.1-dev"].path))
        | {"flux-pro": str(cut), "flux-2-pro": str(pickled), "flux-2-max": str(tmp_path / "nowhere")},
        accept_licenses=("flux-1-dev",),
        device="cpu",
        dtype="bfloat16",
        memory_budget=40 * 2**30,
    )
    found = {one.text.partition(":")[0].partition(", ")[0]: one for one in examine_models(settings)}
    assert "1,000,000,000 of 7," in found["flux-pro"].text
    assert "could run code: vae/model.bin" in found["flux-2-pro"].text
    assert "There is no checkpoint folder" in found["flux-2-max"].text
    assert [found[name].grade for name in ("flux-pro", "flux-2-pro", "flux-2-max")] == ["bad"] * 3
    told = examine_models(settings, "flux-dev")
    assert [one.grade for one in (told[0], told[-1])] == ["ok", "ok"]
    assert {one.grade for one in told[1:-1]} == {"note"}  # pictures that the weights do not read
    assert told[-1].text == (
        "text encoders 9.1 GiB, transformer 22.2 GiB, autoencoder 160 MiB; plan resident: everything on the device; "
        "expected peak 34.2 GiB of 40.0 GiB on cpu"
    )
    assert examine_models(settings, "flux-nothing")[0].text.startswith("flux-nothing is no model")


def test_a_named_plan_that_will_run_out_of_memory_is_told_of(published: dict[str, Checkpoint]) -> None:
    settings = Settings(
        models=dict.fromkeys(MODELS, str(published["FLUX.2-klein-4B"].path)),
        device="cpu",
        memory_plan="resident",
        memory_budget=2**30,
    )
    assert examine_models(settings)[-1].grade == "bad"
    automatic = Settings(**{**settings.model_dump(), "memory_plan": "auto"})
    assert "does not fit: the plan that takes least" in examine_models(automatic)[-1].text


def test_a_larger_width_of_numbers_takes_more(published: dict[str, Checkpoint], needed: dict[str, Needs]) -> None:
    in_float32 = needs(published["FLUX.1-dev"], 4)
    assert peak(PLANS["resident"], in_float32) == 2 * peak(PLANS["resident"], replace(needed["FLUX.1-dev"]))


def test_the_command_reads_headers_without_torch_and_ends_with_status_1_where_anything_is_bad(tmp_path: Path) -> None:
    config = tmp_path / "fluxserve.toml"
    config.write_text(f'data_dir = "{tmp_path}"\ndevice = "cpu"\n[models]\nflux-pro = "{tmp_path / "nowhere"}"\n')
    code = (
        "import sys\nfrom fluxserve.cli import cli\ntry: cli()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = {
        model: subprocess.run(
            [sys.executable, "-c", code, "models", "--config", str(config), "check", model],
            capture_output=True,
            text=True,
            check=False,
        )
        for model in ("flux-dev", "flux-pro")
    }
    assert [one.returncode for one in done.values()] == [0, 1]
    assert [one.stderr.strip() for one in done.values()] == ["False", "False"]
    assert "fluxserve-mini" in done["flux-dev"].stdout
    assert "plan resident" in done["flux-dev"].stdout
    assert "There is no checkpoint folder" in done["flux-pro"].stdout
