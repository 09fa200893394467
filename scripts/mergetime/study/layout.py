"""Where a study's files are below results/ and resources/: rules, and all that prepares their jobs, ask here.

Called with ids, a function gives the path of one artifact; called with ``"{base}"``, ``"{seed}"`` and so on, it gives
the pattern that a rule matches. Imported while Snakemake parses the workflow: nothing heavy is imported here.

The scripts that train, measure, merge, evaluate and judge do not import this module. They are told where to read and
write, so that a path for something new makes none of their results again. What makes tables, the report and the package
is told a folder as well, and names the files in it as their readers see them.
"""

from dataclasses import dataclass

from mergetime.config.experts import DEFAULT
from mergetime.config.study import Study

ANALYSES = {"interference": "interference", "bias_variance": "probabilities", "mode_connectivity": "paths"}
"""The analyses of pools, each with the folder of its measurements below analysis/."""
EVALUATION_PARTS = ("parquet", "samples.parquet", "json")
"""What an evaluation ends in: metrics, scores by item, and the record."""
EXPERT_BELOW_BASE = "[^/]+/([^/]+/)?seed-[0-9]+/[^/]+|imported/[^/]+"
"""What the path of an expert below its base matches; the second piece is a recipe."""

# What is fetched or made once for all studies.
CACHE = "resources/cache"
DEMO_BASE = "resources/demo/base"
DEMO_HUB = "resources/demo/hub"
REHEARSAL_HUB = "resources/rehearsal/hub"


def model(hub_id: str, revision: str) -> str:
    """The folder of a fetched model: a base or a judge."""
    return f"resources/models/{hub_id}/{revision}"


def dataset(hub_id: str, configuration: str | None, revision: str) -> str:
    """The folder of a fetched training set."""
    return f"resources/datasets/{hub_id}/{configuration}/{revision}"


def benchmark(hub_id: str, configuration: str | None, revision: str) -> str:
    """The folder of a benchmark's fetched data."""
    return f"resources/benchmarks/{hub_id}/{configuration}/{revision}"


def fetched(folder: str) -> str:
    """The record of what was fetched into a folder."""
    return f"{folder}/fetched.json"


# Subjects: paths below the study's folder. The results carry them as the column `subject`.


def base(base: str) -> str:
    """A base by itself, which has evaluations but no folder of its own below the study."""
    return f"bases/{base}"


def is_base(subject: str) -> bool:
    """Whether a subject is a base by itself."""
    return subject.startswith(base(""))


def trained(domain: str, seed: int | str, duration: str, recipe: str = DEFAULT) -> str:
    """A trained expert, below its base."""
    return f"{_run(domain, seed, recipe)}/{duration}"


def from_hub(name: str) -> str:
    """An imported expert, below its base."""
    return f"imported/{name}"


def member(base: str, expert: str) -> str:
    """An expert, trained or imported, by its path below the base."""
    return f"experts/{base}/{expert}"


def training(base: str, domain: str, seed: int | str, recipe: str = DEFAULT) -> str:
    """A training: the folder of its loss curve and record, and of the experts of all its durations."""
    return member(base, _run(domain, seed, recipe))


def expert(base: str, domain: str, seed: int | str, duration: str, recipe: str = DEFAULT) -> str:
    """A trained expert at one duration."""
    return member(base, trained(domain, seed, duration, recipe))


def imported(base: str, name: str) -> str:
    """An imported expert."""
    return member(base, from_hub(name))


def below_experts(path: str) -> str:
    """The path of an expert or a training, seen from the folder of all experts."""
    return path.removeprefix("experts/")


def _run(domain: str, seed: int | str, recipe: str) -> str:
    return "/".join([domain, *([] if recipe == DEFAULT else [recipe]), f"seed-{seed}"])


def merged(base: str, pool: str, method: str, seed: int | str) -> str:
    """A merge of a pool; ``method`` is the id of a method or of a candidate."""
    return f"merged/{base}/{pool}/{method}/seed-{seed}"


