"""Run finetune on the tiny UNet in one of torchrun's processes; the options stand in a JSON file."""

import sys
from pathlib import Path

from dpsapf.experiment.stages import Finetune
from dpsapf.finetune import train
from tests.tiny import tiny_scheduler, tiny_unet

train.load_unet = lambda record, device: tiny_unet()
train.load_scheduler = lambda record: tiny_scheduler()
train.finetune(Finetune.model_validate_json(Path(sys.argv[1]).read_text()))
