"""Foreign programs make trajectories: over HTTP, a real worker process and a real ledger."""

import asyncio
import hashlib
import io
import sys
from pathlib import Path

import aiohttp
import pytest
from PIL import Image

from dart_gui.config import from_dict
from dart_gui.data.manager import DataManager
from dart_gui.rollout.service import serve
from dart_gui.sessions.routes import open_sessions

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-of-this-test"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, "png")
    return buffer.getvalue()


class Running:
    """A run whose episodes foreign programs play; ``data`` is the trainer's view of it."""

    def __init__(self, run_dir, **sessions):
        self.run_dir = run_dir
        tree = {
            "rollout": {"engine": "fake", "request_timeout_s": 30},
            "sessions": {"enabled": True, "tasks": ["my/task"]} | sessions,
            "data": {"group_size": 2},
            "curation": {"skip_zero_variance": False},
            "train": {"groups_per_step": 1},
            "model": {"path": str(run_dir)},
        }
        self.config = from_dict(tree, source="test")

    async def __aenter__(self):
        self.data = DataManager.open(self.run_dir, self.config)
        self.data.publish_version(0, str(self.run_dir))
        self._sessions = open_sessions(self.run_dir, self.config)
        routes = await self._sessions.__aenter__()
        self._serving = serve(self.config, token=TOKEN, extensions=[routes])
        self.url = (await self._serving.__aenter__()).url
        self.http = aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"})
        return self

    async def __aexit__(self, *error):
        await self.http.close()
        await self._serving.__aexit__(*error)
        await self._sessions.__aexit__(*error)
        self.data.close()

    async def call(self, method, path, body=None, **headers):
        url = path if path.startswith("http") else self.url + path
        async with self.http.request(method, url, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def start(self):
        status, session = await self.call("POST", "/sessions")
        assert status == 200, session
        return session


async def test_the_example_with_the_openai_package_makes_a_batch(tmp_path):
    pytest.importorskip("openai")
    async with Running(tmp_path) as running:
        command = [str(ROOT / "examples/openai_client.py"), running.url, TOKEN, "--episodes", "2"]
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert process.returncode == 0
        assert output.decode().count(" stored 1.0") == 2
        batch = running.data.claim_batch(1)
        assert batch is not None
        (group,) = batch.groups
        assert (group.task_id, len(group.trajectories)) == ("my/task", 2)
        seeds = set()
        for member in group.trajectories:
            assert len(member.trajectory.steps) == 2
            for step in member.trajectory.steps:
                completion = step.completion
                assert len(completion.response_ids) == len(completion.rollout_logprobs) > 3
                assert completion.prompt_ids
                seeds.add(completion.sampling.seed)
        assert len(seeds) == 4


async def test_screenshots_and_the_header_instead_of_the_url(tmp_path):
    async with Running(tmp_path) as running:
        session = await running.start()
        key = hashlib.sha256(png()).hexdigest()
        await running.http.put(f"{running.url}/images/{key}", data=png())
        part = {"type": "image_url", "image_url": {"url": f"sha256:{key}"}}
        body = {"messages": [{"role": "user", "content": [part]}], "temperature": 0.5}
        name = {"X-Session-Id": session["session_id"]}
        assert (await running.call("POST", "/v1/chat/completions", body, **name))[0] == 200
        assert (await running.call("POST", "/v1/chat/completions", HELLO))[
            0
        ] == 200  # of no session
        path = f"/sessions/{session['session_id']}"
        reward = {"reward": 0.25, "stop_reason": "max_steps", "instruction": "look"}
        status, ended = await running.call("POST", f"{path}/reward", reward)
        assert (status, ended["state"], ended["num_calls"]) == (200, "stored", 1)
        assert (await running.call("POST", f"{path}/reward", reward))[0] == 200  # again: no change
        stored = running.data.load_trajectory(session["trajectory_id"])
        assert (stored.reward, stored.success, stored.instruction) == (0.25, False, "look")
        assert stored.steps[0].completion.image_hashes == [key]
        assert stored.steps[0].completion.sampling.temperature == 0.5
        assert running.data.load_image(key) == png()
        assert (await running.call("POST", f"{path}/v1/chat/completions", HELLO))[0] == 409


async def test_a_session_that_is_given_up_or_silent_is_an_attempt_that_failed(tmp_path):
    async with Running(tmp_path, timeout_s=2) as running:
        first = await running.start()
        status, _ = await running.call("DELETE", f"/sessions/{first['session_id']}")
        assert status == 200
        again = await running.start()
        assert (again["trajectory_id"], again["attempt"]) == (first["trajectory_id"], 2)

        async def state():
            _, session = await running.call("GET", f"/sessions/{again['session_id']}")
            return session["state"]

        async with asyncio.timeout(30):
            while await state() != "failed":
                await asyncio.sleep(0.05)
        assert (await running.start())["attempt"] == 3


async def test_nothing_is_admitted_beyond_what_the_trainer_can_take(tmp_path):
    async with Running(tmp_path) as running:
        answers = [await running.call("POST", "/sessions") for _ in range(12)]
        assert {status for status, _ in answers} == {200, 429}
        assert answers[-1][1]["error"]["type"] == "not_admitted"


async def test_a_bad_end_changes_nothing(tmp_path):
    async with Running(tmp_path) as running:
        session = await running.start()
        path = f"/sessions/{session['session_id']}/reward"
        assert (await running.call("POST", path, {"reward": 1}))[0] == 409  # no call yet
        await running.call("POST", session["base_url"] + "/chat/completions", HELLO)
        assert (await running.call("POST", path, {"reward": 7}))[0] == 409
        assert (await running.call("POST", path, {"reward": 1}))[0] == 200
        assert (await running.call("POST", "/sessions/none/reward", {"reward": 1}))[0] == 404


async def test_a_service_that_was_restarted_plans_its_sessions_again(tmp_path):
    async with Running(tmp_path) as running:
        session = await running.start()
    async with Running(tmp_path) as running:
        assert (await running.call("GET", f"/sessions/{session['session_id']}"))[0] == 404
        again = await running.start()
        assert again["trajectory_id"] == session["trajectory_id"]
