"""What an evaluation measured and how, in words; which evaluations may be compared with one another."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.report.markup import Html, as_number, element, join, scrolling, words

# What a sampler's settings are called, in this order, and the value of each that does nothing and is not told.
SAMPLING: dict[str, tuple[str, Any]] = {
    "sampler.name": ("{}", None),
    "step": ("step {}", None),
    "sampler.guidance_scale": ("guidance {}", None),
    "sampler.guidance_schedule": ("{} schedule", "constant"),
    "sampler.guidance_power": ("guidance power {}", 1.0),
    "sampler.guidance_interval": ("guided within {}", [0.0, 1.0]),
    "sampler.temperature": ("temperature {}", None),
    "sampler.top_k": ("top-k {}", 0),
    "sampler.top_k_entropy": ("top-k entropy {}", 0.0),
    "sampler.top_p": ("top-p {}", 1.0),
    "sampler.min_p": ("min-p {}", 0.0),
}
PHRASES = {name: phrase for name, (phrase, _) in SAMPLING.items()} | {
    "evaluation.samples": "{} samples",
    "reference.name": "reference {}",
    "reference.count": "{} reference images",
}
SUBJECTS = {  # setting -> what numbers of another one are not comparable for, where its own name does not say it
    "evaluation.samples": "number of samples",
    **{f"reference.{field}": "reference" for field in ("name", "count", "sha256", "statistics")},
}
ORDER = ("sampler.", "evaluation.samples", "reference.")  # what stands first in a column's head
WEIGHTS = ("weights.generator", "weights.tokenizer")  # of the run's own networks: another for every checkpoint
HEADS = 4  # settings in a column's head, at most


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A W/eval/<name>.json.

    Attributes:
      name: of the file.
      settings: "a.b" -> value, of what was evaluated and how.
      metrics: by name; None where there is none.
      missing: metric -> why it is not there.
      warnings: sentences.
    """

    name: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, float | None]
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    warnings: Sequence[str] = ()

    @property
    def step(self) -> int:
        """Of the checkpoint; 0 where that is not known."""
        return int(as_number(self.settings.get("step")) or 0)


def same_sampling(one: Evaluation) -> str:
    """Equal for evaluations that differ in nothing but the checkpoint."""
    return alike(one, [name for name in one.settings if name not in ("step", *WEIGHTS)])


def same_measure(one: Evaluation) -> str:
    """Equal for evaluations whose numbers may be compared: they differ in checkpoint and sampler alone."""
    return alike(one, [name for name in one.settings if compared_in(name)])


def alike(one: Evaluation, names: Sequence[str]) -> str:
    """Equal where these settings are; what is None might as well not be there."""
    return repr([(name, value) for name in sorted(names) if (value := one.settings[name]) is not None])


def compared_in(name: str) -> bool:
    """Whether numbers of different values of a setting must not be compared."""
    return name not in ("step", *WEIGHTS) and not name.startswith("sampler.")


def differing(evaluations: Sequence[Evaluation]) -> list[str]:
    """The settings that are not the same in all evaluations, in the order in which they are told."""
    names = dict.fromkeys(name for one in evaluations for name in one.settings)
    found = {name for name in names if len({repr(one.settings.get(name)) for one in evaluations}) > 1}
    # Another name or another count says that it is another reference; its hash says no more.
    found = {
        name
        for name in found
        if not (name.endswith(".sha256") and found & {sibling(name, "name"), sibling(name, "count")})
    }
    told = list(PHRASES)

    def order(name: str) -> tuple[int, int, str]:
        first = next((n for n, start in enumerate(ORDER) if name.startswith(start)), len(ORDER))
        return first, told.index(name) if name in told else len(told), name

    return sorted(found, key=order)


def sibling(name: str, field: str) -> str:
    """a.c beside a.b."""
    return f"{name.rpartition('.')[0]}.{field}"


def column_heads(evaluations: Sequence[Evaluation]) -> list[Html]:
    """The step, and those settings in which the columns differ; the file's name where nothing else tells them apart."""
    names = [name for name in differing(evaluations) if name not in ("step", *WEIGHTS)][:HEADS]
    keys = [(one.step, *(repr(one.settings.get(name)) for name in names)) for one in evaluations]
    heads = []
    for one, key in zip(evaluations, keys):
        lines = [phrase(name, one.settings.get(name)) for name in names]
        lines += [one.name] if keys.count(key) > 1 else []
        heads.append(join([f"step {one.step:,}", *(element("span", line, class_="soft") for line in lines)]))
    return heads


