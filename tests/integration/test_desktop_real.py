"""A real X desktop in its namespaces: input, settling, isolation, limits, and its end."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.providers import processes
from dart_gui.env.providers.limits import Limits
from dart_gui.env.providers.sandbox import SandboxSpec
from dart_gui.env.providers.xvfb import XvfbProvider
from dart_gui.errors import EnvError, SetupError
from dart_gui.types import Click, Hotkey, Point, Press, TypeText

pytestmark = [pytest.mark.desktop, pytest.mark.asyncio(loop_scope="module")]

LIMITS = Limits(memory_mb=700, max_processes=120)
SPEC = SandboxSpec(home_mb=16, tmp_mb=16, max_file_mb=8)


@pytest.fixture(scope="module")
async def provider(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[XvfbProvider]:
    root = tmp_path_factory.mktemp("d")
    made = XvfbProvider(root, width=640, height=400, spec=SPEC, limits=LIMITS)
    await made.start()
    yield made
    for desktop in await made.find():
        await made.destroy(desktop.desktop_id)
    assert list(root.iterdir()) == []


@pytest.fixture(scope="module")
async def client(provider: XvfbProvider) -> AsyncIterator[GuestClient]:
    desktop = await provider.create("shared")
    made = GuestClient(desktop.address)
    yield made
    await made.close()
    await provider.destroy("shared")


async def type_into_terminal(client: GuestClient, *actions: TypeText | Press) -> str:
    """What a program in a terminal reads of what is typed."""
    await client.execute("rm -f typed", shell=True)
    await client.launch(["xterm", "-T", "Typing", "-e", "cat > typed"])
    await client.wait(window_name="Typing", min_colors=2, timeout_s=60)
    for action in actions:
        assert await client.act(action) is None
    await client.act(Press(key="enter"))
    await client.screenshot(stable_s=0.3, timeout_s=30)
    await client.act(Hotkey(keys=("ctrl", "d")))
    while await client.windows():  # the program ends, and its window with it
        await asyncio.sleep(0.02)
    return (await client.read_file("typed") or b"").decode()


async def test_what_is_typed_is_what_arrives(client: GuestClient) -> None:
    text = "a < b > \"c\" \\ `~` $HOME; 'x' naïve ß 日本語 Ж 😀 ©√ {}[]|!@#%^&*()_+=-:,./?"
    assert await type_into_terminal(client, TypeText(text=text)) == text + "\n"


async def test_more_characters_than_there_are_keys(client: GuestClient) -> None:
    text = "".join(chr(0x4E00 + i) for i in range(300))
    assert await type_into_terminal(client, TypeText(text=text)) == text + "\n"


async def test_caps_lock_does_not_change_text(client: GuestClient) -> None:
    caps = Press(key="capslock")
    typed = await type_into_terminal(client, caps, TypeText(text="Ab1é日!"), caps)
    assert typed == "Ab1é日!\n"


async def test_a_screenshot_waits_for_what_an_action_does(client: GuestClient) -> None:
    before = await client.screenshot(stable_s=0.1, timeout_s=30)
    await client.launch(["xterm", "-T", "Shown"])
    await client.wait(window_name="Shown", min_colors=2, timeout_s=60)
    after = await client.screenshot(stable_s=0.1, timeout_s=30)
    assert after.settled
    assert after.png != before.png
    assert after.png == (await client.screenshot()).png
    await client.setup("/setup/close_window", {"window_name": "Shown", "strict": True})
    while await client.windows():
        await asyncio.sleep(0.02)
    assert (await client.screenshot(stable_s=0.1, timeout_s=30)).png == before.png


async def test_windows_are_listed_and_activated(client: GuestClient) -> None:
    for title in ("First", "Second"):
        await client.launch(["xterm", "-T", title])
        await client.wait(window_name=title, timeout_s=60)
    assert [window["is_active"] for window in await client.windows()] == [False, True]
    await client.setup("/setup/activate_window", {"window_name": "First"})
    assert [window["title"] for window in await client.windows()] == ["Second", "First"]
    await client.execute("pkill xterm", shell=True)
    while await client.windows():
        await asyncio.sleep(0.02)


async def test_grabs_go_through_shared_memory(client: GuestClient) -> None:
    """A grab over the wire of 1 MB takes several times as long as this, on any load."""
    times = [(await client.screenshot()).grab_ms for _ in range(20)]
    assert min(times) < 5


async def test_there_is_a_python_for_published_clients(client: GuestClient) -> None:
    """They say what to do by ``python -c ...``, and read its output."""
    code = "import Xlib.display; print(Xlib.display.Display().screen().width_in_pixels)"
    done = await client.execute(["python", "-c", code])
    assert (done.returncode, done.output, done.error) == (0, "640\n", "")


_AT = "https://accessibility.ubuntu.example.org/ns/"
_ST, _ATTR, _CP, _ACT = (
    f"{{{_AT}{name}}}" for name in ("state", "attributes", "component", "action")
)


async def test_the_accessibility_tree_is_selected_from_as_from_osworlds(
    client: GuestClient,
) -> None:
    """By states, attributes, places and actions in its namespaces."""
    if not shutil.which("mousepad"):
        pytest.skip("mousepad is not installed")
    done = await client.execute(
        ["/usr/bin/python3", "-c", "import gi; gi.require_version('Atspi', '2.0')"]
    )
    if done.returncode != 0:
        pytest.skip("python3-gi and gir1.2-atspi-2.0 are not installed")
    await client.write_file("a \x01 note.txt", b"one\ntwo <3")
    await client.launch(["mousepad", "a \x01 note.txt"])
    await client.wait(window_name="Mousepad", min_colors=2, timeout_s=60)
    frame = f"./application[@name='mousepad']/frame[@{_ST}active='true'][@{_ST}showing='true']"
    async with asyncio.timeout(60):
        while (found := (tree := await accessibility(client)).find(frame)) is None:
            await asyncio.sleep(0.1)
    assert tree.tag == "desktop-frame"
    assert found.get("name") == "~/a  note.txt - Mousepad"
    menu = f".//menu-bar[@selection='true']/menu[@name='File'][@{_ATTR}toolkit='gtk']"
    (file,) = found.findall(menu)
    assert file.get(f"{_ACT}click_desc") == "Clicks the menuitem"
    assert "<Alt>f" in str(file.get(f"{_ACT}click_kb"))
    text = found.find(f".//text[@{_ST}multi_line='true'][@{_ST}focused='true']")
    assert text is not None
    assert text.text == "one\ntwo <3"
    x, y = ast.literal_eval(str(file.get(f"{_CP}screencoord")))
    width, height = ast.literal_eval(str(file.get(f"{_CP}size")))
    await client.act(Click(point=Point(x + width / 2, y + height / 2)))
    items = f"{frame}{menu[1:]}/menu-item[@{_ST}showing='true']"
    async with asyncio.timeout(60):
        while "Save As..." not in [
            str(item.get("name")).strip() for item in (await accessibility(client)).findall(items)
        ]:
            await asyncio.sleep(0.1)
    await client.execute("pkill -x mousepad", shell=True)


async def accessibility(client: GuestClient) -> ElementTree.Element:
    answer = await client.relay("GET", "/accessibility", timeout_s=90)
    assert answer.status == 200, answer.body
    return ElementTree.fromstring(json.loads(answer.body)["AT"])


async def test_a_recording_is_a_film(client: GuestClient) -> None:
    if not shutil.which("ffmpeg"):
        with pytest.raises(EnvError, match="ffmpeg is not installed"):
            await client.setup("/start_recording", {})
        pytest.skip("ffmpeg is not installed: only its absence was tested")
    # One that ends at once is a film too, and not the one before.
    films = []
    for x in (100, 300):
        await client.act(Click(point=Point(x, 100)))
        await client.setup("/start_recording", {}, timeout_s=60)
        films.append(await client._call("POST", "/end_recording", timeout_s=60))
    assert [film[4:8] for film in films] == [b"ftyp", b"ftyp"]
    assert all(b"moov" in film for film in films)  # the index, which is written at the end
    assert films[0] != films[1]
    with pytest.raises(EnvError, match=r"400.*No recording in progress"):
        await client.setup("/end_recording", {})


async def test_a_recording_that_broke_off_is_not_in_the_way(client: GuestClient) -> None:
    if not shutil.which("ffmpeg"):
        pytest.skip("ffmpeg is not installed")
    await client.setup("/start_recording", {}, timeout_s=60)
    with pytest.raises(EnvError, match=r"400.*already in progress"):
        await client.setup("/start_recording", {}, timeout_s=60)
    await client.execute("pkill -9 -x ffmpeg; while pgrep -x ffmpeg; do :; done", shell=True)
    with pytest.raises(EnvError, match=r"400.*ffmpeg ended before with -9"):
        await client.setup("/end_recording", {})
    await client.setup("/start_recording", {}, timeout_s=60)
    await client.execute("pkill -9 -x ffmpeg; while pgrep -x ffmpeg; do :; done", shell=True)
    await client.setup("/start_recording", {}, timeout_s=60)
    assert (await client._call("POST", "/end_recording", timeout_s=60))[4:8] == b"ftyp"


# --- isolation ---------------------------------------------------------------------------------


async def test_programs_have_no_power(client: GuestClient) -> None:
    status = (await client.execute("cat /proc/self/status; id -u", shell=True)).output
    assert "CapEff:\t0000000000000000" in status
    assert "CapBnd:\t0000000000000000" in status or os.geteuid() != 0
    assert "NoNewPrivs:\t1" in status
    assert status.split()[-1] != "0"


@pytest.mark.parametrize(
    "command",
    [
        "touch /file",
        "touch /usr/file",
        "touch /etc/file",
        "mkdir /var/folder",
        "cat /etc/shadow",
        f"touch {Path(sys.prefix) / 'file'}",
        "mount -t tmpfs none /mnt",
        "kill -9 1",
        "ls /root/.ssh",
    ],
)
async def test_what_must_fail_fails(client: GuestClient, command: str) -> None:
    if os.geteuid() != 0 and "shadow" not in command and "kill" not in command:
        pytest.skip("not root: the desktop's own file system is the user's")
    assert (await client.execute(command, shell=True)).returncode != 0
    assert (await client.health())["status"] == "ready"


async def test_this_machine_is_not_visible(client: GuestClient) -> None:
    tests = Path(__file__).parent
    assert (await client.execute(["ls", str(tests)])).returncode != 0
    pids = (await client.execute("ls /proc", shell=True)).output.split()
    assert str(os.getpid()) not in pids or len(pids) < 100
    shown = (await client.execute("ps -e -o comm=", shell=True)).output.split()
    assert "openbox" in shown
    assert "pytest" not in shown
    links = (await client.execute("cat /proc/net/dev", shell=True)).output
    assert [line.split(":")[0].strip() for line in links.splitlines()[2:]] == ["lo"]
    assert (await client.execute("hostname", shell=True)).output == "desktop\n"


async def test_a_full_disk_is_the_desktops_own(client: GuestClient) -> None:
    command = "for i in 1 2 3 4; do head -c 7000000 /dev/zero > big$i || echo full; done"
    done = await client.execute(command, shell=True)
    assert "full" in done.output
    assert "No space" in done.error
    await client.execute("rm -f big*", shell=True)
    huge = await client.execute("head -c 20000000 /dev/zero > huge", shell=True)
    assert huge.returncode != 0
    await client.execute("rm -f huge", shell=True)
    await client.write_file("small", b"1")
    assert await client.read_file("small") == b"1"


FORKS = """
import os, signal
pids = []
try:
    while len(pids) < 500:
        pids.append(os.fork())
        if not pids[-1]:
            signal.pause()
