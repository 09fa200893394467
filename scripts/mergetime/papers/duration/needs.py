"""What a study must have for the tables and figures of this paper, beside what others need too."""

from mergetime.papers.duration.names import SAFETY
from mergetime.publishing.entry import Need

ACCURACY = Need(
    lambda study: any(domain != SAFETY for domain in study.suites.test),
    f"a domain beside {SAFETY} in suites.test, to average over",
)
REFUSALS = Need(lambda study: SAFETY in study.suites.test, f"the domain {SAFETY} in suites.test")
