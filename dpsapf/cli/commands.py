"""The sub-commands, in the order of the data flow: each is a class of options and the module that has its function."""

import re
from dataclasses import dataclass

from dpsapf.experiment import stages
from dpsapf.support.checked import Checked

MODULES: dict[type[Checked], str] = {
    stages.FetchDataset: "dpsapf.datasets.fetch",
    stages.PrepareDataset: "dpsapf.datasets.prepare",
    stages.FetchPublicModel: "dpsapf.public_models.prepare",
    stages.PreparePublicModel: "dpsapf.public_models.prepare",
    stages.PretrainPublicModel: "dpsapf.pretraining.pretrain",
    stages.EncodeDataset: "dpsapf.public_models.encode",
    stages.EmbedPrompts: "dpsapf.public_models.encode",
    stages.PlanPrivacy: "dpsapf.saliency.plan",
    stages.ScoreSaliency: "dpsapf.saliency.score",
    stages.CompareScores: "dpsapf.saliency.agreement",
    stages.CompareRankings: "dpsapf.saliency.ranking_stability",
    stages.MeasureFragility: "dpsapf.saliency.fragility",
    stages.MeasureGradients: "dpsapf.saliency.own_gradients",
    stages.SelectMatrices: "dpsapf.saliency.select",
    stages.Finetune: "dpsapf.finetune.train",
    stages.Evolve: "dpsapf.evolution.evolve",
    stages.AuditPrivacy: "dpsapf.privacy.audit",
    stages.ComposeReleases: "dpsapf.privacy.compose",
    stages.SpendAgain: "dpsapf.privacy.spend_again",
    stages.Sample: "dpsapf.sampling.sample",
    stages.PublishPopulation: "dpsapf.evolution.publish",
    stages.FetchEvaluationWeights: "dpsapf.evaluation.weights",
    stages.ImportImages: "dpsapf.evaluation.external",
    stages.ReferenceFeatures: "dpsapf.evaluation.reference",
    stages.Evaluate: "dpsapf.evaluation.evaluate",
    stages.Diagnose: "dpsapf.evaluation.diagnostics",
    stages.CollectMetrics: "dpsapf.aggregation.collect",
    stages.CollectExternal: "dpsapf.aggregation.collect",
    stages.Aggregate: "dpsapf.aggregation.aggregate",
    stages.Merge: "dpsapf.aggregation.merge",
    stages.Check: "dpsapf.aggregation.check",
    stages.Release: "dpsapf.release.release",
    stages.Bench: "dpsapf.bench.compare",
    stages.Estimate: "dpsapf.bench.estimate",
    stages.DrawFigures: "paper_figures.draw",
    stages.WriteReport: "paper_figures.report",
    stages.CompareWithPaper: "paper_figures.verdicts",
}
PUBLISHES = (stages.Release,)  # their output leaves the private side, and options name folders of that side
# an option whose name may be left out where it comes first
POSITIONAL = {stages.Release: "run", stages.Merge: "results", stages.Check: "results"}


@dataclass(frozen=True)
class Command:
    """A sub-command: ``prepare-dataset`` calls ``prepare_dataset`` of its module with a `PrepareDataset`.

    Attributes:
        options: what the function takes; its docstring is the command's help.
        module: where the function is; imported when the command runs.
    """

    options: type[Checked]
    module: str

    @property
    def name(self) -> str:
        """The options' class name in kebab case."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", self.options.__name__).lower()

    @property
    def help(self) -> str:
        """One line of help."""
        return self.options.__doc__.strip()

    @property
    def keeps_options(self) -> bool:
        """Whether its options are recorded beside its output."""
        return self.options not in PUBLISHES

    def named(self, words: list[str]) -> list[str]:
        """Name the first word after the command's, if it is no option and the command has one that may stand there."""
        first = POSITIONAL.get(self.options)
        return ["--" + first, *words] if first and words and not words[0].startswith("-") else words


COMMANDS: dict[str, Command] = {command.name: command for command in map(Command, MODULES, MODULES.values())}
