"""The DAG of a plan, without recursion: layers, and the cycles of what should have been a DAG."""

from collections import deque
from collections.abc import Mapping, Sequence

Edges = Mapping[str, Sequence[str]]
"""Node → the nodes that it depends on. Every node is a key."""

SEARCH_MAX_EDGES = 500_000
"""Edges looked at to find shortest cycles. Beyond that the shortest one found so far has to do."""


def layers(depends_on: Edges) -> tuple[list[list[str]], set[str]]:
    """The order of work: each layer needs only earlier ones. Second: what lies on a cycle or behind one."""
    successors: dict[str, list[str]] = {node: [] for node in depends_on}
    waiting = {node: len(needed) for node, needed in depends_on.items()}
    for node, needed in depends_on.items():
        for other in needed:
            successors[other].append(node)
    layer = [node for node, count in waiting.items() if count == 0]
    found: list[list[str]] = []
    while layer:
        found.append(layer)
        following = []
        for node in layer:
            del waiting[node]
            for successor in successors[node]:
                waiting[successor] -= 1
                if waiting[successor] == 0:
                    following.append(successor)
        layer = following
    return found, set(waiting)


def cycles(depends_on: Edges) -> list[list[str]]:
    """The shortest cycle of each strongly connected component, in the order of the keys; empty for a DAG.

    A cycle begins with its first node in that order; each node depends on the next one, the last on the first.
    """
    _, stuck = layers(depends_on)
    if not stuck:
        return []
    order = {node: place for place, node in enumerate(depends_on)}
    rest = {node: [other for other in needed if other in stuck] for node, needed in depends_on.items() if node in stuck}
    found = []
    budget = SEARCH_MAX_EDGES
    for component in _components(rest):
        if len(component) == 1 and component[0] not in rest[component[0]]:
            continue
        inside = set(component)
        edges = {node: [other for other in rest[node] if other in inside] for node in component}
        cycle, budget = _shortest_cycle(edges, sorted(component, key=order.__getitem__), budget)
        first = min(range(len(cycle)), key=lambda place: order[cycle[place]])
        found.append(cycle[first:] + cycle[:first])
    return sorted(found, key=lambda cycle: order[cycle[0]])


def _components(edges: Edges) -> list[list[str]]:
    """Tarjan's strongly connected components, with a stack of our own."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    held: list[str] = []
    on_hold: set[str] = set()
    found: list[list[str]] = []
    for root in edges:
        if root in index:
            continue
        work = [(root, iter(edges[root]))]
        index[root] = low[root] = len(index)
        held.append(root)
        on_hold.add(root)
        while work:
            node, others = work[-1]
            for other in others:
                if other not in index:
                    index[other] = low[other] = len(index)
                    held.append(other)
                    on_hold.add(other)
                    work.append((other, iter(edges[other])))
                    break
                if other in on_hold:
                    low[node] = min(low[node], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    component = _unwind(held, node)
                    on_hold.difference_update(component)
                    found.append(component)
    return found


def _unwind(held: list[str], down_to: str) -> list[str]:
    component = []
    while True:
        node = held.pop()
        component.append(node)
        if node == down_to:
            return component


def _shortest_cycle(edges: Edges, starts: Sequence[str], budget: int) -> tuple[list[str], int]:
    """The shortest cycle of one component. The first search always ends: it finds one through `starts[0]`."""
    best: list[str] = []
    for start in starts:
        if best and (budget <= 0 or len(best) == 1):
            break
        came_from: dict[str, str] = {}
        reached = deque([start])
        depth = {start: 1}
        while reached and start not in came_from:
            node = reached.popleft()
            if best and depth[node] >= len(best):
                break
            budget -= len(edges[node])
            for other in edges[node]:
                if other not in came_from:
                    came_from[other] = node
                    depth.setdefault(other, depth[node] + 1)
                    reached.append(other)
        if start in came_from:
            path = [start]
            while (before := came_from[path[-1]]) != start:
                path.append(before)
            best = [start, *reversed(path[1:])]
    return best, budget
