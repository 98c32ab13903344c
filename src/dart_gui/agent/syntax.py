r"""The shape of a UI-TARS reply: a thought, then calls with named string arguments.

    reply    = [ "Thought:" thought ] "Action:" call { separator call }
    call     = name "(" [ argument { "," argument } ] ")"
    argument = [ name "=" ] ( string | bare )
    string   = "'" ... "'"  or  '"' ... '"'

A separator is white space (canonical: a blank line), ``;``, a ``# comment`` or another ``Action:``.

Escapes in a string are those that the prompt names: ``\'``, ``\"``, ``\\`` and ``\n``. A backslash
before anything else stands for itself, so that ``C:\temp`` arrives as it was written; a line break
may also stand as it is. A quote that the model forgot to escape in ``content`` is part of the text,
unless the call can end behind it.

In a thought nothing is escaped, but for a line that would read as the beginning of the calls: it
gets a backslash in front (see :func:`escape_thought`).

Nothing here evaluates model text. The patterns are possessive: time is linear in the reply.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

SIGNATURES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("click", "left_double", "right_single", "hover"), ("start_box",)),
    "drag": ("start_box", "end_box"),
    "scroll": ("start_box", "direction"),
    **dict.fromkeys(("hotkey", "press", "keydown", "keyup"), ("key",)),
    **dict.fromkeys(("type", "finished"), ("content",)),
    **dict.fromkeys(("wait", "call_user"), ()),
}
_NAME_ALIASES: Mapping[str, str] = {
    "left_single": "click",
    "double_click": "left_double",
    "right_click": "right_single",
    "select": "drag",
    "press_key": "press",
    "key_down": "keydown",
    **dict.fromkeys(("key_up", "release", "release_key"), "keyup"),
}
_PARAMETER_ALIASES: Mapping[str, str] = {
    "point": "start_box",
    "start_point": "start_box",
    "end_point": "end_box",
    "hotkey": "key",
    "text": "content",
}
_NAMES = "|".join((*SIGNATURES, *_NAME_ALIASES))

_HEAD = r"Action[^\S\n]*+[:：]"  # noqa: RUF001 - models also write the full-width colon
_NAME = r"[A-Za-z_][A-Za-z_0-9]*+"
_FIRST_CALL = rf"{_HEAD}\s*+{_NAME}\s*+\("
_AT_LINE_START = re.compile(rf"^[^\S\n]*+({_FIRST_CALL})", re.MULTILINE)
_ANYWHERE = re.compile(rf"({_FIRST_CALL})")
_ANY_HEAD = re.compile(_HEAD)
_THOUGHT = re.compile(r"Thought[^\S\n]*+[:：]")  # noqa: RUF001
_TO_ESCAPE = re.compile(rf"^([^\S\n]*+\\*+)(?={_FIRST_CALL})", re.MULTILINE)
_ESCAPED = re.compile(rf"^([^\S\n]*+)\\(?=\\*+{_FIRST_CALL})", re.MULTILINE)
_END_TOKENS = ("<|im_end|>", "<|endoftext|>")

_SPACE = re.compile(r"\s*+")
_SEPARATOR = re.compile(rf"(?:[\s;]|#[^\n]*+|{_HEAD})*+")
_CALL = re.compile(rf"({_NAME})\s*+\(")
_KEYWORD = re.compile(rf"({_NAME})\s*+=")
_BARE = re.compile(r"[^()\[\],]++|.", re.DOTALL)
_STRING_PART = {
    "'": re.compile(r"\\.|'", re.DOTALL),
    '"': re.compile(r'\\.|"', re.DOTALL),
}
_AFTER_CONTENT = re.compile(
    rf"\s*+,?+\s*+\)[\s;]*+(?:\Z|#|{_HEAD}|(?:{_NAMES})\s*+\()", re.IGNORECASE
)
_ESCAPE = re.compile(r"\\([n'\"\\])")


class ReplyError(Exception):
    """A reply that is not what the grammar expects. The text goes to the agent."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call with the names of :data:`SIGNATURES`, whatever alias the reply used."""

    name: str
    arguments: Mapping[str, str]


def excerpt(text: str, limit: int = 40) -> str:
    """The beginning of ``text``, quoted, control characters escaped."""
    return repr(text[:limit]) + ("..." if len(text) > limit else "")


def strip_end_tokens(reply: str) -> str:
    """``reply`` without the end-of-message tokens that some engines leave in the text."""
    body = reply.rstrip()
    if not body.endswith(_END_TOKENS):
        return reply
    while body.endswith(_END_TOKENS):
        body = body[: body.rindex("<|")].rstrip()
    return body


def split_reply(reply: str) -> tuple[str, str | None]:
    """The thought, and the text behind ``Action:``; None where there is no ``Action:``.

    The calls begin at the first line that starts with ``Action: name(``, else at the first
    ``Action: name(`` within a line, else behind the last ``Action:``.
    """
    body = strip_end_tokens(reply)
    found = _AT_LINE_START.search(body) or _ANYWHERE.search(body)
    start = found.start(1) if found else _last_head(body)
    thought = body if start is None else body[:start]
    return _clean_thought(thought), None if start is None else body[start:]


