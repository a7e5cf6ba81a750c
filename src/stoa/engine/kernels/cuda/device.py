"""Which GPU the kernels run on, and why not, where they can't.

Under Triton's interpreter (TRITON_INTERPRET=1) the kernels run on the CPU, slowly: that is how they are tested.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch

from stoa.errors import ConfigError

OLDEST = (8, 0)  # Ampere: the first with bf16 in its matrix units
INTERPRET = "TRITON_INTERPRET"


@dataclass(frozen=True)
class Gpu:
    """What the kernels ask a device for."""

    device: torch.device
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int
    driver: str = ""  # newest CUDA that the driver knows, "" unknown

    @property
    def kernels_name(self) -> str:
        """Of kernels that run on it."""
        kind = f"sm{self.capability[0]}{self.capability[1]}" if self.memory_bytes else self.name
        return f"cuda-{kind}"


def interpreted() -> bool:
    return os.environ.get(INTERPRET) == "1"


def find_gpu() -> Gpu:
    """The current CUDA device. Raises ConfigError that says what is missing and what would be accepted."""
    if importlib.util.find_spec("triton") is None:
        raise _refusal("Triton is not installed: pip install 'stoa[gpu]'")
    if interpreted():
        return Gpu(torch.device("cpu"), "interpreter", OLDEST, 1, 0)
    if torch.version.cuda is None:
        raise _refusal(
            f"torch {torch.__version__} is built without CUDA; install the CUDA build of torch (without "
            "constraints.txt, which pins the CPU one)"
        )
    why = _why_not()
    if why:
        raise _refusal(why)
    if not any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))):
        raise _refusal("Triton needs a C compiler at run time; install gcc or clang, or set CC")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        raise _refusal("Triton needs Python's headers at run time; install python3-dev")
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    capability = (found.major, found.minor)
    check_capability(found.name, capability)
    return Gpu(
        torch.device("cuda", torch.cuda.current_device()), found.name, capability, found.multi_processor_count,
        found.total_memory, driver_version(),
    )  # fmt: skip


def check_capability(name: str, capability: tuple[int, int]) -> None:
    """Raises ConfigError for a GPU that lacks what the kernels need, or that torch was not built for."""
    own = f"{capability[0]}.{capability[1]}"
    if capability < OLDEST:
        raise _refusal(f"{name} has compute capability {own}; accepted: {OLDEST[0]}.{OLDEST[1]} or newer")
    built = [a for a in torch.cuda.get_arch_list() if a.startswith("sm_")]
    same_family = [a for a in built if a.rstrip("af")[3:-1] == str(capability[0])]
    if built and not same_family:
        raise _refusal(
            f"{name} has compute capability {own}, torch {torch.__version__} has code for {', '.join(built)}; "
            "install a torch built for it"
        )


def _why_not() -> str:
    """Why CUDA does not start, or ""."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        said = str(error)
        if "driver" in said and ("too old" in said or "insufficient" in said):
            return (
                f"the NVIDIA driver is older than torch's CUDA {torch.version.cuda} (driver: CUDA "
                f"{driver_version() or 'unknown'}); update the driver, or install a torch built for an older CUDA"
            )
        if "no NVIDIA driver" in said or "Found no NVIDIA" in said:
            return "there is no NVIDIA driver on this machine; in a container, start it with --gpus all"
        return f"CUDA does not start: {said.splitlines()[0]}"
    if not torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hint = f" (CUDA_VISIBLE_DEVICES is {visible!r})" if visible is not None else ""
        return f"there is no NVIDIA GPU here{hint}"
    return ""


def driver_version() -> str:
    """The newest CUDA that the installed driver can run, as "12.4", or ""."""
    import ctypes

    try:
        version = ctypes.c_int()
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)):
            return ""
    except (OSError, AttributeError):
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _refusal(why: str) -> ConfigError:
    return ConfigError(f"device 'cuda' cannot be used: {why}; or choose --device cpu", param="device")
