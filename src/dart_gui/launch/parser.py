"""The arguments of ``dart-gui``. Imported at every start: argparse and nothing else."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from dart_gui import __version__
from dart_gui.launch.parser_base import Parser, command
from dart_gui.launch.parser_envs import add_env, add_env_server, add_osworld

DEFAULT_CONFIG = "configs/miniwob-tiny.toml"

MODULES: Mapping[str, str] = {
    "rollout": "one module of a run: the rollout service",
    "runner": "one module of a run: the agent runner with its browser",
    "trainer": "one module of a run: the trainer",
    "evaluator": "one evaluation of a run; `eval` is what you want",
    "player": "one episode of a run; `play` is what you want",
}
"""Commands that the supervisor starts, and what they are."""

DESCRIPTION = "Train vision-language GUI agents with multi-turn reinforcement learning."

EPILOG = """\
examples:
  dart-gui doctor                                    is this machine ready?
  dart-gui train configs/miniwob-tiny.toml           a new run
  dart-gui train --resume                            continue the newest run
  dart-gui eval --run latest                         success rate on held-out seeds
  dart-gui play click-dialog                         watch one episode

any key of the configuration can be set on the command line:
  dart-gui train configs/miniwob-tiny.toml --train.lr 3e-4 --run.max_train_steps=50
  dart-gui eval CONFIG --env.tasks '["miniwob/click-test"]'
