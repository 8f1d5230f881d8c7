"""What a config's sampler drafts with and judges by, from the files of a workdir."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from generator.forecast import describe_forecast
from generator.sampling.first_drafts import Pairs
from generator.sampling.interface import Aids
from generator.sampling.samplers import asks, sampler_settings
from input_pipeline.frequencies import FREQUENCIES, Frequencies
from jobs.draft import open_draft
from jobs.workdir import load
from models.tokens import TokenSpec
from training.step import checksum


class AidsOf:
    """The aids that a sampler asks for; no others are read.

    Args:
      config: of the run.
      workdir: of the run.
      spec: of its tokens.
      tokenizer: checksum of its tokenizer.

    Attributes:
      params: arrays that a program is given as arguments.
      weights: network -> checksum of its weights.
    """

    def __init__(self, config: ConfigDict, workdir: Path, spec: TokenSpec, tokenizer: str):
        self.asked, self.codes = asks(config.sampler.to_dict(), spec), spec.sizes[0]
        self.params: dict[str, Any] = {}
        self.weights: dict[str, str] = {}
        if "frequencies" in self.asked:
            self.frequencies = Frequencies(workdir / "tokens" / FREQUENCIES)
            self.guidance = sampler_settings(config.sampler.to_dict(), config.seed).scales(spec.positions)
        if "pairs" in self.asked:
            self.params["pairs"] = Pairs(*(jnp.asarray(self.frequencies.log_pairs(side)) for side in Pairs._fields))
        if "forecast" in self.asked:
            self.forecast = describe_forecast(config, spec)
            self.params["forecast"], _ = load("forecast", self.forecast, config, workdir)
            self.weights["forecast"] = checksum(self.params["forecast"])
        if "draft" in self.asked:
            self.draft, self.params["draft"], self.weights["draft"] = open_draft(config, spec, tokenizer)

    def of_rows(self, rows: Any) -> np.ndarray | None:
        """What depends on the images that are asked for: log of the codes' frequencies, by their labels and the guidance."""
        return self.frequencies.log_shares(rows, self.guidance) if "frequencies" in self.asked else None

    def __call__(self, params: Any, frequencies: jax.Array | None, decoder: Any) -> Aids:
        """In a program, of `params`, what `of_rows` gave, and the tokenizer."""
        codes = jnp.arange(self.codes)[:, None]
        return Aids(
            frequencies=frequencies,
            pairs=params.get("pairs"),
            codebook=decoder.quantizer.lookup(codes) if "codebook" in self.asked else None,
            draft=self.draft.merge(params["draft"]) if "draft" in self.asked else None,
            forecast=self.forecast.merge(params["forecast"]) if "forecast" in self.asked else None,
        )
