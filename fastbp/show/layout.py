"""A layered layout: nodes in columns from left to right, wires with few crossings and few bends.

Columns by the longest path to the end; a wire that skips columns passes each through a joint; the order
within the columns by barycenters; heights by least squares under the least distances.
"""
import math
from bisect import bisect_right, insort

_GAP = 8          # between two nodes of a column
_CHANNEL = 26     # between two columns: the wires bend here, and nowhere else
_SWEEPS = 12
_DEEP = 8         # what comes in from outside is the end of a path so long
_MANY = 4000      # nodes and joints, above which only the cheap steps are taken


class Node:
    """A box on a wire's height y: `above` and `below` are what it takes over and under it.

    ins, outs: heights of its ports relative to y. fan: how far apart wires end that come to one height.
    loose: they may come in any order. leaf: nothing enters it; it moves to its first reader. pin: "first" or
    "last", at the left or right border. exit: where on its width the wires begin. radius: of the circle that
    wires end on.
    """
    joint = False
    depth = least = 0    # the longest path to it; the least depth of what it reads

    def __init__(self, width=0.0, above=0.0, below=0.0, ins=(), outs=(0.0,), *, fan=0.0, loose=False, leaf=False,
                 pin=None, exit=None, radius=None):
        self.width, self.above, self.below, self.ins, self.outs = width, above, below, list(ins), list(outs)
        self.fan, self.loose, self.leaf, self.pin, self.radius = fan, loose, leaf, pin, radius
        self.exit = width if exit is None else exit
        self.x = self.y = 0.0
        self.rank = self.place = 0
        self.left, self.right = [], []    # the segments that end and begin here


class _Joint(Node):
    joint = True

    def __init__(self, rank, depth):
        super().__init__(0.0, 4.0, 4.0, (0.0,))
        self.rank, self.depth = rank, depth


class Net:
    """A wire: from a port (node, number) to ports."""

    def __init__(self, source):
        self.source, self.sinks = source, []


class _Segment:
    """A wire's way from one column to the next."""

    def __init__(self, net, left, out, right, into):
        self.net, self.left, self.out, self.right, self.into = net, left, out, right, into
        left.right.append(self)
        right.left.append(self)
        # Kept straight first: long wires, and of a node's wires the one at the end of the longest path.
        longest = left.depth + 1 >= right.depth
        self.weight = (8.0 if left.joint and right.joint else 4.0 if longest and right.least < left.depth else
                       0.2 if left.leaf else 1.0 if longest or right.joint else 0.3)

    @property
    def start(self):
        """Its place on the left column, of node and port."""
        return self.left.place + (self.out + 1) / (len(self.left.outs) + 1)

    @property
    def end(self):
        return self.right.place + (0.5 if self.right.loose else (self.into + 1) / (len(self.right.ins) + 1))

    @property
    def y1(self):
        return self.left.y + self.left.outs[self.out]

    @property
    def y2(self):
        return self.right.y + self.right.ins[self.into]


def sorted_nodes(nodes, nets):
    """The nodes, each after those it reads; those on a cycle, or behind one, are left out."""
    waits = dict.fromkeys(nodes, 0)
    for net in nets:
        for node, _ in net.sinks:
            waits[node] += 1
    after = {}
    for net in nets:
        after.setdefault(net.source[0], []).append(net)
    ready, found = [n for n in nodes if not waits[n]], []
    while ready:
        node = ready.pop()
        found.append(node)
        for net in after.get(node, ()):
            for sink, _ in net.sinks:
                waits[sink] -= 1
                if not waits[sink]:
                    ready.append(sink)
    return found


