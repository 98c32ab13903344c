"""Makes the files of all cases: ``python -m tests.osworld_cases FOLDER``, with the packages that
``desktop-env`` brings.

``FOLDER/<subject>/right`` and ``wrong`` are homes of a desktop, ``FOLDER/gold`` what is compared with.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.osworld_cases.case import Maker
from tests.osworld_cases.subjects import SUBJECTS, folder_of


def main(folder: Path) -> None:
    for name, subject in SUBJECTS.items():
        homes = {side: folder / name / side for side in ("right", "wrong")}
        for i, case in enumerate(subject.cases):
            for file in case.files:
                for side, home in homes.items():
                    make(file.make, home / folder_of(name, i) / file.path, getattr(file, side))
            for gold in case.golds:
                make(gold.make, folder / "gold" / folder_of(name, i) / gold.name, gold.content)
        for file in subject.home:
            for side, home in homes.items():
                make(file.make, home / file.path, getattr(file, side))


def make(maker: Maker, path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is not None:
        maker(path, content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
