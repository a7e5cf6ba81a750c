"""The Dockerfile, what reaches its build, and what the image installs."""

import fnmatch
import re
from pathlib import Path

import pytest

from tests.deploy.renderer import ROOT
from tests.deploy.test_values import load_script

requirements = load_script("requirements")
DOCKERFILE = (ROOT / "Dockerfile").read_text()
LAST_STAGE = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]


def ignored(path: str) -> bool:
    """By .dockerignore: the last line that matches wins."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().split("\n"):
        pattern = line.removeprefix("!").removeprefix("**/")
        parents = [path, *map(str, Path(path).parents)] if line.startswith(("!", "*")) else [path]
        if (
            pattern
            and not line.startswith("#")
            and any(fnmatch.fnmatch(Path(p).name if "**/" in line else p, pattern) for p in parents)
        ):
            verdict = not line.startswith("!")
    return verdict


def test_what_is_copied_is_there_and_nothing_else_is_sent() -> None:
    """Each file that the Dockerfile copies exists and reaches the build; data, tests, secrets and builds do not."""
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert not ignored(source), source
    assert not ignored("src/stoa/engine/kernels/csrc/program.c")
    for path in (
        ".env",
        ".git/config",
        "tests/conftest.py",
        "docs/api.md",
        "src/stoa/x.so",
        "deploy/helm/stoa/Chart.yaml",
    ):
        assert ignored(path), path


def test_the_image_runs_as_nobody_and_refuses_strangers() -> None:
    """The last stage has a user without rights, no compiler, no way around keys, and a health check."""
    assert "USER 10001:10001" in LAST_STAGE
    assert 'ENTRYPOINT ["stoa"]\nCMD ["serve"]' in LAST_STAGE
    assert "VOLUME /var/lib/stoa" in LAST_STAGE
    assert "/health" in LAST_STAGE
    assert not re.search(r"gcc|apt-get|STOA_AUTH|STOA_API_KEY", LAST_STAGE)


def test_the_dockerfile_is_plain() -> None:
    """No heredocs, and no host's name but those of the base image's default."""
    assert "<<" not in DOCKERFILE
    assert not re.search(r"https?://(?!127\.0\.0\.1)", DOCKERFILE)


def project(folder: Path) -> Path:
    (folder / "pyproject.toml").write_text(
        '[project]\ndependencies = ["msgspec>=1", "torch>=2"]\n[project.optional-dependencies]\nredis = ["redis>=5"]\n'
    )
    (folder / "constraints.txt").write_text("torch==2.13.0\n")
    return folder


@pytest.mark.parametrize(("build", "pin"), [("+cpu", "torch==2.13.0+cpu"), ("", "torch==2.13.0")])
def test_torch_is_pinned_to_its_build(tmp_path: Path, build: str, pin: str) -> None:
    """The image has the version of constraints.txt, in the build that was asked for."""
    assert requirements.requirements(project(tmp_path), ["redis"], build) == ["msgspec>=1", pin, "redis>=5"]


def test_an_unknown_extra_stops_the_build(tmp_path: Path) -> None:
    """An extra that pyproject.toml lacks is an error, not an image without it."""
    with pytest.raises(SystemExit, match="no extra rediss"):
        requirements.requirements(project(tmp_path), ["rediss"], "")


def test_extras_of_the_image_exist() -> None:
    """The Dockerfile's own extras are in pyproject.toml."""
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)$", DOCKERFILE, re.MULTILINE)
    assert len(requirements.requirements(ROOT, extras.split(","), "+cpu")) > 20


def test_trimming_leaves_what_is_imported(tmp_path: Path) -> None:
    """Tests and headers go, with all helper programs but the one that torch starts."""
    for name in (
        "torch/test/t.py",
        "torch/bin/protoc",
        "torch/bin/torch_shm_manager",
        "torch/testing/a.py",
        "numpy/a/tests/b.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x" * 10)
    assert requirements.trim(tmp_path) == 30
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {"torch/bin/torch_shm_manager", "torch/testing/a.py"}
