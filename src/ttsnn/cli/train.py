"""``ttsnn train``: train a network on a dataset with compiled steps."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ttsnn.cli import _common
from ttsnn.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add_parser", "run"]

_DETAILS = """\
RUN gets checkpoint.json with its tensors (model, optimizer, position), best.safetensors (weights
of the best epoch), steps.csv, evals.csv and log.jsonl. A run that was killed, whenever, goes on
from its last checkpoint with the same command and --resume, and ends in the same bits. Several
processes: torchrun --nproc-per-node 2 -m ttsnn train …; --batch is each one's."""


def add_parser(subparsers: Any) -> None:
    """Add the command's options."""
    parser = _common.command(
        subparsers,
        "train",
        "Train a network on a dataset: forward, loss, backward and update are compiled code.",
        "ttsnn train ms_resnet18 --dataset digits --plan rank=8 --epochs 10 -o runs/digits\n"
        "ttsnn train ms_resnet18 --dataset digits --plan rank=8 --epochs 10 -o runs/digits "
        "--resume",
        _DETAILS,
    )
    _common.add_model(parser)
    _common.add_plan(parser)
    _common.add_target(parser)
    _common.add_dtype(parser)
    _common.add_threads(parser)
    group = parser.add_argument_group("data")
    group.add_argument("--data", metavar="DIR", help="folder with the dataset's files")
    group.add_argument("--limit", type=_common.positive, metavar="K", help="training samples")
    group.add_argument("--no-eval", action="store_true", help="no accuracy on the test split")
    group = parser.add_argument_group("training")
    number: dict[str, Any] = {"type": float, "metavar": "X"}
    group.add_argument("--epochs", type=_common.positive, default=10, metavar="K")
    group.add_argument("--batch", type=_common.positive, default=32, metavar="N")
    group.add_argument("--optimizer", choices=("sgd", "adam", "adamw"), default="sgd")
    group.add_argument("--lr", **number, help="(default: 0.1 for sgd, else 0.001)")
    group.add_argument("--momentum", **number, default=0.9, help="of sgd (default: 0.9)")
    group.add_argument("--nesterov", action="store_true")
    group.add_argument("--weight-decay", **number, help="(default: 0.01 for adamw, else 0)")
    group.add_argument("--clip-norm", **number, help="limit of the gradients' norm")
    group.add_argument(
        "--schedule", choices=("constant", "step", "cosine"), default="cosine", help="of the lr"
    )
    group.add_argument("--warmup", **number, default=0.0, help="epochs of linear rise")
    group.add_argument("--every", type=_common.positive, default=30, metavar="K", help="epochs")
    group.add_argument("--gamma", **number, default=0.1, help="factor of schedule step")
    group.add_argument("--min-lr", **number, default=0.0, help="last lr of schedule cosine")
    group.add_argument("--loss", choices=("cross_entropy", "tet"), default="cross_entropy")
    group.add_argument("--label-smoothing", **number, default=0.0)
    group.add_argument("--tet-lambda", **number, default=0.05, help="weight of TET's second term")
    group.add_argument("--frozen-bn", action="store_true", help="keep the running statistics")
    _common.add_checkpointing(group)
    group = parser.add_argument_group("run")
    group.add_argument("-o", "--out", metavar="RUN", help="folder of checkpoints and logs")
    group.add_argument("--resume", action="store_true", help="go on from RUN's checkpoint")
    group.add_argument(
        "--checkpoint-every",
        type=_common.positive,
        metavar="K",
        help="updates between checkpoints, beside one after every epoch",
    )
    group.add_argument("--tensorboard", action="store_true", help="write RUN/tensorboard")


