"""Builds the C kernels if there is a C compiler; without one the install still succeeds."""

import os

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = "src/stoa/engine/kernels/csrc"


class BuildKernels(build_ext):
    """A plain shared object, loaded by ctypes: it exports no module initialiser."""

    def get_export_symbols(self, ext):
        return []

    def run(self):
        try:
            super().run()
        except Exception as error:
            print(f"stoa: C kernels not built ({error}); the slower torch kernels will be used")


kernels = Extension(
    "stoa.engine.kernels._cpu",
    sources=[f"{CSRC}/{name}" for name in sorted(os.listdir(CSRC)) if name.endswith(".c")],
    depends=[f"{CSRC}/{name}" for name in sorted(os.listdir(CSRC)) if name.endswith(".h")],
    extra_compile_args=["-O3", "-ffp-contract=off", "-std=gnu11", "-fno-math-errno"],
    libraries=["m", "pthread"],
    optional=True,
)

setup(ext_modules=[kernels], cmdclass={"build_ext": BuildKernels})
