"""Ports of programs in a desktop that are asked from outside, and how they are asked for."""

CHROME, VLC = 9222, 8080
"""Of Chrome's debugger and VLC's interface, as OSWorld's tasks have them; our guest server leads to no
other port."""
SCREEN = 8006
"""Of the page with the screen that OSWorld's virtual machine has; no desktop of ours has one."""
AUTHORIZATION = "X-Port-Authorization"
"""What the program gets as ``Authorization``, which on the way here is a server's own."""
MARK = "X-Port"
"""Stands on each answer of the route: without it there is no such route."""
