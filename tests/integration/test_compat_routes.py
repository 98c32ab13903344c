"""The published model service's routes, as its runner and its trainer call them.

``published_routes.json`` holds each route's request and the shape of its answer; ``<...>`` stands for a
value of that kind. Answers may have further keys.
"""

import asyncio
import base64
import io
import json
from pathlib import Path

import aiohttp
import pytest
from PIL import Image

from dart_gui.compat.published_routes import PublishedRoutes
from dart_gui.config import from_dict
from dart_gui.rollout.service import serve

TINY_AGENT = Path(__file__).resolve().parents[2] / "models" / "tiny-agent"
GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "published_routes.json").read_text())
TOKEN = "a-token-of-this-test"
NAMES = {"task_id": "0a1b", "trace_id": "trace-0123456789ab-1700000000"}


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, "png")
    return buffer.getvalue()


class Published:
    """A service with the published routes, and a client that sends no header."""

    def __init__(self, tmp_path, **compat):
        self.save_dir, self.roots = tmp_path / "results", tmp_path / "checkpoints"
        self.checkpoint = self.roots / "global_step_1" / "actor" / "huggingface"
        self.checkpoint.mkdir(parents=True)
        tree = {
            "rollout": {"engine": "fake", "num_workers": 2, "request_timeout_s": 30},
            "model": {"path": str(TINY_AGENT)},
            "compat": {
                "enabled": True,
                "save_dir": str(self.save_dir),
                "checkpoint_roots": [str(self.roots)],
            }
            | compat,
        }
        self.config = from_dict(tree, source="test")
        self.shut_down = asyncio.Event()

    async def __aenter__(self):
        routes = PublishedRoutes(
            self.config.compat, model_path=str(TINY_AGENT), shut_down=self.shut_down.set
        )
        self._serving = serve(self.config, token=TOKEN, extensions=[routes])
        self.service = await self._serving.__aenter__()
        self.url = self.service.url
        self.http = aiohttp.ClientSession()
        return self

    async def __aexit__(self, *error):
        await self.http.close()
        await self._serving.__aexit__(*error)

    async def call(self, method, path, body=None, token=TOKEN):
        async with self.http.request(method, f"{self.url}/t/{token}{path}", json=body) as response:
            return response.status, await response.json()

    def fill(self, value):
        """The golden placeholders of a request."""
        text = json.dumps(value).replace("<checkpoint>", str(self.checkpoint))
        return json.loads(text.replace("<png>", base64.b64encode(png()).decode()))

    async def until(self, condition):
        async with asyncio.timeout(30):
            while not await condition():
                await asyncio.sleep(0.02)


def check_shape(found, wanted, facts, where="answer"):
    kinds = {"<str>": str, "<int>": int, "<float>": float}
    if isinstance(wanted, dict):
        assert isinstance(found, dict), where
        for key, value in wanted.items():
            check_shape(found[key], value, facts, f"{where}.{key}")
    elif isinstance(wanted, list):
        assert isinstance(found, list), where
        assert bool(found) == bool(wanted), where
        for item in found:
            check_shape(item, wanted[0], facts, f"{where}[]")
    elif wanted in kinds:
        assert type(found) is kinds[wanted], where
    elif wanted == "<token_id>":
        assert found.startswith("token_id:"), where
        assert found[9:].isdigit(), where
    else:
        assert found == facts.get(wanted, wanted), where


async def test_every_route_has_the_published_shape(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)  # of nvidia-smi
    async with Published(tmp_path) as published:
        facts = {"<model>": str(TINY_AGENT), "<url>": published.url}
        for golden in GOLDEN:
            status, body = await published.call(
                golden["method"], golden["path"], published.fill(golden.get("body"))
            )
            assert status == 200, (golden["path"], body)
            check_shape(body, golden["answer"], facts, golden["path"])


async def test_a_trajectory_lies_on_disk_as_the_published_trainer_reads_it(tmp_path):
    torch = pytest.importorskip("torch")
    generate = next(golden for golden in GOLDEN if golden["path"] == "/generate")
    save = next(golden for golden in GOLDEN if golden["path"] == "/save")
    async with Published(tmp_path) as published:
        answers = []
        for step in range(2):
            body = published.fill(generate["body"])
            body["parameters"]["step"] = step
            answers.append((await published.call("POST", "/generate", body))[1])
        await published.call("POST", "/save", save["body"])
        folder = published.save_dir / f"{NAMES['task_id']}_{NAMES['trace_id']}"
        assert sorted(path.name for path in folder.iterdir()) == [
            "data_for_step_1.pt",
            "data_for_step_2.pt",
            "final_messages.json",
            "image_0.png",
            "image_1.png",
            "reward.txt",
        ]
        for step, answer in enumerate(answers):
            data = torch.load(folder / f"data_for_step_{step + 1}.pt", weights_only=True)
            content = answer["choices"][0]["logprobs"]["content"]
            assert data["token_ids"].tolist() == [int(item["token"][9:]) for item in content]
            assert data["token_ids"].dtype == torch.int64
            expected = torch.tensor([item["logprob"] for item in content])
            assert torch.equal(data["logp"], expected)
            assert (folder / f"image_{step}.png").read_bytes() == png()
        assert json.loads((folder / "final_messages.json").read_text()) == save["body"]["messages"]
        assert (folder / "reward.txt").read_text() == "0.5"


