"""What pyproject.toml cannot say of the build: the C modules and the kernels, left out where there is no compiler."""

import importlib.util
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NATIVE = Path("services/inference/native")


class BuildExtensions(build_ext):
    """Builds the C modules, and then the kernels: all of this architecture's for a wheel, this CPU's for a checkout."""

    def run(self) -> None:
        super().run()
        spec = importlib.util.spec_from_file_location("kernel_recipe", NATIVE / "recipe.py")
        recipe = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(recipe)
        here = bool(self.inplace or getattr(self, "editable_mode", False))
        folder = NATIVE if here else Path(self.build_lib) / NATIVE
        compiler = recipe.find_compiler()
        for variant in recipe.runnable()[:1] if here else recipe.buildable():
            target = folder / f"_kernels_{variant}.so"
            if compiler is None or recipe.is_current(target, variant):
                continue
            folder.mkdir(parents=True, exist_ok=True)
            wrong = recipe.compile_kernels(variant, compiler, target)
            if wrong is not None:  # the installation goes on: a node builds them, or computes with torch
                sys.stderr.write(f"kernels for {variant} were not built: {wrong}\n")


# `optional`: without a compiler the installation goes on; run.py and arrivals.py do the same in Python, slower.
setup(
    cmdclass={"build_ext": BuildExtensions},
    ext_modules=[
        Extension(
            f"microkernel.{name}",
            [f"microkernel/{name}.c"],
            depends=["microkernel/_coroutine.h"],
            extra_compile_args=["-O2"],
            optional=True,
        )
        for name in ("_run", "_arrivals")
    ],
)
