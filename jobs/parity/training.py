"""What reference outputs hold of training: gradients at the first step, losses and norms of a few steps of AdamW."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from interop.names import State
from interop.sources import SOURCES
from jobs.parity.generators import GeneratorSubject
from jobs.parity.subjects import NoRule, remembered
from models.modules import Params
from training.optimizers import make_optimizer

CLIP = {"llamagen": 1.0, "var": 2.0}  # of the gradients' norm, by source
SETTINGS = {
    "learning_rate": 1e-3, "schedule": "constant", "warmup_steps": 0, "final_share": 0.0,
    "optimizer": {"name": "adamw", "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.05},
}  # fmt: skip

# LlamaGen's references have names of their own for gradients; the original's are on the right.
GRADIENTS = {
    r"norm_weight": r"norm.weight",
    r"output": r"output.weight",
    r"tok_embeddings": r"tok_embeddings.weight",
    r"class_table": r"cls_embedding.embedding_table.weight",
    r"cap_(fc\d)": r"cls_embedding.cap_proj.\1.weight",
    r"l(\d+)_(attention_norm|ffn_norm)": r"layers.\1.\2.weight",
    r"l(\d+)_(wqkv|wo)": r"layers.\1.attention.\2.weight",
    r"l(\d+)_(w[123])": r"layers.\1.feed_forward.\2.weight",
}
STEPS = 3
KEPT = 16  # of large matrices only so many rows and columns are kept: every sixteenth row, the first columns


@remembered
def first_steps(subject: GeneratorSubject) -> "Trained":
    """The first steps of a generator's training, taken once."""
    return Trained(subject)


class Trained:
    """The first steps of a generator's training on the reference's tokens, without dropout.

    Attributes:
      losses: before the first step and after each.
      norms: of the gradients at each step, before clipping.
      gradients: at the first step, by the original's names.
    """

    def __init__(self, subject: GeneratorSubject):
        config, params = subject.loaded.config, subject.loaded.params
        steps = subject.shape("train/losses")[0] - 1 if subject.has("train/losses") else STEPS
        settings = {**SETTINGS, "steps": steps, "clip_norm": CLIP[subject.source]}
        optimizer = make_optimizer(settings, subject.stacked.axes)
        # Samples that do not count are left out: no sample of a batch knows the others.
        counted = np.flatnonzero(subject.given("train/valid")) if subject.has("train/valid") else slice(None)
        ids, condition = jax.tree.map(lambda rows: rows[counted], (subject.ids, subject.condition("")))
        inputs = subject.inputs(ids)

        @jax.jit
        def step(params: Params, state: Any) -> tuple[Params, Any, jax.Array, Params]:
            def loss(params: Params) -> jax.Array:
                return subject.stacked.merge(params).loss(inputs, ids, condition)[0]

            value, gradients = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, value, gradients

        state = optimizer.init(params)
        losses: list[jax.Array] = []
        norms: list[jax.Array] = []
        self.gradients: State = {}
        for _ in range(steps + 1):
            params, state, value, gradients = step(params, state)
            if not losses:
                kind = SOURCES[subject.source].kinds[subject.kind]
                self.gradients = kind.state(jax.device_get(gradients), config)
            losses.append(value)
            norms.append(optax.tree.norm(gradients))
        self.losses, self.norms = jnp.stack(losses), jnp.stack(norms[:-1])


def gradient(trained: Trained, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A gradient at the first step, as much of it as a reference keeps.

    Args:
      trained: of the model.
      name: the original's, of a parameter.
      shape: of what is kept.

    Raises:
      NoRule: there is no such parameter.
    """
    if name not in trained.gradients:
        raise NoRule(f"no parameter {name}")
    whole = trained.gradients[name]
    return whole if whole.shape == shape else whole[::KEPT, :KEPT]
