"""`repeat`, `compare` and `matrix`: a recipe with them becomes a flat list of stages.

    repeat     stages `dpo-1`, `dpo-2`, ...: each round starts from what the round before left
    compare    each branch from the same start, once a seed: `dpo@seed=0`, `ipo@seed=0`, ...
    matrix     the recipe once for each combination of values: `dpo@beta=0.1,lr=0.001`

What varies nothing that a stage depends on is not in its name, and the stage is there once. Every
value keeps the place that it was written at. Nothing here knows what methods or evals mean.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain_recipes.errors import Fault, Location
from posttrain_recipes.language.recipe import Key, Node, Recipe, merge, stage_names
from posttrain_recipes.registry import suggest

MAX_STAGES = 1000
"""A recipe that expands to more is a mistake."""
MAX_LABEL = 60
"""A longer label of a variant is replaced by its number."""
BUDGETS = {"steps": "max_steps", "tokens": "token_budget"}
"""What a comparison bounds -> the option of a method that does."""
BASE = "base"

Labels = tuple[tuple[str, str], ...]
"""What tells a variant from the others: `(("beta", "0.1"), ("seed", "0"))`."""


@dataclass(frozen=True)
class Origin:
    """Where a stage of the flat list comes from."""

    name: str
    """Its name in the flat list: `dpo-2@beta=0.1`."""
    source: str
    """Its name in the recipe: `dpo`."""
    key: Key
    """Where it is written."""
    labels: Labels = ()
    """The variant that it belongs to; empty where all variants share it."""
    loop: str | None = None
    """What the loop around it is called."""
    round: int = 0
    """Of its loop, from 1; 0 outside of one."""
    before: str | None = None
    """The same stage of the round before: what stands in for it where the loop ended early."""
    until: tuple[tuple[str, str], ...] = ()
    """Conditions on the round before that leave this one out, as `(subject, bound)`."""
    comparison: str | None = None
    branch: str | None = None
    last: bool = False
    """Whether it is the last of its branch: what the branch is judged by."""

    @property
    def label(self) -> str:
        """`beta=0.1,seed=0`; empty where it is the same in every variant."""
        return show_labels(self.labels)


def show_labels(labels: Labels) -> str:
    """`beta=0.1,seed=0`."""
    return ",".join(f"{name}={value}" for name, value in labels)


def expand(recipe: Recipe) -> tuple[Recipe, tuple[Origin, ...], list[Fault]]:
    """The recipe with a flat list of stages, what each comes from, and what is wrong.

    A recipe without `repeat`, `compare` and `matrix` comes back as it is. What has not the form
    that the schema asks for is passed over: the schema's faults tell of it.
    """
    stages = recipe.root.child("stages")
    items = stages.value if stages and isinstance(stages.value, list) else []
    matrix = recipe.root.child("matrix")
    faults: list[Fault] = []
    if matrix is None and not any(_block(item) for item in items):
        return recipe, tuple(_plain(items)), faults
    assert stages is not None
    axes = _axes(recipe, matrix, faults) if matrix else []
    variants = [_variant(recipe, axes, chosen, faults) for chosen in _choices(axes)]
    flat = _share(variants, axes)
    if len(flat) > MAX_STAGES:
        place = matrix or stages
        message = f"comes to more than {MAX_STAGES} stages, which is surely not meant"
        faults.append(Fault(place.key_at or place.at, "matrix" if matrix else "stages", message))
        flat = flat[:1]
    found = {**recipe.root.value, "stages": replace(stages, value=[s.node for s in flat])}
    found.pop("matrix", None)
    origins = tuple(s.origin for s in flat)
    root = replace(recipe.root, value=found)
    expanded = replace(recipe, root=root, source=recipe, keys=tuple(o.key for o in origins))
    return expanded, origins, list({(f.location, f.message): f for f in faults}.values())


def origins(resolved: Mapping[str, Any]) -> tuple[Origin, ...]:
    """What the stages of a resolved recipe, as it is stored, come from."""
    from pathlib import Path

    return expand(Recipe(Node.of(resolved), Path()))[1]


def _block(item: Node) -> str | None:
    """`repeat` or `compare` where the item is one."""
    if isinstance(item.value, dict):
        return next((word for word in ("repeat", "compare") if word in item.value), None)
    return None


def _name(item: Node) -> str | None:
    name = item.child("name")
    return name.value if name and isinstance(name.value, str) else None


def _plain(items: Sequence[Node]) -> Iterator[Origin]:
    for index, item in enumerate(items):
        if isinstance(item.value, dict):
            name = _name(item) or ""
            yield Origin(name, name, ("stages", index), last=index == len(items) - 1)


# --- one variant: loops and comparisons ----------------------------------------------------------


@dataclass
class _Flat:
    """A stage of one variant; references in it are names of the same variant."""

    node: Node
    origin: Origin


@dataclass(frozen=True)
class _Frame:
    """What stages inside a block have in common."""

    names: dict[str, str | list[str]] = field(default_factory=dict)
    """Stage as written -> as it is called here; several where a comparison has seeds."""
    suffix: str = ""
    seed: Node | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)


class _Expander:
    """Flattens the stages of one variant."""

    def __init__(self, recipe: Recipe, faults: list[Fault]) -> None:
        self.recipe = recipe
        self.faults = faults
        self.flat: list[_Flat] = []
        self.taken: set[str] = set()

    def fault(self, node: Node, key: Key, message: str) -> None:
        where = node.key_at or node.at
        self.faults.append(Fault(where, self.recipe.show_key(key), message))

    def stages(
        self, items: Sequence[Node], key: Key, frame: _Frame, start: str | None
    ) -> str | None:
        """Emit the items; returns what a stage below starts from, None where it must say."""
        for index, item in enumerate(items):
            where = (*key, index)
            block = _block(item)
            if block == "repeat":
                start = self.repeat(item, where, frame, start)
            elif block == "compare":
                start = self.compare(item, where, frame, start)
            elif isinstance(item.value, dict):
                start = self.stage(item, where, frame, start)
            if len(self.flat) > MAX_STAGES:
                break
        return start

    def stage(self, item: Node, key: Key, frame: _Frame, start: str | None) -> str:
        source = _name(item) or ""
        name = f"{source}{frame.suffix}"
        values = dict(item.value)
        if source:
            values["name"] = replace(values["name"], value=name)
        values = {k: self._named(v, frame, (*key, k)) for k, v in values.items()}
        if "init_from" in values:
            values["init_from"] = self._reference(values["init_from"], frame, (*key, "init_from"))
        elif start is None:
            self.fault(
                item,
                key,
                "stands below a comparison; say which branch it starts from: 'init_from:'",
            )
        else:
            values["init_from"] = Node(start, item.at, item.at)
        if frame.seed is not None:
            if "seed" in values:
                self.fault(values["seed"], (*key, "seed"), "'seeds:' of the comparison gives it")
            values["seed"] = replace(frame.seed, key_at=frame.seed.at)
        self.flat.append(
            _Flat(replace(item, value=values), Origin(name, source, key, **frame.origin))
        )
        frame.names[source] = name
        return name

    def _reference(self, node: Node, frame: _Frame, key: Key) -> Node:
        known = frame.names.get(node.value) if isinstance(node.value, str) else None
        if isinstance(known, list):
            self.fault(
                node, key, f"'{node.value}' runs with several seeds; write '{known[0]}', say"
            )
            return replace(node, value=known[0])
        return node if known is None else replace(node, value=known)

    def _named(self, node: Node, frame: _Frame, key: Key) -> Node:
        """With every `{stage: NAME}` in it as the stage is called here."""
        if isinstance(node.value, list):
            inner = [self._named(n, frame, (*key, i)) for i, n in enumerate(node.value)]
            return replace(node, value=inner)
        if not isinstance(node.value, dict):
            return node
        found = {k: self._named(n, frame, (*key, k)) for k, n in node.value.items()}
        if "stage" in found:
            found["stage"] = self._reference(found["stage"], frame, (*key, "stage"))
        return replace(node, value=found)

    def repeat(self, block: Node, key: Key, frame: _Frame, start: str | None) -> str | None:
        count, items = block.child("repeat"), block.child("stages")
        if not (count and isinstance(count.value, int) and items and isinstance(items.value, list)):
            return start
        if frame.origin.get("loop"):
            self.fault(block, key, "a loop cannot stand in a loop")
            return start
        if start is None:
            self.fault(block, key, "stands below a comparison; put it into a branch of it")
            start = BASE
        until = block.child("until")
        conditions = (
            tuple((k, str(n.value)) for k, n in until.value.items())
            if until and isinstance(until.value, dict)
            else ()
        )
        loop = _name(block) or "loop"
        inner: dict[str, str | list[str]] = {}
        for number in range(1, min(count.value, MAX_STAGES) + 1):
            before = dict(inner)
            inner = dict(frame.names)
            origin = {**frame.origin, "loop": loop, "round": number}
            if number > 1:
                origin["until"] = conditions
            one = replace(frame, names=inner, suffix=f"{frame.suffix}-{number}", origin=origin)
            first = len(self.flat)
            start = self.stages(items.value, (*key, "stages"), one, start)
            for made in self.flat[first:]:
                twin = before.get(made.origin.source)
                if number > 1 and isinstance(twin, str):
                    made.origin = replace(made.origin, before=twin)
        frame.names.update(inner)
        return start

    def compare(self, block: Node, key: Key, frame: _Frame, start: str | None) -> str | None:
        branches, seeds = block.child("compare"), block.child("seeds")
        if not branches or not isinstance(branches.value, list):
            return start
        if frame.origin.get("comparison") or frame.origin.get("loop"):
            inside = "a comparison" if frame.origin.get("comparison") else "a loop"
            self.fault(block, key, f"a comparison cannot stand in {inside}")
            return start
        given = block.child("init_from")
        if given is not None:
            start = self._reference(given, frame, (*key, "init_from")).value
        elif start is None:
            self.fault(block, key, "stands below a comparison; say where it starts: 'init_from:'")
            start = BASE
        title = _name(block) or "comparison"
        while title in self.taken:
            title += "'"
        self.taken.add(title)
        many: list[Node | None] = [None]
        if seeds and isinstance(seeds.value, list) and seeds.value:
            many = list(seeds.value)
            values = [n.value for n in seeds.value]
            if len(set(map(str, values))) < len(values):
                self.fault(seeds, (*key, "seeds"), "a seed is given twice")
        outer = dict(frame.names)
        seen: dict[str, list[str]] = {}
        for index, branch in enumerate(branches.value):
            if not isinstance(branch.value, dict):
                continue
            where = (*key, "compare", index)
            name = _name(branch) or f"branch {index + 1}"
            inside = branch.child("stages")
            alone = inside is None or not isinstance(inside.value, list)
            items, place = ([branch], (*key, "compare")) if alone else (inside.value, where)
            for seed in many:
                labels = (("seed", str(seed.value)),) if seed and len(many) > 1 else ()
                origin = {"comparison": title, "branch": name, "labels": labels}
                one = _Frame(dict(outer), frame.suffix, seed, {**frame.origin, **origin})
                first = len(self.flat)
                if alone:
                    self.stage(branch, where, one, start)
                else:
                    self.stages(items, (*place, "stages"), one, start)
                self._label(self.flat[first:], labels)
                self._finish(block, self.flat[first:])
                if not alone and self.flat[first:]:
                    seen.setdefault(name, []).append(self.flat[-1].origin.name)
                for made in self.flat[first:]:
                    seen.setdefault(made.origin.source, []).append(made.origin.name)
                    seen.setdefault(made.origin.name, []).append(made.origin.name)
        for source, names in seen.items():
            distinct = list(dict.fromkeys(names))
            frame.names[source] = distinct[0] if len(distinct) == 1 else distinct
        return None

    def _label(self, made: Sequence[_Flat], labels: Labels) -> None:
        """Give the stages of a branch the names of their seed, and say so to each other."""
        if labels:
            names = {m.origin.name: f"{m.origin.name}@{show_labels(labels)}" for m in made}
            for one in made:
                _rename(one, names)

    def _finish(self, block: Node, made: Sequence[_Flat]) -> None:
        """What every branch gets: the budget, and the evals of the comparison on its last stage."""
        if not made:
            return
        last = made[-1]
        last.origin = replace(last.origin, last=True)
        trained = [one for one in made if one.node.child("method")]
        for unit, option in BUDGETS.items():
            budget = (block.child("budget") or block).child(unit)
            if budget is not None and trained:
                self._share(trained, unit, option, budget)
        evals = block.child("eval")
        if evals is not None and isinstance(evals.value, list):
            own_evals = last.node.child("eval")
            mine = list(own_evals.value) if own_evals and isinstance(own_evals.value, list) else []
            have = {_called(item) for item in mine}
            added = [item for item in evals.value if _called(item) not in have]
            node = replace(own_evals or evals, value=[*mine, *added])
            last.node = replace(last.node, value={**last.node.value, "eval": node})

    def _share(self, trained: Sequence[_Flat], unit: str, option: str, budget: Node) -> None:
        """Bound the one method of a branch; that several share the budget out is checked."""
        if len(trained) == 1:
            self._bound(trained[0], unit, option, budget)
            return
        own = [(one.node.child("method") or one.node).child(option) for one in trained]
        total = sum(n.value for n in own if n and isinstance(n.value, int))
        if None in own or total != budget.value:
            self.fault(
                trained[0].node,
                trained[0].origin.key,
                f"this branch trains in {len(trained)} stages: give each method '{option}:', "
                f"{budget.value} in all, which is the budget of the comparison",
            )

    def _bound(self, one: _Flat, unit: str, option: str, budget: Node) -> None:
        method = one.node.child("method")
        if method is None or not isinstance(method.value, dict):
            return
        own = method.child(option)
        if own is not None:
            if own.value != budget.value:
                self.fault(
                    own,
                    (*one.origin.key, "method", option),
                    f"the budget of the comparison is {budget.value} {unit}; remove this",
                )
            return
        bounded = {**method.value, option: replace(budget, key_at=budget.key_at or budget.at)}
        value = {**one.node.value, "method": replace(method, value=bounded)}
        one.node = replace(one.node, value=value)


def _called(item: Node) -> Any:
    """What an eval is called: by name, by itself, or by its plugin."""
    if isinstance(item.value, dict):
        found = item.child("name") or item.child("use")
        return found.value if found else None
    return item.value


def _rename(one: _Flat, names: Mapping[str, str]) -> None:
    """The stage, and every reference in it, by the new names."""
    one.node = _renamed(one.node, names, top=True)
    origin = one.origin
    one.origin = replace(
        origin,
        name=names.get(origin.name, origin.name),
        before=names.get(origin.before, origin.before) if origin.before else None,
    )


def _renamed(node: Node, names: Mapping[str, str], *, top: bool = False) -> Node:
    if isinstance(node.value, list):
        return replace(node, value=[_renamed(n, names) for n in node.value])
    if not isinstance(node.value, dict):
        return node
    found = {k: _renamed(n, names) for k, n in node.value.items()}
    for word in ("name", "init_from") if top else ("stage",):
        if word in found and isinstance(found[word].value, str):
            value = found[word].value
            found[word] = replace(found[word], value=names.get(value, value))
    return replace(node, value=found)


# --- the matrix ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """Paths whose values change together; one path, or the ones under `pair:`."""

    paths: tuple[tuple[str, ...], ...]
    values: tuple[tuple[Node, ...], ...]
    """By choice, then by path."""
    names: tuple[str, ...] = ()
    """What labels call the paths."""

    def labels(self, choice: int) -> Labels:
        """What tells this choice from the others of the axis."""
        return tuple(
            (name, _text(value, choice))
            for name, value in zip(self.names, self.values[choice], strict=True)
        )


def _text(value: Node, choice: int) -> str:
    plain = value.plain()
    if isinstance(plain, bool) or plain is None:
        return json.dumps(plain)
    if isinstance(plain, float):
        return f"{plain:g}"
    if isinstance(plain, dict):
        # Options of a plugin: the file is what tells data sets apart, most of the time.
        short = plain.get("label") or plain.get("path") or plain.get("use")
        text = str(short).rsplit("/", 1)[-1].split(".")[0] if short else ""
        return f"{choice + 1}-{text}" if text else str(choice + 1)
    return str(choice + 1) if isinstance(plain, list) else str(plain).rsplit("/", 1)[-1]


def _axes(recipe: Recipe, matrix: Node, faults: list[Fault]) -> list[_Axis]:
    axes: list[_Axis] = []
    if not isinstance(matrix.value, dict):
        return axes
    for path, values in matrix.value.items():
        if path == "pair":
            groups = values.value if isinstance(values.value, list) else [values]
            axes += [axis for group in groups if (axis := _pair(recipe, group, faults))]
        elif isinstance(values.value, list) and values.value:
            parts = _path(recipe, path, values, faults)
            if parts:
                axes.append(_Axis((parts,), tuple((value,) for value in values.value)))
    every = [path for axis in axes for path in axis.paths]
    for path in {path for path in every if every.count(path) > 1}:
        shown = ".".join(path)
        faults.append(Fault(matrix.key_at or matrix.at, "matrix", f"'{shown}' is varied twice"))
    names = _short(every)
    return [replace(axis, names=tuple(names[path] for path in axis.paths)) for axis in axes]


def _pair(recipe: Recipe, group: Node, faults: list[Fault]) -> _Axis | None:
    if not isinstance(group.value, dict):
        return None
    found = [
        (parts, values)
        for path, values in group.value.items()
        if isinstance(values.value, list) and (parts := _path(recipe, path, values, faults))
    ]
    lengths = {len(values.value) for _, values in found}
    if len(lengths) > 1:
        shown = ", ".join(f"{parts[-1]} has {len(values.value)}" for parts, values in found)
        message = f"values under 'pair:' go together, so each list has as many: {shown}"
        faults.append(Fault(group.key_at or group.at, "matrix.pair", message))
    count = min(lengths, default=0)
    if not count:
        return None
    return _Axis(
        tuple(parts for parts, _ in found),
        tuple(tuple(values.value[i] for _, values in found) for i in range(count)),
    )


def _path(recipe: Recipe, path: str, node: Node, faults: list[Fault]) -> tuple[str, ...] | None:
    """`stages.dpo.method.beta` in parts, where the matrix can vary it."""
    parts = tuple(path.split("."))
    at: Location = node.key_at or node.at
    if parts in (("seed",), ("model",)) or (parts[0] == "lora" and len(parts) == 2):
        return parts
    if parts[0] != "stages" or len(parts) < 3 or not all(parts):
        why = "a matrix varies 'seed', 'model', 'lora.OPTION' and 'stages.STAGE....' alone"
        if parts[0] == "engine":
            why += "; run the recipe once for each engine and see 'ptl compare'"
        faults.append(Fault(at, f"matrix.{path}", why))
        return None
    known = stage_names(recipe.root.child("stages"))
    if parts[1] not in known:
        message = f"no stage is named '{parts[1]}'; {suggest(parts[1], known)}"
        faults.append(Fault(at, f"matrix.{path}", message))
        return None
    return parts


def _short(paths: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """The last part of each path, with the stage in front where two end alike."""
    short: dict[tuple[str, ...], str] = {}
    for path in paths:
        alike = [other for other in paths if other != path and other[-1] == path[-1]]
        short[path] = f"{path[1]}.{path[-1]}" if alike and len(path) > 2 else path[-1]
    counts = list(short.values())
    return {p: ".".join(p[1:]) if counts.count(s) > 1 else s for p, s in short.items()}


def _choices(axes: Sequence[_Axis]) -> list[tuple[int, ...]]:
    found = itertools.product(*(range(len(axis.values)) for axis in axes))
    return list(itertools.islice(found, MAX_STAGES + 1))


@dataclass
class _Variant:
    chosen: tuple[int, ...]
    flat: list[_Flat]


def _variant(
    recipe: Recipe, axes: Sequence[_Axis], chosen: tuple[int, ...], faults: list[Fault]
) -> _Variant:
    root = recipe.root
    varied: dict[str, Node] = {}
    for axis, choice in zip(axes, chosen, strict=True):
        for path, value in zip(axis.paths, axis.values[choice], strict=True):
            overlay = replace(value, key_at=value.at)
            for part in reversed(path):
                overlay = Node({part: overlay}, value.at, value.at)
            root = merge(root, overlay)
            if path[0] != "stages":
                varied[path[0]] = root.value[path[0]]
    expander = _Expander(recipe, faults)
    stages = root.value["stages"]
    expander.stages(stages.value, ("stages",), _Frame(), BASE)
    for one in expander.flat:
        values = dict(one.node.value)
        # The flat recipe has one seed, adapter and model: what varies is said by its stages.
        if "seed" in varied:
            if any(name == "seed" for name, _ in one.origin.labels):
                faults.append(
                    Fault(
                        varied["seed"].at, "matrix.seed", "the comparison has 'seeds:' of its own"
                    )
                )
            values.setdefault("seed", varied["seed"])
        start = str(values["init_from"].value) if "init_from" in values else BASE
        if "lora" in varied and (start == BASE or "://" in start):
            own = values.get("lora")
            values["lora"] = merge(varied["lora"], own) if own else varied["lora"]
        if "model" in varied and start == BASE:
            values.setdefault("model", varied["model"])
        one.node = replace(one.node, value=values)
    return _Variant(chosen, expander.flat)


def _share(variants: Sequence[_Variant], axes: Sequence[_Axis]) -> list[_Flat]:
    """One list of the stages of all variants, each stage once, named by what it depends on."""
    kinds = {variant.chosen: _kinds(variant) for variant in variants}
    names = dict.fromkeys(one.origin.name for variant in variants for one in variant.flat)
    matter = {name: [_matters(name, place, kinds) for place in range(len(axes))] for name in names}
    found: list[_Flat] = []
    known: set[str] = set()
    for number, variant in enumerate(variants):
        calls: dict[str, str] = {}
        for one in variant.flat:
            mine = _labels(axes, variant.chosen, matter[one.origin.name])
            text = show_labels(mine)
            if len(text) > MAX_LABEL:
                text = str(number + 1)
            head, _, seed = one.origin.name.partition("@")
            calls[one.origin.name] = "@".join(filter(None, [head, _joined(text, seed)]))
        emitted = [calls[one.origin.name] for one in variant.flat]
        for one in variant.flat:
            # A name that a variant has twice is the planner's to tell.
            if calls[one.origin.name] not in known:
                mine = _labels(axes, variant.chosen, matter[one.origin.name])
                made = _Flat(one.node, replace(one.origin, labels=(*mine, *one.origin.labels)))
                _rename(made, calls)
                found.append(made)
        known.update(emitted)
    return found


def _joined(*parts: str) -> str:
    return ",".join(filter(None, parts))


def _labels(axes: Sequence[_Axis], chosen: tuple[int, ...], matter: Sequence[bool]) -> Labels:
    found: Labels = ()
    for axis, choice, matters in zip(axes, chosen, matter, strict=True):
        found += axis.labels(choice) if matters else ()
    return found


def _matters(name: str, place: int, kinds: Mapping[tuple[int, ...], Mapping[str, str]]) -> bool:
    """Whether the stage changes along this axis, for some values of the others."""
    first: dict[tuple[int, ...], str | None] = {}
    for chosen, kind in kinds.items():
        rest = (*chosen[:place], *chosen[place + 1 :])
        if first.setdefault(rest, kind.get(name)) != kind.get(name):
            return True
    return False


def _kinds(variant: _Variant) -> dict[str, str]:
    """By stage: text that is equal where a stage and all that it builds on are."""
    kinds: dict[str, str] = {}
    evals: dict[Any, str] = {}
    for one in variant.flat:
        node = _renamed(one.node, kinds, top=True)
        plain = {k: v for k, v in node.plain().items() if k != "name"}
        asked = one.node.child("eval")
        items = asked.value if asked and isinstance(asked.value, list) else []
        named = [evals.get(item.value) for item in items if isinstance(item.value, str)]
        text = json.dumps([plain, named], sort_keys=True, default=str)
        kinds[one.origin.name] = f"{one.origin.name}#{digest(text)}"
        for item in items:
            if isinstance(item.value, dict):
                # On the stage's own test split it is another eval for another stage.
                own = "" if "dataset" in item.value else kinds[one.origin.name]
                evals[_called(item)] = json.dumps([item.plain(), own], sort_keys=True, default=str)
    return kinds


def digest(text: str) -> str:
    """A short hash."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