class Layout:
    """Places nodes and nets: each node gets x and y, `paths` the pieces of each net.

    width, height; crossings of wires, as counted column by column; border: how far the pinned nodes' wires go
    beyond the width, on both sides. ValueError: the nets form a cycle.
    """

    def __init__(self, nodes, nets, *, border=0.0, least=0.0, sweeps=_SWEEPS):
        self.nodes, self.nets = nodes, nets
        self._rank()
        self._join()
        many = sum(map(len, self.columns)) > _MANY
        self._order(min(sweeps, 2) if many else sweeps, many)
        self._heights(4 if many else 24)
        self._widths(border, least)

    # --- columns

    def _rank(self):
        order = sorted_nodes(self.nodes, self.nets)
        if len(order) < len(self.nodes):
            raise ValueError("the nets form a cycle")
        outs, ins = {n: [] for n in order}, {n: [] for n in order}
        for node in order:
            node.left, node.right = [], []
        for net in self.nets:
            outs[net.source[0]].append(net)
            for node in dict.fromkeys(node for node, _ in net.sinks):
                ins[node].append(net)
        for node in order:
            depths = [net.source[0].depth for net in ins[node]]
            node.depth = _DEEP if node.pin == "first" else max(depths, default=-1) + 1
            node.least = min(depths, default=0)
        for node in reversed(order):    # as late as can be: next to the first reader
            node.rank = min((sink.rank for net in outs[node] for sink, _ in net.sinks), default=0) - 1
        for _ in range(3):
            for node in order:
                if node.pin is None and not node.leaf:
                    self._move_left(node, outs[node], ins[node])
        for node in order:
            if node.leaf or node.pin == "first":
                node.rank = min(sink.rank for net in outs[node] for sink, _ in net.sinks) - 1
        low = min(n.rank for n in order)
        for node in order:
            node.rank = 0 if node.pin == "first" else node.rank - low

    @staticmethod
    def _move_left(node, outs, ins):
        """Nearer to what it reads, where that shortens more wires than it lengthens."""
        fixed = [net for net in ins if not net.source[0].leaf and net.source[0].pin is None]
        low = max((net.source[0].rank for net in fixed), default=node.rank) + 1
        while node.rank > low:
            gain = sum(all(sink is node or sink.rank < node.rank for sink, _ in net.sinks) for net in fixed) - len(outs)
            if gain <= 0:
                break
            node.rank -= 1

    def _join(self):
        """Segments between neighbouring columns; a net has one joint in a column at most, however often it forks."""
        last = max(n.rank for n in self.nodes)
        self.columns = [[] for _ in range(last + 1)]
        self.segments = {}
        joints = {}
        for net in self.nets:
            source, out = net.source
            self.segments[net] = found = []
            end = max(sink.rank for sink, _ in net.sinks)
            steps = [(source, out)]
            for rank in range(source.rank + 1, end):
                joint = _Joint(rank, source.depth)
                found.append(_Segment(net, *steps[-1], joint, 0))
                steps.append((joint, 0))
            for sink, into in net.sinks:
                found.append(_Segment(net, *steps[sink.rank - 1 - source.rank], sink, into))
            joints[net] = [joint for joint, _ in steps[1:]]
        self._enter(joints)

    def _enter(self, joints):
        """The first order: a walk from the ends through the inputs. Of a tree it has no crossings."""
        seen = set()
        for end in reversed(self.nodes):
            todo = [end]
            while todo:
                node = todo.pop()
                if node in seen:
                    continue
                seen.add(node)
                self.columns[node.rank].append(node)
                todo += [s.left for s in sorted(node.left, key=lambda s: -s.into)]
        for column in self.columns:
            for place, node in enumerate(column):
                node.place = place

    # --- order within the columns

    def _count(self):
        """Crossings: pairs of segments in one order on the left and in the other on the right."""
        total = 0
        for column in self.columns:
            ends = sorted((s.start, s.end) for node in column for s in node.right)
            seen = []
            for _, end in ends:
                total += len(seen) - bisect_right(seen, end)
                insort(seen, end)
        return total

    def _order(self, sweeps, many):
        self.crossings = self._count()
        best = [list(c) for c in self.columns]
        for sweep in range(sweeps):
            if not self.crossings:
                break
            if sweep % 2:
                for column in self.columns[1:]:
                    self._sort(column, lambda n: [s.start for s in n.left])
            else:
                for column in self.columns[-2::-1]:
                    self._sort(column, lambda n: [s.end for s in n.right])
            if not many:
                self._exchange()
            count = self._count()
            if count < self.crossings:
                self.crossings, best = count, [list(c) for c in self.columns]
        self.columns = best
        for column in self.columns:
            for place, node in enumerate(column):
                node.place = place

    @staticmethod
    def _sort(column, neighbours):
        """By the mean place of the neighbours; nodes without any keep their place."""
        means = {}
        for node in column:
            places = neighbours(node)
            if places:
                means[node] = sum(places) / len(places)
        moved = iter(sorted(means, key=means.get))
        column[:] = [next(moved) if node in means else node for node in column]
        for place, node in enumerate(column):
            node.place = place

    def _exchange(self):
        """Neighbours change places where that takes crossings away."""
        for _ in range(4):
            changed = False
            for column in self.columns:
                for n in range(len(column) - 1):
                    a, b = column[n], column[n + 1]
                    gain = (_inversions([s.start for s in a.left], [s.start for s in b.left])
                            + _inversions([s.end for s in a.right], [s.end for s in b.right]))
                    if gain > 0:
                        column[n], column[n + 1] = b, a
                        a.place, b.place = n + 1, n
                        changed = True
            if not changed:
                break

    # --- heights

    def _heights(self, sweeps):
        for column in self.columns:
            y = 0.0
            for node in column:
                node.y = y + node.above
                y += node.above + node.below + _GAP
            for node in column:
                node.y -= (y - _GAP) / 2
        for sweep in range(sweeps):
            both = sweep >= 4
            for column in self.columns if sweep % 2 else reversed(self.columns):
                self._pull(column, sweep % 2 or both, not sweep % 2 or both)
            if sweep % 4 == 3:
                self._straighten()
        top = min(n.y - n.above for c in self.columns for n in c)
        self.height = max(n.y + n.below for c in self.columns for n in c) - top
        for column in self.columns:
            for node in column:
                node.y -= top

    @staticmethod
    def _pull(column, left, right):
        """Nodes as near to their neighbours' height as their distances allow."""
        wanted, weights, steps = [], [], [0.0]
        for n, node in enumerate(column):
            pulls = [(s.y1 - (s.y2 - node.y), s.weight) for s in node.left] if left or not node.right else []
            if right or not node.left:
                pulls += [(s.y2 - (s.y1 - node.y), s.weight) for s in node.right]
            weight = sum(w for _, w in pulls)
            wanted.append(sum(y * w for y, w in pulls) / weight if pulls else node.y)
            weights.append(weight or 1e-3)
            if n:
                steps.append(steps[-1] + column[n - 1].below + _GAP + node.above)
        for node, y in zip(column, spread(wanted, weights, steps), strict=True):
            node.y = y

    def _straighten(self):
        """Each long wire on one height, or on as few as its neighbours leave it."""
        for net, segments in self.segments.items():
            joints = [s.right for s in segments if s.right.joint]
            target = next((s.y2 for s in reversed(segments) if s.left is joints[-1]), 0.0) if joints else 0.0
            y = net.source[0].y + net.source[0].outs[net.source[1]]
            while joints:
                low, high, run = -math.inf, math.inf, 0
                for node in joints:
                    column = self.columns[node.rank]
                    over, under = column[node.place - 1:node.place], column[node.place + 1:node.place + 2]
                    least = over[0].y + over[0].below + _GAP + node.above if over else -math.inf
                    most = under[0].y - under[0].above - _GAP - node.below if under else math.inf
                    if max(low, least) > min(high, most):
                        break
                    low, high, run = max(low, least), min(high, most), run + 1
                run = max(run, 1)
                if run == len(joints) and not low <= y <= high:
                    y = target
                y = min(max(y, low), high)
                for node in joints[:run]:
                    node.y = y
                joints = joints[run:]

    # --- widths

    def _widths(self, border, least):
        wide = [max(n.width for n in column) for column in self.columns]
        lefts, x = [], 0.0
        for column, width in zip(self.columns, wide, strict=True):
            lefts.append(x)
            steep = max((abs(s.y2 - s.y1) for n in column for s in n.right), default=0.0)
            x += width + _CHANNEL + min(44.0, 0.14 * steep)
        rights = [left + width for left, width in zip(lefts, wide, strict=True)]
        self.width = max(rights[-1], least)
        for column, left, right in zip(self.columns, lefts, rights, strict=True):
            for node in column:
                node.x = right - node.width if node.leaf else left
        self.paths = {net: self._pieces(net, lefts, rights, border) for net in self.nets}

    def _pieces(self, net, lefts, rights, border):
        """[(x1, y1, x2, y2)]: straight where y1 == y2, else a curve."""
        source, out = net.source
        y = source.y + source.outs[out]
        pieces = [(-border if source.pin == "first" else source.x + source.exit, y, rights[source.rank], y)]
        for s in self.segments[net]:
            node = s.right
            place = s.into
            if node.loose:
                place = sorted(node.left, key=lambda s: (s.y1, s.left.place, s.into)).index(s)
            fanned = (place - (len(node.ins) - 1) / 2) * node.fan
            y2 = s.y2 + fanned
            x2 = node.x + (node.radius - (node.radius ** 2 - fanned ** 2) ** 0.5 if node.radius else 0.0)
            pieces.append((rights[s.left.rank], s.y1, x2, y2))
            if node.joint:
                pieces.append((x2, y2, rights[node.rank], y2))
            elif node.pin == "last":
                pieces.append((x2, y2, self.width + border, y2))
        return pieces


def _inversions(a, b):
    """Crossings of the wires to a and to b where a is above b, less those where b is above a."""
    return sum((p > q) - (p < q) for p in a for q in b)


def spread(wanted, weights, steps):
    """Heights next to those wanted, by weighted least squares, each at least its step below the one before."""
    blocks = []    # [mean, weight, count]: neighbours that touch move as one
    for y, weight, step in zip(wanted, weights, steps, strict=True):
        blocks.append([y - step, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, w, count = blocks.pop()
            last = blocks[-1]
            last[0] = (last[0] * last[1] + mean * w) / (last[1] + w)
            last[1] += w
            last[2] += count
    means = [mean for mean, _, count in blocks for _ in range(count)]
    return [mean + step for mean, step in zip(means, steps, strict=True)]
