"""Prints the accessibility tree of what is shown, as XML. Run by the system's Python: it needs the
GObject bindings of AT-SPI (Debian: python3-gi gir1.2-atspi-2.0) and nothing of this package."""

import sys
from xml.etree import ElementTree

MAX_NODES = 5000
MAX_CHILDREN = 200  # a sheet has a million cells


def main() -> int:
    try:
        import gi

        gi.require_version("Atspi", "2.0")
        from gi.repository import Atspi
    except (ImportError, ValueError) as error:
        sys.stderr.write(f"{error}: install python3-gi and gir1.2-atspi-2.0\n")
        return 1
    root = ElementTree.Element("desktop-frame")
    left = [MAX_NODES]
    desktop = Atspi.get_desktop(0)
    for i in range(desktop.get_child_count()):
        _add(root, desktop.get_child_at_index(i), Atspi, left, top=True)
    sys.stdout.write(ElementTree.tostring(root, encoding="unicode"))
    return 0


def _add(parent, node, atspi, left, *, top=False):  # type: ignore[no-untyped-def]
    if node is None or left[0] <= 0:
        return
    if not top and not node.get_state_set().contains(atspi.StateType.SHOWING):
        return
    left[0] -= 1
    tag = node.get_role_name().replace(" ", "-") or "unknown"
    element = ElementTree.SubElement(parent, tag, name=node.get_name() or "")
    component = node.get_component_iface()
    if component is not None and not top:
        box = component.get_extents(atspi.CoordType.SCREEN)
        element.set("screencoord", f"({box.x}, {box.y})")
        element.set("size", f"({box.width}, {box.height})")
    text = node.get_text_iface()
    if text is not None:
        element.text = atspi.Text.get_text(text, 0, -1)
    for i in range(min(node.get_child_count(), MAX_CHILDREN)):
        _add(element, node.get_child_at_index(i), atspi, left)


if __name__ == "__main__":
    sys.exit(main())
