"""measure-gradients: gradient norms of a public model's own samples. Public: it sees the model, its samples and prompts."""

import logging

import pandas as pd
import torch

from dpsapf.experiment.columns import MATRIX
from dpsapf.experiment.records import DatasetRecord, ModelRecord
from dpsapf.experiment.stages import MeasureGradients
from dpsapf.public_models.families import load_model
from dpsapf.public_models.latents import draw_batch
from dpsapf.saliency.fragility import own_samples
from dpsapf.saliency.score import squared_gradient_norms
from dpsapf.saliency.select import candidates
from dpsapf.support.files import atomic
from dpsapf.support.randomness import torch_generator
from dpsapf.support.records import read_record

LOG = logging.getLogger(__name__)


def measure_gradients(options: MeasureGradients) -> None:
    """Write the squared gradient norm of each candidate, at several timesteps of each sample."""
    torch.set_num_threads(options.threads)
    dataset, model = read_record(options.dataset, DatasetRecord), load_model(read_record(options.model, ModelRecord))
    names = candidates(options.candidate_table, options.candidates)[MATRIX].tolist()
    denoiser, objective = model.denoiser(options.device).requires_grad_(False), model.objective()
    embeddings = model.embed(dataset.prompts, options.device)
    own = own_samples(model, model.text_to_image(denoiser, options.device), embeddings, options)
    images = torch.arange(len(own)).repeat(options.draws)
    batch = draw_batch(own, images, 1, objective.timesteps, torch_generator(options.seed, "own gradients", "pairs"))
    squared = torch.cat([found.cpu() for found in squared_gradient_norms(denoiser, objective, batch, names, options)])
    LOG.info("median gradient norm %.3g", squared.sum(1).sqrt().median())
    with atomic(options.out) as temporary:
        pd.DataFrame(squared.T.numpy()).assign(**{MATRIX: names}).set_index(MATRIX).to_csv(temporary)
