"""Builds the C kernels and the simulator's C part if there is a C compiler; without one the install still succeeds."""

import os

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = "src/stoa/engine/kernels/csrc"
SIMULATOR = "src/stoa/simulator/csrc"


class BuildLibraries(build_ext):
    """Plain shared objects, loaded by ctypes: they export no module initialiser."""

    def get_export_symbols(self, ext):
        return []

    def run(self):
        try:
            super().run()
        except Exception as error:
            print(
                f"stoa: C libraries not built ({error}); the slower torch kernels and simulator will be used"
            )


def library(name, folder, *libraries):
    return Extension(
        name,
        sources=[f"{folder}/{file}" for file in sorted(os.listdir(folder)) if file.endswith(".c")],
        depends=[f"{folder}/{file}" for file in sorted(os.listdir(folder)) if file.endswith(".h")],
        extra_compile_args=["-O3", "-ffp-contract=off", "-std=gnu11", "-fno-math-errno"],
        libraries=["m", *libraries],
        optional=True,
    )


setup(
    ext_modules=[
        library("stoa.engine.kernels._cpu", KERNELS, "pthread"),
        library("stoa.simulator._fleet", SIMULATOR),
    ],
    cmdclass={"build_ext": BuildLibraries},
)
