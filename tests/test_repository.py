"""The repository keeps its promises: pins, commands, layers and sizes, read from the files that state them."""

import ast
import re
import subprocess
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

from minids.text.corpus import SOURCES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minids"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# From the ground up. A room may import from itself and from what stands before it; nothing imports `minids` itself.
ROOMS = (
    "files", "device", "validation", "units", "tensors",
    "model", "quantization", "cost", "text", "inference", "hub", "parallel", "training", "book", "cli",
)  # fmt: skip


def imports(path: Path) -> set[str]:
    """The minids modules that a file imports, also inside functions; `from minids import x` counts as minids.x."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports by a relative path"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & MODULES.keys()) or {node.module}
    return {name for name in found if name.split(".")[0] == "minids"}


def room(module: str) -> int:
    """Which of ROOMS a module stands in; the package's own two files stand above all of them."""
    name = module.removeprefix("minids").removeprefix(".").split(".")[0]
    assert name in {*ROOMS, "", "__main__"}, f"{module} is in no room: {', '.join(ROOMS)}"
    return ROOMS.index(name) if name in ROOMS else len(ROOMS)


def requirements(extra: str | None = None) -> dict[str, str]:
    """Name and version range of each dependency."""
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    own = "minids["  # an extra that takes in another one
    return dict(re.fullmatch(r"([\w-]+)(.*)", line).groups() for line in lines if not line.startswith(own))


def targets() -> set[str]:
    return set(re.findall(r"(?m)^([\w-]+):(?!=)", (ROOT / "Makefile").read_text()))


# ---------------------------------------------------------------------------------------------------
# Rooms


@pytest.mark.parametrize("module", [name for name in MODULES if name != "minids"])
def test_a_room_imports_only_from_rooms_below_it(module):
    for imported in imports(MODULES[module]):
        assert imported != "minids", f"{module} imports the package that imports it"
        assert room(imported) <= room(module), f"{module} imports {imported}"


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: imports(path) - {module} for module, path in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES)


def test_inside_a_room_files_stand_in_the_order_of_the_readme():
    rows = re.findall(r"\]\(minids/(\w+)/(\w+)\.py\)", (ROOT / "README.md").read_text())
    assert len(rows) >= 20
    for i, (folder, name) in enumerate(rows):
        later = {f"minids.{folder}.{other}" for room_of_other, other in rows[i + 1 :] if room_of_other == folder}
        assert not imports(PACKAGE / folder / f"{name}.py") & later, f"{folder}/{name}.py imports from a later row"


def test_the_readme_s_table_names_every_file_of_the_library():
    named = set(re.findall(r"\]\((minids/\w+/\w+\.py)\)", (ROOT / "README.md").read_text()))
    files = {path.relative_to(ROOT).as_posix() for path in PACKAGE.glob("*/*.py") if path.stem != "__init__"}
    assert {file for file in files if not file.startswith("minids/book/")} <= named


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module):
    assert ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8")))


# ---------------------------------------------------------------------------------------------------
# Versions


def test_what_results_depend_on_is_pinned_exactly():
    exact = re.compile(r"==\d+(\.\d+)+")
    for name in ("torch", "sympy", "networkx", "matplotlib"):
        assert exact.fullmatch(requirements()[name]), name
    assert exact.fullmatch(requirements("book")["transformers"])


def test_every_other_dependency_has_a_range():
    for name, version in (requirements() | requirements("book") | requirements("test")).items():
        assert re.fullmatch(r"==[\d.]+|>=[\d.]+,<[\d.]+", version), f"{name}{version}"


def test_the_corpus_is_read_from_the_pinned_versions():
    assert {name: f"=={version}" for name, version in SOURCES.items()} == {
        name: requirements()[name] for name in SOURCES
    }


def test_the_package_states_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "minids.__version__"}


def test_conda_installs_what_pip_installs():
    """environment.yml names a Python and hands everything else to pyproject.toml."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-e .[test]"]}
    packages = dict(re.fullmatch(r"([\w-]+)=*(.*)", line).groups() for line in conda)
    assert set(packages) == {"python", "pip"}
    lowest = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    assert tuple(map(int, packages["python"].split("."))) >= lowest
    assert packages["pip"] == ""


def test_the_lowest_python_is_said_in_one_voice():
    lowest = PROJECT["requires-python"].removeprefix(">=")
    assert f"needs Python {lowest} or newer" in (ROOT / "Makefile").read_text()
    assert f"Python {lowest} or newer" in (ROOT / "README.md").read_text()
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    assert lowest in workflow["jobs"]["test"]["strategy"]["matrix"]["python"]


# ---------------------------------------------------------------------------------------------------
# Commands and files


def test_the_readme_s_commands_exist():
    named = set(re.findall(r"(?m)^make ([\w-]+)", (ROOT / "README.md").read_text()))
    assert named >= {"train", "test"}
    assert named <= targets()


def test_every_target_that_makes_no_file_is_declared_phony():
    phony = re.search(r"(?m)^\.PHONY: (.*)$", (ROOT / "Makefile").read_text())[1].split()
    assert set(phony) == targets()


def test_continuous_integration_runs_what_the_readme_names():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    assert "make test" in workflow
    assert "make portable" in workflow
    assert "ubuntu-24.04-arm" in yaml.safe_load(workflow)["jobs"]["test"]["strategy"]["matrix"]["os"]


def test_the_readme_links_only_to_what_is_there():
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_readme_has_no_blanks_left_to_fill():
    assert not re.findall(r"@[A-Z_]+@|TODO|TBD|XXX", (ROOT / "README.md").read_text())


def tracked() -> list[Path]:
    try:
        run = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in run.stdout.split("\0") if name and (ROOT / name).exists()]


THE_ONE_BINARY = PACKAGE / "hub" / "checkpoints" / "mini" / "model.safetensors"


def test_no_tracked_file_is_larger_than_a_megabyte_but_the_reference_miniature():
    assert [path for path in tracked() if path.stat().st_size > 1_000_000] == [THE_ONE_BINARY]


def test_nothing_that_a_run_leaves_behind_is_tracked():
    parts = {part for path in tracked() for part in path.relative_to(ROOT).parts}
    assert not parts & {"runs", "my", ".venv", "__pycache__", ".hypothesis", ".pytest_cache", ".ruff_cache"}
    weights = {path for path in tracked() if path.suffix in {".pyc", ".pt", ".pkl", ".safetensors"}}
    assert weights == {THE_ONE_BINARY}
