"""What a function needs of the program around it: the statements at module level that it may read or depend on.

Used by code_cleaning.py; there is no command of its own: `python postprocess_code.py SAMPLES.jsonl` cleans replies.

A definition is needed when something needed reads its name. That is not all: a loop may fill a table, a call may
register a function, `sys.setrecursionlimit` changes the interpreter. So every statement gets the names that it binds,
reads and may change, and whatever may change something needed is kept. Which names are global is Python's own finding
(symtable); what may change an object is guessed on the safe side: a method call may change its object, a call its
arguments. Examples, prints and scripts after the function change nothing that is needed, and go.
"""

from __future__ import annotations

import ast
import builtins
import itertools
import symtable
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
IMPORTS = (ast.Import, ast.ImportFrom)
LOOPS = (ast.For, ast.AsyncFor, ast.comprehension)

INTERPRETER = "<interpreter>"  # a name for the state of Python and its library, which everything may need
SETTERS = {  # calls that change it, also in a function
    "setrecursionlimit", "set_int_max_str_digits", "stack_size", "seed", "getcontext", "setcontext", "setlocale",
    "setrlimit", "filterwarnings", "simplefilter", "exec",
}
PASSING = {  # calls of the library that leave nothing behind, or end the program
    "exit", "_exit", "abort", "kill", "main", "testmod", "run", "sleep", "stdin", "stdout", "stderr", "Thread",
    "system", "pprint", "print_exc", "timeit",
}
TALK = {"print", "input", "exit", "quit", "breakpoint", "help"}
DYNAMIC = {"globals", "vars", "locals", "eval", "exec", "__import__"}  # nobody knows which names these read
HARMLESS = set(dir(builtins)) - {"setattr", "delattr", "next", "exec", "eval", "map", "filter"}  # to their arguments


@dataclass(frozen=True, eq=False)
class Statement:
    """A statement at module level.

    `source` compiles alone (a fragment only inside a function), and `node` is its tree. Statements with nothing but
    blank lines and comments between them are of the same `block`. `is_whole` is False where a part of it could not be
    read. `binds` are the names that it assigns, defines, imports or deletes when it runs, `sets` those that functions
    in it declare `global` and assign, `reads` the global names that it uses, then or later. `line` is its first one in
    the text that was searched, from 0.
    """

    source: str
    node: ast.stmt
    block: int
    is_whole: bool
    binds: frozenset[str]
    sets: frozenset[str]
    reads: frozenset[str]
    is_fragment: bool = False
    line: int = 0

    @property
    def is_definition(self) -> bool:
        """Whether this is a function or a class."""
        return isinstance(self.node, DEFINITIONS)

    @property
    def is_stub(self) -> bool:
        """Whether this is a function that does nothing: a docstring, `pass`, `...`, `return`, NotImplementedError."""
        return isinstance(self.node, FUNCTIONS) and all(_does_nothing(part) for part in self.node.body)


Fact = tuple[str, str | Statement]
ANYTHING: Fact = ("wanted", "<anything>")


