"""The words of scripted solutions: a thought for each decision."""

from __future__ import annotations

from dart_gui.env.browser.oracle import Decision


def thought(task_id: str, instruction: str, decision: Decision) -> str:
    """What a demonstrator thinks: the target, in a few words that the tiny agent knows."""
    match task_id.removeprefix("miniwob/"), decision.element:
        case "click-color", _:
            return f"The {instruction.split(' the ')[1].split(' colored')[0]} box."
        case "click-dialog", _:
            return "Close the dialog."
        case "focus-text-2", _:
            return f"The {instruction.split(' the ')[1].split(' ')[0]} field."
        case "grid-coordinate", _:
            return "The point of the grid."
        case "click-test", _:
            return "The button."
        case "click-button-sequence", element:
            return "First ONE." if element == "subbtn" else "Then TWO."
        case "click-collapsible", element if element != "subbtn":
            return "Open the section."
        case "enter-text", "":
            return "Type the text."
        case "enter-text", "tt":
            return "Focus the field."
        case _:
            return "Submit."
