"""The one table: an array's name -> how our code computes it."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from jobs.parity.cast import Pictures
from jobs.parity.generators import RUN, GeneratorSubject
from jobs.parity.next_scale import VARGenerator
from jobs.parity.next_token import LlamaGenGenerator
from jobs.parity.parts import Parts
from jobs.parity.subjects import NoRule, Subject
from jobs.parity.tokenizers import LlamaGenTokenizer, TokenizerSubject, VARTokenizer
from jobs.parity.training import GRADIENTS, first_steps, gradient

Rule = Callable[[Any, re.Match[str]], Any]  # (subject, match of the name) -> array or `Recomputed`


def given(subject: Any, name: re.Match[str]) -> Any:
    """Marks an input: it is drawn at random, or chosen, and cannot be computed."""
    raise NotImplementedError


def output(subject: TokenizerSubject, name: re.Match[str]) -> Any:
    """One of a tokenizer's outputs."""
    return subject.outputs[name[0]]


def trained(what: str) -> Rule:
    """Losses or norms of the first steps of training."""
    return lambda subject, name: getattr(first_steps(subject), what)


def gradient_of(pattern: str) -> Rule:
    """A gradient by LlamaGen's reference's name."""
    return lambda subject, name: gradient(first_steps(subject), name.expand(pattern), subject.shape(name[0]))


REDUCTION = r"(?P<reduction>_at_positions|_logsumexp|_argmax_gap|_argmax)?"
TEACHER_FORCED = rf"tf(_logits)?(?P<variant>_null|_nomask)?{REDUCTION}"
GREEDY = rf"{RUN}/(?P<what>tokens|top2_gap|(step_)?logits){REDUCTION}"

OF_GENERATORS: dict[str, Rule] = {
    r"(.*(?<!_at)_)?positions": given,
    TEACHER_FORCED: GeneratorSubject.teacher_forced,
    GREEDY: GeneratorSubject.greedy,
    r"train/valid": given,
    r"train/losses": trained("losses"),
    r"train/grad_norms": trained("norms"),
    r"param_count": Subject.param_count,
}

TABLE: dict[type, dict[str, Rule]] = {
    LlamaGenTokenizer: {
        r"images_u8": given,
        r"input|encoder_out|latent|indices|quant|codebook_entries|index_margin|recon|recon_u8|train_losses": output,
        r"param_count": Subject.param_count,
    },
    VARTokenizer: {
        r"images_u8|fhat_scales": given,
        r"input|encoder_out|latent|indices|index_margin|fhat_per_scale|var_input": output,
        r"recon|recon_u8|recon_from_indices|phi_index|train_vq_loss": output,
        r"fhat_some_scales": VARTokenizer.some_sums,
        r"param_count": Subject.param_count,
    },
    LlamaGenGenerator: {
        r"class_ids|tokens|caption_embs|emb_masks": given,
        r"c_indices": lambda subject, name: subject.captions.features,
        r"c_emb_masks": lambda subject, name: subject.captions.present,
        r"(?P<which>caption|uncond)_embedded": LlamaGenGenerator.embedded,
        r"train_mask": LlamaGenGenerator.train_mask,
        r"generate_mask_cfg(?P<scale>[\d.]+)": LlamaGenGenerator.generate_mask,
        r"freqs_cis": LlamaGenGenerator.rotary,
        **OF_GENERATORS,
        **{rf"train/grad_{name}": gradient_of(theirs) for name, theirs in GRADIENTS.items()},
    },
    VARGenerator: {
        r"labels": given,
        r"teacher_(?P<which>input|tokens)": VARGenerator.teacher,
        **OF_GENERATORS,
        rf"{RUN}/(?P<what>image|image_u8)": VARGenerator.greedy_image,
        r"train/grad/(.+)": gradient_of(r"\1"),
    },
    Parts: {
        r"samp/(tie_)?(logits|settings)|rope/x|interp/area_in|interp/bicubic_in_\d+": given,
        r"samp/(?P<tie>tie_)?probs": Parts.distributions,
        r"rope/freqs_cis_grid(?P<side>\d+)_hd(?P<width>\d+)(_cls(?P<before>\d+))?": Parts.rotary,
        r"rope/x_rotated": Parts.rotated,
        r"interp/(?P<way>area_to|bicubic_from)_(?P<size>\d+)": Parts.resized,
        r"phi/shared(?P<count>\d+)_(scales(?P<scales>\d+)|ticks)": Parts.phi,
    },
    Pictures: {r"image/(?P<run>.+?)(?P<u8>_u8)?": Pictures.of_run},
}  # fmt: skip


class Found(NamedTuple):
    """How an array is computed.

    Attributes:
      rule: of the table; `given` for an input.
      name: match of the array's name, without the model's.
    """

    rule: Rule
    name: re.Match[str]


def find(subject: Any, name: str) -> Found:
    """The rule for an array of a subject, by the rest of its name.

    Raises:
      NoRule: there is none.
    """
    for pattern, rule in TABLE.get(type(subject), {}).items():
        if match := re.fullmatch(pattern, name):
            return Found(rule, match)
    raise NoRule("no rule for this name")
