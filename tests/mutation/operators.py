"""Small faults made from a module's syntax tree: what can be broken in it, one place at a time."""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
}
COMPARISON = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any", "zeros_like": "ones_like", "ones_like": "zeros_like"}
TENSOR_METHODS = {"sum": "amax"}  # with a dimension: of several terms, the largest
DROPPED = ("clamp_min", "clamp_max", "clamp", "nan_to_num")  # dropped with their arguments; others only if they have none
SYMMETRIC = ("min", "max", "minimum", "maximum", "isinstance")  # arguments commute; those of the last would not run
SILENT = ("LOG", "logging", "warnings")  # what these do is no behaviour
TEXTS = ("UserError", "provenance")  # what is said, not whether it is said
TEXT_KEYS = ("provenance", "description", "help")
ALIASES = ("Literal", "Callable", "Union")
# what makes a stream of draws from names: another name makes one as good
STREAMS = ("torch_generator", "numpy_generator", "counted_generator", "agree_on_generator", "Draws", "secret", "noise")

Path = tuple[tuple[str, int | None], ...]
Variant = tuple[str, str, str, ast.AST]  # operator, old and new text, node


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        file: source file below ``dpsapf/``.
        place: dotted name of the function or class, empty for the module's own code.
        line: its source line, without indentation and comment.
        operator: kind of fault.
        old: text that is replaced.
        new: what replaces it.
        nth: number among those of the same place, line, operator and texts, from 1.
        position: line and column, from 1.
        statement: first and last line of the statement's own code.
        inside: whether it is code of a function, which only some tests reach.
        path: fields and indices that lead to the node.
        node: what replaces the node.
    """

    file: str
    place: str
    line: str
    operator: str
    old: str
    new: str
    nth: int
    position: tuple[int, int]
    statement: tuple[int, int]
    inside: bool
    path: Path
    node: ast.AST

    @property
    def id(self) -> str:
        """Name the mutant by what stands there, so that it stays the same when other lines move."""
        number = f" #{self.nth}" if self.nth > 1 else ""
        return f"{self.file}:{self.place or 'module'} | {self.line} | {self.operator}: {self.old} -> {self.new}{number}"

    @property
    def where(self) -> str:
        """Return file:line:column."""
        return f"{self.file}:{self.position[0]}:{self.position[1]}"

    def tree(self, source: str) -> ast.Module:
        """Return the mutated syntax tree of the file's text."""
        tree = ast.parse(source)
        node = tree
        for field, index in self.path[:-1]:
            node = _child(node, field, index)
        field, index = self.path[-1]
        new = ast.copy_location(self.node, _located(_child(node, field, index), node))
        if index is None:
            setattr(node, field, new)
        else:
            getattr(node, field)[index] = new
        return ast.fix_missing_locations(tree)


def mutants(source: str, file: str) -> list[Mutant]:
    """Make every mutant of a file's text, in the order of its lines."""
    lines, seen, made = source.splitlines(), Counter(), []
    for path, chain, (operator, old, new, node) in _sites(ast.parse(source)):
        located = _located(chain[-1], *reversed(chain))
        place, line = _place(chain), lines[located.lineno - 1].partition("  # ")[0].strip()
        key = (place, line, operator, old, new)
        seen[key] += 1
        position = (located.lineno, located.col_offset + 1)
        made.append(Mutant(file, *key, seen[key], position, _statement(chain), _inside(chain), path, node))
    return sorted(made, key=lambda mutant: mutant.position)


def _sites(tree: ast.Module) -> Iterator[tuple[Path, list[ast.AST], Variant]]:
    """Yield every variant with the path to its node, and the nodes from the module down to it."""
    stack: list[tuple[Path, list[ast.AST]]] = [((), [tree])]
    while stack:
        path, chain = stack.pop()
        for variant in _variants(chain):
            yield path, chain, variant
        children = [((*path, step), [*chain, child]) for step, child in _children(chain[-1])]
        stack += reversed(children)


