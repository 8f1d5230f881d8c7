"""Every field once, with its default and what it means. Experiments start from here; this is no experiment itself."""

from ml_collections import ConfigDict


def stage(**fields) -> ConfigDict:
    """The training section of a stage."""
    return ConfigDict(
        {
            "steps": 1000,  # parameter updates
            "batch_size": 64,  # examples an update, over all devices and hosts
            "accumulate": 1,  # parts that a batch is split into, one after the other
            "learning_rate": 1e-4,  # its peak
            "schedule": "constant",  # constant | cosine | linear, after the warm-up
            "warmup_steps": 0,  # linear from 0
            "final_share": 0.0,  # of the peak, where cosine and linear end
            "optimizer": {
                "name": "adamw",  # adamw | adam
                "b1": 0.9,
                "b2": 0.95,
                "weight_decay": 0.05,  # adamw: of matrices; vectors do not decay
            },
            "clip_norm": 1.0,  # global norm of the gradient; 0 does not clip
            "ema_decay": 0.9999,  # of the averaged weights, which are sampled from and evaluated
            "log_every": 10,  # steps between lines of metrics.jsonl
            "save_every": 1000,  # steps between checkpoints, each with an evaluation on held-out examples
            "keep_last": 2,  # newest checkpoints that are kept
            "keep_every": 0,  # and those of every multiple of so many steps; 0: none
            "keep_best": 1,  # and those with the lowest held-out loss
        }
        | fields
    )


