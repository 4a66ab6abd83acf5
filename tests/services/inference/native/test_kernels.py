"""The kernels' C++ by itself: against plain scalar code, under sanitizers, and on ARM in emulation.

`check_kernels.cpp` beside this includes their source; see there for what is compared.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from services.inference.native import recipe

ROOT = Path(__file__).parents[4]
CHECK = Path(__file__).parent / "check_kernels.cpp"
CROSS = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"
ARM = [name for name, variant in recipe.VARIANTS.items() if "aarch64" in variant.machines]
needs_cross = pytest.mark.skipif(not shutil.which(CROSS), reason=f"there is no {CROSS}")


def run_check(folder: Path, variant: str, *flags: str, what: str = "all", compiler: str | None = None, by=()) -> None:
    """Compile the check for `variant` and run it."""
    command = [compiler] if compiler else recipe.find_compiler()
    if command is None:
        pytest.skip("there is no C++ compiler")
    program = str(folder / "check")
    usual = [*("-std=c++20", "-O1", "-fno-math-errno", "-ffp-contract=off", "-pthread", "-w"), f"-I{recipe.SOURCES}"]
    command = [*command, *usual, *recipe.VARIANTS[variant].flags, *flags, "-o", program, str(CHECK)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find" in built.stderr and "-fsanitize" in " ".join(flags):
        pytest.skip("the compiler's sanitizer is not installed")
    assert built.returncode == 0, built.stderr[:2000]
    ran = subprocess.run([*by, program, what], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "all right\n"), ran.stdout + ran.stderr[:4000]


def test_they_agree_with_plain_code_and_with_themselves_in_any_batch(variant, tmp_path):
    run_check(tmp_path, variant)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_step_reads_or_writes_beyond_its_memory(tmp_path):
    sanitized = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    run_check(tmp_path, recipe.runnable()[0], *sanitized, what="long")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_two_threads_touch_the_same_memory_unordered(tmp_path):
    run_check(tmp_path, recipe.runnable()[-1], "-g", "-fsanitize=thread", what="steps")


@needs_cross
@pytest.mark.parametrize("arm", ARM)
def test_those_for_arm_compile(arm, tmp_path):
    assert recipe.compile_kernels(arm, [CROSS], tmp_path / "kernels.so") is None
    assert recipe.is_current(tmp_path / "kernels.so", arm)


@needs_cross
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not shutil.which(EMULATOR), reason=f"there is no {EMULATOR}")
@pytest.mark.parametrize("arm", ARM)
def test_those_for_arm_agree_with_plain_code_in_emulation(arm, tmp_path):
    run_check(tmp_path, arm, "-static", compiler=CROSS, by=(EMULATOR,))


def test_threads_that_the_system_refuses_are_told_and_leave_none_behind(opened):
    code = """
import os, resource, sys, threading
from pathlib import Path
from microkernel.errors import Overloaded
from services.inference.native.library import Kernels
kernels = Kernels(Path(sys.argv[1]), "any")
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_STACK, (8 << 20, 8 << 20))
resource.setrlimit(resource.RLIMIT_AS, (mapped + (300 << 20),) * 2)
try:
    kernels.team(250)
except Overloaded as error:
    print(error.message)
print(len(os.listdir("/proc/self/task")))
kernels.team(2).close()
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("the limit is Linux's")
    command = [sys.executable, "-c", code, opened()._library._name]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "250 compute threads cannot be created\n1\n"), ran.stderr


def test_more_threads_than_are_counted_are_taken_as_the_most(opened):
    team = opened().team(300)
    assert len(list(Path("/proc/self/task").iterdir())) > 200
    team.close()
