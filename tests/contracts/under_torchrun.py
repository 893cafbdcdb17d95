"""Run a stage on the tiny model in one of torchrun's processes; a JSON file has its name and options."""

import json
import sys
from pathlib import Path

from dpsapf.experiment import stages
from dpsapf.finetune import train
from dpsapf.saliency import score
from dpsapf.sampling import sample
from tests.tiny import TinyModel

RUN = {"Finetune": train.finetune, "ScoreSaliency": score.score_saliency, "Sample": sample.sample}

if __name__ == "__main__":
    train.load_model = score.load_model = sample.load_model = TinyModel
    name, options = json.loads(Path(sys.argv[1]).read_text())
    RUN[name](getattr(stages, name).model_validate(options))
