"""Which of our models each model of a reference folder is, and which of them belong together."""

import re
from pathlib import PurePosixPath
from typing import Any

from jaxtyping import Array
from ml_collections import ConfigDict

from jobs.parity.generators import RUN
from jobs.parity.next_scale import VARGenerator
from jobs.parity.next_token import LlamaGenGenerator
from jobs.parity.parts import Parts
from jobs.parity.reference import Entry, Reference, Wanted
from jobs.parity.subjects import NoRule, Subject, channels_first
from jobs.parity.tokenizers import LlamaGenTokenizer, VARTokenizer, stride
from jobs.sample import to_uint8
from models.errors import UserError

# fields of the original's constructor that tell its kind
FAMILIES: dict[tuple[str, ...], type[Subject]] = {
    ("codebook_size",): LlamaGenTokenizer,
    ("model_type",): LlamaGenGenerator,
    ("ch", "patch_nums"): VARTokenizer,
    ("depth", "patch_nums"): VARGenerator,
}


def family(entry: Entry) -> type[Subject] | None:
    """Which of our subjects a model is; None for another."""
    return next((cls for fields, cls in FAMILIES.items() if all(field in entry.config for field in fields)), None)


class Cast:
    """The subjects of a reference folder.

    Args:
      reference: the folder.
      base: config with the defaults of all fields.
    """

    def __init__(self, reference: Reference, base: ConfigDict):
        self.reference, self.base = reference, base
        self.subjects: dict[Any, Any] = {}

    def group(self, wanted: Wanted) -> str:
        """Whose an array is: the model's name, or the first word of its own."""
        return self.reference.model_of(wanted.name) or wanted.name.partition("/")[0]

    def own_name(self, group: str, wanted: Wanted) -> str:
        """An array's name without its model's."""
        return wanted.name.removeprefix(f"{group}/") if group in self.reference.models else wanted.name

    def subject(self, group: str, file: str) -> Any:
        """What computes the arrays of a group in one file; None where there is nothing that does."""
        if group in self.reference.models:
            return self.model(group, file)
        if group == "image":
            return self.once((Pictures, file), lambda: Pictures(self, file))
        return self.once((Parts, file), lambda: Parts(self.reference, file))

    def once(self, key: Any, make: Any) -> Any:
        """What is made once."""
        if key not in self.subjects:
            self.subjects[key] = make()
        return self.subjects[key]

    def model(self, name: str, file: str) -> Subject | None:
        """A model beside the arrays of a file."""
        entry = self.reference.models[name]
        cls = family(entry)
        if cls is None:
            return None
        subject = self.once((name, file), lambda: cls(self.reference, entry, file, self.base))
        if isinstance(subject, VARGenerator) and not hasattr(subject, "tokenizer"):
            subject.tokenizer = self.tokenizer_of(subject)
        return subject

    def tokenizer_of(self, generator: VARGenerator) -> VARTokenizer:
        """The tokenizer whose codes and scales a generator has, that of its own group first.

        Raises:
          UserError: there is none.
        """
        quantizer = generator.loaded.config.tokenizer.quantizer
        wanted = (tuple(quantizer.scales), quantizer.inner.codes, quantizer.inner.width)
        fitting = [
            entry for entry in self.reference.models.values()
            if family(entry) is VARTokenizer and sizes(entry) == wanted
        ]  # fmt: skip
        if not fitting:
            raise UserError(
                f"no tokenizer here has scales, codes and width {wanted}, as {generator.entry.name!r} needs."
            )
        group = PurePosixPath(generator.entry.name).parent
        entry = min(fitting, key=lambda entry: PurePosixPath(entry.name).parent != group)
        found = self.model(entry.name, generator.file)
        assert isinstance(found, VARTokenizer)
        return found


def sizes(entry: Entry) -> tuple[Any, ...]:
    """Scales, codes and width of a code of VAR's tokenizer."""
    return tuple(entry.field("patch_nums")), entry.field("vocab_size"), entry.field("z_channels")


class Pictures:
    """Pictures of LlamaGen's greedy tokens, by the tokenizer that fits the generator.

    Args:
      cast: of the folder.
      file: npz of the pictures.
    """

    def __init__(self, cast: Cast, file: str):
        self.cast, self.file = cast, file

    def of_run(self, name: re.Match[str]) -> Array:
        """The picture of a greedy run, as floats or as uint8.

        Raises:
          NoRule: no generator of the folder has such a run, or no tokenizer fits it.
        """
        picture = self.cast.reference.array(name[0], self.file)
        side = picture.shape[1 if name["u8"] else 2]
        generator, tokenizer = self.pair(name["run"], side)
        run = re.fullmatch(RUN, name["run"])
        if run is None:
            raise NoRule(f"no rule for {name['run']}")
        image = tokenizer.decode(generator.greedy_tokens(run))
        return to_uint8(image) if name["u8"] else channels_first(image)

    def pair(self, run: str, side: int) -> tuple[LlamaGenGenerator, LlamaGenTokenizer]:
        """The generator that a run is of, and the tokenizer whose codes, at the pictures' size, it draws.

        Of several the ones that the manifest's description of the picture names, then those beside it, then stored ones.
        """
        reference = self.cast.reference
        told = " ".join(wanted.description for wanted in reference.wanted if wanted.name == f"image/{run}")
        pairs = []
        for wanted in reference.wanted:
            model = wanted.name.removesuffix(f"/{run}/tokens")
            if model not in reference.models or family(reference.models[model]) is not LlamaGenGenerator:
                continue
            for entry in reference.models.values():
                if family(entry) is LlamaGenTokenizer and fits(reference.models[model], entry, side):
                    order = (wanted.name not in told, wanted.file != self.file, not entry.files)
                    pairs.append((order, model, wanted.file, entry))
        if not pairs:
            raise NoRule(f"no pair of generator and tokenizer fits the pictures of {run}")
        _, model, file, entry = min(pairs, key=lambda pair: pair[0])
        generator = self.cast.model(model, file)
        tokenizer = self.cast.once(("pictures", entry.name, side), lambda: self.tokenizer(entry, side))
        assert isinstance(generator, LlamaGenGenerator)
        return generator, tokenizer

    def tokenizer(self, entry: Entry, side: int) -> LlamaGenTokenizer:
        """A tokenizer for pictures of a size."""
        found = LlamaGenTokenizer(self.cast.reference, entry, self.file, self.cast.base)
        found.side = side
        return found


def fits(generator: Entry, tokenizer: Entry, side: int) -> bool:
    """Whether a generator's tokens are a tokenizer's of images of a size."""
    codes = generator.field("vocab_size") == tokenizer.field("codebook_size")
    return codes and generator.field("block_size") * stride(tokenizer) ** 2 == side**2
