"""What a worker writes into the files it makes, by what its server says."""

from __future__ import annotations

import asyncio

import pytest
from worker_house import PATIENCE_S, TASK, hired

from fluxserve.engine.fake import FakeEngine
from fluxserve.settings import Settings
from fluxserve.worker import protocol as p


@pytest.mark.parametrize("tells_prompts", [False, True])
def test_a_worker_tells_the_prompt_where_its_server_says_so_whatever_its_own_settings_are(tells_prompts: bool) -> None:
    async def play() -> None:
        welcome = p.Welcome(heartbeat=60, lease=600, kept=(), tells_prompts=tells_prompts)
        engine = FakeEngine(Settings(prompt_in_pictures=not tells_prompts))
        async with hired(engine, welcome) as (_, streams), asyncio.timeout(PATIENCE_S):
            streams[1].write(p.to_frame(p.Tasks(assignments=(TASK,))))
            while not isinstance(message := await p.read_from_worker(streams[0]), p.Finished):
                assert message is not None
            assert (TASK.generation.prompt.encode() in message.picture) is tells_prompts
            assert f'fluxserve:Seed="{TASK.generation.seed}"'.encode() in message.picture

    asyncio.run(play())
