"""What goes into the image: `requirements.py FOLDER` prints pip's requirements, `--trim` removes what no server needs.

Runs in the image's build with nothing but Python.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sysconfig
import tomllib
from pathlib import Path

# Tests, headers and helper programs that packages bring along; nothing imports them.
UNUSED = (
    "torch/test",
    "torch/include",
    "torch/share",
    "ray/jars",
    "sympy/**/tests",
    "numpy/**/tests",
)
UNUSED_PROGRAMS = ("torch/bin", "torch_shm_manager")  # all of the folder but one


def requirements(folder: Path, extras: list[str], torch_build: str) -> list[str]:
    """The project's dependencies and those of `extras`, torch pinned to `torch_build` of the version in constraints.txt
    (which pip gets too, for the rest). Raises SystemExit for an extra that pyproject.toml lacks."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = project["optional-dependencies"]
    if missing := [extra for extra in extras if extra not in known]:
        raise SystemExit(f"no extra {', '.join(missing)} in pyproject.toml; there are {', '.join(known)}")
    wanted = [*project["dependencies"], *(line for extra in extras for line in known[extra])]
    pins = (folder / "constraints.txt").read_text(encoding="utf-8").split()
    (torch,) = [pin for pin in pins if _name(pin) == "torch"]
    return [f"{torch}{torch_build}" if _name(line) == "torch" else line for line in wanted]


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower()


def trim(packages: Path) -> int:
    """Removes UNUSED below `packages`; returns bytes."""
    folder, kept = UNUSED_PROGRAMS
    programs = [path for path in (packages / folder).glob("*") if path.name != kept]
    freed = 0
    for path in [*programs, *(found for pattern in UNUSED for found in packages.glob(pattern))]:
        freed += sum(f.stat().st_size for f in [path, *path.rglob("*")] if f.is_file())
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return freed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="holds pyproject.toml and constraints.txt")
    parser.add_argument("--extras", default="", help="of pyproject.toml, with commas between")
    parser.add_argument("--torch-build", default="", help="local version of torch's wheel, such as +cpu")
    parser.add_argument("--trim", action="store_true", help="remove unused files from this environment")
    args = parser.parse_args()
    if args.trim:
        print(f"removed {trim(Path(sysconfig.get_path('purelib'))) >> 20} MiB")
    else:
        print(
            "\n".join(requirements(args.folder, [e for e in args.extras.split(",") if e], args.torch_build))
        )


if __name__ == "__main__":
    main()
