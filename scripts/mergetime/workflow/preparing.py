"""What the preparation of a domain is told.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import json

from mergetime.config.sections import job_options
from mergetime.config.sources import Domain


def domain_json(domain: Domain) -> str:
    """A domain of the config as prepare_domain.py takes it."""
    return json.dumps(job_options(domain), sort_keys=True)
