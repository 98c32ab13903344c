"""Settings of all tests."""

from hypothesis import settings

# A shared machine pauses a process for longer than the default deadline of 200 ms.
settings.register_profile("dart-gui", deadline=None)
settings.load_profile("dart-gui")
