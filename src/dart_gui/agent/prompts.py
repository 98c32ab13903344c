"""The text of the prompt: the structure that UI-TARS was served with, in our own words.

The fixed text is whole lines, and the instruction is the last line alone: a small tokenizer can
give each line a token of its own.
"""

from __future__ import annotations

import re

SYSTEM_PROMPT = "You are a helpful assistant."

_BOX = "<|box_start|>({x},{y})<|box_end|>"
_POINT = f"start_box='{_BOX.format(x='x1', y='y1')}'"
_END = f"end_box='{_BOX.format(x='x2', y='y2')}'"

_TEMPLATE = f"""\
You operate a computer. From a task, the actions so far and the screenshots, choose what to do next.

## Output Format
```
Thought: ...
Action: ...
```

## Action Space
click({_POINT})
left_double({_POINT})
right_single({_POINT})
drag({_POINT}, {_END})
hotkey(key='ctrl c')
type(content='')
scroll({_POINT}, direction='down or up or right or left')
wait() # Let some time pass, then look again.
finished(content='') # The task is done.
call_user() # The task cannot be done without the user.

## Note
- Write the `Thought` in {{language}}.
- In the `Thought`, make a small plan, then name the next action and its target in one sentence.
- In `content`, write \\' for a quote, \\\\ for a backslash and \\n for a line break.
- To submit what you type, end `content` with \\n.

## User Instruction
"""

# A page or a task file could otherwise open an image or end the message in the middle of its text.
_CONTROL_TOKENS = re.compile(
    r"<(\|(?:im_start|im_end|endoftext|vision_start|vision_end|vision_pad|image_pad|video_pad)\|>)"
)


def user_prompt(instruction: str, language: str) -> str:
    """The text of the first user message; line breaks of the instruction become spaces."""
    line = " ".join(part for part in disarm_control_tokens(instruction).splitlines() if part)
    return _TEMPLATE.format(language=language) + line.strip()


def disarm_control_tokens(text: str) -> str:
    """``text`` with a space in each token that structures a Qwen2.5-VL prompt, which disarms it.

    Text from a page, a task or a reply goes into later prompts: an ``<|image_pad|>`` in it would
    ask for an image that is not there.

    >>> disarm_control_tokens("a<|image_pad|>b<|box_start|>")
    'a< |image_pad|>b<|box_start|>'
    """
    return _CONTROL_TOKENS.sub(r"< \1", text)
