from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from dart_gui.env.desktop import execute as module
from dart_gui.env.desktop.execute import CommandError, Done, Programs, execute


async def run(command: str | list[str], *, shell: bool = False, timeout_s: float = 60) -> Done:
    return await execute(command, shell=shell, timeout_s=timeout_s, cwd="/")


def is_running(pid: int) -> bool:
    """Whether there is such a process that is not a zombie, which nobody may have waited for."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def test_output_and_exit_status_are_the_real_ones() -> None:
    done = await run("echo out; echo err >&2; exit 3", shell=True)
    assert (done.returncode, done.output, done.error) == (3, "out\n", "err\n")
    assert not done.timed_out
    assert not done.truncated


async def test_death_by_a_signal_is_no_success() -> None:
    assert (await run("kill -TERM $$", shell=True)).returncode == 128 + 15


async def test_a_list_is_passed_as_it_is() -> None:
    word = "a b\"c'$HOME;\n"
    assert (await run(["printf", "%s", word])).output == word


@pytest.mark.parametrize(
    "command", [["printf", "%s ", "~/a", "~", "x~/b", "~root/c"], "printf '%s ' ~/a ~ x~/b ~root/c"]
)
async def test_each_word_that_begins_with_the_home_is_expanded(
    command: str | list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OSWorld's server has it: no other form."""
    monkeypatch.setenv("HOME", "/h")
    assert (await run(command)).output == "/h/a ~ x~/b ~root/c "


async def test_what_is_launched_has_the_home_in_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    programs = Programs()
    await programs.launch(["touch", "~/here"], shell=False, cwd="/")
    while not (tmp_path / "here").exists():
        await asyncio.sleep(0.01)
    await programs.close()


async def test_a_text_is_split_as_a_shell_splits() -> None:
    assert (await run("printf %s 'a b'")).output == "a b"


async def test_a_command_that_takes_too_long_ends_with_all_it_started(tmp_path: Path) -> None:
    began = time.monotonic()
    done = await run(f"sh -c 'echo $$ > {tmp_path}/pid; exec sleep 600'", shell=True, timeout_s=3)
    assert done.timed_out
    assert done.returncode == 128 + 9
    assert time.monotonic() - began < 60
    assert not is_running(int((tmp_path / "pid").read_text()))


async def test_what_stays_in_the_background_is_not_waited_for() -> None:
    began = time.monotonic()
    done = await run("sleep 600 & echo $!", shell=True)
    os.kill(int(done.output), 9)
    assert done.returncode == 0
    assert time.monotonic() - began < 60


async def test_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OUTPUT", 1000)
    done = await run("head -c 5000000 /dev/zero | tr '\\0' x", shell=True)
    assert done.truncated
    assert done.output == "x" * 1000
    assert done.returncode == 0


async def test_bytes_that_are_no_text_do_no_harm() -> None:
    assert (await run("printf '\\377a'", shell=True)).output == "\ufffda"


@pytest.mark.parametrize("command", ["no-such-program-here", ["/"], "", "a 'b", ["a\0b"]])
async def test_what_cannot_be_started_says_so(command: str | list[str]) -> None:
    with pytest.raises(CommandError):
        await run(command)


async def test_a_launched_program_stays_until_the_guest_ends() -> None:
    programs = Programs()
    pid = await programs.launch(["sleep", "600"], shell=False, cwd="/")
    await programs.launch(["true"], shell=False, cwd="/")
    assert is_running(pid)
    with pytest.raises(CommandError):
        await programs.launch(["no-such-program-here"], shell=False, cwd="/")
    await programs.close()
    assert not is_running(pid)
