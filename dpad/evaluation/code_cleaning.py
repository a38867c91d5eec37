"""Take the program that answers a coding problem out of a model's reply.

`python postprocess_code.py SAMPLES.jsonl` cleans the replies of a run; in Python:

    from dpad.evaluation.code_cleaning import clean
    clean("Sure!\n```python\ndef add(a, b):\n    return a + b\n```", {"test_list": ["assert add(1, 2) == 3"]})

A reply may be the rest of a function, a file, or prose with code in it: fenced in any way or not at all, in one block
or several, drafts before and examples after. All this is read in the same way. Statements are taken from the text one
by one, where the parser finds them: a line at which none begins (prose, a fence) is skipped, and a syntax error says
where a statement stops. Among the readings of a reply, the first is preferred that gives each function that the tests
call a body; of that, everything stays that the functions may need (needed_code.py).

The number of characters given to the parser is bounded by a multiple of the reply's length, and so is the time. When a
reply that nobody can read uses this up, what has been found until then counts.
"""

from __future__ import annotations

import ast
import bisect
import builtins
import re
import textwrap
import time
import warnings
from collections.abc import Iterator, Set

from dpad.evaluation.needed_code import FUNCTIONS, IMPORTS, Statement, is_in_library, names_of, needed

LINE_END = re.compile(r"\r\n?|\n")  # as in Python, where U+2028 ends no line (str.splitlines would split there)
UNREADABLE = re.compile("[\0\ud800-\udfff]")  # what no program contains
CONTINUATION = re.compile(r"(?:else|elif|except|finally|case)\b|[)\]}]")  # goes on with a statement at the same margin
END_MARK = re.compile(r"<\|[^|<>\n]{1,40}\|>|</?s>|<(?:eos|end_of_turn)>|\[DONE\]")  # the model's, or MBPP's
START_MARK = re.compile(r"\[BEGIN\]|`+(?:[ \t]*(?:python|py)[\d.]*\b)?", re.IGNORECASE)
QUOTE = re.compile(r"^[ \t]*(?:>>>|\.\.\.|>) ?", re.MULTILINE)  # of an interactive interpreter, or of Markdown
ITEM = re.compile(r"^[ \t]*(?:[-*+]|\d+[.)])[ \t]+(?=(?:async|def|class|import|from|@)\b)", re.MULTILINE)
INLINE = re.compile(r"(?<=[:.!]) +(?=(?:def|class) )")  # code that begins in a line of prose
FENCE_LINE = re.compile(r"^[ \t]*(?:`{3,}|~{3,})[ \t]*[^\s`]*[ \t]*$", re.MULTILINE)
FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([^\s`{]*)")
DONE = "[DONE]"

ERRORS = (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError)  # of the compiler
ALLOW_INCOMPLETE_INPUT = 0x4000  # a flag of compile(), as in codeop: a text that only lacks its end raises INCOMPLETE
INCOMPLETE = "incomplete input"
CHARACTERS_PER_CHARACTER = 50  # that the parser may read for each of the reply
CHARACTERS_ANYWAY = 200_000
SECONDS = 10.0
MAX_CUTS = 10  # that a statement may need before what precedes its errors parses


def clean(reply: str, problem: dict) -> str:
    """The part of a reply that answers the problem, with the problem's prompt in HumanEval; it compiles.

    problem: HumanEval's `prompt`, `entry_point` and `test`, or MBPP's `test_list`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, about the reply
        return _clean(reply, problem)


def before(problem: dict) -> str:
    """The part of the program that precedes the reply: HumanEval's prompt is the head of the requested function."""
    return problem["prompt"] if "entry_point" in problem else ""


def parses(code: str) -> bool:
    """Whether Python accepts this code."""
    try:
        compile(code, "reply", "exec", dont_inherit=True)
    except ERRORS:
        return False
    return True


def _clean(reply: str, problem: dict) -> str:
    used = _names_in_tests(problem)
    own = used - set(dir(builtins))
    wanted = {problem["entry_point"]} if "entry_point" in problem else own or used
    best: list[Statement] = []
    best_rank = (-1, -1)
    try:
        for statements in _readings(before(problem), reply, wanted):
            rank = _rank(statements, wanted)
            if rank > best_rank:
                best, best_rank = statements, rank
            if rank[0] == len(wanted):
                break
        return "\n".join(needed(_selected(best, wanted), used | wanted))
    except RecursionError:  # the compiler takes deeper trees than can be walked through
        whole = before(problem) + reply
        return whole if parses(whole) else ""


def _names_in_tests(problem: dict) -> set[str]:
    """The names that a problem's tests use and do not bind."""
    lines = [problem["test"]] if "entry_point" in problem else [
        *(problem.get("test_imports") or ()), problem.get("test_setup_code") or "", *problem["test_list"],
    ]
    binds, _, reads = names_of("\n".join(lines))
    return set(reads - binds)


# --- Which statements count -------------------------------------------------------------------------------------------


def _rank(statements: list[Statement], wanted: Set[str]) -> tuple[int, int]:
    """How many of the wanted names have a body, and how many have a part of one: the more, the better a reading."""
    bodies = {name for one, is_complete in _bodies(statements) if is_complete for name in one.binds}
    parts = {name for one, _ in _bodies(statements) for name in one.binds}
    return len(bodies & wanted), len(parts & wanted)


def _bodies(statements: list[Statement]) -> Iterator[tuple[Statement, bool]]:
    """The statements that bind something that can be called, and whether nothing of it was cut off."""
    is_done_bound = any("DONE" in one.binds for one in statements)
    for one in statements:
        if not (one.is_fragment or one.is_stub or isinstance(one.node, IMPORTS) and not is_in_library(one.node)):
            yield one, one.is_whole and (is_done_bound or "DONE" not in one.reads)  # `return x [DONE]` parses


def _selected(statements: list[Statement], wanted: Set[str]) -> list[Statement]:
    """The statements of a reading without those that would undo or break the best definition of each wanted name.

    The last complete one is best: drafts come first. What follows MBPP's mark for the end is another problem's.
    """
    merits: dict[str, tuple[bool, bool]] = {}
    best: dict[str, Statement] = {}
    bodies = dict(_bodies(statements))
    for index, one in enumerate(statements):
        for name in one.binds & wanted if one in bodies else ():
            merit = bodies[one], one.is_definition
            if merit >= merits.get(name, (False, False)):
                merits[name], best[name] = merit, one
        if one.source == DONE and all(merits.get(name, (False,))[0] for name in wanted):
            statements = statements[:index]
            break
    statements = [one for one in statements if not one.is_fragment]
    if not best:
        return statements

    blocks = [one.block for one in best.values()]
    main = max(blocks, key=blocks.count)
    own = {name for one in statements if one.block in (0, main) for name in one.binds}  # the prompt is in block 0
    return [one for one in statements if _agrees(one, best, main, own, wanted)]


def _agrees(one: Statement, best: dict[str, Statement], main: int, own: Set[str], wanted: Set[str]) -> bool:
    """Whether a statement can stand beside the best definitions.

    main: the block in which most of them are. own: the names that it and the prompt bind.
    """
    for name in one.binds & best.keys():
        is_poorer = one.is_stub or not one.is_whole and best[name].is_whole
        if one is not best[name] and is_poorer and not getattr(one.node, "decorator_list", ()):
            return False
    if one.block == main or one in best.values():
        return True
    if one.binds & own and (one.block > 0 or one.binds & best.keys()):
        return False
    is_quiet = one.is_definition or isinstance(one.node, IMPORTS)
    return is_quiet or not one.reads & (wanted | (own if one.block < main else set()))


# --- Readings of a reply ----------------------------------------------------------------------------------------------


def _readings(prompt: str, reply: str, wanted: Set[str]) -> Iterator[list[Statement]]:
    """The ways to understand a reply, the most literal first."""
    whole = LINE_END.sub("\n", prompt + reply)
    prompt = LINE_END.sub("\n", prompt)
    prompt += "\n" if prompt and not prompt.endswith("\n") else ""
    literal = LINE_END.sub("\n", UNREADABLE.sub("\ufffd", reply))
    marked = END_MARK.sub(f"\n{DONE}\n", literal)
    plain = START_MARK.sub("\n", FENCE_LINE.sub("", marked.expandtabs(4)))
    bare = INLINE.sub("\n", ITEM.sub(lambda item: " " * len(item[0]), QUOTE.sub("", plain)))
    texts = list(dict.fromkeys([marked, literal, plain, bare]))
    if parses(whole):
        lines = whole.split("\n")
        yield [_statement(_source(lines, node), node) for node in ast.parse(whole).body]
        texts = [text for text in texts if text != literal]

    budget = Budget(len(prompt) + len(reply))
    prompt_lines = prompt.count("\n")
    found: list[Statement] = []
    for text in texts:
        lines = (prompt + text).split("\n")
        found = _scan(lines, budget)
        yield found
        yield _with_body(found, prompt_lines, wanted)

    # A stray quote can hide a definition in a string: look at each line that begins one.
    names = "|".join(map(re.escape, sorted(wanted)))
    beginning = re.compile(rf"[ \t]*(?:(?:async[ \t]+)?def|class)[ \t]+(?:{names})\b")
    lines = (prompt + plain).split("\n")
    for index, line in enumerate(lines):
        if index >= prompt_lines and beginning.match(line):
            yield found + _scan(lines, budget, index)


def _with_body(statements: list[Statement], prompt_lines: int, wanted: Set[str]) -> list[Statement]:
    """The statements, with a body that stands alone put under the prompt's head."""
    heads = [one for one in statements if one.is_stub and one.line < prompt_lines and one.binds & wanted]
    fragments = [one for one in statements if one.is_fragment and one.line >= prompt_lines]
    if not heads or not fragments:
        return statements
    body = [one for one in statements if one.block == fragments[0].block and one.line >= prompt_lines]
    while not body[-1].is_fragment:
        body.pop()

    head = heads[-1]
    assert isinstance(head.node, FUNCTIONS)
    margin = " " * head.node.body[0].col_offset
    source = "\n".join([head.source, *(textwrap.indent(one.source, margin) for one in body)])
    try:
        function = _statement(source, ast.parse(source).body[0], head.block, all(one.is_whole for one in body))
    except ERRORS:
        return statements
    moved = set(body)
    return [function if one is head else one for one in statements if one not in moved]


# --- Statements of a text ---------------------------------------------------------------------------------------------


class Budget:
    """What may still be spent on a text: characters for the parser, and seconds, which no readable reply comes near."""

    def __init__(self, length: int) -> None:
        self.characters = CHARACTERS_ANYWAY + CHARACTERS_PER_CHARACTER * length
        self.deadline = time.monotonic() + SECONDS

    @property
    def is_left(self) -> bool:
        """Whether anything is left."""
        return self.characters > 0 and time.monotonic() < self.deadline


def _scan(lines: list[str], budget: Budget, first: int = 0) -> list[Statement]:
    """The statements in a text, wherever they stand."""
    found: list[Statement] = []
    chunks = _chunks(lines)
    fences = [index for index, line in enumerate(lines) if FENCE.match(line)]
    block = 0
    position = first
    while position < len(lines) and budget.is_left:
        if chunks[position] == position:  # blank, or a comment
            position += 1
            continue
        if fence := FENCE.match(lines[position]):
            block += 1
            position += 1
            if fence[2] and "py" not in fence[2].lower():  # a shell's, some output
                after = bisect.bisect_left(fences, position)
                position = fences[after] if after < len(fences) else position
            continue
        one = _statement_at(lines, chunks, position, block, budget)
        if one is None:
            block += 1
            position += 1
        else:
            statements, position = one
            found += statements
    return found


def _chunks(lines: list[str]) -> list[int]:
    """For each line, where those end that belong to it by their indentation; itself for blank lines and comments."""
    ends = list(range(len(lines)))
    heads: list[tuple[int, int, bool]] = []  # what may end a chunk: line, margin, whether it continues at that margin
    for index in reversed(range(len(lines))):
        margin = _margin(lines[index])
        text = lines[index][margin:]
        if text and not text.startswith("#"):
            while heads and (heads[-1][1] > margin or heads[-1][1] == margin and heads[-1][2]):
                heads.pop()
            ends[index] = heads[-1][0] if heads else len(lines)
            heads.append((index, margin, bool(CONTINUATION.match(text))))
    return ends


def _margin(line: str) -> int:
    return len(line) - len(line.lstrip())


def _statement_at(
    lines: list[str], chunks: list[int], first: int, block: int, budget: Budget
) -> tuple[list[Statement], int] | None:
    """The statement that begins at a line, and the line after it; None if none does.

    There are several statements if they share a line. An incomplete one gets more lines, twice as many each time. One
    with an error ends before the error, and what precedes that may be incomplete in its turn.
    """
    margin = _margin(lines[first])
    end = chunks[first]
    step = 1
    while True:
        text = [line[min(margin, _margin(line)):] for line in lines[first:end]]
        found = _parse(text, budget)
        if found != INCOMPLETE or end >= len(lines) or not budget.is_left:
            break
        for _ in range(step):
            end = max(end + 1, chunks[end]) if end < len(lines) else end
        step *= 2

    cut = None
    for _ in range(MAX_CUTS):
        if found == INCOMPLETE:
            found = _parse(text, budget, flags=0)
        if not isinstance(found, int):
            break
        text = text[: found - 1]
        cut = first + len(text)
        found = _parse(text, budget) if text else 1
    if not isinstance(found, ast.Module) or not found.body:
        return None

    nodes = found.body[:1]
    for node in found.body[1:]:
        if node.lineno > (nodes[-1].end_lineno or 0):
            break
        nodes.append(node)
    is_whole = cut is None or len(found.body) > len(nodes) or (
        _margin(lines[cut]) <= margin and not CONTINUATION.match(lines[cut].lstrip())
    )
    try:
        statements = [_statement(_source(text, node), node, block, is_whole, first) for node in nodes]
    except ERRORS:
        return None
    return statements, first + (nodes[-1].end_lineno or 1)


def _parse(lines: list[str], budget: Budget, flags: int = ALLOW_INCOMPLETE_INPUT) -> ast.Module | int | str:
    """The tree of a text, or INCOMPLETE, or else the number of the line (1 to their count) that has an error."""
    text = "\n".join(lines)
    budget.characters -= len(text)
    try:
        return compile(text, "reply", "exec", ast.PyCF_ONLY_AST | flags, dont_inherit=True)
    except SyntaxError as error:
        return INCOMPLETE if error.msg == INCOMPLETE else max(1, min(error.lineno or 1, len(lines)))
    except ERRORS:
        return 1


def _source(lines: list[str], node: ast.stmt) -> str:
    """The text of a statement with its decorators, but without what shares its lines."""
    first = min([node.lineno, *(line.lineno for line in getattr(node, "decorator_list", ()))])
    selected = lines[first - 1 : node.end_lineno]
    selected[-1] = selected[-1].encode()[: node.end_col_offset].decode()  # columns count bytes
    if first == node.lineno:
        selected[0] = selected[0].encode()[node.col_offset :].decode()
    return "\n".join(selected)


def _statement(source: str, node: ast.stmt, block: int = 0, is_whole: bool = True, line: int = 0) -> Statement:
    """A statement with its names.

    Raises:
        RecursionError, MemoryError: it is nested too deeply.
    """
    if not parses(source):  # such as a `return` outside a function
        nothing: frozenset[str] = frozenset()
        return Statement(source, node, block, is_whole, nothing, nothing, nothing, is_fragment=True, line=line)
    binds, sets, reads = names_of(source)
    if isinstance(node, ast.AnnAssign) and node.value is None:
        binds = frozenset()
    return Statement(source, node, block, is_whole, binds, sets, reads, line=line)
