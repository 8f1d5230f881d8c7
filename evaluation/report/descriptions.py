"""What each metric means, how it is written, and which way is better: one line a metric."""

import dataclasses
import math
from collections.abc import Iterable

HIGHER, LOWER, NEITHER = "higher", "lower", ""
ARROWS = {HIGHER: "↑", LOWER: "↓", NEITHER: ""}
GROUPS = {
    "distribution": "Distribution of samples",
    "classes": "Classes",
    "copies": "Novelty",
    "likelihood": "Likelihood",
    "tokenizer": "Tokenizer",
    "speed": "Speed",
    "other": "Other",
}


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a metric is told.

    Attributes:
      title: in words.
      group: a name of `GROUPS`.
      better: HIGHER, LOWER or NEITHER.
      meaning: one sentence.
      form: format of a value.
      unit: after the title.
      reference: the metric that is the same of real images.
    """

    title: str
    group: str
    better: str
    meaning: str
    form: str = "{:,.2f}"
    unit: str = ""
    reference: str = ""

    def show(self, value: float | None) -> str:
        """A value in words; a dash for none."""
        if value is None:
            return "–"
        if not math.isfinite(value):
            return "NaN" if math.isnan(value) else ("∞" if value > 0 else "−∞")
        return self.form.format(value)


SHARE, COUNT, FINE = "{:.1%}", "{:,.0f}", "{:,.3f}"

METRICS = {
    "fid": Metric(
        "FID", "distribution", LOWER,
        "Distance between Gaussians fitted to Inception features of samples and of real images.",
    ),
    "sfid": Metric(
        "sFID", "distribution", LOWER,
        "FID over spatial features: also sees where things lie.",
    ),
    "cfd": Metric(
        "CFD", "distribution", LOWER,
        "Fréchet distance over the features of a classifier of this dataset.",
    ),
    "kid": Metric(
        "KID", "distribution", LOWER,
        "Squared kernel distance of features; unbiased, so good for few samples.", "{:.6f}",
    ),
    "precision": Metric(
        "Precision", "distribution", HIGHER,
        "Samples that lie among real images: fidelity.", SHARE,
    ),
    "recall": Metric(
        "Recall", "distribution", HIGHER,
        "Real images that lie among samples: variety.", SHARE,
    ),
    "density": Metric(
        "Density", "distribution", HIGHER,
        "How densely real images surround a sample; 1 is like real ones.", "{:.3f}",
    ),
    "coverage": Metric(
        "Coverage", "distribution", HIGHER,
        "Real images that have a sample in their neighbourhood.", SHARE,
    ),
    "inception_score": Metric(
        "Inception score", "distribution", HIGHER,
        "Sure about each image, diverse over all; knows no real images.",
    ),
    "distinct_samples": Metric(
        "Distinct samples", "distribution", NEITHER,
        "Different token sequences among the samples; where there are fewer than samples, some came twice.", COUNT,
    ),
    "class_accuracy": Metric(
        "Classes recognised", "classes", HIGHER,
        "Samples that a classifier of real images takes for the class asked for.", SHARE, reference="classifier_accuracy_real",
    ),
    "classifier_accuracy_real": Metric(
        "… on real images", "classes", NEITHER,
        "The same classifier on held-out real images: what to compare with.", SHARE,
    ),
    "near_copy_share": Metric(
        "Near copies", "copies", NEITHER,
        "Samples nearer to a training image than training images typically are to one another; a share near that of real "
        "images is right, and noise has none.", SHARE,
        reference="near_copy_share_real",
    ),
    "near_copy_share_real": Metric(
        "… of real images", "copies", NEITHER,
        "The same for held-out real images: about half by construction.", SHARE,
    ),
    "near_copy_share_real_augmented": Metric(
        "… of augmented real images", "copies", NEITHER,
        "The same for held-out images augmented as in training.", SHARE,
    ),
    "generator_loss_nats_per_token": Metric(
        "Held-out loss", "likelihood", LOWER,
        "Negative log-likelihood of held-out tokens; compares runs of one tokenizer only.", "{:.4f}", "nats/token",
    ),
    "psnr": Metric(
        "PSNR", "tokenizer", HIGHER,
        "Reconstruction error of held-out images, on a logarithmic scale.", "{:.2f}", "dB",
    ),
    "ssim": Metric(
        "SSIM", "tokenizer", HIGHER,
        "Likeness of local structure; 1 is equal.", "{:.4f}",
    ),
    "ms_ssim": Metric(
        "MS-SSIM", "tokenizer", HIGHER,
        "SSIM over several resolutions.", "{:.4f}",
    ),
    "lpips": Metric(
        "LPIPS", "tokenizer", LOWER,
        "Perceptual distance of reconstructions, by a network's features.", "{:.4f}",
    ),
    "rfid": Metric(
        "Reconstruction FID", "tokenizer", LOWER,
        "FID of reconstructions against their originals.",
    ),
    "usage": Metric(
        "Codes used", "tokenizer", HIGHER,
        "Codes that occur at least once in held-out images.", SHARE,
    ),
    "perplexity": Metric(
        "Code perplexity", "tokenizer", HIGHER,
        "Exponential of the codes' entropy: how many codes are used in effect.", "{:,.1f}",
    ),
    "entropy_bits": Metric(
        "Code entropy", "tokenizer", HIGHER,
        "Of the codes' shares at a position, all sub-codes together; greatest where all codes are used alike.",
        "{:.3f}", "bits",
    ),
    "conditional_entropy_bits": Metric(
        "Code entropy given the one before", "tokenizer", NEITHER,
        "The lower, the more a token says about the next.", "{:.3f}", "bits",
    ),
    "unseen_pair_share": Metric(
        "Pairs seen once", "tokenizer", NEITHER,
        "Of neighbouring tokens: how likely the next pair is a new one.", SHARE,
    ),
    "zipf_slope": Metric(
        "Zipf slope", "tokenizer", NEITHER,
        "Of code frequency over rank, both logarithmic; 0 is uniform, words have about -1.", "{:.3f}",
    ),
    "zipf_r2": Metric(
        "Zipf fit", "tokenizer", NEITHER,
        "Share of the variance that the straight line explains.", "{:.3f}",
    ),
    "bits_per_pixel": Metric(
        "Token size", "tokenizer", LOWER,
        "Bits that the tokens of an image take, each code as long as the others.", "{:.4f}", "bits/pixel",
    ),
    "coded_bits_per_pixel": Metric(
        "Token size, coded", "tokenizer", LOWER,
        "The same where frequent codes are shorter.", "{:.4f}", "bits/pixel",
    ),
    "images_per_second_sampling": Metric(
        "Sampling speed", "speed", HIGHER,
        "Images a second on this machine, without compilation.", "{:,.1f}", "images/s",
    ),
    "model_calls_per_image": Metric(
        "Model calls", "speed", LOWER,
        "Calls of the generator that an image takes.", "{:,.1f}", "an image",
    ),
}  # fmt: skip

# The figures at the top of a report and the curve over checkpoints, as far as they were measured.
HEADLINE = (
    "fid", "cfd", "class_accuracy", "near_copy_share", "psnr", "rfid", "generator_loss_nats_per_token", "usage",
    "images_per_second_sampling",
)  # fmt: skip
PREFIX = "tokenizer_"  # says what a metric's group says anyway
QUALIFIERS = {"real": "of real images", "std": "deviation", "vgg": "VGG", "alex": "AlexNet"}
REFERENCES = {"real", "std"}  # of which no direction is better


def describe(name: str) -> Metric:
    """The metric of a name: `fid_768` is FID-768, `tokenizer_psnr` is PSNR, an unknown one is its name under "other"."""
    base, suffix = resolve(name)
    if base not in METRICS:
        return Metric(name, "other", NEITHER, "", "{:,.4g}")
    metric = METRICS[base]
    if not suffix:
        return metric
    parts = suffix.split("_")
    # A distance on other features is another distance, and its name says so; the rest are variants.
    features = "".join(f"-{part}" for part in parts if part.isdigit())
    variant = ", ".join(QUALIFIERS.get(part, part) for part in parts if not part.isdigit())
    title = f"{metric.title}{features}{variant and f' ({variant})'}"
    # On features other than 2048, distances are small numbers.
    form = FINE if features and metric.form == Metric.form else metric.form
    return dataclasses.replace(
        metric, title=title, form=form, better=NEITHER if REFERENCES & set(parts) else metric.better
    )


def resolve(name: str) -> tuple[str, str]:
    """The name in `METRICS` that a name stands for, and what follows it; ("", "") for none."""
    if name in METRICS:
        return name, ""
    for known in sorted(METRICS, key=len, reverse=True):
        if name.startswith(f"{known}_"):
            return known, name.removeprefix(f"{known}_")
    return resolve(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else ("", "")


def rank(name: str) -> tuple[int, int, str]:
    """Where a metric stands in a table: by group, then as in `METRICS`, variants after their metric."""
    base, _ = resolve(name)
    return list(GROUPS).index(describe(name).group), list(METRICS).index(base) if base else 0, name


def headline(names: Iterable[str]) -> list[str]:
    """Those of `names` that `HEADLINE` asks for, in its order; variants count, references do not."""
    found = [name for name in names if not REFERENCES & set(resolve(name)[1].split("_"))]
    return [name for base in HEADLINE for name in sorted(found) if resolve(name)[0] == base]
