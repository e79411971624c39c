"""Which inputs only elementwise operations see: those take every shape, and report what they cannot broadcast instead of ending the process."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
_SOURCES = {"Const", "NoOp", "ReadVariableOp"}
_ELEMENTWISE = {
    *("Identity", "IdentityN", "Cast", "Add", "AddV2", "Sub", "Mul", "Div", "DivNoNan", "RealDiv", "FloorDiv", "FloorMod", "Neg", "Abs", "Sign"),
    *("Square", "Sqrt", "Rsqrt", "Exp", "Expm1", "Log", "Log1p", "Pow", "Maximum", "Minimum", "Sigmoid", "Tanh", "Floor", "Ceil", "Round"),
    *("Equal", "NotEqual", "Greater", "GreaterEqual", "Less", "LessEqual", "LogicalAnd", "LogicalOr", "LogicalNot"),
}


class Elementwise:
    """What the nodes of a `GraphDef` do, and the functions that they call."""

    def __init__(self, graph: Any) -> None:
        self._functions = {function.signature.name: function.node_def for function in graph.library.function}
        self._readers: defaultdict[str, list[Any]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self._readers[name.partition(":")[0]].append(node)
        self._known: dict[str, bool] = {}

    def sees(self, tensor: str) -> bool:
        """Return whether all that is computed from `tensor` (``name:0``) is elementwise."""
        waiting, seen = [tensor.partition(":")[0]], set[str]()
        while waiting:
            for node in self._readers[waiting.pop()]:
                if node.op not in _ELEMENTWISE and not self._calls(node):
                    return False
                if node.name not in seen:
                    seen.add(node.name)
                    waiting.append(node.name)
        return True

    def _calls(self, node: Any) -> bool:
        """Return whether `node` calls a function in which all is elementwise."""
        name = node.attr["f"].func.name
        if node.op not in _CALLS or name not in self._functions:
            return False
        if name not in self._known:
            self._known[name] = False  # for a function that calls itself
            self._known[name] = all(one.op in _ELEMENTWISE | _SOURCES or self._calls(one) for one in self._functions[name])
        return self._known[name]
