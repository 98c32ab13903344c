"""Ports of programs in a desktop that OSWorld's getters ask, and how they are asked for from outside."""

CHROME, VLC = 9222, 8080
"""Of Chrome's debugger and VLC's interface, as OSWorld's tasks have them; no other port is reached."""
AUTHORIZATION = "X-Port-Authorization"
"""What the program gets as ``Authorization``, which on the way here is a server's own."""
MARK = "X-Port"
"""Stands on each answer of the route: without it there is no such route."""
