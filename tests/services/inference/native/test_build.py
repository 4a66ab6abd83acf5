"""Where the kernels come from: found, built once, built anew when anything changed, and refused in one line."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from microkernel.errors import PreconditionFailed
from services.inference.native import build, recipe
from services.inference.native.build import open_kernels

ROOT = Path(__file__).parents[4]
# A compiler that gives what is ready, signed with the mark that it was asked for, and counts its builds.
COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then cat "$0.version"; exit; fi
for argument; do
    case "$argument" in -DMK_SOURCES=*) mark="$argument";; esac
    if [ "$last" = -o ]; then out="$argument"; fi
    last="$argument"
done
sleep {seconds}
cat {ready} > "$out"
printf %s "$mark" >> "$out"
chmod +x "$out"
echo x >> "$0.count"
"""


class Compiler:
    """A stand-in that takes no time."""

    def __init__(self, path: Path, ready: Path, seconds: float = 0) -> None:
        self.path = path
        path.write_text(COMPILER.format(ready=ready, seconds=seconds))
        path.chmod(0o755)
        self.version("one")

    def version(self, text: str) -> None:
        Path(f"{self.path}.version").write_text(text)

    @property
    def count(self) -> int:
        counted = Path(f"{self.path}.count")
        return len(counted.read_text().splitlines()) if counted.exists() else 0


@pytest.fixture
def compiler(opened, tmp_path, monkeypatch):
    """The compiler that CXX names; nothing came with the installation."""
    ready = Path(opened()._library._name)
    monkeypatch.setattr(build, "PREBUILT", tmp_path / "nowhere")
    made = Compiler(tmp_path / "fake-c++", ready)
    monkeypatch.setenv("CXX", str(made.path))
    return made


def script(path: Path, content: str) -> str:
    path.write_text(f"#!/bin/sh\n{content}\n")
    path.chmod(0o755)
    return str(path)


def libraries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def changed_sources(folder: Path, monkeypatch) -> None:
    shutil.copytree(recipe.SOURCES, folder)
    (folder / "simd.h").write_text((folder / "simd.h").read_text() + "// another comment\n")
    monkeypatch.setattr(recipe, "SOURCES", folder)


def test_every_variant_that_this_machine_runs_can_be_had(opened, variant):
    assert opened(variant).variant == variant
    assert opened(variant).sizes(0, 17, 64) == (2 * 2 * 4 * 64, 2 * 2 * 16 * 2, 0)


def test_a_library_is_built_once_and_found_again(compiler, tmp_path):
    folder = tmp_path / "state" / "kernels"
    assert open_kernels(folder).variant == recipe.runnable()[0]
    made = libraries(folder)
    assert open_kernels(folder).variant == recipe.runnable()[0]
    assert (compiler.count, libraries(folder), len(made)) == (1, made, 1)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_changed_sources_are_built_anew_and_the_old_library_goes(compiler, tmp_path, monkeypatch):
    open_kernels(tmp_path / "kernels")
    before = libraries(tmp_path / "kernels")
    changed_sources(tmp_path / "changed", monkeypatch)
    open_kernels(tmp_path / "kernels")
    after = libraries(tmp_path / "kernels")
    assert (compiler.count, len(after)) == (2, 1)
    assert before != after


def test_another_compiler_builds_anew(compiler, tmp_path):
    open_kernels(tmp_path / "kernels")
    compiler.version("two")
    open_kernels(tmp_path / "kernels")
    assert compiler.count == 2


def test_what_came_with_the_installation_is_taken_without_a_folder_or_a_compiler(compiler, tmp_path, monkeypatch):
    best = recipe.runnable()[0]
    open_kernels(tmp_path / "kernels")
    (tmp_path / "nowhere").mkdir()
    next((tmp_path / "kernels").iterdir()).rename(tmp_path / "nowhere" / f"_kernels_{best}.so")
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    assert open_kernels(None).variant == best
    assert open_kernels(tmp_path / "kernels").variant == best
    assert (compiler.count, libraries(tmp_path / "kernels")) == (1, [])


def test_what_came_with_the_installation_is_passed_over_when_its_sources_are_others(compiler, tmp_path, monkeypatch):
    open_kernels(tmp_path / "kernels")
    (tmp_path / "nowhere").mkdir()
    next((tmp_path / "kernels").iterdir()).rename(tmp_path / "nowhere" / f"_kernels_{recipe.runnable()[0]}.so")
    changed_sources(tmp_path / "changed", monkeypatch)
    with pytest.raises(PreconditionFailed, match="no kernels for .* came with this installation"):
        open_kernels(None)
    open_kernels(tmp_path / "kernels")
    assert compiler.count == 2


def test_what_came_with_the_installation_and_cannot_be_loaded_is_built_here(compiler, tmp_path):
    best = recipe.runnable()[0]
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere" / f"_kernels_{best}.so").write_text(f"no library at all, mk-sources:{recipe.mark(best)}")
    assert open_kernels(tmp_path / "kernels").variant == best
    assert compiler.count == 1


@pytest.mark.parametrize("given", ["", "no-such-compiler --fast"])
def test_without_a_compiler_it_says_so(given, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "PREBUILT", tmp_path)
    monkeypatch.setenv("CXX", given)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PreconditionFailed, match=r"no C\+\+ compiler was found"):
        open_kernels(tmp_path / "kernels")


