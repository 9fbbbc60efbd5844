"""Prompts that the language model of what draws enriches: by real workers, through restarts and deaths."""

from __future__ import annotations

from servers import MakeServer

from fluxserve.service.upsampling import FAILED, NO_WRITER


def warnings(task: dict[str, object]) -> list[str]:
    details = task["details"]
    assert isinstance(details, dict)
    return list(details.get("warnings", []))


def test_a_worker_writes_the_prompt_that_is_then_drawn(make_server: MakeServer) -> None:
    server = make_server(prompt_upsampler="checkpoint").start()
    task = server.wait(server.submit("a red apple", model="flux-2-pro"))
    assert (task["status"], task["result"]["prompt"], warnings(task)) == ("Ready", "A RED APPLE", [])
    plain = server.wait(server.submit("a red apple", model="flux-2-pro", disable_pup=True))
    assert plain["result"]["prompt"] == "a red apple"


def test_where_what_draws_cannot_write_the_prompt_stays_and_the_caller_is_told(make_server: MakeServer) -> None:
    server = make_server(prompt_upsampler="checkpoint").start()
    task = server.wait(server.submit("a red apple", model="flux-dev", prompt_upsampling=True))
    assert (task["status"], task["result"]["prompt"], warnings(task)) == ("Ready", "a red apple", [NO_WRITER])


def test_what_waits_to_be_written_outlives_the_server(make_server: MakeServer) -> None:
    server = make_server(prompt_upsampler="checkpoint", workers="0").start(ready=False)
    server.wait_until_answers()
    tasks = [server.submit(f"apple {number}", model="flux-2-pro") for number in range(12)]
    server.kill()
    server.settings["workers"] = "1"
    server.start()
    for number, task in enumerate(tasks):
        assert server.wait(task)["result"]["prompt"] == f"APPLE {number}"
    assert server.command("fsck").returncode == 0


def test_a_prompt_that_ends_its_writers_is_not_written_again_and_again(make_server: MakeServer) -> None:
    server = make_server(prompt_upsampler="checkpoint", workers="1").start()
    guilty = server.submit("[[crash]]", model="flux-2-pro")
    innocent = server.submit("an apple", model="flux-2-pro")
    ended = server.wait(guilty)
    assert (ended["status"], warnings(ended)) == ("Error", [FAILED.format("workers ended over it")])
    assert server.wait(innocent)["status"] == "Ready"
    assert server.command("fsck").returncode == 0
