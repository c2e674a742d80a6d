"""Find the asserts that a clock feeds: on a busy machine they fail, and say nothing about the book.

It walks through the code in its order and keeps the names that depend on a clock; an expression depends on one if
it mentions such a name. A call is followed into a function that
the code defines, with the arguments that depend on a clock.
"""

import ast
from collections.abc import Iterable

CLOCKS = ("time", "timeit", "datetime", "resource", "cProfile", "torch.utils.benchmark")
FILLING = ("append", "appendleft", "add", "extend", "insert", "update", "setdefault", "put")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def own_expressions(node: ast.stmt) -> list[ast.AST]:
    """All expressions within a statement, but not those of the statements within it."""
    found = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
    found += [item.context_expr for item in getattr(node, "items", [])]
    return [inner for expression in found for inner in ast.walk(expression)]


def parameters(function: Function) -> list[str]:
    """The names of a function's parameters."""
    return [node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)]


class Walk:
    """One walk through some code."""

    def __init__(self) -> None:
        self.clocked = {
            ".seconds",
            ".elapsed",
        }  # names; with a dot in front, attributes of anything
        self.functions: dict[str, Function] = {}
        self.inside: list[Function] = []  # functions that are being followed
        self.decided = 0  # how many of the conditions around this place depend on a clock
        self.returned = False  # whether what the function returns depends on a clock
        self.place = 0
        self.found: set[tuple[int, int]] = set()  # place and line of the asserts

    def depends(self, *nodes: ast.AST | None) -> bool:
        """Whether any of these expressions mentions something that depends on a clock."""
        inner = [x for node in nodes if node is not None for x in ast.walk(node)]
        names = {x.id for x in inner if isinstance(x, ast.Name)}
        names -= {x.id for x in inner if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)}
        for x in inner:
            if isinstance(x, ast.Attribute):
                names |= {f".{x.attr}", ast.unparse(x)}
        return bool(names & self.clocked)

    def judge(self, node: ast.AST, depends: bool) -> None:
        if depends or self.decided:
            self.found.add((self.place, node.lineno))

    def assign(self, target: ast.expr, depends: bool) -> None:
        """Note whether a target depends on a clock from now on."""
        if isinstance(target, ast.Tuple | ast.List):
            for part in target.elts:
                self.assign(part, depends)
        elif isinstance(target, ast.Starred):
            self.assign(target.value, depends)
        elif depends or self.decided:
            self.fill(target)
        elif isinstance(target, ast.Name):
            self.clocked.discard(target.id)

    def fill(self, target: ast.expr) -> None:
        """A value that depends on a clock goes into this name, attribute or container."""
        while isinstance(target, ast.Subscript):
            target = target.value
        if isinstance(target, ast.Call):
            self.fill(target.func)  # table.setdefault(...).append(...)
        elif isinstance(target, ast.Attribute) and target.attr in FILLING:
            self.fill(target.value)
        elif isinstance(target, ast.Attribute):
            name = ast.unparse(target)
            self.clocked.add(name.removeprefix("self"))  # self.x is .x of anything
        elif isinstance(target, ast.Name):
            self.clocked.add(target.id)

    def call(self, node: ast.Call) -> None:
        """What a call fills, asserts, or hands to a function of the code."""
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name.startswith("assert_"):
            self.judge(node, self.depends(*arguments))
        elif isinstance(node.func, ast.Attribute) and name in FILLING:
            if self.decided or self.depends(*arguments):
                self.fill(node.func.value)
        elif isinstance(node.func, ast.Name) and name in self.functions:
            function = self.functions[name]
            if self.follow(function, set())[0]:
                self.clocked.add(name)
            handed = dict(zip(parameters(function), node.args, strict=False))
            handed |= {word.arg: word.value for word in node.keywords if word.arg}
            _, filled = self.follow(function, {x for x in handed if self.depends(handed[x])})
            for parameter in filled & handed.keys():
                self.fill(handed[parameter])

    def follow(self, function: Function, handed: set[str]) -> tuple[bool, set[str]]:
        """Walk through a function's body; returns whether its result depends on a clock, and what it has filled."""
        if function in self.inside:
            return False, set()
        inner = [x for statement in function.body for x in ast.walk(statement)]
        outer = {
            name for x in inner if isinstance(x, ast.Global | ast.Nonlocal) for name in x.names
        }
        stored = {x.id for x in inner if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)}
        local = (stored - outer) | set(parameters(function))
        before, returned = self.clocked, self.returned
        self.clocked, self.returned = (before - local) | handed, False
        self.inside.append(function)
        self.walk(function.body)
        self.inside.pop()
        result = self.returned, (self.clocked & set(parameters(function))) - handed
        self.clocked, self.returned = before | (self.clocked - local), returned
        return result

    def branches(self, depends: bool, *bodies: list[ast.stmt]) -> None:
        """Walk through bodies of which each may run or not."""
        self.decided += depends
        for body in bodies:
            before = set(self.clocked)
            self.walk(body)
            self.clocked |= before
        self.decided -= depends

    def walk(self, body: Iterable[ast.stmt]) -> None:
        for node in body:
            for inner in own_expressions(node):
                if isinstance(inner, ast.Call):
                    self.call(inner)
                elif isinstance(inner, ast.NamedExpr):
                    self.assign(inner.target, self.depends(inner.value))
                elif isinstance(inner, ast.Yield | ast.YieldFrom):
                    self.returned |= self.depends(inner.value)
            self.step(node)

    def step(self, node: ast.stmt) -> None:
        """What one statement does."""
        match node:
            case ast.Import():
                for alias in node.names:
                    name = alias.asname or alias.name.partition(".")[0]
                    self.assign(ast.Name(name), (alias.name if alias.asname else name) in CLOCKS)
            case ast.ImportFrom():
                for alias in node.names:
                    origins = {node.module, f"{node.module}.{alias.name}"}
                    self.assign(ast.Name(alias.asname or alias.name), bool(origins & {*CLOCKS}))
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self.functions[node.name] = node
                self.assign(ast.Name(node.name), self.follow(node, set())[0])
            case ast.ClassDef():
                methods = [method for method in node.body if isinstance(method, Function)]
                for method in methods * 2:  # one may use what a later one sets
                    if self.follow(method, set())[0]:
                        self.clocked.add(f".{method.name}")
            case ast.Assign():
                for target in node.targets:
                    pair = [target], [node.value]
                    if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                        pair = target.elts, node.value.elts
                    depends = [self.depends(value) for value in pair[1]]
                    for part, of_part in zip(pair[0], depends, strict=len(pair[0]) == len(depends)):
                        self.assign(part, of_part)
            case ast.AnnAssign() if node.value:
                self.assign(node.target, self.depends(node.value))
            case ast.AugAssign():
                self.assign(node.target, self.depends(node.value, node.target))
            case ast.Return():
                self.returned |= self.decided > 0 or self.depends(node.value)
            case ast.Assert():
                self.judge(node, self.depends(node.test))
            case ast.Raise():
                self.judge(node, False)
            case ast.If() | ast.While():
                depends = self.depends(node.test)
                self.branches(depends, node.body, node.body, node.orelse)
            case ast.For() | ast.AsyncFor():
                self.assign(node.target, self.depends(node.iter))
                self.branches(False, node.body, node.body, node.orelse)
            case ast.With() | ast.AsyncWith():
                for item in node.items:
                    if item.optional_vars:
                        self.assign(item.optional_vars, self.depends(item.context_expr))
                self.walk(node.body)
            case ast.Try():
                handlers = [handler.body for handler in node.handlers]
                self.branches(False, node.body, *handlers, node.orelse, node.finalbody)


def clock_fed(cells: Iterable[ast.Module]) -> list[tuple[int, int]]:
    """The asserts that a clock feeds in some cells: index of the cell and line in it."""
    walk = Walk()
    for walk.place, tree in enumerate(cells):
        walk.walk(tree.body)
    return sorted(walk.found)