def phrase(name: str, value: Any) -> str:
    """A setting in words: guidance 2, 5,000 samples, reference train, images resolution 32."""
    return PHRASES.get(name, called(name) + " {}").format(short(value))


def called(name: str) -> str:
    """A setting without its value; what only says that it is of an evaluation is left out."""
    return name.removeprefix("evaluation.").removeprefix("sampler.").replace("_", " ").replace(".", " ")


def short(value: Any) -> str:
    """A value with its hashes cut to eight digits."""
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{8,}\b", r"\1", words(value))


def comparison(evaluations: Sequence[Evaluation]) -> str:
    """Between which columns the best is marked, as a sentence."""
    if len(evaluations) < 2:
        return ""
    names = [name for name in differing(evaluations) if compared_in(name)]
    if not names:
        return "The best of a row is set bold."
    why = listed([*dict.fromkeys(SUBJECTS.get(name, called(name)) for name in names)])
    kinds = [same_measure(one) for one in evaluations]
    if len(set(kinds)) == len(kinds):
        return f"No best is marked: the columns differ in {why}, so their numbers must not be compared."
    return f"Bold is the best among columns of equal {why}; the numbers of others must not be compared."


def listed(names: Sequence[str], most: int = 3) -> str:
    """a, b and c; more than `most` are counted."""
    shown = [*names[:most], f"{len(names) - most} more settings"] if len(names) > most + 1 else [*names]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def sampling(settings: Mapping[str, Any]) -> list[str]:
    """Sampler, step, guidance, temperature …: what is known of how images were drawn, and does something."""
    known = {name: settings.get(name) for name in SAMPLING}
    return [phrase(name, value) for name, value in known.items() if value is not None and value != SAMPLING[name][1]]


def measured(settings: Mapping[str, Any]) -> str:
    """`sequential, step 2,400, guidance 2, temperature 1, 5,000 samples against cifar10:test (10,000 images, sha bc3844a2),
    seed 0`; of a tokenizer, `tokenizer, step 1,600, 2,000 held-out images (sha a9c04df9)`; as far as it is known.

    Args:
      settings: "a.b" -> value.
    """
    parts = sampling(settings)
    if "images.count" in settings:
        parts = ["tokenizer", *parts, f"{words(settings['images.count'])} held-out images"]
        parts[-1] += details(sha=settings.get("images.sha256"))
    if "evaluation.samples" in settings:
        parts.append(phrase("evaluation.samples", settings["evaluation.samples"]))
        if "reference.name" in settings:
            name, dataset = words(settings["reference.name"]), settings.get("data.name")
            told = f"{dataset}:{name}" if dataset and name in ("train", "test") else name
            about = details(settings.get("reference.count"), settings.get("reference.sha256"))
            parts[-1] += f" against {told}{about}"
    if "seed" in settings:
        parts.append(f"seed {words(settings['seed'])}")
    return ", ".join(parts)


def details(count: Any = None, sha: Any = None) -> str:
    """` (10,000 images, sha bc3844a2)`, as far as it is known."""
    parts = [f"{words(count)} images"] if count is not None else []
    parts += [f"sha {short(sha)}"] if sha is not None else []
    return f" ({', '.join(parts)})" if parts else ""


def settings_table(evaluations: Sequence[Evaluation]) -> Html:
    """Every setting of every evaluation, folded away; those in which they differ first, and set apart."""
    names = list(dict.fromkeys(name for one in evaluations for name in one.settings))
    if not names:
        return Html()
    apart = differing(evaluations)
    names = [*apart, *(name for name in names if name not in apart)]
    head = element(
        "tr", *(element("th", text, scope="col") for text in ("Setting", *(one.name for one in evaluations)))
    )
    rows = [
        element("tr", element("th", name, scope="row"), *(setting_cell(one.settings.get(name)) for one in evaluations),
                class_="apart" if name in apart else None)
        for name in names
    ]  # fmt: skip
    content = scrolling(element("table", element("thead", head), element("tbody", *rows), class_="conditions"))
    return element("details", element("summary", "What was measured, and how"), content)


def setting_cell(value: Any) -> Html:
    """A setting; the whole of a shortened one shows under the pointer."""
    text, whole = short(value), words(value)
    return element("td", text, title=whole if text != whole else None)