def get_config() -> ConfigDict:
    """The defaults."""
    return ConfigDict(
        {
            "experiment": "",  # the file (and argument) that this config is of, as --config names it; main.py fills it in
            "seed": 0,  # of everything: the picture i of a run belongs to (seed, i)
            "stages": ("tokenizer", "generator"),  # what --job=train trains
            "checkpoints": "",  # gs://BUCKET/FOLDER or a folder that checkpoints lie in; "" is the workdir
            "data": {
                "name": "digits",  # digits | npz | folder | the name of a TFDS dataset
                "path": "",  # file or folder of npz and folder; data_dir of TFDS
                "resolution": 16,  # side in pixels that images are brought to
                "channels": 1,  # 1 grey, 3 colour
                "classes": 0,  # 0: as many as the dataset has
                "crop_scale": (1.0, 1.0),  # side of random crops, in short sides; (1, 1) is the centre crop
                "shift": 0,  # random translation of up to so many pixels
                "flip": False,  # mirror at random
                "corrupt_limit": 0,  # images that cannot be read and may be skipped
            },
            "tokenizer": {
                "name": "vqgan",
                "encoder": "convolutional",
                "decoder": "convolutional",
                "channels": 128,  # of the first level
                "multipliers": (1, 1, 2, 2, 4),  # of each level; a level more halves the side once more
                "blocks": 2,  # residual blocks a level
                "latent_channels": 256,  # between the networks and the codes
                "attention": True,  # at the lowest resolution
                "groups": 0,  # of the group norms; 0: 4 channels a group, 32 groups at most
                "projection": 1,  # side of the convolutions between the networks and the codes
                "dtype": "float32",  # float32 | bfloat16, of the arithmetic
                "quantizer": {
                    "name": "vector",
                    "codes": 16384,  # size of the codebook
                    "width": 8,  # of a code
                    "commitment": 0.25,
                    "l2_norm": True,  # compare and decode unit vectors
                    "entropy": 0.0,  # weight of the choices' entropy minus that of their mean
                    "usage_decay": 0.99,  # of the codes' running shares
                    "revive_below": 0.03,  # codes rarer than this, in uniform shares, start anew; 0 never
                },
            },
            "losses": {
                "l1": 0.0,  # weight of |error|
                "l2": 1.0,  # weight of error^2
                "quantizer": 1.0,  # weight of the quantizer's losses
                "lpips": 1.0,  # weight of the perceptual distance, where its weights are given
                "lpips_weights": "",  # npz made by `python -m interop.lpips`
                "adversarial": 0.0,  # weight of the hinge PatchGAN; 0 trains without
                "adversarial_start": 20_000,  # step
                "discriminator_channels": 64,
                "discriminator_layers": 3,
            },
            "extract": {
                "crops": "augmented",  # plain | augmented | ten, of each training image; held-out images are plain
                "copies": 1,  # augmented: the first is plain, the others are as `data` says
                "ranges": (1.1,),  # ten: sides of the squares that ten crops each are of, in resolutions
                "batch_size": 256,  # crops that a device encodes at a time
                "shard_size": 5000,  # images a file; what an interrupted extraction does anew, at most, on each process
            },
            "generator": {
                "name": "autoregressive",
                "layout": "raster",  # raster | scales
                "head": "categorical",
                "condition": {"name": "class"},  # class | text
                "width": 768,
                "depth": 12,
                "heads": 12,
                "kv_heads": 0,  # heads of keys and values (grouped-query attention); 0: as many as heads
                "mlp": 0,  # hidden width; 0: 8/3 of width, rounded up to a multiple of 256
                "activation": "swiglu",  # swiglu | gelu, of the MLP
                "norm": "rms",  # rms | adaptive | adaptive_shared: layer norms that the condition scales, shifts and gates
                "qk_norm": "none",  # none | rms | l2, of queries and keys
                "attention_scale": 1.0,  # of the scores, in head width ** -0.5
                "bias": False,  # in the products
                "position": "rotary",  # rotary | learned
                "rotate_condition": False,  # by the identity; False: the condition's queries and keys are 0, as LlamaGen's
                "init_std": 0.02,  # of all weights but the head's, which are 0; small models want about width ** -0.5
                "init_residual": 1.0,  # factor on the weights that end a residual branch
                "init_gates": 1e-3,  # factor on the weights of adaptive norms' gates
                "dropout": 0.1,  # of embeddings and residual branches
                "drop_path": 0.0,  # share of images that skip a branch of the last layer; less in those before
                "label_dropout": 0.1,  # share of labels replaced by "no class", for guidance
                "dtype": "float32",  # float32 | bfloat16, of the arithmetic
                "remat": "none",  # none | dots | full: what the backward pass computes anew
            },
            "objective": {  # progressive training: later scales count later
                "until": 0.0,  # share of the steps from which all count; 0: all from the start
                "first": 4,  # the last scale that counts from the start, from 0
                "ramp": 0.005,  # share of the steps over which a new scale's weight rises
            },
            "training": {
                "tokenizer": stage(),
                "generator": stage(),
                "forecast": stage(),
            },
            "forecast": {  # heads that draft for samplers; the stage "forecast" trains them on the generator as it is
                "hidden": 512,  # width
            },
            "sampler": {
                # sequential | fixed_noise | jacobi | coupled_gumbel | coupled_maximal | siblings | draft_model | dyspec |
                # recycling; lossy: gsd | lantern | zipar
                "name": "fixed_noise",
                "temperature": 1.0,  # 0 is greedy
                "top_k": 0,  # 0 keeps all codes
                "top_k_entropy": 0.0,  # nats at which half of top_k are kept, fewer at less; 0 keeps top_k everywhere
                "top_p": 1.0,  # 1 keeps all codes
                "min_p": 0.0,  # least share of the best code's probability; 0 keeps all codes
                "guidance_scale": 2.0,  # unconditional + scale * (conditional - unconditional); 1 is off
                # Over the positions, or scales: constant | linear | half_linear | cosine | sine | log | triangular |
                # reversed_linear | reversed_cosine | flipped_cosine
                "guidance_schedule": "constant",
                "guidance_power": 1.0,  # of the progress that the schedule sees; above 1 guidance rises later
                "guidance_interval": (0.0, 1.0),  # guide only there, as shares of the positions, or scales
                # Drafts that a call judges; of trees, nodes, the root counted; of zipar, columns that a row is behind. 0 is 16;
                # but of fixed_noise as many as take the device little longer than one: with many images, or on a CPU, one.
                "window": 0,
                "first_drafts": "uniform",  # frequency | neighbours | forecast | uniform | repeat_left | sample_left | above
                # Of trees (siblings, draft_model, dyspec, recycling): which path stands
                "rule": "fixed_noise",  # fixed_noise | multi_round; of draft_model also k_seq
                # siblings, recycling: the chance that the best, the second, ... draft of a position stands, as guessed
                "branches": (0.8, 0.1, 0.05, 0.03),
                "chains": 1,  # draft_model: that leave the root; each is (window - 1) / chains drafts long
                "draft": "",  # draft_model, dyspec: workdir of a smaller generator of the same tokenizer
                "relax": 0.15,  # gsd: codes of a cluster differ by less in p; lantern: bound on what is moved, >= 1: see there
                "near": 0.06,  # gsd, lantern: share of the codes that count as near a code
                "smooth": False,  # of scales: mix the codes, for smoother pictures that are no samples of the model
            },
            "sample": {
                "count": 100,  # images
                "batch_size": 100,  # images a program
                "classes": (-1,),  # asked for in turn, by number, or ImageNet's by name; (-1,) is all of them
                "features": "",  # npz of captions' features, for generators of captions
                "edit": "",  # image of which a part is painted anew,
                "mask": "",  # and an image of its size, white there
                "columns": 10,  # of the picture
            },
            "evaluation": {
                "name": "",  # of W/eval/<name>-<step>.json; "": the sampler's
                "step": -1,  # the generator's checkpoint; -1: the newest
                "follow": False,  # evaluate every new checkpoint until training has ended
                "samples": 50_000,  # generated images that are judged
                "batch_size": 250,  # images a program; what an interrupted evaluation loses; another value samples anew
                "class_counts": "balanced",  # balanced | dataset: as often as in the training images
                "reference": "train",  # train | test | folder of images | npz of images | npz of statistics
                "inception": "",  # weights: file | download; "": $TESSERA_WEIGHTS, else what was downloaded, else none
                "heldout": 50_000,  # held-out images that the tokenizer is judged with, at most
                "lpips_vgg": "",  # npz made by `python -m interop.lpips`
                "lpips_alex": "",
                "training_images": 60_000,  # to fit the classifier with and to look for copies among, at most; 0: neither
                "classifier_epochs": 5,
                "search": {  # --job=search: the sampler's settings that are tried
                    "guidance_scale": (1.0, 1.5, 2.0, 2.5, 3.0),
                    "temperature": (1.0,),
                    "top_k": (0,),
                    "samples": 5000,  # images a setting; the best one is then evaluated in full
                },
            },
            "mesh": {  # devices; one of the sizes may be -1: all that are left
                "data": 1,  # over which batches are split
                "fsdp": -1,  # over which batches are split and parameters as well
                "tensor": 1,  # over which heads, hidden widths and vocabularies are split
                "sequence": 1,  # over which the slots of the sequence are split
            },
        }
    )
