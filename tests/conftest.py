"""Settings of all tests, and the vLLM server that those marked ``vllm`` share."""

import importlib.util
import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A shared machine pauses a process for longer than the default deadline of 200 ms.
settings.register_profile("dart-gui", deadline=None)
settings.load_profile("dart-gui")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """A limit that a test sets on file sizes ends with its call: its report is written before its
    fixtures close, and may go to a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        return (yield)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


TINY_AGENT = Path(__file__).resolve().parents[1] / "models" / "tiny-agent"
VLLM_CONTEXT = 1024
# A small KV cache, blocks small enough for prefixes of 60 tokens, no compiler.
VLLM_ARGS = ["--enforce-eager", "--kv-cache-memory-bytes", "67108864", "--block-size", "32"]
VLLM_ENV = ["TORCHDYNAMO_DISABLE=1", "VLLM_CPU_OMP_THREADS_BIND=nobind"]


@pytest.fixture(scope="session")
def vllm_executable():
    path = os.environ.get("DART_VLLM", "")
    if not path:
        pytest.skip("there is no vLLM: `make test-vllm` installs one and says what is missing")
    return path


@pytest.fixture(scope="session")
def vllm_env(tmp_path_factory):
    return [*VLLM_ENV, f"VLLM_CACHE_ROOT={tmp_path_factory.mktemp('vllm-cache')}"]


@pytest.fixture(scope="session")
def vllm_args():
    return VLLM_ARGS


@pytest.fixture(scope="session")
def vllm_url(request):
    """One server with the tiny agent for the whole session: it takes half a minute to start.
    DART_VLLM_URL names one that runs already, which while writing tests saves the wait."""
    if url := os.environ.get("DART_VLLM_URL"):
        yield url
        return
    yield from _serve_vllm(
        request.getfixturevalue("vllm_executable"), request.getfixturevalue("vllm_env")
    )


@pytest.fixture(scope="session")
def vllm_lora_url(request):
    """Another one, which takes adapters of rank 8. DART_VLLM_LORA_URL names one that runs already."""
    if url := os.environ.get("DART_VLLM_LORA_URL"):
        yield url
        return
    yield from _serve_vllm(
        request.getfixturevalue("vllm_executable"),
        request.getfixturevalue("vllm_env"),
        lora_rank=8,
    )


def _serve_vllm(vllm_executable, vllm_env, *, lora_rank=0):
    from dart_gui.rollout.engines.vllm_server import ModelSettings, VllmServer, VllmSettings

    server = VllmServer(VllmSettings(executable=vllm_executable, args=VLLM_ARGS, env=vllm_env))
    server.start(
        ModelSettings(
            folder=TINY_AGENT,
            max_context=VLLM_CONTEXT,
            max_batch_size=8,
            dtype="float32",
            threads=1,
            lora_rank=lora_rank,
        )
    )
    yield f"unix:{server.socket}"
    assert server.running, "the server died on the way"
    started = time.monotonic()
    server.close()
    assert time.monotonic() - started < 30


@pytest.fixture
def vllm_engine(vllm_url):
    """Makes engines that adopt the server, each with the weights of the tiny agent at first."""
    from dart_gui.rollout.engines.vllm_engine import VllmEngine
    from dart_gui.rollout.engines.vllm_server import ModelSettings, VllmSettings

    made = []

    def make(*, policy_version=0, max_context=VLLM_CONTEXT, top_logprobs=20):
        model = ModelSettings(
            folder=TINY_AGENT,
            max_context=max_context,
            max_batch_size=8,
            dtype="float32",
            threads=1,
        )
        failures = []
        engine = VllmEngine(
            model,
            VllmSettings(
                url=vllm_url, args=[], env=[], start_timeout_s=300, top_logprobs=top_logprobs
            ),
            policy_version=policy_version,
            request_timeout_s=120,
            on_failure=lambda: failures.append("given up"),
        )
        engine.failures = failures
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests of desktops, and of containers, are skipped where there are none: they say why."""
    if item.get_closest_marker("desktop") and (missing := missing_for_desktops()):
        pytest.skip(f"no desktops: {', '.join(missing)} (python3 scripts/setup_desktop.py)")
    if marker := item.get_closest_marker("docker"):
        if not os.environ.get("DART_DOCKER_HOST"):
            pytest.skip("no Docker daemon with a desktop image: `make test-docker` starts one")
        wanted = marker.kwargs.get("apps", "small")
        if wanted == "all" and os.environ.get("DART_DOCKER_APPS") != "all":
            pytest.skip("needs the full desktop image: `make test-docker APPS=all` builds it")


def missing_for_desktops() -> list[str]:
    programs = ("bwrap", "Xvfb", "openbox", "xterm", "setpriv", "prlimit")
    missing = [program for program in programs if shutil.which(program) is None]
    return missing + [name for name in ("Xlib", "mss") if importlib.util.find_spec(name) is None]
