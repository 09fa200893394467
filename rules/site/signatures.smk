# Snakemake asks each function in a rule for its signature up to three times a job, which takes longer than most of them
# do: kept, it is there at once.
import inspect

for rule_ in workflow.rules:
    for field in (*rule_.input, *rule_.params):
        if callable(field):
            field.__signature__ = inspect.signature(field)
