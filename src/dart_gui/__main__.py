"""``python -m dart_gui``: the same as ``dart-gui``."""

from dart_gui.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
