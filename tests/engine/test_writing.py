"""Language models of FLUX.2 checkpoints answer: as transformers' own loop does, in pieces, beside pictures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import flux2_folders
import pytest
import torch
from transformers import AutoTokenizer, Mistral3ForConditionalGeneration, Qwen3ForCausalLM

from fluxserve.catalogue import MODELS, Generation, Size
from fluxserve.engine import networks, writing
from fluxserve.engine.base import Event, Failed, Finished, Wrote
from fluxserve.engine.checkpoints import find
from fluxserve.engine.device import Runtime
from fluxserve.engine.diffusion import DiffusionEngine
from fluxserve.engine.drawer import Drawer, open_drawer
from fluxserve.engine.networks.flux2 import _asked_of_mistral, _asked_of_qwen
from fluxserve.engine.plans import PLANS
from fluxserve.engine.weights import load
from fluxserve.engine.writing import Draft
from fluxserve.settings import Settings

WRITES = Runtime(device="cpu", dtype="float32", threads=1, token_budget=1, writes=True)
SYSTEM, USER = "Say more.", "a red apple"
#: More than two pieces, and no whole number of them.
MOST = 2 * writing.PIECE + 3
FLUX2 = Generation(
    model="flux-2-dev", prompt=USER, size=Size(128, 96), seed=7, steps=3, guidance=3.5, output_format="png"
)


def language_model(folder: Path) -> Mistral3ForConditionalGeneration | Qwen3ForCausalLM:
    kind = Mistral3ForConditionalGeneration if folder.name == "dev" else Qwen3ForCausalLM
    return kind.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()


def make_talkative(folder: Path) -> None:
    """Larger random numbers: with the usual ones one token is the likeliest after every other."""
    model = language_model(folder)
    torch.manual_seed(5)
    with torch.no_grad():
        for matrix in model.parameters():
            if matrix.ndim == 2:
                matrix.normal_(0, 0.5)
    model.save_pretrained(folder / "text_encoder")


@pytest.fixture(scope="module", params=["dev", "klein"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("writing")
    if request.param == "dev":
        made = flux2_folders.build_dev(home / "dev")
    else:
        made = flux2_folders.build_klein(home / "klein", is_distilled=True)
    make_talkative(made)
    return made


@pytest.fixture(scope="module")
def drawer(folder: Path) -> Drawer:
    return open_drawer(find(str(folder)), WRITES)


@pytest.fixture(scope="module")
def engine(folder: Path) -> DiffusionEngine:
    settings = Settings(
        models={model: str(folder) if model.startswith("flux-2") else "mini" for model in MODELS},
        device="cpu", token_budget=1, memory_plan="resident", memory_budget=1, prompt_upsampler="checkpoint",
        accept_licenses=("flux-2-dev",),
    )  # fmt: skip
    made = DiffusionEngine(settings)
    made.warm()
    return made


def stock_tokens(folder: Path, most: int = MOST) -> list[int]:
    """By transformers' own loop."""
    model, tokenizer = language_model(folder), AutoTokenizer.from_pretrained(folder / "tokenizer")
    told = (_asked_of_mistral if folder.name == "dev" else _asked_of_qwen)(tokenizer, SYSTEM, USER)
    read = tokenizer(told, add_special_tokens=False, return_tensors="pt")
    said = model.generate(
        **read, max_new_tokens=most, do_sample=False, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return [int(token) for token in said[0, read.input_ids.shape[1] :]]


def stock_answer(folder: Path, most: int = MOST) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    return str(tokenizer.decode(stock_tokens(folder, most), skip_special_tokens=True))


def written(drawer: Drawer, user: str = USER, most: int = MOST) -> tuple[Draft, int]:
    """And in how many pieces."""
    draft, pieces = Draft(model="flux-2-dev", system=SYSTEM, user=user, most=most), 0
    with torch.inference_mode():
        while draft.text is None:
            drawer.write(draft)
            pieces += 1
    return draft, pieces


def run(engine: DiffusionEngine) -> Sequence[Event]:
    events: list[Event] = []
    while engine.active:
        events += engine.step()
    return events


def test_an_answer_is_that_of_transformers_own_loop(folder: Path, drawer: Drawer) -> None:
    draft, pieces = written(drawer)
    assert draft.text == stock_answer(folder)
    assert len(set(draft.text or "")) > 4
    assert pieces >= 3
    assert draft.state is None


def test_it_ends_where_the_model_ends_it(folder: Path, drawer: Drawer) -> None:
    network = networks.create(drawer.checkpoint, load(folder, WRITES))
    assert isinstance(network.writer, writing.Writer)
    fifth = stock_tokens(folder)[4]
    network.writer._model.generation_config.eos_token_id = [fifth]
    ended, _ = written(replace(drawer, network=network))
    assert ended.text == stock_answer(folder, stock_tokens(folder).index(fifth))


def test_what_is_too_long_is_refused(drawer: Drawer) -> None:
    with pytest.raises(writing.DrawingFailed, match="too long to be enriched"):
        written(drawer, "word " * writing.MOST_READ)


def test_prompts_are_read_as_without_it(folder: Path, drawer: Drawer) -> None:
    silent = open_drawer(find(str(folder)), replace(WRITES, writes=False))
    assert silent.network.writer is None
    assert not silent.writes
    assert silent.fingerprint == drawer.fingerprint
    with torch.inference_mode():
        read, same = drawer.network.encode(USER), silent.network.encode(USER)
    assert torch.equal(read.tokens, same.tokens)


@pytest.mark.parametrize("plan", ["encoder-blocks", "turns", "blocks"])
def test_it_writes_the_same_where_weights_are_moved(folder: Path, drawer: Drawer, plan: str) -> None:
    runtime = replace(WRITES, plan=PLANS[plan])
    moved = replace(drawer, network=networks.create(drawer.checkpoint, load(folder, runtime)))
    assert written(moved)[0].text == written(drawer)[0].text


def test_an_engine_writes_beside_pictures_and_changes_none(engine: DiffusionEngine) -> None:
    assert set(engine.writes) == {model for model in MODELS if model.startswith("flux-2")}
    engine.admit("alone", FLUX2)
    (alone,) = [event for event in run(engine) if isinstance(event, Finished)]
    engine.admit("picture", FLUX2)
    engine.write("text", "flux-2-dev", SYSTEM, USER, MOST)
    assert engine.active == 2
    events = run(engine)
    (drawn,) = [event for event in events if isinstance(event, Finished)]
    assert drawn.pixels == alone.pixels
    wrote = [event for event in events if isinstance(event, Wrote)]
    assert [event.ref for event in wrote] == ["text"] * len(wrote)
    assert [event.text is None for event in wrote] == [True] * (len(wrote) - 1) + [False]
    assert len(wrote) > 1


def test_weights_come_for_it_and_leave_it_when_others_are_wanted(engine: DiffusionEngine, folder: Path) -> None:
    engine.write("text", "flux-2-dev", SYSTEM, USER, MOST)
    engine.admit("mini", replace(FLUX2, model="flux-dev", size=Size(256, 256)))
    events = run(engine)
    assert [event.text for event in events if isinstance(event, Wrote)][-1] == stock_answer(folder)
    assert [event.ref for event in events if isinstance(event, Finished)] == ["mini"]


def test_what_is_discarded_is_not_written_on(engine: DiffusionEngine) -> None:
    engine.write("text", "flux-2-dev", SYSTEM, USER, 10_000)
    while not any(isinstance(event, Wrote) for event in engine.step()):
        pass
    engine.discard("text")
    assert engine.active == 0
    engine.admit("next", FLUX2)
    assert all(event.ref == "next" for event in run(engine))


def test_a_checkpoint_without_a_language_model_writes_nothing(engine: DiffusionEngine) -> None:
    assert "flux-dev" not in engine.writes
    engine.write("text", "flux-dev", SYSTEM, USER, MOST)
    (failed,) = run(engine)
    assert isinstance(failed, Failed)
    assert "cannot write" in failed.error.message
