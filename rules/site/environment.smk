import shlex

# What every job finds in its environment: this code, no network, and how code that models write is run. That it runs
# unprotected is for whoever gives the command to say, beside the config; a job, on another machine perhaps, is told.
from mergetime.sandbox.permission import VARIABLE, check_unprotected

if workflow.is_main_process:
    try:
        check_unprotected(STUDY.evaluation.sandbox, CONFIG, os.environ)
    except UserError as error:
        sys.exit(f"error: {one_line(error)}")

# The folder of the repository may have a blank in its name.
CODE = shlex.quote(f"{workflow.basedir}/scripts")
shell.prefix(
    f"set -euo pipefail; export PYTHONPATH={CODE} PYTHONHASHSEED=0"
    " HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_EVALUATE_OFFLINE=1 TRANSFORMERS_OFFLINE=1"
    f" {VARIABLE}={STUDY.evaluation.sandbox}; "
)