except BlockingIOError:
    print(len(pids))
for pid in pids:
    os.kill(pid, signal.SIGKILL)
"""


async def test_processes_and_memory_are_limited(
    provider: XvfbProvider, client: GuestClient
) -> None:
    if any("no limit on" in warning for warning in provider.warnings()):
        pytest.skip(f"this machine does not limit: {provider.warnings()}")
    done = await client.execute(["python3", "-c", FORKS])
    assert 0 < int(done.output) < LIMITS.max_processes
    hungry = await client.execute(["python3", "-c", "x = bytearray(900 << 20)"])
    assert hungry.returncode == 128 + signal.SIGKILL
    assert (await client.health())["status"] == "ready"


# --- the end ------------------------------------------------------------------------------------


async def test_a_desktop_that_dies_is_an_error_and_leaves_nothing(provider: XvfbProvider) -> None:
    client = GuestClient((await provider.create("dies")).address)
    await client.execute("pkill -9 Xvfb", shell=True)
    while processes.marked(provider._mark("dies")):
        await asyncio.sleep(0.02)
    with pytest.raises(EnvError):
        await client.screenshot()
    await client.close()
    assert not {one.desktop_id: one for one in await provider.find()}["dies"].is_running
    await provider.destroy("dies")
    assert not (provider._root / "dies").exists()


@pytest.fixture
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("d")


async def test_a_boot_that_takes_too_long_is_given_up(root: Path) -> None:
    provider = XvfbProvider(root, boot_timeout_s=0.01)
    await provider.start()
    with pytest.raises(EnvError, match=r"within 0\.01 s"):
        await provider.create("slow")
    assert list(root.iterdir()) == []
    assert processes.marked(str(root / "slow")) == []


async def test_a_boot_can_be_given_up_before_there_is_a_sandbox(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "bwrap"  # runs as sh: it is not known for a desktop's process
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    provider = XvfbProvider(root, boot_timeout_s=0.2)
    await provider.start()
    with pytest.raises(EnvError, match=r"within 0\.2 s"):
        await asyncio.wait_for(provider.create("slow"), 30)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("num_turns", [1, 3, 10, 30])
async def test_a_boot_that_is_cancelled_leaves_nothing(root: Path, num_turns: int) -> None:
    provider = XvfbProvider(root)
    await provider.start()
    boot = asyncio.create_task(provider.create("unwanted"))
    for _ in range(num_turns):
        await asyncio.sleep(0)
    boot.cancel()
    with pytest.raises(asyncio.CancelledError):
        await boot
    assert list(root.iterdir()) == []
    assert processes.marked(str(root / "unwanted")) == []


async def test_a_boot_that_fails_says_why(root: Path) -> None:
    provider = XvfbProvider(root, width=-5)
    await provider.start()
    with pytest.raises(EnvError, match=r"(?s)It said:.*Xvfb"):
        await provider.create("wrong")
    assert list(root.iterdir()) == []


async def test_desktops_of_one_name_in_two_places_do_not_meet(root: Path) -> None:
    ours, other = XvfbProvider(root / "a" / "d"), XvfbProvider(root / "b" / "d")
    for provider in (ours, other):
        await provider.start()
    await ours.create("same")
    client = GuestClient((await other.create("same")).address)
    await ours.destroy("same")
    assert (await client.health())["status"] == "ready"
    await client.close()
    await other.destroy("same")


async def test_a_folder_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="too deep"):
        await XvfbProvider(tmp_path / ("x" * 90)).start()


MAKER = """
import asyncio, sys
from pathlib import Path
from dart_gui.env.providers.sandbox import SandboxSpec
from dart_gui.env.providers.xvfb import XvfbProvider

async def main():
    spec = SandboxSpec(dies_with_parent=sys.argv[2] == "dies")
    provider = XvfbProvider(Path(sys.argv[1]), width=200, height=100, spec=spec)
    await provider.start()
    await provider.create("orphan")
    print("made", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("way", ["dies", "stays"])
async def test_when_its_maker_is_killed(root: Path, way: str) -> None:
    maker = subprocess.Popen([sys.executable, "-c", MAKER, str(root), way], stdout=subprocess.PIPE)
    assert maker.stdout is not None
    with maker.stdout as output:
        assert output.readline() == b"made\n"
        maker.kill()
        maker.wait()
    mark = str(root / "orphan")
    provider = XvfbProvider(root)
    await provider.start()
    if way == "dies":
        while processes.marked(mark):
            await asyncio.sleep(0.02)
        (found,) = await provider.find()
        assert not found.is_running
    else:
        (found,) = await provider.find()
        client = GuestClient(found.address)
        assert (await client.health())["width"] == 200
        await client.close()
    await provider.destroy("orphan")
    assert processes.marked(mark) == []
    assert list(root.iterdir()) == []
