"""The pools of a study: which experts are merged together.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import itertools
import random
from dataclasses import dataclass

from mergetime.config.merging import Member, Pools
from mergetime.config.study import Study
from mergetime.core.words import nearest
from mergetime.merging import registry
from mergetime.study import layout
from mergetime.study.durations import durations


@dataclass(frozen=True)
class Expert:
    """One expert of a pool: a domain at a duration, or an imported expert (duration None)."""

    name: str
    duration: str | None

    @property
    def path(self) -> str:
        """Below its base, with the seed left open."""
        return layout.trained(self.name, "{seed}", self.duration) if self.duration else layout.from_hub(self.name)

    def subject(self, base: str, seed: int | str) -> str:
        """Its path below results/{study}/."""
        return layout.member(base, self.path.format(seed=seed))


@dataclass(frozen=True)
class Pool:
    """A named set of experts merged together; ``duration`` is the one that all trained members share, if any."""

    id: str
    experts: tuple[Expert, ...]
    duration: str | None

    @property
    def members(self) -> dict[str, Expert]:
        """The experts by name; where a domain is there at several durations, the duration is part of the name."""
        names = [expert.name for expert in self.experts]
        return {
            expert.name if names.count(expert.name) == 1 else f"{expert.name}_{expert.duration}": expert
            for expert in self.experts
        }


def pools(study: Study) -> list[Pool]:
    """Every pool of the study, families expanded.

    Raises:
        ValueError: naming the pool and the expert or duration that is unknown.
    """
    found = list(itertools.chain.from_iterable(_expand(study, name, spec) for name, spec in study.pools.items()))
    ids = [pool.id for pool in found]
    repeated = sorted({i for i in ids if ids.count(i) > 1})
    if repeated:
        raise ValueError(f"pools: {', '.join(repeated)} is the id of two pools; rename one")
    _check_measurable(study, found)
    return found


def domain_of(study: Study, expert: Expert) -> str | None:
    """The domain on whose training data an expert is measured; None for an imported one that names none."""
    return expert.name if expert.duration else study.experts.imported[expert.name].domain


def _check_measurable(study: Study, found: list[Pool]) -> None:
    """Refuse a method that needs data of every expert where one has none."""
    needing = [name for name, method in study.methods.items() if registry.get(method.method).statistics]
    for pool in found if needing else []:
        for expert in pool.experts:
            if domain_of(study, expert) is None:
                raise ValueError(
                    f"methods.{needing[0]}: needs data of every expert, and {expert.name} of pool {pool.id} has none; "
                    f"give experts.imported.{expert.name} a domain"
                )


def pools_on(study: Study, base: str) -> list[Pool]:
    """The pools that can be merged on ``base``: imported experts belong to one base."""
    imported = study.experts.imported
    return [pool for pool in pools(study) if all(e.duration or imported[e.name].base == base for e in pool.experts)]


def _expand(study: Study, name: str, spec: Pools) -> list[Pool]:
    if isinstance(spec.experts, list) and any(isinstance(member, Member) for member in spec.experts):
        members = [member if isinstance(member, Member) else Member(expert=member) for member in spec.experts]
        experts = tuple(_expert(study, name, member.expert, member.at) for member in members)
        shared = {expert.duration for expert in experts if expert.duration}
        return [Pool(name, experts, shared.pop() if len(shared) == 1 else None)]
    everyone = [*(study.domains if study.experts.train else []), *study.experts.imported]
    if spec.random_subsets is None:
        sets = {name: everyone if spec.experts == "all" else [str(member) for member in spec.experts or []]}
    else:
        sets = _random_sets(name, spec, everyone)
    found = []
    for set_name, names in sets.items():
        trained = any(expert not in study.experts.imported for expert in names)
        for duration in _durations(study, name, spec) if trained else [None]:
            experts = tuple(_expert(study, name, expert, duration) for expert in names)
            found.append(Pool(f"{set_name}_{duration}" if duration else set_name, experts, duration))
    return found


def _random_sets(name: str, spec: Pools, everyone: list[str]) -> dict[str, list[str]]:
    subsets = spec.random_subsets
    assert subsets is not None
    rng = random.Random(subsets.seed)
    sets = {}
    for size in subsets.sizes:
        combinations = list(itertools.combinations(everyone, size)) if size <= len(everyone) else []
        if len(combinations) < subsets.count:
            raise ValueError(
                f"pools.{name}: {len(everyone)} experts have {len(combinations)} subsets of {size}, "
                f"fewer than count {subsets.count}"
            )
        for number, chosen in enumerate(rng.sample(combinations, subsets.count)):
            sets[f"{name}_n{size}_{number:02d}"] = list(chosen)
    return sets


def _durations(study: Study, name: str, spec: Pools) -> list[str]:
    known = durations(study)
    if spec.at is None:
        raise ValueError(f"pools.{name}: say at which duration (at: each_duration, or one of {', '.join(known)})")
    if spec.at == "each_duration":
        return known
    wanted = [spec.at] if isinstance(spec.at, str) else spec.at
    for duration in wanted:
        if duration not in known:
            raise ValueError(f"pools.{name}.at: '{duration}' is no duration of this study{nearest(duration, known)}")
    return wanted


def _expert(study: Study, pool: str, name: str, duration: str | None) -> Expert:
    if name in study.experts.imported:
        return Expert(name, None)
    if not study.experts.train or name not in study.domains:
        everyone = [*study.domains, *study.experts.imported]
        raise ValueError(f"pools.{pool}: '{name}' is neither a domain nor an imported expert{nearest(name, everyone)}")
    if duration not in durations(study):
        raise ValueError(
            f"pools.{pool}: expert '{name}' has no duration '{duration}'{nearest(str(duration), durations(study))}"
        )
    return Expert(name, duration)
