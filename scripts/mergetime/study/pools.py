"""The pools of a study: which experts are merged together.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import itertools
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mergetime.config.experts import DEFAULT, EACH
from mergetime.config.merging import Member, Method, Pools, RandomSubsets
from mergetime.config.study import Study
from mergetime.core.words import nearest
from mergetime.merging import registry
from mergetime.study import layout
from mergetime.study.durations import durations, recipes


@dataclass(frozen=True)
class Expert:
    """One expert of a pool: a domain at a duration of a recipe, or an imported expert (both None)."""

    name: str
    duration: str | None
    recipe: str | None = None

    @property
    def path(self) -> str:
        """Below its base, with the seed left open."""
        if self.duration is None:
            return layout.from_hub(self.name)
        return layout.trained(self.name, "{seed}", self.duration, self.recipe or DEFAULT)

    def subject(self, base: str, seed: int | str) -> str:
        """Its path below results/{study}/."""
        return layout.member(base, self.path.format(seed=seed))


@dataclass(frozen=True)
class Pool:
    """A set of experts merged together.

    Attributes:
        id: Its name in paths.
        family: The key below ``pools`` in the config, which may make many of them.
        name: Its id without the duration: the same set of experts, at whatever duration.
        experts: The members.
        duration: The one that all trained members share, if any.
        recipe: The one that they share, likewise.
        draw: The number of a random subset, counted from 0 for each size; None for a pool that is not drawn.
    """

    id: str
    family: str
    name: str
    experts: tuple[Expert, ...]
    duration: str | None
    recipe: str | None = None
    draw: int | None = None

    @property
    def members(self) -> dict[str, Expert]:
        """The experts by name; where a domain is there more than once, what tells them apart is part of the name."""
        return dict(zip(_names(self.experts), self.experts, strict=True))


def _names(experts: tuple[Expert, ...]) -> list[str]:
    """A name for each expert: of those that share a domain with the duration, or with recipe and duration."""
    names = [expert.name for expert in experts]
    dated = [f"{expert.name}_{expert.duration}" for expert in experts]
    full = [f"{expert.name}_{expert.recipe}_{expert.duration}" for expert in experts]
    return [
        name if names.count(name) == 1 else by_date if dated.count(by_date) == 1 else by_recipe
        for name, by_date, by_recipe in zip(names, dated, full, strict=True)
    ]


def pools(study: Study) -> list[Pool]:
    """Every pool of the study, families expanded.

    Raises:
        ValueError: naming the pool and the expert or duration that is unknown.
    """
    expanded = list(itertools.chain.from_iterable(_expand(study, name, spec) for name, spec in study.pools.items()))
    ids = [pool.id for pool in expanded]
    repeated = sorted({i for i in ids if ids.count(i) > 1})
    if repeated:
        raise ValueError(f"pools: {', '.join(repeated)} is the id of two pools; rename one")
    for pool in expanded:
        _check_experts_differ(pool)
        if not any(_fits(study, pool, base) for base in study.bases):
            of = ", ".join(
                f"{expert.name} on {study.experts.imported[expert.name].base}"
                for expert in pool.experts
                if expert.duration is None
            )
            raise ValueError(f"pools.{pool.family}: its imported experts belong to several bases ({of}); list one's")
    _check_mergeable(study, expanded)
    _check_measurable(study, expanded)
    return expanded


def domain_of(study: Study, expert: Expert) -> str | None:
    """The domain on whose training data an expert is measured; None for an imported one that names none."""
    return expert.name if expert.duration else study.experts.imported[expert.name].domain


def _check_experts_differ(pool: Pool) -> None:
    """Refuse a pool that has an expert twice, or two by one name."""
    if len({expert.name for expert in pool.experts}) == len(pool.experts):
        return
    for expert in pool.experts:
        if pool.experts.count(expert) > 1:
            at = f" at {expert.duration}" if expert.duration else ""
            raise ValueError(f"pools.{pool.family}: {expert.name}{at} is listed twice; list it once")
    names = _names(pool.experts)
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"pools.{pool.family}: two of its experts would be called {name}; rename a domain")


def _check_mergeable(study: Study, every_pool: list[Pool]) -> None:
    """Refuse a method that cannot merge so many experts, or that weighs other experts than those of a pool."""
    for name, method in study.methods.items():
        (least, most), weighed = registry.get(method.method).count, _weighed(method)
        for pool in every_pool:
            if method.pools is not None and pool.family not in method.pools:
                continue
            if not least <= len(pool.experts) <= most:
                raise ValueError(
                    f"methods.{name}: {method.method} merges {least} to {most:g} experts, and pool {pool.id} has "
                    f"{len(pool.experts)}; name the pools that it merges (methods.{name}.pools)"
                )
            for parameter, experts in weighed:
                _check_weights(f"methods.{name}.{parameter}", experts, pool)


def _weighed(method: Method) -> list[tuple[str, list[str]]]:
    """The hyper-parameters with a number for each expert, and the experts that they name."""
    named = [parameter.name for parameter in registry.get(method.method).parameters]
    given = [(name, values.get(name)) for values in method.settings for name in named]
    return [(name, list(map(str, numbers))) for name, numbers in given if isinstance(numbers, Mapping)]


def _check_weights(key: str, experts: list[str], pool: Pool) -> None:
    members = pool.members
    for expert in experts:
        if expert not in members:
            raise ValueError(f"{key}: '{expert}' is no expert of pool {pool.id}{nearest(expert, members)}")
    for member in members:
        if member not in experts:
            raise ValueError(f"{key}: has no number for {member} of pool {pool.id}")


def _check_measurable(study: Study, every_pool: list[Pool]) -> None:
    """Refuse a method that needs data of every expert where one has none."""
    needing = {name: method for name, method in study.methods.items() if registry.get(method.method).statistics}
    for pool in every_pool:
        names = [name for name, method in needing.items() if method.pools is None or pool.family in method.pools]
        for expert in pool.experts if names else ():
            if domain_of(study, expert) is None:
                raise ValueError(
                    f"methods.{names[0]}: needs data of every expert, and {expert.name} of pool {pool.id} has none; "
                    f"give experts.imported.{expert.name} a domain"
                )


def pools_on(study: Study, base: str) -> list[Pool]:
    """The pools that can be merged on ``base``: imported experts belong to one base."""
    return [pool for pool in pools(study) if _fits(study, pool, base)]


def _fits(study: Study, pool: Pool, base: str) -> bool:
    imported = study.experts.imported
    return all(expert.duration or imported[expert.name].base == base for expert in pool.experts)


def _expand(study: Study, name: str, spec: Pools) -> list[Pool]:
    if spec.is_explicit:
        return [_explicit(study, name, spec)]
    everyone = [*(study.domains if recipes(study) else []), *study.experts.imported]
    if spec.random_subsets is None:
        chosen = everyone if spec.experts == "all" else [str(member) for member in spec.experts or []]
        sets: list[tuple[str, int | None, list[str]]] = [(name, None, chosen)]
    else:
        sets = _random_sets(name, spec.random_subsets, everyone)
    expanded = []
    for set_name, draw, names in sets:
        if all(expert in study.experts.imported for expert in names):
            if spec.at is not None and spec.random_subsets is None:
                raise ValueError(f"pools.{name}.at: its experts are imported and have no duration; leave at out")
            experts = tuple(Expert(expert, None) for expert in names)
            expanded.append(Pool(set_name, name, set_name, experts, None, None, draw))
            continue
        for recipe in _recipes(study, name, spec.recipe):
            of_recipe = f"{set_name}_{recipe}" if spec.recipe == EACH and recipe != DEFAULT else set_name
            for duration in _durations(study, name, spec, recipe):
                experts = tuple(_expert(study, name, expert, duration, recipe) for expert in names)
                expanded.append(Pool(f"{of_recipe}_{duration}", name, of_recipe, experts, duration, recipe, draw))
    return expanded


def _explicit(study: Study, name: str, spec: Pools) -> Pool:
    """The pool whose members are listed with a duration, and where it differs with a recipe, each."""
    assert isinstance(spec.experts, list)
    members = [member if isinstance(member, Member) else Member(expert=member) for member in spec.experts]
    for member in members:
        if member.expert in study.experts.imported and (member.at or member.recipe):
            raise ValueError(f"pools.{name}: '{member.expert}' is imported; leave at and recipe out")
    experts = tuple(_expert(study, name, member.expert, member.at, member.recipe or spec.recipe) for member in members)
    trained = [expert for expert in experts if expert.duration]
    return Pool(
        name,
        name,
        name,
        experts,
        duration=_shared(expert.duration for expert in trained),
        recipe=_shared(expert.recipe for expert in trained),
    )


def _shared(values: Iterable[str | None]) -> str | None:
    """The value that all have; None where they differ or there are none."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def _recipes(study: Study, name: str, wanted: str) -> list[str]:
    """The recipes that a pool is made of, one after another."""
    known = recipes(study)
    if wanted == EACH:
        return list(known)
    if known and wanted not in known:
        raise ValueError(f"pools.{name}.recipe: '{wanted}' is not a recipe of this study{nearest(wanted, known)}")
    return [wanted]


