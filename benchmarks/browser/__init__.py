"""Our browser cluster against the official Selenium environment of the ``miniwob`` package."""
