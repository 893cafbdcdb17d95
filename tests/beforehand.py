"""For each check that is made before the first job: a mistake of its kind, and what is said of it."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import yaml

from dpsapf.experiment.columns import BLOCK, CANDIDATES, LAYER, MATRIX
from dpsapf.experiment.layout import Layout
from dpsapf.experiment.records import DatasetRecord
from dpsapf.support.records import write_record
from dpsapf.support.yaml_files import load_yaml

CONFIG = Path(__file__).parents[1] / "config"
REGISTRIES = ("datasets", "public_models", "protocols")


class Work:
    """A folder with a small config and its registries, in which mistakes are made.

    Attributes:
        folder: where they are.
        config: of config/ci.yaml.
        datasets, public_models, protocols: the shipped registries.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = load_yaml(CONFIG / "ci.yaml") | {f"{name}_file": f"{name}.yaml" for name in REGISTRIES}
        self.datasets, self.public_models, self.protocols = (load_yaml(CONFIG / f"{name}.yaml") for name in REGISTRIES)
        self.main = self.config["studies"]["main"]
        self.layout = Layout(Path("results") / self.config["name"])

    def write(self) -> None:
        """Write what there is now."""
        for name in REGISTRIES:
            (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(getattr(self, name)))
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config))

    def uses(self, **entry: object) -> None:
        """Add a dataset to the study."""
        name = f"mine-{len(self.datasets)}"
        self.datasets[name] = self.datasets["digits"] | {"loader": "image-folder", "source": ".", "sha256": None} | entry
        self.main["dataset"].append(name)

    def prepared(self, dataset: str, **record: object) -> None:
        """Leave what an earlier start has left: a prepared dataset, a prepared model."""
        entry = self.datasets[dataset]
        told = {key: entry[key] for key in ("loader", "source", "licence", "classes", "prompts", "resolution", "channels")}
        told |= {
            "name": dataset,
            "procedural": False,
            "train": 1200,
            "validation": 1,
            "test": 1,
            "provenance": {},
            "id": "d" * 64,
        }
        made = DatasetRecord(**told | {"train_per_class": (120,) * 10} | record)
        write_record(self.folder / self.layout.dataset(dataset, "dataset.json"), made)
        names = [f"down_blocks.0.attn{layer}.{projection}" for layer in range(3) for projection in ("to_q", "to_v")]
        table = pd.DataFrame(
            {MATRIX: names, LAYER: [name[:-5] for name in names], BLOCK: "down_blocks.0", CANDIDATES: "attention"}
        )
        table.to_csv(self._beside(self.layout.model("public-mini", "candidates.csv")), index=False)

    def _beside(self, file: str) -> Path:
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


Mistake = Callable[[Work], str]
"""Makes it, and returns a part of what is said of it."""
MISTAKES: dict[str, list[Mistake]] = {}


def of(check: str) -> Callable[[Mistake], Mistake]:
    """Register a mistake under the check that finds it."""
    return lambda mistake: MISTAKES.setdefault(check, []).append(mistake) or mistake


@of("entries_fit_their_loaders")
def a_key_that_the_loader_does_not_read(work: Work) -> str:
    work.datasets["digits"]["train"] = 100
    return "datasets.yaml: digits: train = 100: loader sklearn-digits does not read this key"


@of("entries_fit_their_loaders")
def a_prompt_is_missing(work: Work) -> str:
    work.uses(prompts=["one"])
    return "needs one prompt for each of the 10 classes"


@of("sources_are_there")
def no_images(work: Work) -> str:
    work.uses(source="none.zip")
    return "source = 'none.zip': does not exist"


@of("sources_are_there")
def no_labels(work: Work) -> str:
    work.uses(labels="none.csv")
    return "labels = 'none.csv': does not exist"


@of("sources_are_there")
def no_table_of_users(work: Work) -> str:
    work.uses(users="nobody.csv")
    return "users = 'nobody.csv': does not exist"


@of("sources_are_there")
def a_file_that_nobody_fetched_by_hand(work: Work) -> str:
    work.uses(**work.datasets["celeba"])
    return "data/celeba/list_attr_celeba.txt = 'not there': must be got by hand"


@of("sources_are_there")
def a_token_that_is_not_set(work: Work) -> str:
    work.uses(
        source="none",
        downloads=[{"file": "none.zip", "urls": ["https://x.test/none.zip"], "page": "https://x.test", "token": "NO_SUCH_TOKEN"}],
    )
    return "token = 'NO_SUCH_TOKEN': none.zip needs an access token"