def _random_sets(name: str, subsets: RandomSubsets, everyone: list[str]) -> list[tuple[str, int | None, list[str]]]:
    """The name, the draw and the members of each random subset."""
    rng = random.Random(subsets.seed)
    sets: list[tuple[str, int | None, list[str]]] = []
    for size in subsets.sizes:
        combinations = math.comb(len(everyone), size)
        if combinations < subsets.count:
            raise ValueError(
                f"pools.{name}: {len(everyone)} experts have {combinations} subsets of {size}, "
                f"fewer than count {subsets.count}"
            )
        # By rank, since there may be too many to list: 6.5e9 of 10 among 48.
        for draw, rank in enumerate(rng.sample(range(combinations), subsets.count)):
            sets.append((f"{name}_n{size}_{draw:02d}", draw, _combination(everyone, size, rank)))
    return sets


def _combination(items: list[str], size: int, rank: int) -> list[str]:
    """The combination of ``size`` items that has this place in the order of itertools.combinations."""
    chosen: list[str] = []
    for place, item in enumerate(items):
        with_it = math.comb(len(items) - place - 1, size - len(chosen) - 1) if len(chosen) < size else 0
        if rank < with_it:
            chosen.append(item)
        else:
            rank -= with_it
    return chosen


def _durations(study: Study, name: str, spec: Pools, recipe: str) -> list[str]:
    known = durations(study, recipe) if recipe in recipes(study) else []
    if spec.at is None:
        raise ValueError(f"pools.{name}: say at which duration (at: each_duration, or one of {', '.join(known)})")
    if spec.at == "each_duration":
        return known
    wanted = [spec.at] if isinstance(spec.at, str) else spec.at
    for duration in wanted:
        if duration not in known:
            raise ValueError(f"pools.{name}.at: '{duration}' is not a duration of this study{nearest(duration, known)}")
    return wanted


def _expert(study: Study, pool: str, name: str, duration: str | None, recipe: str) -> Expert:
    if name in study.experts.imported:
        return Expert(name, None)
    if not recipes(study) or name not in study.domains:
        everyone = [*study.domains, *study.experts.imported]
        raise ValueError(f"pools.{pool}: '{name}' is neither a domain nor an imported expert{nearest(name, everyone)}")
    (recipe,) = _recipes(study, pool, recipe)
    known = durations(study, recipe)
    if duration is None:
        raise ValueError(f"pools.{pool}: say at which duration expert '{name}' is (at: one of {', '.join(known)})")
    if duration not in known:
        raise ValueError(f"pools.{pool}: expert '{name}' has no duration '{duration}'{nearest(duration, known)}")
    return Expert(name, duration, recipe)