def test_a_library_outlives_its_compiler(compiler, tmp_path, monkeypatch):
    open_kernels(tmp_path / "kernels")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert open_kernels(tmp_path / "kernels").variant == recipe.runnable()[0]
    changed_sources(tmp_path / "changed", monkeypatch)
    with pytest.raises(PreconditionFailed, match="compiler"):
        open_kernels(tmp_path / "kernels")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "echo 'in file x' >&2; echo 'x.h:3: error: no bytes here' >&2; exit 1",
            r"said: x\.h:3: error: no bytes here$",
        ),
        ("echo nonsense; exit 3", "said: nonsense$"),
        ("exit 4", "said: status 4$"),
        ("exit 0", "said: status 0$"),  # and made nothing
        ('for argument; do :; done; echo broken > "$PWD/out"; exit 1', "said: status 1$"),
    ],
)
def test_what_a_broken_compiler_says_is_told_in_one_line(compiler, content, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", script(tmp_path / "broken", content))
    with pytest.raises(PreconditionFailed, match=said) as failure:
        open_kernels(tmp_path / "kernels")
    assert "\n" not in failure.value.message
    assert libraries(tmp_path / "kernels") == []


def test_what_a_compiler_made_and_cannot_be_loaded_is_told(compiler, tmp_path, monkeypatch):
    content = 'for argument; do [ "$last" = -o ] && echo rubbish > "$argument"; last="$argument"; done'
    monkeypatch.setenv("CXX", script(tmp_path / "rubbish", content))
    with pytest.raises(PreconditionFailed, match="cannot be loaded"):
        open_kernels(tmp_path / "kernels")


def test_a_compiler_that_takes_too_long_is_ended_with_its_children(compiler, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "TIMEOUT", 0.5)
    child = tmp_path / "child"
    content = f'[ "$1" = --version ] && exit; sleep 60 & echo $! > {child}; wait'
    monkeypatch.setenv("CXX", script(tmp_path / "slow", content))
    with pytest.raises(PreconditionFailed, match=r"slow took longer than 0\.5 s"):
        open_kernels(tmp_path / "kernels")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and running(int(child.read_text())):
        time.sleep(0.01)
    assert not running(int(child.read_text()))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_cpu_without_the_instructions_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(recipe, "_cpu_features", lambda: frozenset({"sse4_2"}))
    with pytest.raises(PreconditionFailed, match="no kernels for this CPU"):
        open_kernels(tmp_path)
    with pytest.raises(PreconditionFailed, match="cannot run kernels for avx2$"):
        open_kernels(tmp_path, "avx2")
    with pytest.raises(PreconditionFailed, match="cannot run kernels for nonsense"):
        open_kernels(tmp_path, "nonsense")


@pytest.mark.parametrize(
    ("machine", "features", "expected"),
    [
        ("x86_64", "sse4_2 avx", []),
        ("x86_64", "avx2 fma", []),
        ("x86_64", "avx2 fma f16c", ["avx2"]),
        ("x86_64", "avx2 fma f16c avx_vnni", ["avxvnni", "avx2"]),
        ("x86_64", "avx2 fma f16c avx512f avx512bw avx512vl avx512dq", ["avx2"]),
        ("x86_64", "avx2 fma f16c avx512f avx512bw avx512vl avx512dq avx512_vnni", ["avx512vnni", "avx2"]),
        ("aarch64", "fp asimd", []),
        ("aarch64", "fp asimd asimddp", ["neon"]),
        ("arm64", "asimddp bf16", ["neonbf16", "neon"]),
        ("riscv64", "avx2 fma f16c asimddp", []),
    ],
)
def test_the_variants_of_a_cpu_are_those_whose_instructions_it_has(machine, features, expected, monkeypatch):
    monkeypatch.setattr(recipe.platform, "machine", lambda: machine)
    monkeypatch.setattr(recipe, "_cpu_features", lambda: frozenset(features.split()))
    assert list(recipe.runnable()) == expected
    assert set(expected) <= set(recipe.buildable())


def test_two_processes_at_once_both_get_a_library(compiler, tmp_path):
    Compiler(compiler.path, Path(open_kernels(tmp_path / "first")._library._name), seconds=0.5)
    code = (
        "import sys; from pathlib import Path; from services.inference.native import build;"
        "build.PREBUILT = Path('nowhere'); print(build.open_kernels(Path(sys.argv[1])).variant)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "kernels")]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == [recipe.runnable()[0]] * 2
    assert len(libraries(tmp_path / "kernels")) == 1


def test_a_folder_that_cannot_be_made_is_named(compiler, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PreconditionFailed, match="cannot be built in .*file/kernels: "):
        open_kernels(tmp_path / "file" / "kernels")


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_still_read(compiler, tmp_path):
    folder = tmp_path / "kernels"
    open_kernels(folder)
    folder.chmod(0o500)
    open_kernels(folder)
    compiler.version("two")
    with pytest.raises(PreconditionFailed, match="cannot be built"):
        open_kernels(folder)
    folder.chmod(0o700)


def test_a_folder_that_others_may_write_to_is_not_trusted(compiler, tmp_path):
    folder = tmp_path / "kernels"
    open_kernels(folder)
    folder.chmod(0o777)
    with pytest.raises(PreconditionFailed, match="open to other users"):
        open_kernels(folder)


def test_what_a_build_that_was_killed_left_behind_is_removed_in_time(compiler, tmp_path):
    folder = tmp_path / "kernels"
    for name in ("build-old", "build-new"):
        (folder / name).mkdir(parents=True, mode=0o700)
        folder.chmod(0o700)
    os.utime(folder / "build-old", (0, 0))
    open_kernels(folder)
    assert not (folder / "build-old").exists()
    assert (folder / "build-new").exists()
