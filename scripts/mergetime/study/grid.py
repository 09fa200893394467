"""The grid of a study: durations, pools, subjects, and where each artifact stands under results/{study}/.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import itertools
import random
import re
from dataclasses import dataclass

from mergetime.config import Member, Method, Pools, Study
from mergetime.core.words import nearest
from mergetime.merging import registry


@dataclass(frozen=True)
class Expert:
    """One expert of a pool: a domain at a duration, or an imported expert (duration None)."""

    name: str
    duration: str | None

    @property
    def path(self) -> str:
        """Below experts/{base}/, with the seed left open."""
        return f"{self.name}/seed-{{seed}}/{self.duration}" if self.duration else f"imported/{self.name}"


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


def duration_id(multiple: float) -> str:
    """``0.25x``, ``1x``, ``1.5x``: how a multiple of T* stands in paths."""
    return f"{multiple:g}x"


def multiple_of(duration: str | None) -> float | None:
    """The multiple of T* that a duration id names; None for step counts and imported experts."""
    return float(duration[:-1]) if duration and re.fullmatch(r"[0-9.]+x", duration) else None


def durations(study: Study) -> list[str]:
    """The duration ids that experts are kept at, in the config's order."""
    listed = study.experts.durations
    if listed is None:
        return []
    if listed.multiples_of_optimum:
        return [duration_id(multiple) for multiple in listed.multiples_of_optimum]
    return [f"step_{step}" for step in listed.steps or []] or list(listed.early_stopping or {})


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


def candidates(method: Method) -> list[dict[str, object]]:
    """Every combination of the hyper-parameters that validation chooses from; empty where nothing is chosen."""
    if not method.choose:
        return []
    return [dict(zip(method.choose, values, strict=True)) for values in itertools.product(*method.choose.values())]


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


@dataclass(frozen=True)
class Subject:
    """What is evaluated, with the columns that results carry; ``path`` stands below results/{study}/evaluations/."""

    kind: str
    base: str
    path: str
    splits: tuple[str, ...]
    seed: int | None = None
    expert: str | None = None
    pool: Pool | None = None
    method: str | None = None
    candidate: int | None = None
    duration: str | None = None


CANDIDATE = ".candidate_"
"""Between a method's id and the number of a candidate that validation chooses from."""


def merge_ids(study: Study) -> dict[str, tuple[str, int | None]]:
    """Every merged artifact of a pool: its id in paths, to the method's id and the candidate's number, if it is one."""
    ids: dict[str, tuple[str, int | None]] = {}
    for name, method in study.methods.items():
        ids[name] = (name, None)
        ids |= {f"{name}{CANDIDATE}{number}": (name, number) for number in range(len(candidates(method)))}
    return ids


def subjects(study: Study) -> list[Subject]:
    """Every subject of the study with the splits that it is evaluated on."""
    found = []
    both = ("validation", "test") if study.suites.validation else ("test",)
    for base in study.bases:
        found.append(Subject("base", base, f"bases/{base}", ("test",)))
        for seed in study.seeds:
            for domain in study.domains if study.experts.train else ():
                for duration in durations(study):
                    path = f"experts/{base}/{domain}/seed-{seed}/{duration}"
                    found.append(Subject("expert", base, path, both, seed, expert=domain, duration=duration))
        for name, imported in study.experts.imported.items():
            if imported.base == base:
                found.append(Subject("expert", base, f"experts/{base}/imported/{name}", both, expert=name))
        for pool, seed in itertools.product(pools_on(study, base), study.seeds):
            for merge_id, (method, number) in merge_ids(study).items():
                found.append(
                    Subject(
                        "merged",
                        base,
                        f"merged/{base}/{pool.id}/{merge_id}/seed-{seed}",
                        ("test",) if number is None else ("validation",),
                        seed,
                        pool=pool,
                        method=method,
                        candidate=number,
                        duration=pool.duration,
                    )
                )
    return found


def batches(ids: list[str], size: int) -> list[list[str]]:
    """``ids`` in consecutive groups of at most ``size``: the subjects that one job takes."""
    return [ids[i : i + size] for i in range(0, len(ids), size)]
