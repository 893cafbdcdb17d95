"""Run finetune on the tiny UNet in one of torchrun's processes; the options stand in a JSON file."""

import sys
from pathlib import Path

from dpsapf.experiment.stages import Finetune
from dpsapf.finetune import train
from tests.tiny import TinyModel

train.load_model = TinyModel
train.finetune(Finetune.model_validate_json(Path(sys.argv[1]).read_text()))