@of("images_of_others_are_there")
def no_images_of_others(work: Work) -> str:
    work.config["external"] = {"theirs": {"label": "Theirs", "runs": [{"dataset": "digits", "images": "theirs", "epsilon": 1}]}}
    return "external.theirs: images = 'theirs': does not exist"


@of("figures_can_show_the_others")
def more_groups_than_colours(work: Work) -> str:
    row = {"runs": [{"dataset": "digits", "images": ".", "epsilon": 1}]}
    work.config["external"] = {f"m{number}": row | {"label": f"Method {number}"} for number in range(99)} | work.config.get(
        "external", {}
    )
    return "methods of other groups apart: split the config"


@of("models_are_pinned_or_there")
def no_revision(work: Work) -> str:
    work.main["public_model"] = [*work.main.get("public_model", ["public-mini"]), "sd-v1-5"]
    return "public_models.yaml: sd-v1-5: revision = None: must be a commit"


@of("models_are_pinned_or_there")
def no_folder(work: Work) -> str:
    work.public_models["gone"] = work.public_models["public-mini"] | {"path": "gone"}
    work.main["public_model"] = [*work.main.get("public_model", ["public-mini"]), "gone"]
    return "does not exist: give a folder in diffusers layout"


@of("models_are_pinned_or_there")
def no_revision_of_a_vae(work: Work) -> str:
    work.public_models["bare"] = work.public_models["public-mini"] | {"vae": "some/vae"}
    work.main["public_model"] = [*work.main.get("public_model", ["public-mini"]), "bare"]
    return "bare: vae: revision = None: must be a commit of some/vae"


@of("every_class_gets_an_image")
def fewer_images_than_classes(work: Work) -> str:
    work.config["sampling"]["count"] = 9
    return "sampling.count = 9: digits has 10 classes: draw an image of each"


@of("every_class_gets_an_image")
def fewer_images_evolve_than_there_are_classes(work: Work) -> str:
    work.main["method"] = [*work.main["method"], "pe"]
    work.config["evolution"] = {"generation": 9}
    return "evolution: generation = 9: digits has 10 classes: make an image of each"


@of("the_protocol_can_judge")
def a_network_that_is_not_known(work: Work) -> str:
    work.protocols["probe-v1"]["feature_network"] = "package:none"
    return "protocols.yaml: probe-v1: feature_network = 'package:none': no such packaged network"


@of("the_protocol_can_judge")
def fewer_images_than_the_protocol_needs(work: Work) -> str:
    work.protocols["probe-v1"]["least_images"] = 1000
    return "probe-v1 needs at least 1000"


@of("the_protocol_can_judge")
def no_recipe_for_such_large_images(work: Work) -> str:
    entry = work.protocols["probe-v1"]
    recipe = {"largest_side": 16, "classifiers": entry.pop("classifiers"), "steps": 1, "batch": 8}
    entry["recipes"] = [recipe | {"optimizer": "sgd", "learning_rate": 0.1}]
    return "probe-v1: recipes = 32: none is for images of that side: largest_side is 16"


@of("users_are_named")
def users_that_no_entry_names(work: Work) -> str:
    work.config["privacy"]["unit"] = "user"
    return "privacy.unit = 'user': digits names no users"


@of("targets_can_be_told")
def a_target_below_the_resolution(work: Work) -> str:
    work.main["epsilon"] = [0.001]
    return "epsilon = 0.001: must be at least 0.01"


@of("earlier_ledgers_are_there")
def no_earlier_ledger(work: Work) -> str:
    work.config["privacy"]["prior"] = ["gone/ledger.json"]
    return "privacy.prior = 'gone/ledger.json': is no file"


@of("plans_can_be_made")
def scores_that_cost_more_than_the_target(work: Work) -> str:
    work.prepared("mnist5k")
    work.config["studies"]["costly"] = work.main | {
        "dataset": ["mnist5k"],
        "method": ["dp-sapf"],
        "sigma_s": [0.1],
        "epsilon": [1.0],
    }
    return "mnist5k, dp-sapf: epsilon = 1.0: cannot be met: the saliency release alone costs"


@of("plans_can_be_made")
def a_delta_of_one_image(work: Work) -> str:
    work.prepared("digits")
    work.config["privacy"]["delta"] = 0.01
    return "delta = 0.01: must be below 1/N"


@of("this_machine_has_the_device")
def no_gpu(work: Work) -> str:
    work.config["compute"]["device"] = "cuda"
    return "compute.device = 'cuda': no GPU answers on this machine"


@of("optimizers_are_installed")
def a_library_that_is_not_installed(work: Work) -> str:
    work.config["finetune"]["optimizer"] = "adamw-8bit"
    return "optimizer = 'adamw-8bit': needs bitsandbytes"