def _children(node: ast.AST) -> Iterator[tuple[tuple[str, int | None], ast.AST]]:
    """Yield what may be broken below a node: no annotations, decorators, imports, docstrings, messages."""
    if _left_alone(node):
        return
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.expr_context | ast.operator | ast.cmpop):
                yield (field, index), child


def _left_alone(node: ast.AST) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.JoinedStr() | ast.arg():
            return True
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Expr(value=ast.Call() as call):
            return _root(call) in SILENT
        case ast.If(test=test):
            return "TYPE_CHECKING" in ast.unparse(test)
        case ast.Assign(value=ast.Subscript(value=value)):
            return ast.unparse(value).rpartition(".")[2] in ALIASES
        case ast.Call():
            return _called(node) in TEXTS
        case ast.keyword(arg=name):
            return name in TEXT_KEYS
    return False


def _variants(chain: list[ast.AST]) -> Iterator[Variant]:
    node, parent = chain[-1], chain[-2] if len(chain) > 1 else None
    if _left_alone(node):
        return
    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            yield _variant("arithmetic", node, ast.BinOp(left, ARITHMETIC[type(op)](), right))
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
            yield _variant("dropped", node, operand)
        case ast.Compare():
            yield from _comparisons(node)
        case ast.BoolOp(op=op, values=values):
            yield _variant("boolean", node, ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values))
        case ast.Constant():
            yield from _constants(node, chain)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield _variant("branches swapped", node, ast.IfExp(test, orelse, body))
        case ast.comprehension(target=target, iter=values, ifs=ifs, is_async=kind):
            for index, test in enumerate(ifs):
                kept = ast.comprehension(target, values, _without(ifs, index), kind)
                yield "filter dropped", f"if {ast.unparse(test)}", "", kept
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            for index, element in enumerate(elements):
                if isinstance(element, ast.Starred):
                    yield "element dropped", ast.unparse(element), "", type(node)(_without(elements, index), node.ctx)
        case ast.If(test=test, body=body, orelse=orelse):
            for value in (True, False):
                yield "condition", f"if {ast.unparse(test)}", f"if {value}", ast.If(ast.Constant(value), body, orelse)
        case ast.Call():
            yield from (fault for fault in _calls(node) if not (fault[0] == "call dropped" and isinstance(parent, ast.Expr)))
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Delete():
            yield "statement dropped", _short(node), "", ast.Pass()
        case ast.Raise() if not (isinstance(parent, ast.If) and parent.body == [node] and not parent.orelse):
            yield "statement dropped", f"raise {_called(node.exc) if isinstance(node.exc, ast.Call) else ''}", "", ast.Pass()


def _comparisons(node: ast.Compare) -> Iterator[Variant]:
    for index, op in enumerate(node.ops):
        ops = [*node.ops[:index], COMPARISON[type(op)](), *node.ops[index + 1 :]]
        yield _variant("comparison", node, ast.Compare(node.left, ops, node.comparators))


def _constants(node: ast.Constant, chain: list[ast.AST]) -> Iterator[Variant]:
    value = node.value
    if isinstance(value, bool):
        yield _variant("constant", node, ast.Constant(not value))
    elif isinstance(value, int):
        yield _variant("constant", node, ast.Constant(value + 1))
    elif isinstance(value, float):
        yield _variant("constant", node, ast.Constant(2 * value if value else 1.0))
    elif isinstance(value, str) and _used(chain):
        yield _variant("string", node, ast.Constant("mutant"))


def _used(chain: list[ast.AST]) -> bool:
    """Whether a string is compared, alone or in a display, or is an argument that does not only name a stream."""
    above = [node for node in chain[:-1] if not isinstance(node, ast.keyword)]
    if isinstance(above[-1], ast.Tuple | ast.List | ast.Set):
        return isinstance(above[-2], ast.Compare)
    is_argument = isinstance(above[-1], ast.Call) and _called(above[-1]) not in STREAMS
    return isinstance(above[-1], ast.Compare) or is_argument


