"""Where everything lives below ``results/<config name>``."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """Where everything lives below ``results/<config name>``."""

    root: Path

    def dataset(self, dataset: str, file: str) -> str:
        """Path of a prepared dataset's file."""
        return f"{self.root}/cache/datasets/{dataset}/{file}"

    def model(self, public_model: str, file: str) -> str:
        """Path of a resolved public model's file."""
        return f"{self.root}/cache/public_models/{public_model}/{file}"

    def latents(self, dataset: str, public_model: str, file: str) -> str:
        """Path of a dataset's latents and prompt embeddings under a model."""
        return f"{self.root}/cache/latents/{dataset}--{public_model}/{file}"

    def scores(self, scores_id: str, file: str) -> str:
        """Path of a noisy saliency release's file."""
        return f"{self.root}/cache/scores/{scores_id}/{file}"

    def fragility(self, dataset: str, public_model: str, candidates: str) -> str:
        """Path of what noise in each of a model's candidates breaks, on its own samples of a dataset's prompts."""
        return f"{self.root}/cache/fragility/{dataset}--{public_model}--{candidates}.csv"

    @property
    def calibrations(self) -> str:
        """Folder of noise multipliers that plans of equal releases share."""
        return f"{self.root}/cache/calibrations"

    def gradients(self, dataset: str, public_model: str, candidates: str) -> str:
        """Path of gradient norms of a model's own samples of a dataset's prompts."""
        return f"{self.root}/cache/gradients/{dataset}--{public_model}--{candidates}.csv"

    def reference(self, dataset: str, protocol: str, file: str) -> str:
        """Path of a dataset's reference features under an evaluation protocol."""
        return f"{self.root}/cache/reference/{dataset}--{protocol}/{file}"

    def network(self, protocol: str, file: str) -> str:
        """Path of what is known of an evaluation protocol's feature network."""
        return f"{self.root}/cache/networks/{protocol}/{file}"

    def run(self, run: str, file: str) -> str:
        """Path of a run's file."""
        return f"{self.root}/runs/{run}/{file}"

    def register(self, dataset: str) -> str:
        """Path of the register of what was published of a dataset."""
        return f"{self.root}/{dataset}.releases.jsonl"

    def table(self, file: str) -> str:
        """Path of an aggregated table."""
        return f"{self.root}/tables/{file}"

    @property
    def figures(self) -> str:
        """Folder of figures."""
        return f"{self.root}/figures"

    @property
    def config(self) -> str:
        """Path of a copy of the config, as Snakemake read it."""
        return f"{self.root}/config.yaml"

    @property
    def report(self) -> str:
        """Path of the page that shows all of it."""
        return f"{self.root}/report.html"

    def log(self, stage: str, name: str) -> str:
        """Path of a stage's log."""
        return f"{self.root}/logs/{stage}/{name}.log"

    def benchmark(self, stage: str, name: str) -> str:
        """Path of a stage's Snakemake benchmark."""
        return f"{self.root}/benchmarks/{stage}/{name}.tsv"
