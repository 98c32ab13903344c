"""Names of keys, as models write them, as X keysyms."""

from __future__ import annotations

from collections.abc import Iterable

from dart_gui.env.refusal import ActionRefused

UNICODE_KEYSYM = 0x01000000
"""A character beyond Latin-1 is the keysym of this plus its code point (X protocol, appendix A)."""

_NAMED: dict[str, int] = {
    "backspace": 0xFF08,
    "tab": 0xFF09,
    "enter": 0xFF0D,
    "return": 0xFF0D,
    "pause": 0xFF13,
    "scrolllock": 0xFF14,
    "esc": 0xFF1B,
    "escape": 0xFF1B,
    "home": 0xFF50,
    "left": 0xFF51,
    "arrowleft": 0xFF51,
    "up": 0xFF52,
    "arrowup": 0xFF52,
    "right": 0xFF53,
    "arrowright": 0xFF53,
    "down": 0xFF54,
    "arrowdown": 0xFF54,
    "pageup": 0xFF55,
    "pgup": 0xFF55,
    "pagedown": 0xFF56,
    "pgdn": 0xFF56,
    "end": 0xFF57,
    "printscreen": 0xFF61,
    "prtsc": 0xFF61,
    "insert": 0xFF63,
    "ins": 0xFF63,
    "menu": 0xFF67,
    "apps": 0xFF67,
    "numlock": 0xFF7F,
    "shift": 0xFFE1,
    "shiftleft": 0xFFE1,
    "shiftright": 0xFFE2,
    "ctrl": 0xFFE3,
    "control": 0xFFE3,
    "ctrlleft": 0xFFE3,
    "ctrlright": 0xFFE4,
    "capslock": 0xFFE5,
    "alt": 0xFFE9,
    "altleft": 0xFFE9,
    "option": 0xFFE9,
    "altright": 0xFFEA,
    "super": 0xFFEB,
    "cmd": 0xFFEB,
    "command": 0xFFEB,
    "meta": 0xFFEB,
    "win": 0xFFEB,
    "windows": 0xFFEB,
    "winleft": 0xFFEB,
    "winright": 0xFFEC,
    "delete": 0xFFFF,
    "del": 0xFFFF,
    "space": 0x20,
    **{f"f{n}": 0xFFBD + n for n in range(1, 13)},
}
_WHITE = {"\n": 0xFF0D, "\t": 0xFF09}


def key_keysym(key: str) -> int:
    """The keysym of a key, as models write it: ``ctrl``, ``page_up``, ``Enter``, ``a``.

    >>> hex(key_keysym("Page Down")), hex(key_keysym("a"))
    ('0xff56', '0x61')

    Raises:
        ActionRefused: there is no such key.
    """
    if len(key) == 1 and (key in _WHITE or 32 <= ord(key) <= 126):
        return char_keysym(key)
    folded = key.strip().lower().replace("_", "").replace("-", "").replace(" ", "")
    if folded not in _NAMED:
        raise ActionRefused(f"there is no key {key!r}")
    return _NAMED[folded]


def keysyms(keys: Iterable[str]) -> list[int]:
    """Raises ``ActionRefused`` where one of them does not exist, or there is none."""
    found = [key_keysym(key) for key in keys]
    if not found:
        raise ActionRefused("a hotkey needs at least one key")
    return found


def text_keysyms(text: str) -> list[int]:
    """The keysym of each character; a newline is Enter, a lone surrogate a question mark.

    Raises:
        ActionRefused: a control character, which no key types.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return [char_keysym(char) for char in text.encode("utf-8", "replace").decode()]


def char_keysym(char: str) -> int:
    """Raises ``ActionRefused`` for a control character other than newline and tab."""
    if char in _WHITE:
        return _WHITE[char]
    code = ord(char)
    if code < 32 or 127 <= code < 160:
        raise ActionRefused(f"the control character U+{code:04X} cannot be typed")
    return code if code < 256 else UNICODE_KEYSYM + code
