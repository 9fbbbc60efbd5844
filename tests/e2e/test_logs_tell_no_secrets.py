"""What callers say in confidence is in no log and no file but where it belongs, whatever goes wrong meanwhile."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import httpx
from servers import MakeServer, Server, until

PROMPT, WRONG, SECRET, HOST = "canary-prompt-5d1c", "canary-wrong-key", "canary-webhook-secret-9f2e", "canary-host.test"
#: Of the data folder, where prompts may be (the database and its log), and where keys and seals are.
DATABASE, SECRETS = "fluxserve.db", ("api_key", "secrets.json")


def everything_goes_wrong(server: Server) -> set[str]:
    """Ask in every way, good and bad; answers what else is to be told to nobody: links, capabilities, keys."""
    made = server.command("keys", "create", "other", "--credits", "1")
    other = made.stdout.strip()
    told = {other, server.key}
    with server.client() as client:
        hook = {"webhook_url": f"https://{HOST}/canary-path?canary-query=1", "webhook_secret": SECRET}
        for prompt, extra in (
            (PROMPT, {}), (f"[[crash]] {PROMPT}", {}), (f"[[error]] {PROMPT}", {}), (f"[[black]] {PROMPT}", {}),
            (PROMPT, hook), (PROMPT, {"width": 100}), (PROMPT, {"input_image": PROMPT}),
        ):  # fmt: skip
            client.post("/v1/flux-dev", json={"prompt": prompt, **extra}, headers={"Idempotency-Key": PROMPT})
            client.post("/v1/flux-dev", json={"prompt": prompt, "width": 256, "height": 256, **extra})
        client.post("/v1/flux-kontext-dev", json={"prompt": PROMPT, "input_image": PROMPT})
        client.post("/v1/flux-dev", content=f'{{"prompt": "{PROMPT}'.encode())
        client.post("/v1/flux-dev", json={"prompt": PROMPT}, headers={"x-key": other})
        client.post(f"/v1/{PROMPT}", json={"prompt": PROMPT})
        client.get("/v1/tasks", params={"cursor": PROMPT, "status": PROMPT})
        task = client.post("/v1/flux-dev", json={"prompt": PROMPT, "width": 256, "height": 256}).json()
        until(
            lambda: client.get("/v1/get_result", params={"id": task["id"]}).json()["status"] == "Ready", 30.0, "ready"
        )
        sample = client.get("/v1/get_result", params={"id": task["id"]}).json()["result"]["sample"]
        for url in (sample, sample[:-1], sample.replace("results/", "results/x"), task["polling_url"] + "x"):
            client.get(url)
    with httpx.Client(base_url=server.url, headers={"x-key": WRONG}) as client:
        client.post("/v1/flux-dev", json={"prompt": PROMPT})
        client.get("/v1/credits")
    told.add(parse_qs(urlsplit(task["polling_url"]).query)["t"][0])
    told.add(urlsplit(sample).path.split("/")[2])
    return told


def test_no_log_and_no_file_tells_what_callers_say_in_confidence(make_server: MakeServer) -> None:
    server = make_server(fake_latency="0.1", waypoint_interval="0").start()
    told = everything_goes_wrong(server)
    quarantined = "SELECT count(*) FROM tasks WHERE spoiled > 0 AND finished_at IS NOT NULL"
    until(lambda: server.rows(quarantined) != [(0,)], 60.0, "the task that ends its workers is given up")
    assert server.stop() == 0
    server.wait_until_gone(10.0)
    log = "\n".join(line for line in server.log.splitlines() if "shown once" not in line)
    assert "Task accepted" in log
    for secret in (PROMPT, WRONG, SECRET, HOST, "canary-path", "canary-query", *told):
        assert secret not in log, secret
    assert PROMPT.encode() in (server.data_dir / DATABASE).read_bytes()
    for file in server.data_dir.rglob("*"):
        if not file.is_file():
            continue
        content = file.read_bytes()
        kept = {SECRET, *told} | (set() if file.name.startswith(DATABASE) else {PROMPT})
        assert not [one for one in kept if one.encode() in content and file.name not in SECRETS], file