@dataclass(frozen=True)
class Layout:
    """The paths of one study below its folder ``root``, results/{study}."""

    root: str

    def folder(self, subject: str) -> str:
        """The folder of a subject, or of a training."""
        return f"{self.root}/{subject}"

    def below(self, path: str) -> str:
        """The path of a file of the study, seen from its folder."""
        return path.removeprefix(f"{self.root}/")

    def file(self, name: str) -> str:
        """The path of a file whose name is given as seen from the study's folder; undoes :meth:`below`."""
        return f"{self.root}/{name}"

    def data_folder(self, domain: str) -> str:
        """The folder of a domain's prepared data."""
        return f"{self.root}/data/{domain}"

    def data(self, domain: str, part: str) -> str:
        """A domain's prepared data: ``train`` or ``validation``."""
        return f"{self.data_folder(domain)}/{part}.parquet"

    def data_record(self, domain: str) -> str:
        """The record of a domain's prepared data."""
        return f"{self.data_folder(domain)}/domain.json"

    def curve(self, training: str) -> str:
        """The loss curve of a training."""
        return f"{self.root}/{training}/curve.parquet"

    def expert_record(self, training: str) -> str:
        """The record of a training, or of an imported expert."""
        return f"{self.root}/{training}/expert.json"

    def checkpoints(self, training: str) -> str:
        """The folder of a training that is under way."""
        return f"{self.root}/checkpoints/{below_experts(training)}"

    def statistic(self, expert: str, kind: str, suffix: str = "safetensors") -> str:
        """What was measured of an expert on its data, for methods that need it."""
        return f"{self.root}/statistics/{below_experts(expert)}/{kind}.{suffix}"

    @property
    def evaluations(self) -> str:
        """The folder of all evaluations."""
        return f"{self.root}/evaluations"

    def evaluation(self, subject: str, split: str, part: str = "parquet") -> str:
        """A file of an evaluation; ``part`` is one of :data:`EVALUATION_PARTS`."""
        return f"{self.evaluation_stem(subject, split)}.{part}"

    def evaluation_stem(self, subject: str, split: str) -> str:
        """What the files of an evaluation begin with."""
        return f"{self.evaluations}/{subject}/{split}"

    def judged_stem(self, subject: str, split: str) -> str:
        """What the files of what judges said of an evaluation's responses begin with."""
        return self.evaluation_stem(subject, f"{split}.judged")

    def judged(self, subject: str, split: str, part: str = "parquet") -> str:
        """A file of what judges said of an evaluation's responses."""
        return f"{self.judged_stem(subject, split)}.{part}"

    def selection(self, base: str, pool: str, method: str, seed: int | str, suffix: str = "json") -> str:
        """What validation chose; with ``parquet``, the trials behind it."""
        return f"{self.root}/selections/{base}/{pool}/{method}/seed-{seed}.{suffix}"

    def measurement(self, analysis: str, base: str, pool: str, seed: int | str, suffix: str = "parquet") -> str:
        """What an analysis measured of a pool."""
        return f"{self.root}/analysis/{ANALYSES[analysis]}/{base}/{pool}/seed-{seed}.{suffix}"

    def analysis(self, name: str, suffix: str = "parquet") -> str:
        """A table that an analysis ends in, or its record."""
        return f"{self.root}/analysis/{name}.{suffix}"

    def tidy(self, name: str, suffix: str = "parquet") -> str:
        """A tidy table of the whole study, such as ``results``, ``samples`` and ``curves``, or its record."""
        return f"{self.root}/{name}.{suffix}"

    def table(self, table: str, suffix: str = "md") -> str:
        """A file of a table."""
        return f"{self.table_stem(table)}.{suffix}"

    def table_stem(self, table: str) -> str:
        """What the files of a table begin with."""
        return f"{self.root}/tables/{table}"

    def figure(self, figure: str, suffix: str = "pdf") -> str:
        """A file of a figure."""
        return f"{self.figure_stem(figure)}.{suffix}"

    def figure_stem(self, figure: str) -> str:
        """What the files of a figure begin with."""
        return f"{self.root}/figures/{figure}"

    def published(self, name: str, suffix: str = "parquet") -> str:
        """The study beside published numbers (``comparison``), or these against themselves (``audit``)."""
        return f"{self.published_stem(name)}.{suffix}"

    def published_stem(self, name: str) -> str:
        """What the files of a comparison or an audit begin with."""
        return f"{self.root}/published/{name}"

    def claims(self, suffix: str = "parquet") -> str:
        """The verdicts on claims."""
        return f"{self.claims_stem}.{suffix}"

    @property
    def claims_stem(self) -> str:
        """What the files of the verdicts begin with."""
        return f"{self.root}/claims"

    def report(self, suffix: str = "html") -> str:
        """The report, or its record."""
        return f"{self.root}/report.{suffix}"

    def package(self, name: str = "") -> str:
        """The folder of the package for others, or a file in it."""
        return f"{self.root}/package/{name}".rstrip("/")

    @property
    def package_record(self) -> str:
        """The record of the package, which lies beside its folder."""
        return f"{self.root}/package.json"

    @property
    def study(self) -> str:
        """The config, as a JSON."""
        return f"{self.root}/study.json"


def of(study: Study) -> Layout:
    """Where the results of a study are."""
    return Layout(f"results/{study.study}")