def names_of(source: str) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """The names that a program binds at module level, those that its functions set there, and those that it reads.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: it does not compile, or is nested too deeply.
    """
    module = symtable.symtable(source, "reply", "exec")
    binds = {symbol.get_name() for symbol in module.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    reads = {symbol.get_name() for symbol in module.get_symbols() if symbol.is_referenced()}
    sets = set()
    tables = list(module.get_children())
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            # In a class, `K = K` reads the global name before it binds its own.
            if symbol.is_referenced() and (symbol.is_global() or table.get_type() == "class"):
                reads.add(symbol.get_name())
            if symbol.is_declared_global() and symbol.is_assigned():
                sets.add(symbol.get_name())
    return frozenset(binds), frozenset(sets), frozenset(reads)


def needed(statements: Sequence[Statement], names: Set[str]) -> list[str]:
    """The texts of the statements that these names need, directly or indirectly, in order; `__future__` comes first."""
    imported = {name for one in statements if isinstance(one.node, IMPORTS) for name in one.binds}
    defined = {name for one in statements if one.is_definition for name in one.binds}
    marking = {name for one in statements if one.is_definition and _marks(one.node) for name in one.binds}
    risky = set()

    # What follows from a fact about a name. "wanted": its value is needed. "part": changing it changes something
    # wanted. "agent": so does calling it.
    keeps: dict[Fact, list[Statement]] = defaultdict(list)
    implies: dict[Fact, list[Fact]] = defaultdict(list)
    facts: list[Fact] = [("part", INTERPRETER), *(("wanted", name) for name in names)]

    for one in statements:
        now = list(_walk_now(one.node))
        reads_now = one.reads & {part.id for part in now if isinstance(part, ast.Name)}
        if reads_now & (defined | TALK) or any(isinstance(part, ast.Assert) for part in now):
            risky.add(one)

        for name in one.binds:
            keeps["wanted", name].append(one)
            if isinstance(one.node, ast.Assign):
                implies["part", name].append(("parts of", one))  # a = b = []
        for name in _changed(now, imported, defined, marking) | (one.sets if not one.is_definition else frozenset()):
            keeps["part", name].append(one)
        for name in _aliased(now):
            implies["part", name].append(("parts of", one))
        if "input" not in reads_now:  # there is nobody to answer, and a loop might ask for ever
            for name in reads_now:
                keeps["agent", name].append(one)
        if one not in risky and _is_setting(one.node, imported) or any(map(_imports_all, now)):
            keeps["part", INTERPRETER].append(one)

        inside = {id(part) for part in now}
        later = [part for part in ast.walk(one.node) if id(part) not in inside]
        for name in one.sets | _changed(later, imported, defined, marking) & (one.reads | {INTERPRETER}):
            implies["part", name].append(("agents of", one))
        for name in one.reads:
            implies["agent", name].append(("agents of", one))
        if one not in risky:
            implies[ANYTHING] += [("wanted", name) for name in one.binds]
        implies["parts of", one] = [("part", name) for name in one.binds]
        implies["agents of", one] = [("agent", name) for name in one.binds]

    kept = set()
    known = set()
    while facts:
        fact = facts.pop()
        if fact in known:
            continue
        known.add(fact)
        facts += implies[fact]
        if fact[0] == "wanted":
            facts.append(("part", fact[1]))
        for one in keeps[fact]:
            if one not in kept:
                kept.add(one)
                facts += [("wanted", name) for name in one.reads]
                if one.reads & DYNAMIC:
                    facts.append(ANYTHING)

    readers = Counter(itertools.chain(names, *(one.reads for one in kept)))

    def text(one: Statement) -> str:
        is_for_its_name = any(readers[name] > (name in one.reads) for name in one.binds)
        return one.source if is_for_its_name or one not in risky else _guarded(one.node)

    ordered = sorted((one for one in statements if one in kept), key=lambda one: not _is_future(one.node))
    return [text(one) for one in ordered]


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def is_in_library(node: ast.Import | ast.ImportFrom) -> bool:
    """Whether an import needs the standard library alone; a program finds nothing else in the sandbox."""
    if isinstance(node, ast.ImportFrom):
        modules = ["" if node.level else node.module or ""]
    else:
        modules = [alias.name for alias in node.names]
    return all(module.partition(".")[0] in sys.stdlib_module_names for module in modules)


def _is_setting(node: ast.stmt, imported: Set[str]) -> bool:
    """Whether this stands for what it does to the interpreter: an import, or a call such as `random.seed(1)`."""
    if isinstance(node, IMPORTS):
        return is_in_library(node)
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        return False
    parts = {part.attr for part in ast.walk(node.value.func) if isinstance(part, ast.Attribute)}
    root = _root(node.value.func)
    return root in imported and not (parts | {root}) & PASSING


def _imports_all(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and node.names[0].name == "*"


def _guarded(node: ast.stmt) -> str:
    """A statement that may fill a table, but may also fail as an example or a script does."""
    try:
        text = ast.unparse(node)
    except RecursionError:
        return "pass"
    return f"try:\n{textwrap.indent(text, '    ')}\nexcept BaseException:\n    pass"


def _does_nothing(node: ast.stmt) -> bool:
    if isinstance(node, ast.Return):
        return node.value is None or isinstance(node.value, ast.Constant) and node.value.value is None
    if isinstance(node, ast.Raise):
        return any(isinstance(part, ast.Name) and part.id == "NotImplementedError" for part in ast.walk(node))
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, (ast.Pass, *DEFINITIONS, *IMPORTS))


def _walk_now(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a statement that run when it does: not the bodies of functions."""
    pending = [node]
    while pending:
        part = pending.pop()
        yield part
        if isinstance(part, FUNCTIONS):
            pending += [*part.decorator_list, part.args, *([part.returns] if part.returns else [])]
        else:
            pending += ast.iter_child_nodes(part)


def _root(node: ast.AST | None) -> str:
    """The name at the start of `name.attribute[index].method().…`; empty if there is none."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Starred, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _changed(
    parts: Iterable[ast.AST], imported: Set[str], defined: Set[str], marking: Set[str]
) -> set[str]:
    """The names whose objects these parts of a program may change.

    imported, defined: by import statements and by definitions. marking: functions that set attributes of something.
    """
    library = imported | DYNAMIC
    stored = set()
    names = set()
    for part in parts:
        if isinstance(part, (ast.Attribute, ast.Subscript)) and not isinstance(part.ctx, ast.Load):
            stored.add(_root(part))
        elif isinstance(part, ast.Call):
            function = part.func
            called = getattr(function, "id", "") or getattr(function, "attr", "")
            arguments = {_root(argument) for argument in [*part.args, *(pair.value for pair in part.keywords)]}
            if called in SETTERS:
                names.add(INTERPRETER)
            if called in ("setattr", "delattr") and part.args:
                stored.add(_root(part.args[0]))
            elif not isinstance(function, ast.Name):
                root = _root(function)
                (stored if root in DYNAMIC else names).add(root if root not in imported else "")
                names |= arguments - defined
            elif called in marking:
                names |= arguments
            elif called not in HARMLESS:
                names |= (arguments | {called}) - defined  # a name may stand for a method: add = TABLE.append
        elif isinstance(part, DEFINITIONS):
            bases = [*part.bases, *(pair.value for pair in part.keywords)] if isinstance(part, ast.ClassDef) else []
            names |= {_root(base) for base in bases}  # a class knows its subclasses
            decorators = {_root(line) for line in part.decorator_list if not isinstance(line, ast.Name)}
            names |= decorators - imported  # @TABLE.register
    if stored & library:
        names.add(INTERPRETER)
    return (names | stored) - {""}


def _marks(node: ast.stmt) -> bool:
    """Whether this sets an attribute of something other than its own object."""
    return any(
        isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store) and _root(part) not in ("self", "cls", "")
        for part in ast.walk(node)
    )


def _aliased(parts: Iterable[ast.AST]) -> set[str]:
    """The names of which what these parts bind may be a part: `row = GRID[0]`, `for row in GRID`, `class A(B)`."""
    names = set()
    for part in parts:
        if isinstance(part, LOOPS):
            value: ast.expr | None = part.iter
        elif isinstance(part, (ast.Assign, ast.AnnAssign, ast.NamedExpr)):
            value = part.value
        elif isinstance(part, ast.withitem):
            value = part.context_expr
        elif isinstance(part, ast.ClassDef):
            value = ast.Tuple(part.bases)
        else:
            continue
        for inner in ast.walk(value) if value else ():
            if isinstance(inner, ast.Name):
                names.add(INTERPRETER if inner.id in DYNAMIC else inner.id)
            elif isinstance(inner, ast.Attribute) and inner.attr == "modules":
                names.add(INTERPRETER)
    return names
