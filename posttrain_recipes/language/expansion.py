"""`repeat`, `compare` and `matrix`: a recipe with them becomes a flat list of stages.

    repeat     stages `dpo-1`, `dpo-2`, ...: each round starts from what the round before left
    compare    each branch from the same start, once a seed: `dpo@seed=0`, `ipo@seed=0`, ...
    matrix     the recipe once for each combination of values: `dpo@beta=0.1,lr=0.001`

What varies nothing that a stage depends on is not in its name, and the stage is there once. Every
value keeps the place that it was written at. Nothing here knows what methods or evals mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain_recipes.errors import Fault
from posttrain_recipes.language.flat import (
    BASE,
    MAX_STAGES,
    Flat,
    Labels,
    Origin,
    Variant,
    called,
    rename,
    show_labels,
)
from posttrain_recipes.language.labels import first_equal
from posttrain_recipes.language.matrix import Axis, choices, read_axes, share
from posttrain_recipes.language.nodes import Key, Node, merge, name_of
from posttrain_recipes.language.recipe import Recipe

BUDGETS = {"steps": "max_steps", "tokens": "token_budget"}
"""What a comparison bounds -> the option of a method that does."""


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
    if stages is None:
        return recipe, (), faults
    axes = read_axes(recipe, matrix, faults) if matrix else []
    variants = [_variant(recipe, axes, chosen, faults) for chosen in choices(axes)]
    flat = share(variants, axes)
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


def _plain(items: Sequence[Node]) -> Iterator[Origin]:
    for index, item in enumerate(items):
        if isinstance(item.value, dict):
            name = name_of(item) or ""
            yield Origin(name, name, ("stages", index), last=index == len(items) - 1)


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
        self.flat: list[Flat] = []
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
        source = name_of(item) or ""
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
            Flat(replace(item, value=values), Origin(name, source, key, **frame.origin))
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
        loop = name_of(block) or "loop"
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
        title = name_of(block) or "comparison"
        while title in self.taken:
            title += "'"
        self.taken.add(title)
        many: list[Node | None] = [None]
        if seeds and isinstance(seeds.value, list) and seeds.value:
            many = list(seeds.value)
            for number, same in enumerate(first_equal([n.plain() for n in seeds.value])):
                if number != same:
                    why = f"value {number + 1} is the same as value {same + 1}; remove one"
                    self.fault(seeds, (*key, "seeds"), f"a seed is given twice: {why}")
        outer = dict(frame.names)
        seen: dict[str, list[str]] = {}
        stage_alone: dict[str, bool] = {}
        for index, branch in enumerate(branches.value):
            if not isinstance(branch.value, dict):
                continue
            where = (*key, "compare", index)
            name = name_of(branch) or f"branch {index + 1}"
            inside = branch.child("stages")
            alone = inside is None or not isinstance(inside.value, list)
            # Two branches that are stages are two stages of one name: the planner's to tell.
            if name in stage_alone and not (alone and stage_alone[name]):
                self.fault(branch, where, f"two branches are named '{name}'; rename one")
            stage_alone[name] = alone
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

    def _label(self, made: Sequence[Flat], labels: Labels) -> None:
        """Give the stages of a branch the names of their seed, and say so to each other."""
        if labels:
            names = {m.origin.name: f"{m.origin.name}@{show_labels(labels)}" for m in made}
            for one in made:
                rename(one, names)

    def _finish(self, block: Node, made: Sequence[Flat]) -> None:
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
            have = {called(item) for item in mine}
            added = [item for item in evals.value if called(item) not in have]
            node = replace(own_evals or evals, value=[*mine, *added])
            last.node = replace(last.node, value={**last.node.value, "eval": node})

    def _share(self, trained: Sequence[Flat], unit: str, option: str, budget: Node) -> None:
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

    def _bound(self, one: Flat, unit: str, option: str, budget: Node) -> None:
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


def _variant(
    recipe: Recipe, axes: Sequence[Axis], chosen: tuple[int, ...], faults: list[Fault]
) -> Variant:
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
    return Variant(chosen, expander.flat)