async def test_siblings_with_one_seed_are_different_attempts(tmp_path):
    generate = next(golden for golden in GOLDEN if golden["path"] == "/generate")
    async with Published(tmp_path) as published:

        async def reply(trace_id):
            body = published.fill(generate["body"])
            body["parameters"]["trace_id"] = trace_id
            _, answer = await published.call("POST", "/generate", body)
            assert answer["ignored_parameters"] == ["frequency_penalty"]
            return [item["token"] for item in answer["choices"][0]["logprobs"]["content"]]

        assert await reply("trace-a") == await reply("trace-a")
        assert await reply("trace-a") != await reply("trace-b")


async def test_a_reload_rolls_and_is_known_by_its_path(tmp_path):
    async with Published(tmp_path) as published:
        body = {"new_ckpt_path": str(published.checkpoint), "batch_size": 2}
        assert (await published.call("POST", "/reload", body))[0] == 200

        async def rolled():
            _, status = await published.call("GET", "/status")
            paths = [instance["ckpt_path"] for instance in status["instances"]]
            return paths == [str(published.checkpoint)] * 2

        await published.until(rolled)
        assert (await published.call("GET", "/checkpoint_info"))[1] == {
            "current_ckpt_path": str(published.checkpoint),
            "last_ckpt_path": str(TINY_AGENT),
        }
        generate = next(golden for golden in GOLDEN if golden["path"] == "/generate")
        _, answer = await published.call("POST", "/generate", published.fill(generate["body"]))
        assert answer["model"] == str(published.checkpoint)
        assert answer["policy_version"] == 1


async def test_a_worker_leaves_and_comes_back(tmp_path):
    async with Published(tmp_path) as published:
        await published.call("POST", "/remove_service_by_id?gpu_id=0")

        def active(count):
            async def condition():
                _, status = await published.call("GET", "/status")
                return status["active_services_count"] == count

            return condition

        await published.until(active(1))
        generate = next(golden for golden in GOLDEN if golden["path"] == "/generate")
        _, answer = await published.call("POST", "/generate", published.fill(generate["body"]))
        assert answer["worker_id"] == "worker-1"
        await published.call("POST", "/add_service_by_id?gpu_id=0")
        await published.until(active(2))
        status, body = await published.call("POST", "/remove_service_by_id?gpu_id=7")
        assert (status, "gpu_id = 7" in body["detail"]) == (500, True)


BAD = [
    ("/generate", {"messages": [], "parameters": NAMES}, "messages must be"),
    ("/generate", {"messages": [], "parameters": 3}, "parameters"),
    ("/generate", {"messages": [], "parameters": NAMES | {"trace_id": "../../x"}}, "trace_id"),
    ("/generate", {"messages": [], "parameters": NAMES | {"task_id": ".hidden"}}, "task_id"),
    ("/generate", {"messages": [], "parameters": NAMES | {"step": -1}}, "step"),
    ("/save", NAMES | {"messages": [], "reward": "much"}, "reward"),
    ("/save", NAMES | {"messages": "x", "reward": 1}, "messages"),
    ("/save", {"messages": [], "reward": 1, "task_id": "a/b", "trace_id": "t"}, "task_id"),
    ("/reload", {}, "new_ckpt_path"),
    ("/reload", {"new_ckpt_path": "/etc"}, "checkpoint_roots"),
    ("/tokenize", {"prompt": 5}, "prompt"),
]


async def test_what_is_refused_is_a_500_with_its_reason(tmp_path):
    async with Published(tmp_path) as published:
        (published.roots / "escape").symlink_to("/etc")
        inside = {"new_ckpt_path": str(published.roots / "escape")}
        missing = {"new_ckpt_path": str(published.roots / "missing")}
        more = [("/reload", inside, "checkpoint_roots"), ("/reload", missing, "not a folder")]
        for path, body, reason in [*BAD, *more]:
            status, answer = await published.call("POST", path, body)
            assert (status, reason in answer["detail"]) == (500, True), (path, answer)
        assert not published.save_dir.exists()


async def test_shutdown_is_a_post_unless_configured(tmp_path):
    async with Published(tmp_path) as published:
        assert (await published.call("GET", "/shutdown"))[0] == 405
        assert not published.shut_down.is_set()
        assert (await published.call("POST", "/shutdown"))[0] == 200
        async with asyncio.timeout(30):
            await published.shut_down.wait()


async def test_the_token_in_the_url_is_checked(tmp_path):
    async with Published(tmp_path, save_dir="", get_shutdown=True) as published:
        assert (await published.call("GET", "/status", token="wrong"))[0] == 401
        async with published.http.get(f"{published.url}/status") as response:
            assert response.status == 401
        status, body = await published.call("POST", "/save", {**NAMES, "messages": [], "reward": 1})
        assert (status, body) == (200, {"status": "skipped"})
        assert (await published.call("GET", "/shutdown"))[0] == 200


async def test_without_a_token_in_the_url_only_the_header_counts(tmp_path):
    async with Published(tmp_path, token_in_url=False) as published:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert (await published.call("GET", "/status"))[0] == 401
        async with published.http.get(f"{published.url}/status", headers=headers) as response:
            assert response.status == 200
