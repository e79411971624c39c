"""Which operations of a TensorFlow graph an answer is computed from, across the functions, loops and branches of its library.

More precise than what is reached: layers draw random numbers in inference too and drop them, and a loop carries what no answer needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

CALLS = ("PartitionedCall", "StatefulPartitionedCall")
LOOPS = ("While", "StatelessWhile")
BRANCHES = ("If", "StatelessIf", "Case", "StatelessCase")


class Step(NamedTuple):
    """A node that is computed, and the name of the nodes through which its function is called, outermost first, with its own as the last."""

    node: Any
    path: tuple[str, ...]


class _Body:
    """The nodes of a graph or function, its arguments by name with their position, and what it returns."""

    def __init__(self, nodes: Any, arguments: Any = (), returned: Any = ()) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.arguments = {argument.name: place for place, argument in enumerate(arguments)}
        self.returned = list(returned)


class Dataflow:
    """The flow of data in a `GraphDef` towards the tensors `outputs`.

    `answering` are the steps whose values an output is made of; `running` those that run for it, also those it only waits for.
    """

    def __init__(self, graph: Any, outputs: list[str]) -> None:
        self._top = _Body(graph.node)
        self._functions = {
            function.signature.name: _Body(
                function.node_def, function.signature.input_arg, [function.ret[result.name] for result in function.signature.output_arg]
            )
            for function in graph.library.function
        }
        self._needs: dict[tuple[str, int], set[int]] = {}
        self._answering: dict[int, Step] = {}
        self._walk(self._top, outputs, ())
        self.answering = list(self._answering.values())
        self.running = list(self._run(self._top, [name.partition(":")[0] for name in outputs], (), set()))

    def constant(self, step: Step, inputs: slice) -> bool:
        """Return whether those `inputs` of a step are the same for every request: computed from constants of its own function alone."""
        body = next(body for body in (self._top, *self._functions.values()) if body.nodes.get(step.node.name) is step.node)
        waiting, seen = _data(step.node)[inputs], set[str]()
        while waiting:
            name = waiting.pop().partition(":")[0]
            if name in body.arguments or body.nodes[name].op in ("Placeholder", "VarHandleOp", "ReadVariableOp"):
                return False
            if name not in seen:
                seen.add(name)
                waiting += _data(body.nodes[name])
        return True

    def _walk(self, body: _Body, tensors: list[str], path: tuple[str, ...]) -> set[int]:
        """Note every step that `tensors` of `body` are made of, and return the positions of the arguments among them."""
        waiting, seen, needed = list(tensors), set[str](), set[int]()
        while waiting:
            tensor = waiting.pop()
            name, _, rest = tensor.partition(":")  # node, node:number, or in a function node:output:number
            if tensor in seen:
                continue
            seen.add(tensor)
            if name in body.arguments:
                needed.add(body.arguments[name])
                continue
            node = body.nodes[name]
            self._answering.setdefault(id(node), Step(node, (*path, name)))
            data = _data(node)
            waiting += [data[place] for place in self._inputs(node, int(rest.rpartition(":")[2] or 0), len(data), (*path, name))]
        return needed

    def _inputs(self, node: Any, output: int, number: int, path: tuple[str, ...]) -> set[int]:
        """Return which of its `number` inputs an output of `node` is made of."""

        def needs(function: str, result: int) -> set[int]:
            if (function, result) not in self._needs:
                self._needs[function, result] = set()  # for a function that calls itself
                self._needs[function, result] = self._walk(self._functions[function], [self._functions[function].returned[result]], path)
            return self._needs[function, result]

        functions = [name for name in _called(node) if name in self._functions]
        if node.op in CALLS and functions:
            return needs(functions[0], output)
        if node.op in LOOPS and len(functions) == 2:
            return _carried(lambda result: needs(node.attr["body"].func.name, result), {output} | needs(node.attr["cond"].func.name, 0))
        if node.op in BRANCHES and functions:
            return {0}.union(*({place + 1 for place in needs(function, output)} for function in functions))
        for function in functions:
            for result in range(len(self._functions[function].returned)):
                needs(function, result)
        return set(range(number))

    def _run(self, body: _Body, names: list[str], path: tuple[str, ...], called: set[str]) -> Iterator[Step]:
        waiting, seen = list(names), set[str]()
        while waiting:
            name = waiting.pop()
            if name in seen or name not in body.nodes:
                continue
            seen.add(name)
            node = body.nodes[name]
            yield Step(node, (*path, name))
            waiting += [tensor.removeprefix("^").partition(":")[0] for tensor in node.input]
            for function in set(_called(node)) & self._functions.keys() - called:
                called.add(function)
                yield from self._run(self._functions[function], list(self._functions[function].nodes), (*path, name), called)


def _carried(needs: Callable[[int], set[int]], needed: set[int]) -> set[int]:
    """Return which variables of a loop the `needed` ones are made of, over all its turns."""
    while more := set[int]().union(*map(needs, needed)) - needed:
        needed |= more
    return needed


def _data(node: Any) -> list[str]:
    return [tensor for tensor in node.input if not tensor.startswith("^")]


def _called(node: Any) -> list[str]:
    """Return the names of the functions that a node calls, in the order of its attributes."""
    return [function.name for _, value in sorted(node.attr.items()) for function in (value.func, *value.list.func) if function.name]
