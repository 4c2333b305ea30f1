# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The rules of the house that no linter knows (CONTRIBUTING.md says why each is one)."""

import ast
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOPS = ("src", "lab", "tests", "packaging", "tools", "remotes", "docs", ".ci", "bench")
# Where a failure that nobody foresaw ends, or is carried to another thread.
BOUNDARIES = {
    "src/cxm/cli/main.py",
    "src/cxm/cluster/agentmain.py",
    "src/cxm/cluster/nudge.py",
    "src/cxm/cluster/peerserver.py",
    "src/cxm/cluster/watch.py",
    "src/cxm/node/helper.py",
    "src/cxm/one/action.py",
    "src/cxm/one/im/control.py",
    "src/cxm/pipe.py",
    "src/cxm/run.py",
    "src/cxm/setup/main.py",
    "src/cxm/sync/main.py",
}
RUNNERS = {"src/cxm/run.py", "lab/process.py"}
HEAD = "# SPDX-License-Identifier: Apache-2.0\n# Copyright The cxm for OpenNebula authors\n"
HARD_LIMIT = 500
SLOW = {"pathlib", "argparse", "inspect", "typing_extensions"}


def _files(*tops: str, suffix: str = "") -> Iterator[tuple[str, str]]:
    """Relative path and text of each text file below the tops."""
    for top in tops:
        for directory, names, files in os.walk(ROOT / top):
            names[:] = [name for name in names if name not in ("__pycache__", "data", "recorded")]
            for name in files:
                path = Path(directory, name)
                if name.endswith(suffix) and not path.is_symlink():
                    try:
                        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
                    except UnicodeDecodeError:
                        continue


def _trees(*tops: str) -> Iterator[tuple[str, ast.Module]]:
    for path, text in _files(*tops, suffix=".py"):
        yield path, _parsed(text)


# Five rules read the same trees.
_parsed = cache(ast.parse)


def _imports(tree: ast.AST) -> set[str]:
    found = set()
    for each in ast.walk(tree):
        if isinstance(each, ast.Import):
            found |= {alias.name.split(".")[0] for alias in each.names}
        elif isinstance(each, ast.ImportFrom) and each.module:
            found.add(each.module.split(".")[0])
    return found


def test_only_one_module_starts_processes() -> None:
    """Everything else goes through its argument lists, time limits and clean environment."""
    wrong = {
        path
        for path, tree in _trees("src", "lab")
        if "subprocess" in _imports(tree) and path not in RUNNERS
    }
    assert not wrong
    # A process that becomes another one is run.py's business too.
    loose = re.compile(r"\bos\.(system|popen|exec[lv]p?e?|spawn\w+)\(|shell=True")
    found = {path for path, text in _files("src", suffix=".py") if loose.search(text)}
    assert found <= {"src/cxm/run.py"}


def test_every_source_file_says_its_licence() -> None:
    """Two lines, after the interpreter where there is one."""
    wrong = []
    for path, text in _files(
        "src", "lab", "tests", "packaging", "tools", "remotes", ".ci", "bench"
    ):
        is_code = path.endswith(".py") or text.startswith("#!")
        start = text.split("\n", 1)[1] if text.startswith("#!") else text
        if is_code and text and not start.startswith(HEAD) and "/deb/" not in path:
            wrong.append(path)
    assert not wrong


def test_every_program_is_linted() -> None:
    """A Python program whose name has no suffix is found by no linter unless it is listed."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    programs = {
        path
        for path, text in _files(*TOPS)
        if re.match(r"#!.*\bpython3", text) and not path.endswith(".py")
    }
    assert programs == set(settings["ruff"]["extend-include"])
    assert programs <= set(settings["mypy"]["files"])


def test_nothing_is_left_for_later() -> None:
    """What is to be done is an issue, not a comment."""
    mark = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")
    assert not [path for path, text in _files(*TOPS) if mark.search(text)]


def test_program_has_no_asserts() -> None:
    """A check that python -O drops is no check."""
    for path, tree in _trees("src"):
        assert not [each for each in ast.walk(tree) if isinstance(each, ast.Assert)], path


def _catches_all(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    names = {kind.id for kind in kinds if isinstance(kind, ast.Name)}
    return handler.type is None or bool(names & {"Exception", "BaseException"})


def test_only_boundaries_catch_everything() -> None:
    """Elsewhere a handler for everything undoes something and raises again."""
    wrong = [
        f"{path}:{each.lineno}"
        for path, tree in _trees("src")
        for each in ast.walk(tree)
        if isinstance(each, ast.ExceptHandler)
        and _catches_all(each)
        and path not in BOUNDARIES
        and not any(isinstance(inner, ast.Raise) for inner in ast.walk(each))
    ]
    assert not wrong


def test_drivers_start_fast() -> None:
    """A driver is a process per action: modules that cost more than its work stay out."""
    for path, tree in _trees("src/cxm/one", "src/cxm/node"):
        assert not _imports(tree) & SLOW, path


def test_program_needs_the_standard_library_only() -> None:
    """Nothing else is on a node."""
    known = sys.stdlib_module_names | {"cxm"}
    for path, tree in _trees("src"):
        assert _imports(tree) <= known, path


def test_modules_stay_readable() -> None:
    """A module that grows over the limit owns two things."""
    long = {
        path: text.count("\n")
        for path, text in _files("src", "lab", suffix=".py")
        if text.count("\n") > HARD_LIMIT
    }
    assert not long


def test_names_say_what_a_module_owns() -> None:
    """A drawer named utils fills up."""
    wrong = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert not [path for path, _ in _files("src", "lab", suffix=".py") if Path(path).name in wrong]


def test_fakes_are_passed_in() -> None:
    """Patching names inside of modules ties a test to their spelling."""
    for path, tree in _trees("tests"):
        for each in ast.walk(tree):
            if isinstance(each, ast.ImportFrom):
                assert each.module != "unittest.mock", path


@pytest.mark.parametrize("path", ["README.md", "CONTRIBUTING.md", ".ci/run", "Makefile"])
def test_everybody_names_the_same_command(path: str) -> None:
    """What a reader is told to run is what continuous integration runs."""
    text = (ROOT / path).read_text(encoding="utf-8")
    assert ("test: check" if path == "Makefile" else "make test") in text


def test_guide_on_testing_knows_every_directory() -> None:
    """docs/testing.md says what each directory of tests proves."""
    text = (ROOT / "docs/testing.md").read_text(encoding="utf-8")
    for directory in sorted((ROOT / "tests").iterdir()):
        if directory.is_dir() and directory.name != "__pycache__":
            assert f"`tests/{directory.name}/`" in text
