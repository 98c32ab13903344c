"""A program that knows nothing of dart-gui but a URL makes trajectories that are trained.

    python examples/openai_client.py http://127.0.0.1:PORT "$(cat runs/RUN/token)" --episodes 8

The task here: say "click" (a stand-in for an environment of your own, which would send screenshots).
"""

import argparse
import time

import httpx
from openai import OpenAI

parser = argparse.ArgumentParser()
parser.add_argument("url")
parser.add_argument("token")
parser.add_argument("--episodes", type=int, default=1)
options = parser.parse_args()
service = httpx.Client(
    base_url=options.url, headers={"Authorization": f"Bearer {options.token}"}, timeout=600
)

for _ in range(options.episodes):
    while (started := service.post("/sessions")).status_code == 429:  # the trainer is behind
        time.sleep(float(started.headers["Retry-After"]))
    session = started.raise_for_status().json()
    agent = OpenAI(base_url=session["base_url"], api_key=options.token)
    messages = [{"role": "user", "content": f"Task {session['task_id']}: say 'click'."}]
    for _turn in range(2):
        answer = agent.chat.completions.create(model="policy", messages=messages)
        reply = answer.choices[0].message.content
        messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": "Go on."}]
    reward = float("click" in reply.lower())
    ended = service.post(f"/sessions/{session['session_id']}/reward", json={"reward": reward})
    print(session["trajectory_id"], ended.raise_for_status().json()["state"], reward)
