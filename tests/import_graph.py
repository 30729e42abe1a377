"""The import graph of `app` and `training`, counted: `python tests/import_graph.py [ROOT]`.

Once file by file and once room by room. A floor is the number of arrows on the longest way down from a node, where the
nodes of a circle count as one; files of a room that import each other are no arrow between rooms.
"""

import ast
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

HALVES = ("app", "training")
Graph = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Every file of both halves by its dotted name."""
    found = {}
    for path in sorted(path for half in HALVES for path in (root / half).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: Iterable[str]) -> set[str]:
    """Names that a file imports, anywhere in it; `from app.image import policy` counts as app.image.policy."""
    known, names = set(known), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inside & known) or {str(node.module)}
    return names


def file_graph(root: Path) -> Graph:
    """Which file imports which, of those that hold something besides a docstring."""
    found = modules(root)
    graph = {name: (imported(path, found) & set(found)) - {name} for name, path in found.items()}
    packages = {name for name, path in found.items() if path.name == "__init__.py"}
    return {name: others - packages for name, others in graph.items() if name not in packages}


def room_of(name: str) -> str:
    """`app.http.routes.verify` is in the room `app.http`; `app.main` is a room of its own."""
    return ".".join(name.split(".")[:2])


def room_graph(root: Path) -> Graph:
    """Which room imports which."""
    graph: Graph = {}
    for name, others in file_graph(root).items():
        rooms = graph.setdefault(room_of(name), set())
        rooms |= {room_of(other) for other in others} - {room_of(name)}
    return graph


def circles(graph: Graph) -> list[set[str]]:
    """Sets of nodes that reach each other."""

    @cache
    def reach(node: str) -> frozenset[str]:
        seen: set[str] = set()
        stack = list(graph[node])
        while stack:
            if (other := stack.pop()) not in seen:
                seen.add(other)
                stack += graph[other]
        return frozenset(seen)

    found = {frozenset({node, *(other for other in reach(node) if node in reach(other))}) for node in graph}
    return [set(circle) for circle in found if len(circle) > 1]


def floors(graph: Graph) -> int:
    """Arrows on the longest way down, and one; a circle is one node."""
    of = {node: frozenset(circle) for circle in circles(graph) for node in circle}
    whole = {node: of.get(node, frozenset({node})) for node in graph}
    below = {whole[node]: set() for node in graph}
    for node, others in graph.items():
        below[whole[node]] |= {whole[other] for other in others} - {whole[node]}

    @cache
    def height(node: frozenset[str]) -> int:
        return 1 + max((height(other) for other in below[node]), default=0)

    return max(height(node) for node in below)


def main(root: Path) -> None:
    for what, graph in (("files", file_graph(root)), ("rooms", room_graph(root))):
        for half in HALVES:
            names = {name for name in graph if name.startswith(half)}
            part = {name: graph[name] & names for name in names}
            arrows = sum(map(len, part.values()))
            found = [sorted(circle) for circle in circles(part)] or "none"
            print(f"{half:9} {what}: {len(part):3} nodes, {floors(part):2} floors, {arrows:3} arrows, circles: {found}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent)
