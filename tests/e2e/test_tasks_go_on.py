"""Whoever is killed: drawing goes on from the last waypoint, and the picture is the one that nobody disturbed."""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass, field

import pytest
from servers import MakeServer, Process, Server, until

from fluxserve.tasks.task import MAX_ATTEMPTS

#: Four pictures share a step and eight are held however busy the machine is, so that a kill interrupts as many.
SETTINGS = {
    "engine": "diffusion",
    "device": "cpu",
    "waypoint_interval": "0",
    "workers": "1",
    "token_budget": "200",
}
#: A picture of mini takes some seconds with so many steps, so that there is something to interrupt.
STEPS = (30, 50)
RUNNING = "SELECT id FROM tasks WHERE state = 'running'"
WENT_ON = re.compile(r"Task goes on \(action=goes_on, task=(\S+), step=(\d+), steps=(\d+)\)")
#: Workers may have to load torch on a busy machine.
PATIENCE_S = 600.0


def wanted(count: int) -> list[dict[str, object]]:
    """Pictures of their own prompts, seeds, lengths and sizes."""
    die = random.Random(3)
    return [
        {"prompt": f"apple {seed}", "seed": seed, "steps": die.randint(*STEPS), "height": 256 + 32 * (seed % 2)}
        for seed in range(count)
    ]


def begin(server: Server) -> Server:
    """Tasks are taken at once; the workers may take their time."""
    return server.start(ready=False).wait_until_answers()


def submit(server: Server, wishes: list[dict[str, object]]) -> list[str]:
    return [server.submit(**wish) for wish in wishes]  # type: ignore[arg-type]


def pixels(server: Server, tasks: list[str]) -> list[object]:
    """What each task became, in order; all must be ready."""
    ended = [server.wait(task, within=PATIENCE_S) for task in tasks]
    assert [polled["status"] for polled in ended] == ["Ready"] * len(tasks)
    return [polled["details"]["pixels_sha256"] for polled in ended]  # type: ignore[index]


@pytest.fixture(scope="module")
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """What the pictures become when nobody is killed."""
    wishes = wanted(100 if request.config.getoption("--long") else 8)
    server = begin(Server(data_dir=tmp_path_factory.mktemp("undisturbed") / "data", settings=SETTINGS))
    try:
        drawn = pixels(server, submit(server, wishes))
        assert server.stop() == 0
    finally:
        server.close()
    assert len(set(drawn)) == len(wishes)
    return drawn


def steps_of(server: Server, task: str) -> int:
    """How many it takes."""
    ((steps,),) = server.rows("SELECT json_extract(generation, '$.steps') FROM tasks WHERE id = ?", task)
    assert isinstance(steps, int)
    return steps


def steps_made(server: Server, task: str) -> float:
    """As a caller sees it; all, when the task has ended."""
    polled = server.poll(task)
    share = polled["progress"] if polled["status"] == "Pending" else 1
    return steps_of(server, task) * float(share)  # type: ignore[arg-type]


def waypoint(server: Server, task: str) -> int:
    """The step after which the task was last written down."""
    rows = server.rows("SELECT step FROM waypoints WHERE task_id = ?", task)
    return int(rows[0][0]) if rows else 0  # type: ignore[call-overload]


def went_on(server: Server) -> list[tuple[str, int]]:
    """Each time that a task went on, and from which step."""
    return [(task, int(step)) for task, step, _ in WENT_ON.findall(server.log)]


