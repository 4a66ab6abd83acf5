"""What the kernels are built from, and how: for build.py, and for setup.py, so nothing beyond the standard library.

A build carries a mark, a checksum of the sources and of its variant's flags. It is found by reading the library's
bytes, so that one of other sources is never loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, NamedTuple

__all__ = [
    "SOURCES",
    "UNFINISHED",
    "VARIANTS",
    "buildable",
    "compile_kernels",
    "find_compiler",
    "is_current",
    "mark",
    "runnable",
]

SOURCES = Path(__file__).parent / "kernels"
UNFINISHED = "build-"  # how the folder of a build is called, beside its target
TIMEOUT = 120.0  # seconds; a build takes 6 on one core of 2025
# No -ffast-math and no contraction: the same bits from every compiler that keeps to IEEE 754, and in every batch.
FLAGS = (
    *("-std=c++20", "-O3", "-fno-math-errno", "-ffp-contract=off", "-fvisibility=hidden"),
    *("-shared", "-fPIC", "-pthread", "-w"),  # -w: the first line that the compiler says is an error
)


class Variant(NamedTuple):
    """The kernels for one instruction set: what the compiler is told, and what the CPU must have."""

    machines: tuple[str, ...]  # as platform.machine() has them
    flags: tuple[str, ...]
    needs: frozenset[str]  # as /proc/cpuinfo has them


_X86, _ARM = ("x86_64", "AMD64"), ("aarch64", "arm64")
_AVX2_FLAGS = ("-mavx2", "-mfma", "-mf16c")
_AVX2 = frozenset({"avx2", "fma", "f16c"})
_AVX512_FLAGS = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", *_AVX2_FLAGS)
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}

VARIANTS = {  # the best first
    "avx512bf16": Variant(_X86, (*_AVX512_FLAGS, "-mavx512bf16"), _AVX512 | {"avx512_bf16"}),
    "avx512vnni": Variant(_X86, _AVX512_FLAGS, _AVX512),
    "avxvnni": Variant(_X86, (*_AVX2_FLAGS, "-mavxvnni"), _AVX2 | {"avx_vnni"}),
    "avx2": Variant(_X86, _AVX2_FLAGS, _AVX2),
    "neonbf16": Variant(_ARM, ("-march=armv8.2-a+dotprod+bf16",), frozenset({"asimddp", "bf16"})),
    "neon": Variant(_ARM, ("-march=armv8.2-a+dotprod",), frozenset({"asimddp"})),
}


def runnable() -> tuple[str, ...]:
    """The variants that this machine's CPU can run, the best first."""
    has = _cpu_features()
    return tuple(name for name, variant in VARIANTS.items() if _here(variant) and variant.needs <= has)


def buildable() -> tuple[str, ...]:
    """The variants of this machine's architecture, whatever its CPU has."""
    return tuple(name for name, variant in VARIANTS.items() if _here(variant))


def mark(variant: str) -> str:
    """What a build of `variant` carries: it changes with any source and any flag."""
    content = hashlib.sha256(" ".join(_flags(variant)).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in {".h", ".cpp"}:
            content.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return content.hexdigest()[:24]


def is_current(library: Path, variant: str) -> bool:
    """Whether `library` is a build of `variant` from the sources that are here."""
    try:
        return _marked(mark(variant)).encode() in library.read_bytes()
    except OSError:
        return False


def find_compiler() -> list[str] | None:
    """The command of a C++ compiler: $CXX where it is set, otherwise the first that is found."""
    given = shlex.split(os.environ.get("CXX", ""))
    if given:
        return given if shutil.which(given[0]) else None
    return next(([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def compile_kernels(variant: str, compiler: list[str], target: Path) -> str | None:
    """Build `variant` as the file `target`. Where that cannot be, says in one line why.

    It gets its name when it is whole, so several processes may build it at once.
    """
    name = Path(compiler[0]).name
    source = str(SOURCES / "kernels.cpp")
    define = f'-DMK_SOURCES="{_marked(mark(variant))}"'
    try:
        with (
            tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=target.parent) as place,
            tempfile.TemporaryFile() as said,
        ):
            made = Path(place, target.name)
            status = _run([*compiler, *_flags(variant), define, "-o", str(made), source], said)
            if status == 0 and made.exists():
                made.replace(target)
                return None
            said.seek(0)
            output = said.read(1 << 16).decode(errors="replace")
    except subprocess.TimeoutExpired:
        return f"{name} took longer than {TIMEOUT:g} s"
    except OSError as error:
        return f"{error.filename or name}: {error.strerror}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    first = next((line for line in lines if "error" in line), lines[0] if lines else f"status {status}")
    return f"{name} said: {first[:300]}"


def _run(command: list[str], said: IO[bytes]) -> int:
    process = subprocess.Popen(  # noqa: S603 - an argument list; no shell reads it
        command,
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=said,
        env=os.environ | {"LC_ALL": "C"},
        start_new_session=True,  # a compiler has children: they are ended with it
    )
    try:
        return process.wait(TIMEOUT)
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _marked(value: str) -> str:
    return f"mk-sources:{value}"


def _flags(variant: str) -> tuple[str, ...]:
    return (*FLAGS, *VARIANTS[variant].flags)


def _here(variant: Variant) -> bool:
    return platform.machine() in variant.machines


def _cpu_features() -> frozenset[str]:
    if sys.platform == "darwin":
        return frozenset({"asimddp"}) if platform.machine() == "arm64" else frozenset()  # every M1 and later has it
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()
