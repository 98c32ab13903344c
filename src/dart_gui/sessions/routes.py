"""Any OpenAI client as a rollout client: routes by which an agent program that knows a base URL makes
trajectories that are trained.

``POST /sessions`` plans an episode and names its base URL; the calls to ``<base URL>/chat/completions``
(or to the service's own route with ``X-Session-Id``) are its steps; ``POST /sessions/{id}/reward`` ends
and stores it, ``DELETE /sessions/{id}`` gives the attempt up. The service is then the run's runner: no
other one may run beside it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp

from dart_gui.config import Config, SessionsConfig
from dart_gui.data.manager import DataManager
from dart_gui.data.sampler import RoundRobinSampler
from dart_gui.errors import DartError, DataError
from dart_gui.rollout.client import parse_completion
from dart_gui.rollout.httpd import ApiError, json_response, read_json
from dart_gui.rollout.routes import RolloutService
from dart_gui.rollout.states import WorkerState
from dart_gui.rollout.worker import MAX_REQUEST_BYTES
from dart_gui.rollout.worker_process import WorkerAnswer
from dart_gui.sessions.session import Session, SessionEnd, SessionState
from dart_gui.types import StopReason

log = logging.getLogger(__name__)
SESSION_HEADER = "x-session-id"
RETRY_S = 2.0
_SMALL = 2**20
_REAP_S = 1.0
T = TypeVar("T")


@asynccontextmanager
async def open_sessions(run_dir: Path, config: Config) -> AsyncIterator[SessionRoutes]:
    """The sessions of a run, over its data, until exit.

    Raises:
        DataError: the ledger cannot be opened.
    """
    sampler = RoundRobinSampler(
        config.sessions.tasks,
        seed=config.run.seed,
        train_seed=lambda draw: draw.randrange(2**31),
    )
    with DataManager.open(run_dir, config, sampler=sampler) as data:
        routes = SessionRoutes(data, config.sessions, run_id=run_dir.name)
        await routes.open()
        try:
            yield routes
        finally:
            await routes.close()


class SessionRoutes:
    """An extension of :func:`dart_gui.rollout.service.serve`; close it afterwards."""

    def __init__(
        self,
        data: DataManager,
        config: SessionsConfig,
        *,
        run_id: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._data = data
        self._config = config
        self._run_id = run_id
        self._now = now
        self._sessions: dict[str, Session] = {}
        # one thread, in order: the ledger's answers to one client do not overtake each other
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._reaper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Sessions of a service that is gone return to the plan: nobody can end them any more."""
        num = await self._call(self._data.recover)
        log.info("%d attempts return to the plan", num)
        self._reaper = asyncio.create_task(self._reap())

    async def close(self) -> None:
        if self._reaper is not None:
            self._reaper.cancel()
            with suppress(asyncio.CancelledError):
                await self._reaper
        await self._call(self._data.recover)
        self._executor.shutdown()

    def wrap(self, app: ASGIApp) -> ASGIApp:
        return app

    def add_routes(self, app: FastAPI, service: RolloutService, url: str) -> None:
        self._service, self._url = service, url
        app.add_api_route("/sessions", self.start, methods=["POST"])
        app.add_api_route("/sessions/{session_id}", self.show, methods=["GET"])
        app.add_api_route("/sessions/{session_id}", self.give_up, methods=["DELETE"])
        app.add_api_route("/sessions/{session_id}/reward", self.reward, methods=["POST"])
        path = "/sessions/{session_id}/v1"
        app.add_api_route(f"{path}/chat/completions", self.chat_at, methods=["POST"])
        app.add_api_route(f"{path}/models", service.models, methods=["GET"])
        app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"])

    # --- routes ----------------------------------------------------------------------------

    async def start(self) -> Response:
        """An episode of the plan. 429 while nothing is admitted: the trainer is behind, or the
        workers are."""
        planned = None
        if len(self._open()) < self._config.max_open:
            planned = await self._call(self._data.next_episode, self._served_version())
        if planned is None:
            text = "no episode is admitted now: the trainer has to catch up, or sessions to end"
            raise ApiError(429, "not_admitted", text, retry_after_s=RETRY_S)
        now = self._now()
        session = Session(planned=planned, started_at=now, touched_at=now)
        self._sessions[session.session_id] = session
        return json_response(self._facts(session))

    async def show(self, session_id: str) -> Response:
        return json_response(self._facts(self._find(session_id)))

    async def chat(self, request: Request) -> Response:
        """The service's own route: of a session where the header names one."""
        session_id = request.headers.get(SESSION_HEADER)
        if session_id is None:
            return await self._service.chat(request)
        return await self.chat_at(session_id, request)

    async def chat_at(self, session_id: str, request: Request) -> Response:
        session = self._find(session_id)
        body = await read_json(request, MAX_REQUEST_BYTES)
        with _conflict():
            index = session.begin_call(self._now())
        started_at = self._now()
        try:
            answer = await self._complete(session, index, body, started_at)
        finally:
            session.end_call(self._now())
        return Response(answer.body, status_code=answer.status, media_type="application/json")

    async def _complete(
        self, session: Session, index: int, body: dict[str, Any], started_at: float
    ) -> WorkerAnswer:
        asked = body | {"logprobs": True, "return_token_ids": True}
        if body.get("seed") is None:
            asked["seed"] = session.seed(index)
        answer, images = await self._service.complete(
            asked, trajectory_id=session.planned.episode_id
        )
        if answer.status == 200:
            completion = parse_completion(json.loads(answer.body))
            session.add(index, completion, images, self._now() - started_at)
        return answer

    async def reward(self, session_id: str, request: Request) -> Response:
        """Ends the session; the same reward again changes nothing."""
        session = self._find(session_id)
        body = await read_json(request, _SMALL)
        async with session.lock:
            if session.state is SessionState.STORED:
                return json_response(self._facts(session))
            with _conflict():
                end = SessionEnd.parse(body)
                await self._store(session, end, str(body.get("instruction", "")))
        return json_response(self._facts(session))

    async def _store(self, session: Session, end: SessionEnd, instruction: str) -> None:
        trajectory = session.trajectory(
            end, run_id=self._run_id, instruction=instruction, now=self._now()
        )
        session.move(SessionState.ENDING)
        try:
            await self._call(self._data.store, trajectory, session.images)
        except BaseException:
            session.move(SessionState.OPEN)
            raise
        session.move(SessionState.STORED)
        self._forget(session)

    async def give_up(self, session_id: str) -> Response:
        """A failed attempt, such as one whose environment broke; the episode is planned again."""
        session = self._find(session_id)
        with _conflict():
            await self._fail(session, StopReason.ENV_ERROR, "given up by the client")
        return json_response(self._facts(session))

    async def _fail(self, session: Session, reason: StopReason, message: str) -> None:
        async with session.lock:
            session.move(SessionState.ENDING)
            try:
                await self._call(self._data.fail, session.planned, reason, message)
            except BaseException:
                session.move(SessionState.OPEN)
                raise
            session.move(SessionState.FAILED)
            self._forget(session)

    # --- bookkeeping -----------------------------------------------------------------------

    async def _reap(self) -> None:
        """Whoever says nothing for ``timeout_s`` is gone: the attempt failed."""
        while True:
            await asyncio.sleep(_REAP_S)
            for session in self._open():
                silent_s = self._now() - session.touched_at
                if session.num_in_flight or silent_s < self._config.timeout_s:
                    continue
                try:
                    await self._fail(session, StopReason.TIMEOUT, f"silent for {silent_s:.0f} s")
                except DartError:  # it ended meanwhile, or the ledger is away: looked at again
                    log.exception("session %s", session.session_id)

    def _open(self) -> list[Session]:
        return [item for item in self._sessions.values() if item.state is SessionState.OPEN]

    def _forget(self, session: Session) -> None:
        """Its steps and screenshots; and the oldest sessions that have ended, altogether."""
        session.steps, session.images = {}, {}
        ended = [item for item in self._sessions.values() if item.state is not SessionState.OPEN]
        for old in ended[: -self._config.max_open]:
            del self._sessions[old.session_id]

    def _find(self, session_id: str) -> Session:
        session = self._sessions.get(session_id)
        if session is None:
            raise ApiError(
                404,
                "unknown_session",
                f"there is no session {session_id!r:.80}: the service was restarted, or it ended "
                "long ago. Start another one",
            )
        return session

    def _served_version(self) -> int:
        """The lowest of the workers that run."""
        fleet = self._service.fleet
        down = (WorkerState.STARTING, WorkerState.DEAD)
        versions = [slot.policy_version for slot in fleet.slots if slot.state not in down]
        return min(versions, default=fleet.desired.policy_version)

    def _facts(self, session: Session) -> dict[str, Any]:
        planned = session.planned
        return {
            "session_id": session.session_id,
            "base_url": f"{self._url}/sessions/{session.session_id}/v1",
            "state": session.state,
            "task_id": planned.task.task_id,
            "seed": planned.task.seed,
            "trajectory_id": planned.episode_id,
            "group_id": planned.group_id,
            "attempt": planned.attempt,
            "num_calls": session.num_calls,
        }

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(function, *arguments))


@contextmanager
def _conflict() -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise ApiError(409, "invalid_request_error", str(error)) from None
