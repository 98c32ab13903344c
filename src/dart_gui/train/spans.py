"""Which tokens of a reply are thought, action, or the numbers of a point. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum

_ACTION = "Action:"
# In what UI-TARS writes, a point is (x,y) in a box argument; so is the one of computer_use.
_POINT = re.compile(r"\(\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)\s*\)")


class Span(StrEnum):
    THOUGHT = "thought"  # all before "Action:"; a reply without it is thought alone
    ACTION = "action"
    COORDINATE = "coordinate"  # a number of a point


def spans(pieces: Sequence[str]) -> list[Span]:
    """The span of each token, from the text that each contributes.

    A token counts as a coordinate where it overlaps one, and as action from the token that begins
    "Action:" on.

    >>> [str(s) for s in spans(["Thought: a", "Action: click(", "(", "1", "7", ",", "5", ")", ")"])][3:7]
    ['coordinate', 'coordinate', 'action', 'coordinate']
    """
    text = "".join(pieces)
    begin = text.find(_ACTION)
    begin = len(text) if begin < 0 else begin
    numbers = [match.span(n) for match in _POINT.finditer(text, begin) for n in (1, 2)]
    found: list[Span] = []
    at = 0
    for piece in pieces:
        end = at + len(piece)
        if any(at < last and first < end for first, last in numbers):
            found.append(Span.COORDINATE)
        else:
            found.append(Span.ACTION if end > begin else Span.THOUGHT)
        at = end
    return found
