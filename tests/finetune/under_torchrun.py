"""Run finetune on the tiny UNet in one of torchrun's processes; the options stand in a JSON file."""

import json
import sys
from pathlib import Path

from dpsapf.commands import Finetune
from dpsapf.fields import build
from dpsapf.finetune import train
from tests.tiny import tiny_scheduler, tiny_unet

train.load_unet = lambda record, device: tiny_unet()
train.load_scheduler = lambda record: tiny_scheduler()
train.finetune(build(Finetune, json.loads(Path(sys.argv[1]).read_text())))
