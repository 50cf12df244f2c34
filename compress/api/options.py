"""The options of every stage, by name, type and help: the one place from which the methods in Python and the commands take theirs.

A stage whose options are ``PruneOptions`` is ``network.prune(start, sparsity=0.8)`` in Python and ``compress prune --sparsity 0.8`` on the
command line. What may be left out is left out, or None; rules on values lie with the settings of the stage. Loads nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

File = str | Path
Share = Annotated[float, "share"]  # of what the teacher costs; the command line takes 0.35x for it
Bytes = str | int  # 45kB, 0.5MB; a plain number is bytes
Time = str | float  # 90s, 5m, 1h; a plain number is seconds
Percent = Annotated[float, "percent"]
Model = Annotated[str, "k49, emnist, or path/net.py:factory for a network of your own.  [default: k49]"]


class OpenOptions(TypedDict, total=False):
    """Which network, which data, and where."""

    options: Annotated[Mapping[str, Any], "Option for the factory, NAME=VALUE as TOML: --option 'widths=[8,16]'."]
    image_shape: Annotated[tuple[int, int, int], "Image that your network takes, CxHxW.  [default: 1x28x28]"]
    mean: Annotated[tuple[float, ...], "Mean per channel that your network expects to be subtracted, in [0, 1].  [default: 0]"]
    std: Annotated[tuple[float, ...], "Standard deviation per channel to divide by, in [0, 1].  [default: 1]"]
    resize: Annotated[
        Literal["stretch", "crop", "pad"], "How pictures come to the network's size: stretch, crop (the middle) or pad.  [default: stretch]"
    ]
    crop: Annotated[float, "With --resize crop: resize to the network's size divided by this first, such as 0.875.  [default: 1]"]
    interpolation: Annotated[
        Literal["nearest", "bilinear", "bicubic", "lanczos"], "How pixels between pixels are found in that.  [default: bilinear]"
    ]
    range: Annotated[
        tuple[float, float], "LOW,HIGH: the values that become black and white, in 256 steps between, where data are floats or 16 bits."
    ]
    data: Annotated[
        File, "digits, k49, emnist, kmnist, a folder (npz, IDX or image files), or with --score path/data.py:load.  [default: the recipe's]"
    ]
    train_images: Annotated[File, "The train images by hand (.npz or IDX), all four."]
    train_labels: Annotated[File, "The train labels by hand (.npz or IDX), all four."]
    test_images: Annotated[File, "The test images by hand (.npz or IDX), all four."]
    test_labels: Annotated[File, "The test labels by hand (.npz or IDX), all four."]
    cache: Annotated[File, "Folder for downloaded data sets and decoded pictures.  [default: data]"]
    skip_broken: Annotated[bool, "Leave out the pictures of a folder that cannot be used, instead of refusing them."]
    recipe: Annotated[File, "TOML recipe, or the name of one; options given here win over it."]
    seed: Annotated[int, "Seed of everything random.  [default: 0]"]
    runs: Annotated[File, "Folder of all artifacts.  [default: runs]"]
    device: Annotated[str, "Where training runs: auto, cpu or cuda.  [default: auto]"]


class PretrainedOptions(TypedDict, total=False):
    pretrained: Annotated[bool, "Start from the trained weights of k49 or emnist that come with this package."]


class StartOptions(PretrainedOptions, total=False):
    weights: Annotated[File, "Start from a network trained elsewhere: a .safetensors, .pt, .pth or .ckpt state dict."]


class MakeOptions(StartOptions, total=False):
    out: Annotated[File, "Where the artifact goes.  [default: runs/MODEL/STAGE/KEY]"]
    force: Annotated[bool, "Run again even if the inputs are unchanged; replace --out."]


class ResumeOptions(MakeOptions, total=False):
    fresh: Annotated[bool, "Start anew, instead of going on with a training of the same settings that was interrupted."]
    resume: Annotated[bool, "Go on with such a training; that is the default, and this is kept for scripts."]


class ScoreOptions(TypedDict, total=False):
    score: Annotated[str, "Other tasks: path/score.py:function of outputs and targets, higher is better; --data path/data.py:load."]


class OnOptions(TypedDict, total=False):
    on: Annotated[str, "Time and ask files on another machine: a name of `compress board`, or ssh://user@host[:port][/folder]."]


class LogOptions(TypedDict, total=False):
    log: Annotated[
        Literal["tensorboard", "mlflow"], "Log figures while it works, in runs/tensorboard or to MLflow (extras of these names)."
    ]


class TrainOptions(ResumeOptions, LogOptions, total=False):
    epochs: Annotated[int, "Passes over the training images."]
    batch: Annotated[int, "Images per step.  [default: the recipe's, else 128, halved until they have at most 2^20 pixels: 16 of 224x224]"]
    lr: Annotated[float, "Largest learning rate; it does not follow the batch."]
    label_smoothing: Annotated[float, "0 for none; 0.1 is usual."]
    hflip: Annotated[float, "Share of the images that are mirrored left to right; 0.5 suits photographs, not characters."]
    resized_crop: Annotated[float, "Train on parts of the images, of at least this share of their area; 0.6 suits photographs, 1 is none."]
    trivial_augment: Annotated[bool, "Change each image in one way of fourteen, of colour or place, as TrivialAugment does."]
    folds: Annotated[int, "Cross-validate instead: train this many networks, each scored on the images it did not see."]


class TuneOptions(LogOptions, total=False):
    trials: Annotated[int, "Finished trials in the study, by whichever worker.  [default: 40]"]
    time_limit: Annotated[Time, "No trial starts after so long; the best so far is the answer: 90s, 5m, 1h."]
    storage: Annotated[str, "Journal file, or a database for Optuna, as a URL.  [default: runs/MODEL/tune/STUDY.journal]"]
    study: Annotated[str, "Name of the study, and of the folder of its results.  [default: the name of the data]"]
    space: Annotated[File, "TOML of what to tune.  [default: the one built in for the model]"]
    epochs: Annotated[int, "Epochs of each trial.  [default: the recipe's]"]
    fraction: Annotated[float, "Train on this part of the training images, evenly drawn.  [default: 1]"]
    max_params: Annotated[int, "Give up larger networks before they are trained."]
    max_macs: Annotated[int, "Likewise, multiply-accumulates for one image."]
    force: Annotated[bool, "Forget the study first."]


class SensitivityOptions(MakeOptions, total=False):
    granularity: Annotated[str, "What is cut: weight (per layer), channel (per group) or module (left out).  [default: channel]"]
    sparsities: Annotated[Sequence[float], "Measure at this; may be given often.  [default: 0.25, 0.5, 0.75, 0.9]"]
    importance: Annotated[str, "Which channels go first: l2, bn, taylor, fluctuation or bn-fluctuation.  [default: l2]"]
    images: Annotated[int, "Training images that are scored, drawn evenly from the classes.  [default: 2048]"]


class FineTuneOptions(ResumeOptions, LogOptions, total=False):
    steps: Annotated[int, "Do it gradually; every step is an artifact.  [default: the recipe's]"]
    between: Annotated[int, "Epochs of fine-tuning after each step but the last.  [default: 1]"]
    epochs: Annotated[int, "Epochs of fine-tuning after the last step; 0 for none.  [default: the recipe's]"]
    lr: Annotated[float, "Learning rate at the start of fine-tuning.  [default: the recipe's]"]
    teacher: Annotated[File, "Unpruned network to learn from.  [default: the parent]"]
    distil: Annotated[float, "Share of the loss that the teacher makes; 0 for labels only.  [default: 0.7]"]
    temperature: Annotated[float, "Of the teacher's probabilities.  [default: 2]"]
    features: Annotated[float, "Weight of the error of the last hidden features; 0 for logits only.  [default: 0]"]


class PruneOptions(FineTuneOptions, ScoreOptions, total=False):
    sparsity: Annotated[float, "Fraction of the weights to zero, in (0, 1).  [default: 0.7 for k49, else 0.8]"]
    pattern: Annotated[str, "2:4 keeps two of every four weights in a row, instead of a sparsity."]
    scope: Annotated[
        str,
        "How weights are ranked: fisher (by how much the loss would rise without each), or by magnitude: global, layer, or lamp "
        "(global, each layer to its scale).  [default: fisher]",
    ]
    regrow: Annotated[bool, "Weights that were zeroed may come back while fine-tuning; long ones gain."]


class GroupsOptions(StartOptions, ScoreOptions, total=False):
    onnx: Annotated[File, "Cut this ONNX file, which another tool wrote; needs --data or --calibrate."]
    calibrate: Annotated[
        File, "With --onnx: images without labels, a folder or an array (.npz, .npy); what the file answers stands for them."
    ]


class RemoveOptions(FineTuneOptions, GroupsOptions, OnOptions, total=False):
    sparsity: Annotated[float, "Fraction of the removable channels to remove, in (0, 1)."]
    max_macs: Annotated[Share, "MACs to be left, as a share of the teacher's."]
    max_size: Annotated[Share, "Weights to be left, as a share of the teacher's."]
    max_latency: Annotated[Share, "Latency to be left, measured here: one image, one thread."]
    runtime: Annotated[Literal["onnxruntime", "c"], "Where latency is measured; c compiles each network here.  [default: onnxruntime]"]
    max_ram: Annotated[Bytes, "RAM that its arena may take as C for --target, in --precision: 45kB."]
    max_flash: Annotated[Bytes, "Flash that its weights may take likewise; code comes on top: 0.1MB."]
    target: Annotated[str, "Of --max-ram and --max-flash, as of export-c.  [default: native]"]
    precision: Annotated[Literal["int8", "float32"], "Of these: int8 (static, everywhere) or float32.  [default: int8]"]
    bypass: Annotated[Sequence[str], "Leave a module out: a name, a pattern, or auto (what is found cheap)."]
    importance: Annotated[str, "l2, bn, taylor, fluctuation, bn-fluctuation, or auto (the best of these by trial).  [default: auto]"]
    per_cost: Annotated[bool, "Rank by importance per what removal saves, or with --as-it-is by importance.  [default: auto tries both]"]
    scope: Annotated[str, "How channels are ranked: global, group, or sensitivity (measured per group).  [default: global]"]
    round_to: Annotated[int, "Widths are multiples of this; 0 measures which are fast here.  [default: 0]"]
    floor: Annotated[float, "Fraction of every group that stays at least.  [default: 0.1]"]
    time_limit: Annotated[Time, "Take the best found after searching so long, training apart: 90s, 5m, 1h."]


class ExportOptions(MakeOptions, ScoreOptions, total=False):
    opset: Annotated[int, "Version of the ONNX operators.  [default: 18]"]
    input: Annotated[str, "Pixels that the graph takes: uint8, or float32 in [0, 1].  [default: uint8]"]
    fold_constants: Annotated[bool, "Make a constant of what is nearly the same for all images, such as a gate, where that is proved."]


class ExportLitertOptions(MakeOptions, total=False):
    parity_images: Annotated[int, "Validation images that prove it.  [default: 1000]"]
    onnx: Annotated[File, "Write this ONNX file, which another tool wrote; needs --data or --calibrate."]
    calibrate: Annotated[File, "With --onnx: images without labels that prove it, a folder or an array (.npz, .npy)."]


class ExportCOptions(TypedDict, total=False):
    target: Annotated[
        str,
        "native, x86-64-v2, -v3, -v4, aarch64, aarch64+dotprod, cortex-a53, -a72, -a76, -m4, -m7, -m55, or portable.  [default: native]",
    ]
    name: Annotated[str, "Of the files and functions, a C identifier.  [default: the model's]"]
    onnx: Annotated[File, "Write this ONNX file, which another tool wrote."]
    out: Annotated[File, "Where the C goes.  [default: runs/MODEL/export-c/KEY]"]
    force: Annotated[bool, "Replace other C in --out."]


class QuantizeOptions(ResumeOptions, ScoreOptions, OnOptions, total=False):
    mode: Annotated[str, "auto (by measurement), static, dynamic, int8-weights, fp16-weights, or float32 (a copy).  [default: auto]"]
    max_drop: Annotated[
        float, "Balanced accuracy that auto may lose, in points, or of --score, as a 95% bound.  [default: 0.3, or 0.3% of the score]"
    ]
    accept_unproved: Annotated[bool, "Let the loss as counted decide where the validation images are too few to bound it."]
    time_limit: Annotated[Time, "Auto answers after so long with the best it has found: 90s, 5m, 1h."]
    runtime: Annotated[Literal["onnxruntime", "c"], "Where auto times and proves candidates; c compiles each here.  [default: onnxruntime]"]
    target: Annotated[
        str,
        "For a processor that is not here, by size and accuracy; latency stays unknown: "
        "cortex-a53, -a72, -a76, aarch64, aarch64+dotprod, x86-64-v2, -v3, -v4.",
    ]
    onnx: Annotated[File, "Quantize this ONNX file, which another tool wrote; needs --data or --calibrate."]
    calibrate: Annotated[
        File, "With --onnx: images without labels, a folder or an array (.npz, .npy); what the file answers stands for them."
    ]
    fold_constants: Annotated[bool, "First make a constant of what is nearly the same for all images, as export-onnx does."]
    images: Annotated[int, "Calibration images, drawn evenly from the classes.  [default: 512]"]
    epochs: Annotated[int, "Fine-tune the quantized graph for so many epochs.  [default: 0]"]
    lr: Annotated[float, "Learning rate at the start of fine-tuning.  [default: 0.0001]"]
    method: Annotated[str, "Static: range of activations by minmax, percentile, entropy or mse.  [default: minmax]"]
    per_channel: Annotated[bool, "Static: one weight scale per channel, or with --per-tensor one per tensor.  [default: per channel]"]
    groups: Annotated[Sequence[str], "Static: only these groups of nodes; auto names them."]
    equalise: Annotated[bool, "Static: even out the ranges of channels between layers first."]
    correct_bias: Annotated[bool, "Static: take the mean error of rounded weights off the biases."]


class MeasureOptions(TypedDict, total=False):
    threads: Annotated[int, "Threads of each runtime.  [default: 1]"]
    rounds: Annotated[int, "Rounds in which all candidates take a turn, in random order."]
    samples: Annotated[int, "Timed images per candidate and round."]
    quick: Annotated[bool, "Leave out other batch sizes and numbers of threads, and further launches where five leave a speedup wide."]


class BenchmarkOptions(MeasureOptions, PretrainedOptions, ScoreOptions, OnOptions, LogOptions, total=False):
    calibrate: Annotated[
        File, "Measure files on these images without labels, a folder or an array; latency and size only.  [default: random pixels]"
    ]
    runtimes: Annotated[Sequence[str], "onnxruntime, openvino, c, litert, torch, torch.compile, or all.  [default: onnxruntime and torch]"]
    out: Annotated[File, "Where the artifact goes.  [default: runs/MODEL/STAGE/KEY]"]
    force: Annotated[bool, "Run again even if the inputs are unchanged; replace --out."]


class LimitOptions(TypedDict, total=False):
    max_drop: Annotated[
        float, "Balanced accuracy that may be lost, in points, or of --score, as a 95% bound.  [default: 0.5, or 0.5% of the score]"
    ]
    accept_unproved: Annotated[bool, "Let the loss as counted decide where the images are too few to bound it."]
    max_latency: Annotated[float, "Largest p50 allowed, in milliseconds."]
    max_size: Annotated[int, "Largest file allowed, in bytes."]
    max_ram: Annotated[Bytes, "RAM that the arena of the file as C for --target may take: 45kB."]
    max_flash: Annotated[Bytes, "Flash that its weights may take likewise; code comes on top: 0.1MB."]
    target: Annotated[str, "Of --max-ram and --max-flash, as of export-c.  [default: native]"]


class ReportOptions(LimitOptions, total=False):
    ship: Annotated[File, "Copy what ships into this new folder: the file, labels, test vectors, verdict, its data's licence."]
    out: Annotated[File, "Where the report goes.  [default: runs/MODEL/report]"]


class RunOptions(MeasureOptions, LimitOptions, StartOptions, total=False):
    force: Annotated[bool, "Run again even if the inputs are unchanged."]


class PredictOptions(StartOptions, OnOptions, total=False):
    onnx: Annotated[File, "Read with this ONNX file."]
    random: Annotated[int, "Read this many test images, drawn by --seed, and show their true labels."]
    invert: Annotated[bool, "Turn dark ink on light paper into light on dark, as the data sets have it."]
    grid: Annotated[File, "Where the picture goes.  [default: predictions.png; none in Python]"]


class ExplainOptions(StartOptions, total=False):
    index: Annotated[Sequence[int], "Draw this test image, counted from 0; repeat for more."]
    misread: Annotated[int, "Draw the N most confidently misread.  [default: 8, without --index]"]
    blocks: Annotated[Literal["some", "all"], "Spatial gates to draw: of each size the one that varies most, or all.  [default: some]"]
    out: Annotated[File, "Where the picture goes.  [default: explain.png]"]


class ThroughputOptions(TypedDict, total=False):
    rounds: Annotated[int, "Rounds in which all variants take a turn, in random order.  [default: 5]"]
    variants: Annotated[Sequence[str], "Measure this one.  [default: all but torch.compile]"]


class VerifyOptions(OnOptions, total=False):
    cc: Annotated[str, "Of C: the compiler, with options if it needs some: clang, aarch64-linux-gnu-gcc.  [default: the target's]"]
    run: Annotated[str, "Of C: what runs its programs: 'ssh board', 'qemu-aarch64 -L /usr/aarch64-linux-gnu'.  [default: this machine]"]


class ServeOptions(TypedDict, total=False):
    host: Annotated[str, "Address to listen at; 0.0.0.0 for all of this machine's, and then for anybody.  [default: 127.0.0.1]"]
    port: Annotated[int, "0 takes a free one.  [default: 8000]"]
    workers: Annotated[int, "Processes of each model, one thread each.  [default: 1]"]
    queue: Annotated[int, "Requests of each model that may wait; more are refused with 429.  [default: 64]"]
    max_body: Annotated[Bytes, "Largest body of a request: 8MB.  [default: 8MB]"]
    max_pixels: Annotated[int, "Largest picture, as it declares itself.  [default: 25000000]"]
    timeout: Annotated[Time, "For a request, from its first byte to its answer: 10s.  [default: 10s]"]
    token_file: Annotated[File, "A file with a bearer token that is then asked for, by all but the page and the health checks."]
    allow_origin: Annotated[Sequence[str], "A site whose pages may ask, such as https://example.org; may be given often."]
    image_shape: Annotated[tuple[int, int, int], "Image that another tool's file takes, CxHxW.  [default: as it says]"]
    mean: Annotated[tuple[float, ...], "Mean per channel that another tool's file expects to be subtracted, in [0, 1].  [default: 0]"]
    std: Annotated[tuple[float, ...], "Standard deviation per channel to divide by, in [0, 1].  [default: 1]"]
    model: Annotated[str, "path/net.py:factory, where an artifact is of a network of your own."]
    runs: Annotated[File, "Folder of artifacts whose code is trusted.  [default: runs]"]


class PageOptions(TypedDict, total=False):
    out: Annotated[File, "The folder to write.  [default: page]"]
    force: Annotated[bool, "Replace a page in --out."]
    registry: Annotated[str, "Registry from which onnxruntime-web comes, once.  [default: $NPM_CONFIG_REGISTRY, else npm's own]"]
    runs: Annotated[File, "Folder of artifacts, for names of models.  [default: runs]"]


class CompareOptions(TypedDict, total=False):
    fail_if_slower: Annotated[Percent, "Fail where a latency surely grew by more than this, e.g. 5%."]
    fail_if_less_accurate: Annotated[float, "Fail where surely more points of balanced accuracy, or of --score, were lost."]
    html: Annotated[File, "Write a page of the comparison here, with every interval drawn."]
    markdown: Annotated[File, "Append the table as Markdown here, such as to $GITHUB_STEP_SUMMARY."]