def run(args: argparse.Namespace) -> int:
    """Train."""
    from ttsnn.runtime.training.trainer import Trainer

    if args.resume and args.out is None:
        raise DataError("--resume needs the run's folder: -o RUN")
    args.dataset = args.dataset or "digits"
    optimizer, loss, schedule = _optimizer(args), _loss(args), _schedule(args)
    source = _common.resolve_model(args)
    if source.kind == "module" and args.loss == "tet":
        _logits_of_every_step(source)
    train, test = _datasets(args, source)
    with _common.status(args, f"compiling {source.name}"):
        trainer = Trainer(
            source,
            train,
            eval_data=test,
            batch=args.batch,
            epochs=args.epochs,
            optimizer=optimizer,
            loss=loss,
            lr=args.lr if args.lr is not None else (0.1 if args.optimizer == "sgd" else 1e-3),
            schedule=schedule,
            clip_norm=args.clip_norm,
            frozen_bn=args.frozen_bn,
            plan=_common.plan_of(args),
            mode=args.mode,
            init=args.init,
            dtype=args.dtype,
            seed=args.seed,
            folder=args.out,
            resume=args.resume,
            checkpoint_every=args.checkpoint_every,
            tensorboard=args.tensorboard,
            target=args.target,
            threads=args.threads,
            activation_checkpointing=args.activation_checkpointing,
            progress=not args.json,
        )
    _common.warn_fallbacks(trainer.fallback_kernels)
    began = trainer.step
    data = {
        "model": trainer.name,
        "dataset": args.dataset,
        "resumed_at": began if args.resume else None,
        **trainer.fit(),
        "compile_s": trainer.compile_s,
        "memory": trainer.memory,
        "parameters": sum(p.numel() for p in trainer.module.parameters()),
        "out": args.out,
        "config": trainer.config,
    }
    first = trainer.exchange.rank == 0
    trainer.exchange.close()
    if first:
        _common.emit(args, data, lambda console: _show(console, data))
    return 0


def _optimizer(args: argparse.Namespace) -> Any:
    from ttsnn.errors import PassError
    from ttsnn.passes.training import SGD, Adam, AdamW

    decay = {} if args.weight_decay is None else {"weight_decay": args.weight_decay}
    try:
        if args.optimizer == "sgd":
            return SGD(momentum=args.momentum, nesterov=args.nesterov, **decay)
        return {"adam": Adam, "adamw": AdamW}[args.optimizer](**decay)
    except PassError as error:
        raise DataError(str(error)) from None


def _loss(args: argparse.Namespace) -> Any:
    from ttsnn.passes.training import CrossEntropy, TETLoss

    if args.loss == "tet":
        return TETLoss(lamb=args.tet_lambda, label_smoothing=args.label_smoothing)
    return CrossEntropy(label_smoothing=args.label_smoothing)


def _schedule(args: argparse.Namespace) -> Any:
    from ttsnn.runtime.training.schedules import ConstantLR, CosineLR, StepLR

    if args.schedule == "cosine":
        return CosineLR(args.warmup, epochs=args.epochs, minimum=args.min_lr)
    if args.schedule == "step":
        return StepLR(args.warmup, every=args.every, gamma=args.gamma)
    return ConstantLR(args.warmup)


def _logits_of_every_step(source: Any) -> None:
    """TET wants [T, N, classes]: the zoo's networks can give them."""
    if not hasattr(source.module, "logits"):
        return  # a user's own network; the loss checks its shape
    source.module.logits = "steps"


def _datasets(args: argparse.Namespace, source: Any) -> tuple[Any, Any]:
    """Training and test split, framed for the network."""
    from torch.utils.data import Subset

    from ttsnn.models.data import load_dataset

    if source.kind != "module":
        raise DataError(
            f"{source.path}: training needs the PyTorch network itself: give a zoo name or "
            "package.module:factory"
        )
    shape, axis = source.input.shape, source.input.batch_axis
    T = shape[0] if axis == 1 else None

    def load(split: str) -> Any:
        found = load_dataset(args.dataset, args.data, split, T=T, image_size=shape[-1])
        if found.spec.static != (axis == 0):
            kind = "images" if found.spec.static else "event frames"
            raise DataError(f"{args.dataset} holds {kind}, which {source.name} does not take")
        return found

    train = load("train")
    if args.limit is not None and args.limit < len(train):
        train = Subset(train, range(args.limit))
    return train, None if args.no_eval else load("test")


def _show(console: Console, data: dict[str, Any]) -> None:
    loss = "" if data["loss"] is None else f", last loss {data['loss']:.4f}"
    console.print(
        f"[bold]{data['model']}[/bold] on {data['dataset']}: {data['steps']} updates, "
        f"{data['epochs']} epochs{loss}"
    )
    if data["best_accuracy"] is not None:
        console.print(
            f"accuracy {100 * data['last_accuracy']:.2f} %, best "
            f"{100 * data['best_accuracy']:.2f} % after update {data['best_step']}"
        )
    if data["ms_per_step"] is not None:
        console.print(f"{data['ms_per_step']:.2f} ms an update, {data['seconds']:.1f} s")
    memory = data["memory"]
    if memory["checkpointing"] is not None:
        c = memory["checkpointing"]
        console.print(
            f"activation checkpointing: {c['segments']} segments; activations of "
            f"{c['activation_bytes'] / 1e6:.1f} MB need {c['checkpointed_bytes'] / 1e6:.1f} MB"
        )
    if data["out"]:
        console.print(f"checkpoint and logs in {data['out']}")