"""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="dart-gui",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dart-gui {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_train(commands)
    _add_eval(commands)
    _add_play(commands)
    _add_small(commands)
    add_env_server(commands)
    _add_pool(commands)
    add_env(commands)
    add_osworld(commands)
    _add_merge(commands)
    _add_db(commands)
    _add_modules(commands)
    return parser


def _add_train(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = command(
        commands,
        "train",
        summary="train an agent: start all modules on this machine and supervise them",
        examples=(
            "  dart-gui train configs/miniwob-tiny.toml --train.lr 3e-4\n"
            "  dart-gui train configs/miniwob-tiny.toml --name lr3e-4 --run.max_time_s 600\n"
            "  dart-gui train --resume                       the newest run\n"
            "  dart-gui train --resume lr3e-4 --run.max_time_s 2400\n"
            "  dart-gui train CONFIG --dry-run               print the resolved configuration"
        ),
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="TOML file of a new run")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--name", help="name of the new run's folder in run.dir")
    place.add_argument("--run-dir", metavar="DIR", help="folder of the new run")
    place.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        metavar="RUN",
        help="continue a run, by name or folder (default: the newest); it keeps its configuration, "
        "which overrides may change",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and stop"
    )


def _add_eval(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = command(
        commands,
        "eval",
        summary="success rate on held-out seeds, per task, with 95 % intervals",
        examples=(
            "  dart-gui eval configs/miniwob-tiny.toml       the model that it names\n"
            "  dart-gui eval --run latest --greedy           the newest checkpoint of a run\n"
            "  dart-gui eval --run latest --checkpoint best  the best by evaluations while training\n"
            "  dart-gui eval CONFIG --random                 random clicking\n"
            "  dart-gui eval CONFIG --model.path models/my-agent\n"
            "  dart-gui eval --agent openai --base-url http://127.0.0.1:8000/v1 --model NAME \\\n"
            "      --grammar computer_use --suite desktop-mini --repeats 4 --out results"
        ),
    )
    _add_model_choice(parser)
    parser.add_argument("--episodes", type=int, metavar="N", help="eval.num_episodes")
    _add_api(parser)


def _add_api(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", metavar="SUITE", help="env.suite")
    parser.add_argument(
        "--tasks",
        action="append",
        default=[],
        metavar="TASK,...",
        help="env.tasks, without the suite's name too; `all` for all of the suite",
    )
    parser.add_argument("--parallel", type=int, metavar="N", help="episodes at once")
    parser.add_argument(
        "--agent",
        choices=("model", "openai"),
        default="model",
        help="openai: a model behind an OpenAI-compatible server (docs/evaluation.md)",
    )
    api = parser.add_argument_group("with --agent openai")
    api.add_argument("--base-url", metavar="URL", help="api.base_url, such as http://HOST:8000/v1")
    api.add_argument("--model", metavar="NAME", help="api.model, its name on the server")
    api.add_argument("--key-env", metavar="VARIABLE", help="that holds the key (OPENAI_API_KEY)")
    api.add_argument(
        "--grammar",
        metavar="G",
        help="uitars (default), computer_use (0-999), computer_use_pixels, or an agent.name",
    )
    api.add_argument("--max-steps", type=int, metavar="N", help="runner.max_steps (default 15)")
    api.add_argument("--max-tokens", type=int, metavar="N", help="api.max_tokens, of one reply")
    api.add_argument("--repeats", type=int, metavar="K", help="attempts at each instance (pass@k)")
    api.add_argument("--out", type=Path, metavar="DIR", help="of the results; taken up if there")


def _add_play(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = command(
        commands,
        "play",
        summary="play one episode and save its screenshots with the actions drawn on them",
        examples=(
            "  dart-gui play click-dialog\n"
            "  dart-gui play miniwob/enter-text --run latest --greedy --seed 7 --out /tmp/episode"
        ),
    )
    parser.add_argument("task", metavar="TASK", help="task id, as `dart-gui tasks` lists them")
    _add_model_choice(parser)
    parser.add_argument("--seed", type=int, default=0, help="instance of the task (default 0)")
    parser.add_argument("--out", metavar="DIR", help="folder for the pictures")


def _add_model_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        nargs="?",
        metavar="CONFIG",
        help=f"TOML file that names the model (default {DEFAULT_CONFIG})",
    )
    parser.add_argument("--run", metavar="RUN", help="take the newest checkpoint of this run")
    parser.add_argument(
        "--checkpoint",
        metavar="NAME",
        help="of --run, another one: best, or the name of a folder in its checkpoints",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--temperature", type=float, metavar="T", help="of the sampling; 0 is greedy")
    how.add_argument("--greedy", action="store_true", help="the same as --temperature 0")
    how.add_argument("--random", action="store_true", help="click at random, without a model")


def _add_small(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = command(
        commands,
        "doctor",
        summary="check the machine, the browser, the model, and that log-probabilities agree",
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="TOML file to check for")
    parser = command(commands, "report", summary="write report.md of a run, finished or not")
    parser.add_argument("run", nargs="?", default="latest", metavar="RUN")
    parser = command(commands, "tasks", summary="list the task ids", overrides=False)
    parser.add_argument(
        "--suite",
        nargs="?",
        default="miniwob",
        const="",
        metavar="SUITE",
        help="a name, package.module:object or folder/file.py:object (default miniwob); without a "
        "value, list the names",
    )
    parser = command(commands, "config", summary="print the resolved configuration")
    parser.add_argument("config", nargs="?", metavar="CONFIG")
    parser = command(
        commands,
        "migrate",
        summary="translate the settings of a published DART-GUI deployment",
        examples="  dart-gui migrate config/config.yaml .env > my-run.toml",
        overrides=False,
    )
    parser.add_argument("yaml", type=Path, metavar="CONFIG_YAML", help="of the rollouter")
    parser.add_argument("env", type=Path, nargs="?", metavar="ENV", help="its .env file")


def _add_pool(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = command(
        commands,
        "pool",
        summary="fill or list an experience pool: verified successes that training may borrow",
        examples=(
            "  dart-gui pool add pool --script 8             scripted solutions, 8 of each task\n"
            "  dart-gui pool add pool --from-run latest      the successes of a run\n"
            "  dart-gui pool add pool --folder DIR           trajectories of the published system\n"
            "  dart-gui pool list pool\n"
            "  dart-gui train CONFIG --curation.pool pool"
        ),
    )
    parser.add_argument("action", choices=("add", "list"))
    parser.add_argument("pool", metavar="POOL", help="folder of the pool")
    parser.add_argument("config", nargs="?", metavar="CONFIG", help=f"default {DEFAULT_CONFIG}")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--script", type=int, metavar="N", help="scripted solutions of each task")
    source.add_argument("--from-run", metavar="RUN", help="the successes of a run")
    source.add_argument("--folder", metavar="DIR", help="folders in the published format")
    parser.add_argument(
        "--env-version", default="", metavar="V", help="that --folder was made in (default: ours)"
    )
    parser = command(
        commands,
        "sft",
        summary="warm-start a model on the successes of an experience pool",
        examples="  dart-gui sft pool models/warm --steps 200 --train.lr 1e-4 --train.freeze '[]'",
    )
    parser.add_argument("pool", metavar="POOL")
    parser.add_argument("out", metavar="OUT", help="folder of the new model")
    parser.add_argument("config", nargs="?", metavar="CONFIG", help=f"default {DEFAULT_CONFIG}")
    parser.add_argument("--steps", type=int, default=100, help="optimizer updates (default 100)")
    parser.add_argument("--batch", type=int, default=8, help="successes of one update (default 8)")


def _add_merge(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = command(
        commands,
        "merge",
        summary="write a plain model folder of a run's checkpoint, a LoRA adapter merged into its base",
        examples=(
            "  dart-gui merge latest models/mine             the newest checkpoint of the newest run\n"
            "  dart-gui merge lr3e-4 models/mine --checkpoint best\n"
            "  dart-gui merge runs/lr3e-4/weights/v000012 models/mine"
        ),
    )
    parser.add_argument("source", metavar="RUN", help="a run, or the folder of an adapter")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the new model")
    parser.add_argument(
        "--checkpoint", metavar="NAME", help="best, or the name of a folder in its checkpoints"
    )


def _add_db(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser("db", help="check the data of a run", allow_abbrev=False)
    parser.set_defaults(debug=False)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = command(
        actions,
        "check",
        summary="audit the ledger of a run against itself and its blobs; changes nothing",
        examples=(
            "  dart-gui db check                             the newest run, also while it goes on\n"
            "  dart-gui db check lr3e-4 --fast               without reading the blobs\n\n"
            "exit code: 0 nothing is wrong, 1 findings (one line each), 2 it cannot be checked"
        ),
    )
    check.add_argument("run", nargs="?", default="latest", metavar="RUN")
    check.add_argument(
        "--fast", action="store_true", help="look whether blobs are there, do not read them"
    )


def _add_modules(commands: argparse._SubParsersAction[Parser]) -> None:
    parsers = {}
    for name, summary in MODULES.items():
        parser = command(commands, name, summary=summary, overrides=False)
        parser.add_argument("--run-dir", required=True, type=Path, metavar="DIR")
        parsers[name] = parser
    evaluator = parsers["evaluator"]
    evaluator.add_argument(
        "--phase", required=True, choices=("floor", "before", "during", "after", "eval")
    )
    evaluator.add_argument("--temperature", required=True, type=float)
    evaluator.add_argument("--train-step", type=int, default=0)
    evaluator.add_argument("--weights", type=Path, metavar="DIR")
    evaluator.add_argument("--policy-version", type=int, default=0)
    player = parsers["player"]
    player.add_argument("--task", required=True)
    player.add_argument("--seed", type=int, default=0)
    player.add_argument("--temperature", required=True, type=float)
    player.add_argument("--random", action="store_true")
    player.add_argument("--out", required=True, type=Path)