@dataclass
class Assassin:
    """Kills the worker of a running task at a random step, and looks what becomes of all that it drew."""

    server: Server
    die: random.Random
    kills: int = 0
    redone: list[float] = field(default_factory=list)
    floors: dict[str, int] = field(default_factory=dict)

    def strike(self) -> None:
        """One kill, if there is something to interrupt."""
        victim = self._choose()
        if victim is None:
            return
        worker, tasks = victim
        made = {task: steps_made(self.server, task) for task in tasks}
        worker.kill()
        self.kills += 1
        until(lambda: not self._held_by(worker), PATIENCE_S, "the tasks are back in the queue, or others'")
        for task in tasks:
            if self.server.poll(task)["status"] == "Pending":
                floor = waypoint(self.server, task)
                self.floors[task] = max(floor, self.floors.get(task, 0))
                self.redone.append(made[task] - floor)

    def look(self) -> None:
        """Nobody sees a task fall back behind its waypoint."""
        for task, floor in self.floors.items():
            assert steps_made(self.server, task) >= floor - 0.01

    def _choose(self) -> tuple[Process, list[str]] | None:
        """A worker that is halfway through something, at a random moment, and what it draws."""
        running = [str(task) for (task,) in self.server.rows(RUNNING)]
        spoilt = self.server.rows("SELECT 1 FROM tasks WHERE spoiled >= ? AND finished_at IS NULL", MAX_ATTEMPTS - 1)
        if not running or spoilt:
            return None
        task = self.die.choice(running)
        goal = self.die.uniform(max(1.0, steps_made(self.server, task)), steps_of(self.server, task))
        until(lambda: steps_made(self.server, task) >= goal, PATIENCE_S, "the task gets there")
        worker = self.server.worker_of(task)
        return None if worker is None else (worker, self._held_by(worker))

    def _held_by(self, worker: Process) -> list[str]:
        rows = self.server.rows("SELECT id, worker_id FROM tasks WHERE state = 'running'")
        return [str(task) for task, worker_id in rows if str(worker_id) in worker.command]


def test_tasks_whose_workers_are_killed_go_on_and_end_in_the_same_pixels(
    make_server: MakeServer, undisturbed: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    server = begin(make_server(**SETTINGS))
    assassin = Assassin(server, random.Random(7))
    tasks = submit(server, wanted(len(undisturbed)))

    while any(server.poll(task)["status"] == "Pending" for task in tasks):
        assassin.look()
        if assassin.kills < len(tasks) / 4:
            assassin.strike()
        time.sleep(0.02)  # leaves the core to those who draw

    assert pixels(server, tasks) == undisturbed
    steps = went_on(server)
    assert assassin.kills >= max(2, len(tasks) / 16)  # each ends up to eight that are held together
    assert len({task for task, _ in steps}) >= len(tasks) / 4
    assert all(step >= 1 for _, step in steps)
    assert max(assassin.redone) <= 1.01  # the interval is one step
    assert "starts over" not in server.log
    assert server.rows("SELECT * FROM waypoints") == []
    assert server.command("fsck").returncode == 0
    assert list((server.data_dir / "waypoints").glob("??/*")) == []
    with capsys.disabled():
        print(
            f"\n  {len(tasks)} tasks Ready, {assassin.kills} workers killed; {len(steps)} times a task went on, "
            f"on average from step {sum(step for _, step in steps) / len(steps):.1f}; "
            f"redone at most {max(assassin.redone):.1f} steps"
        )


@pytest.mark.parametrize(
    "whom",
    ["the server alone", "everything", pytest.param("the server and then its workers", marks=pytest.mark.long)],
)
def test_tasks_under_a_server_that_is_killed_go_on_uncounted_and_end_in_the_same_pixels(
    make_server: MakeServer, undisturbed: list[object], whom: str
) -> None:
    server = begin(make_server(**SETTINGS))
    tasks = submit(server, wanted(4))
    until(lambda: all(steps_made(server, task) >= 3 for task in tasks), PATIENCE_S, "all have begun")
    if whom == "everything":
        server.kill_tree()
    else:
        server.kill()
        if whom != "the server alone":
            for worker in server.workers():
                worker.kill()
            server.wait_until_gone(10.0)
    floors = {task: waypoint(server, task) for task in tasks}
    assert any(floors.values()), "some were halfway"
    begin(server)
    assert all(steps_made(server, task) >= floor - 0.01 for task, floor in floors.items())

    assert pixels(server, tasks) == undisturbed[: len(tasks)]
    assert [spoilt for (spoilt,) in server.rows("SELECT spoiled FROM tasks")] == [0] * len(tasks)
    assert went_on(server) == (
        [] if whom == "the server alone" else [(task, floors[task]) for task, _ in went_on(server)]
    )
    written_down = {task for task, floor in floors.items() if floor}
    assert {task for task, _ in went_on(server)} == (set() if whom == "the server alone" else written_down)
    assert server.rows("SELECT * FROM waypoints") == []


@pytest.mark.long
def test_a_quick_picture_is_never_written_down(make_server: MakeServer) -> None:
    server = begin(make_server(engine="diffusion", device="cpu"))
    assert server.wait(server.submit("a red apple", seed=1, steps=2), within=PATIENCE_S)["status"] == "Ready"
    assert list((server.data_dir / "waypoints").glob("??")) == []
