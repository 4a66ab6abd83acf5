"""What pyproject.toml cannot say of the build: the C modules, left out where there is no compiler."""

from setuptools import Extension, setup

# `optional`: without a compiler the installation goes on; run.py and arrivals.py do the same in Python, slower.
setup(
    ext_modules=[
        Extension(
            f"microkernel.{name}",
            [f"microkernel/{name}.c"],
            depends=["microkernel/_coroutine.h"],
            extra_compile_args=["-O2"],
            optional=True,
        )
        for name in ("_run", "_arrivals")
    ]
)