def _last_head(body: str) -> int | None:
    start = None
    for match in _ANY_HEAD.finditer(body):
        start = match.start()
    return start


def _clean_thought(text: str) -> str:
    text = text.strip()
    if label := _THOUGHT.match(text):
        text = text[label.end() :].strip()
    return _ESCAPED.sub(r"\1", text)


def escape_thought(thought: str) -> str:
    r"""``thought`` stripped, with ``\`` before each line that would read as the first call.

    >>> escape_thought("Once more.\nAction: wait()")
    'Once more.\n\\Action: wait()'
    """
    return _TO_ESCAPE.sub(r"\1\\", thought.strip())


def quote(text: str) -> str:
    r"""``text`` as a string of the grammar.

    >>> print(quote("it's\n"))
    'it\'s\n'
    """
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def _unquote(text: str) -> str:
    return _ESCAPE.sub(lambda match: "\n" if match[1] == "n" else match[1], text)


def read_calls(text: str) -> list[Call]:
    """All calls of ``text``, at least one. Raises ReplyError."""
    calls: list[Call] = []
    position = _skip(_SEPARATOR, text, 0)
    while position < len(text):
        call, position = _read_call(text, position)
        calls.append(call)
        position = _skip(_SEPARATOR, text, position)
    if not calls:
        raise ReplyError("expected a call such as wait() after `Action:`, got nothing")
    return calls


def _skip(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position


def _read_call(text: str, position: int) -> tuple[Call, int]:
    head = _CALL.match(text, position)
    if head is None:
        raise ReplyError(f"expected an action such as wait(), got {_rest(text, position)}")
    name = _NAME_ALIASES.get(head[1].lower(), head[1].lower())
    if name not in SIGNATURES:
        known = ", ".join(SIGNATURES)
        raise ReplyError(f"unknown action {excerpt(head[1])}, expected one of {known}")
    arguments: dict[str, str] = {}
    position = _skip(_SPACE, text, head.end())
    while not text.startswith(")", position):
        keyword = _KEYWORD.match(text, position)
        parameter = _parameter(name, keyword[1] if keyword else None, arguments)
        value_at = keyword.end() if keyword else position
        arguments[parameter], position = _read_value(text, value_at, name)
        position = _skip(_SPACE, text, position)
        if text.startswith(",", position):
            position = _skip(_SPACE, text, position + 1)
        elif not text.startswith(")", position):
            raise ReplyError(f"expected `,` or `)` in {name}(...), got {_rest(text, position)}")
    return Call(name, arguments), position + 1


def _parameter(name: str, keyword: str | None, arguments: Mapping[str, str]) -> str:
    """The parameter that the next argument sets; ``keyword`` is None for a positional one."""
    free = [parameter for parameter in SIGNATURES[name] if parameter not in arguments]
    if keyword is None and free:
        return free[0]
    wanted = _PARAMETER_ALIASES.get(keyword.lower(), keyword.lower()) if keyword else None
    if wanted in free:
        return wanted
    came = "more" if keyword is None else excerpt(keyword)
    takes = " and ".join(SIGNATURES[name])
    raise ReplyError(
        f"{name}(...) takes {takes} once, got {came} too"
        if takes
        else f"{name}() takes no arguments, got {'one' if keyword is None else came}"
    )


def _rest(text: str, position: int) -> str:
    return excerpt(text[position : position + 80]) if position < len(text) else "the end"


def _read_value(text: str, position: int, name: str) -> tuple[str, int]:
    position = _skip(_SPACE, text, position)
    if text[position : position + 1] in ("'", '"'):
        return _read_string(text, position, name)
    end = _end_of_bare(text, position)
    if not text[position:end].strip():
        raise ReplyError(f"expected a value in {name}(...), got {_rest(text, position)}")
    return text[position:end].strip(), end


def _end_of_bare(text: str, position: int) -> int:
    """Where an unquoted value ends: at a comma or a closing bracket that it did not open."""
    depth = 0
    for part in _BARE.finditer(text, position):
        if part[0] in "([":
            depth += 1
        elif depth == 0 and part[0] in ",)":
            return part.start()
        elif part[0] in ")]":
            depth -= 1
    return len(text)


def _read_string(text: str, position: int, name: str) -> tuple[str, int]:
    """A string and where it ends: at its first quote that is not escaped, but for ``content``.

    There, at the first behind which the call can end, else at the first. In the latter case
    the call cannot be read, so that one reply causes one search to its end at most.
    """
    forgiving = SIGNATURES[name] == ("content",)
    first_quote: int | None = None
    for part in _STRING_PART[text[position]].finditer(text, position + 1):
        if part[0][0] == "\\":
            continue
        if first_quote is None:
            first_quote = part.start()
        if not forgiving:
            break
        if _AFTER_CONTENT.match(text, part.end()):
            return _unquote(text[position + 1 : part.start()]), part.end()
    if first_quote is None:
        string = excerpt(text[position : position + 80])
        raise ReplyError(f"the string {string} in {name}(...) has no end")
    return _unquote(text[position + 1 : first_quote]), first_quote + 1
