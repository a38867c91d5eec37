"""The layout of the code: imports point down, there are no cycles, few files at the root, and each says what it is.

    bash tests/run.sh tests/test_house.py

LAYERS is the order. A module may import from its own layer and from those below it; imports inside functions count.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from helpers import ROOT

LAYERS = [  # from the bottom to the top; a package stands for all its modules that have no entry of their own
    {"dpad", "dpad.engine.lazy", "dpad.engine.checks", "dpad.engine.fields", "dpad.engine.command_line",
     "dpad.engine.json_text", "dpad.engine.switch", "dpad.engine.hub", "dpad.engine.registry"},
    {"sampler"},
    {"dpad.engine.settings", "dpad.engine.unmasking", "dpad.engine.decoding", "dpad.engine.transformer",
     "dpad.engine.attention", "dpad.engine.soft", "dpad.engine.cuda_graphs", "dpad.engine.checkpoint",
     "dpad.engine.fused", "dpad.engine.products", "dpad.engine.process", "dpad.engine.adapters",
     "dpad.engine.selection", "dpad.engine.rules", "dpad.engine.pretrained", "dpad.engine.generation",
     "dpad.engine.quantization"},
    {"llada", "dream"},
    {"dpad.engine.loading", "dpad.engine.auto_classes", "dpad.engine.template_trial", "dpad.engine.configurations",
     "dpad.engine.prompts", "dpad.engine.completion", "dpad.engine.likelihood", "dpad.engine.answer_text",
     "dpad.engine.methods", "dpad.engine.memory", "dpad.engine.precision"},
    {"dpad.results"},
    {"dpad.evaluation", "dpad.interact", "dpad.serve", "dpad.training", "checkpoints", "dataset",
     "postprocess_code"},
    {"benchmarks", "demo"},
    {"run"},
]
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
FOLDERS = ("dpad", "llada", "dream", "checkpoints", "dataset", "benchmarks", "demo")
OUTSIDE = {
    "dpad",  # offers `load` from above, and imports it when it is first asked for
    "dpad.editable_build",  # pip's, before anything is installed
}
MAX_FILES_AT_ROOT = 5


def module_of(path: Path) -> str:
    """The dotted name of a Python file: dpad/engine/decoding.py -> dpad.engine.decoding."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])
MODULES = {module_of(path): path for path in FILES}


def imports_of(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of the repository that a file imports anywhere, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from dpad.engine import loading` imports a module, `from dpad import ROOT` a name of one.
            candidates = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {name if name in modules else node.module for name in candidates}
    return names & modules.keys()


def level_of(module: str) -> int:
    """The layer of a module, or of the nearest package around it that LAYERS names."""
    name = module
    while name not in LEVELS and "." in name:
        name = name.rpartition(".")[0]
    if name not in LEVELS or (name == "dpad" and name != module):
        raise AssertionError(f"{module} is in no layer: give it a place in LAYERS of tests/test_house.py")
    return LEVELS[name]


GRAPH = {module: imports_of(path, MODULES) for module, path in MODULES.items() if module not in OUTSIDE}


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_imports_point_down(module):
    """Guards the direction: a lower layer works without those above it."""
    upwards = {name for name in GRAPH[module] if level_of(name) > level_of(module)}
    assert not upwards, f"{module} imports {', '.join(sorted(upwards))}, which stands above it"


def test_there_are_no_cycles():
    """Guards against cycles within a layer, including those through an import inside a function."""
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_few_files_at_the_root():
    """Guards what a newcomer sees first: the program, the method and the scoring."""
    names = sorted(path.name for path in ROOT.glob("*.py"))
    assert len(names) <= MAX_FILES_AT_ROOT, names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_says_what_it_is(path):
    """Guards the first line of every file that holds code."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not tree.body or ast.get_docstring(tree), "the file has no docstring at its top"


def test_the_checks_see_what_they_should(tmp_path):
    """Guards this file: imports inside functions, of a module by its package, and of a name are all found."""
    source = "import run\ndef late():\n    from dpad.engine import loading\n    from dpad.results.records import cores"
    (tmp_path / "example.py").write_text(source)
    assert imports_of(tmp_path / "example.py", MODULES) == {"run", "dpad.engine.loading", "dpad.results.records"}
    assert level_of("dpad.results.anything") == level_of("dpad.results")
    with pytest.raises(AssertionError, match="dpad.engine.anything is in no layer"):
        level_of("dpad.engine.anything")