def _calls(node: ast.Call) -> Iterator[Variant]:
    name, arguments = _called(node), node.args
    if name in FUNCTIONS:
        yield "function", name, FUNCTIONS[name], ast.Call(_renamed(node.func, FUNCTIONS[name]), arguments, node.keywords)
    if name in TENSOR_METHODS and isinstance(node.func, ast.Attribute) and arguments and not node.keywords:
        yield "function", name, TENSOR_METHODS[name], ast.Call(_renamed(node.func, TENSOR_METHODS[name]), arguments, [])
    if _is_chained(node.func) and (name in DROPPED or not (arguments or node.keywords)):
        yield "call dropped", _short(node, 60), _short(node.func.value, 60), node.func.value
    if name in STREAMS:
        for index, argument in enumerate(arguments):
            yield "argument dropped", ast.unparse(argument), "", ast.Call(node.func, _without(arguments, index), node.keywords)
    elif name not in SYMMETRIC:
        yield from _swaps(node, name)
    for index, keyword in enumerate(node.keywords):
        if keyword.arg is not None and keyword.arg not in TEXT_KEYS:
            yield "keyword dropped", _short(keyword), "", ast.Call(node.func, arguments, _without(node.keywords, index))


def _swaps(node: ast.Call, name: str) -> Iterator[Variant]:
    for index, (first, second) in enumerate(zip(node.args, node.args[1:], strict=False)):
        if isinstance(first, ast.Starred) or isinstance(second, ast.Starred) or ast.dump(first) == ast.dump(second):
            continue
        swapped = ast.Call(node.func, [*node.args[:index], second, first, *node.args[index + 2 :]], node.keywords)
        texts = _short(first, 40), _short(second, 40)
        yield "arguments swapped", f"{name}({', '.join(texts)})", ", ".join(texts[::-1]), swapped


def _variant(operator: str, old: ast.AST, new: ast.AST) -> Variant:
    return operator, _short(old), _short(new), new


def _is_chained(function: ast.expr) -> bool:
    """Whether it is the method of a value that can stand for the call: not of a bare name, which may be a module."""
    return isinstance(function, ast.Attribute) and not isinstance(function.value, ast.Name)


def _renamed(function: ast.expr, name: str) -> ast.expr:
    return ast.Name(name, ast.Load()) if isinstance(function, ast.Name) else ast.Attribute(function.value, name, ast.Load())


def _called(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


def _root(call: ast.Call) -> str:
    return ast.unparse(call.func).partition(".")[0]


def _without(items: list, index: int) -> list:
    return items[:index] + items[index + 1 :]


def _short(node: ast.AST, length: int = 90) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _child(node: ast.AST, field: str, index: int | None) -> ast.AST:
    value = getattr(node, field)
    return value if index is None else value[index]


def _located(*nodes: ast.AST) -> ast.AST:
    """Return the first node that knows its line; a filter of a comprehension lends it its own."""
    for node in nodes:
        if isinstance(node, ast.comprehension):
            return node.target
        if hasattr(node, "lineno"):
            return node
    raise ValueError("no node has a line")


def _place(chain: list[ast.AST]) -> str:
    return ".".join(node.name for node in chain[:-1] if isinstance(node, ast.FunctionDef | ast.ClassDef))


def _inside(chain: list[ast.AST]) -> bool:
    """Whether the node is in a function's body, not in its defaults."""
    functions = [index for index, node in enumerate(chain) if isinstance(node, ast.FunctionDef)]
    return any(chain[index + 1] in chain[index].body for index in functions if index + 1 < len(chain))


def _statement(chain: list[ast.AST]) -> tuple[int, int]:
    """Return the lines of the innermost statement, without the block that it opens."""
    statement = next(node for node in reversed(chain) if isinstance(node, ast.stmt))
    block = getattr(statement, "body", None)
    last = block[0].lineno - 1 if block else statement.end_lineno
    return statement.lineno, max(statement.lineno, last)
