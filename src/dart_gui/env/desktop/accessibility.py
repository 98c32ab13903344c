"""Prints the accessibility tree of what is shown, as XML. Run by the system's Python: it needs the
GObject bindings of AT-SPI (Debian: python3-gi gir1.2-atspi-2.0) and nothing of this package.

Names, attributes and namespaces are those of OSWorld's ``_create_atspi_node``
(``desktop_env/server/main.py``), by which its evaluators and agents select.
"""

import re
import sys
from xml.etree import ElementTree

MAX_NODES = 5000
MAX_CHILDREN = 1024  # a sheet has a million cells
MAX_DEPTH = 50
_PLACE = "https://accessibility.ubuntu.example.org/ns/"
NAMESPACES = {
    "st": _PLACE + "state",
    "attr": _PLACE + "attributes",
    "cp": _PLACE + "component",
    "doc": _PLACE + "document",
    "docattr": _PLACE + "document/attributes",
    "txt": _PLACE + "text",
    "val": _PLACE + "value",
    "act": _PLACE + "action",
}
# Programs say what they like; in XML not all of it can be said.
_NAME = re.compile(r"[^\W\d][\w.-]*")
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PLACEHOLDERS = re.compile("[\ufffc\ufffd]")  # for pictures and the like within a text


def main() -> int:
    try:
        import gi

        gi.require_version("Atspi", "2.0")
        from gi.repository import Atspi, GLib
    except (ImportError, ValueError) as error:
        sys.stderr.write(f"{error}: install python3-gi and gir1.2-atspi-2.0\n")
        return 1
    for prefix, uri in NAMESPACES.items():
        ElementTree.register_namespace(prefix, uri)
    tree = Tree(Atspi, GLib.Error)
    sys.stdout.write(ElementTree.tostring(tree.read(), encoding="unicode"))
    return 0


class Tree:
    """The desktop through ``Atspi``; ``gone`` is what it raises for a program that has ended."""

    def __init__(self, atspi, gone):  # type: ignore[no-untyped-def]
        self._atspi = atspi
        self._gone = gone
        self._left = MAX_NODES

    def read(self):  # type: ignore[no-untyped-def]
        root = ElementTree.Element("desktop-frame")
        desktop = self._atspi.get_desktop(0)
        for i in range(desktop.get_child_count()):
            self._add(root, desktop, i, depth=1)
        return root

    def _add(self, parent, above, index, *, depth):  # type: ignore[no-untyped-def]
        """The child ``index`` of ``above`` and what is in it; an application is not itself shown."""
        if self._left <= 0 or depth > MAX_DEPTH:
            return
        try:
            node = above.get_child_at_index(index)
            states = _states(node) if node is not None else set()
            if node is None or (depth > 1 and "showing" not in states):
                return
            self._left -= 1
            element = ElementTree.SubElement(parent, _tag(node.get_role_name()))
            self._describe(element, node, states)
            for i in range(min(node.get_child_count(), MAX_CHILDREN)):
                self._add(element, node, i, depth=depth + 1)
        except self._gone:  # in the meantime; what was read of it stays
            return

    def _describe(self, element, node, states):  # type: ignore[no-untyped-def]
        _set(element, "name", node.get_name())
        for state in sorted(states):
            _set(element, state, "true", "st")
        for name, value in (node.get_attributes() or {}).items():
            _set(element, name, value, "attr")
        component = node.get_component_iface()
        if component is not None and {"visible", "showing"} <= states:
            box = component.get_extents(self._atspi.CoordType.SCREEN)
            _set(element, "screencoord", f"({box.x}, {box.y})", "cp")
            _set(element, "size", f"({box.width}, {box.height})", "cp")
        text = node.get_text_iface()
        if text is not None:
            said = self._atspi.Text.get_text(text, 0, -1) or ""
            element.text = _PLACEHOLDERS.sub("", _NO_XML.sub("", said)) or None
        if node.get_image_iface() is not None:
            _set(element, "image", "true")
        if node.get_selection_iface() is not None:
            _set(element, "selection", "true")
        self._describe_value(element, node.get_value_iface())
        self._describe_actions(element, node.get_action_iface())

    def _describe_value(self, element, value):  # type: ignore[no-untyped-def]
        if value is None:
            return
        of = self._atspi.Value
        _set(element, "value", str(of.get_current_value(value)), "val")
        _set(element, "min", str(of.get_minimum_value(value)), "val")
        _set(element, "max", str(of.get_maximum_value(value)), "val")
        _set(element, "step", str(of.get_minimum_increment(value)), "val")

    def _describe_actions(self, element, action):  # type: ignore[no-untyped-def]
        of = self._atspi.Action
        for i in range(0 if action is None else of.get_n_actions(action)):
            name = of.get_action_name(action, i).replace(" ", "-")
            _set(element, name + "_desc", of.get_action_description(action, i), "act")
            _set(element, name + "_kb", of.get_key_binding(action, i), "act")


def _states(node):  # type: ignore[no-untyped-def]
    return {s.value_nick.replace("-", "_") for s in node.get_state_set().get_states()}


def _tag(role):  # type: ignore[no-untyped-def]
    tag = (role or "").strip().replace(" ", "-")
    return tag if _NAME.fullmatch(tag) else "unknown"


def _set(element, name, value, space=None):  # type: ignore[no-untyped-def]
    if _NAME.fullmatch(name):
        key = name if space is None else f"{{{NAMESPACES[space]}}}{name}"
        element.set(key, _NO_XML.sub("", value or ""))


if __name__ == "__main__":
    sys.exit(main())
