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
    stages.SelectMatrices: "dpsapf.saliency.select",
    stages.Finetune: "dpsapf.finetune.train",
    stages.Evolve: "dpsapf.evolution.evolve",
    stages.AuditPrivacy: "dpsapf.privacy.audit",
    stages.ComposeReleases: "dpsapf.privacy.compose",
    stages.Sample: "dpsapf.sampling.sample",
    stages.PublishPopulation: "dpsapf.evolution.publish",
    stages.ReferenceFeatures: "dpsapf.evaluation.reference",
    stages.Evaluate: "dpsapf.evaluation.evaluate",
    stages.CollectMetrics: "dpsapf.aggregation.collect",
    stages.Aggregate: "dpsapf.aggregation.aggregate",
    stages.Bench: "dpsapf.bench.compare",
    stages.Estimate: "dpsapf.bench.estimate",
    stages.DrawFigures: "paper_figures.draw",
    stages.CompareWithPaper: "paper_figures.verdicts",
}


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


COMMANDS: dict[str, Command] = {command.name: command for command in map(Command, MODULES, MODULES.values())}
