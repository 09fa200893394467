"""What domains and methods are called in print, and in which order."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Names:
    """The names of a paper; what it does not name comes after what it names, under its id.

    Attributes:
        domains: headers by the domain's id, in the paper's order.
        methods: labels by the method's family, in the paper's order.
        refusals: the domains that are measured by refusals; they are in no average over domains.
    """

    domains: Mapping[str, str] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)
    refusals: tuple[str, ...] = ()

    def header(self, domain: str) -> str:
        """A domain's name in a header."""
        return self.domains.get(domain) or domain.replace("_", " ").capitalize()


def ordered(present: Iterable[str], known: Iterable[str]) -> list[str]:
    """``present`` in the order of ``known``, then what is not known in its own order."""
    present, known = list(present), list(known)
    return [name for name in known if name in present] + [name for name in present if name not in known]
