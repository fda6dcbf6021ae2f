"""`memos-vllm adapter train | retrain | merge | decode`: make adapters out of memories, and read them back.

Exit code 0: made and stored; 1: made, examined and refused; 2: an error, in one line on stderr. A command that was
stopped goes on where it was with `adapter resume`; `adapter cancel` makes room for another.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from memos_vllm.cli_key import operator, plain
from memos_vllm.errors import BadInput, NotFound

if TYPE_CHECKING:
    from memos_vllm.parameter.job import JobSpec, JobStatus
    from memos_vllm.parameter.progress import Tell
    from memos_vllm.parameter.registry import AdapterRegistry, AdapterVersion
    from memos_vllm.vault import Vault

EXIT_REFUSED = 1
RECIPE_FLAGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "rank": (int, "of the LoRA matrices"),
    "epochs": (int, "passes over what the memories tell"),
    "learning_rate": (float, "default: one that fits the width of the model"),
    "replay_weight": (float, "how much other answers are held to the base model's"),
    "seed": (int, "of everything that is drawn"),
    "device": (str, "auto, cpu or cuda"),
    "precision": (str, "float32 or bfloat16, of matrix products"),
    "min_accuracy": (
        float,
        "right answers to held-out phrasings, from 0 to 1, below which nothing is stored (default: 0.9; retrain: 0.88)",
    ),
}


def add_train_parsers(actions: Any) -> None:
    """Add the actions to the subcommands of `memos-vllm adapter`."""
    train = actions.add_parser("train", help="learn memories: a LoRA that answers without them in the prompt")
    _common(train)
    train.add_argument("--from", dest="source", required=True, metavar="owner:NAME", help="whose memories")
    train.add_argument("--tags", default="", help="only memories with one of these tags, with commas between them")
    train.add_argument("--name", required=True, help="of the adapter; its next version is made where there is one")
    _recipe(train)
    train.set_defaults(run=_train)
    retrain = actions.add_parser("retrain", help="make an adapter anew without some of its memories, and prove it")
    _common(retrain)
    retrain.add_argument("adapter", help="OWNER/NAME or OWNER/NAME@vN")
    retrain.add_argument("--without", nargs="+", required=True, metavar="ID", help="ids of memories to forget")
    _recipe(retrain)
    retrain.set_defaults(run=_retrain)
    _add_job(actions.add_parser("resume", help="go on with a training that was stopped"), _resume)
    _add_job(actions.add_parser("cancel", help="stop a training for good"), _cancel)
    _add_merge(actions.add_parser("merge", help="make one adapter of several"))
    _add_decode(actions.add_parser("decode", help="read as text what an adapter knows beyond its base"))


def _add_job(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument("dir", type=Path, help="the memory directory")
    parser.add_argument("job", help="id of the training")
    parser.add_argument("--owner", required=True, help="whose adapter it makes")
    parser.set_defaults(run=run)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help="the memory directory")
    parser.add_argument("--model", required=True, help="the base model that is served: a folder or a hub name")


def _recipe(parser: argparse.ArgumentParser) -> None:
    for name, (kind, text) in RECIPE_FLAGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=None, help=text)
    parser.add_argument("--recipe", type=Path, default=None, help="JSON file with settings; flags go before it")
    parser.add_argument("--activate", action="store_true", help="serve the new version at once")


def _add_merge(merge: argparse.ArgumentParser) -> None:
    _common(merge)
    merge.add_argument("adapters", nargs="+", metavar="OWNER/NAME[@vN][=WEIGHT]", help="adapters of one owner")
    merge.add_argument("--name", required=True, help="of the merged adapter")
    merge.add_argument(
        "--method", default="svd", help="linear, svd, cat, ties, dare_linear, dare_ties and others of PEFT"
    )
    merge.add_argument("--rank", type=int, default=0, help="of the outcome by svd; 0: the largest there is")
    merge.add_argument("--density", type=float, default=0.5, help="share of weights that ties and dare keep")
    merge.add_argument("--seed", type=int, default=0, help="of what dare drops")
    merge.set_defaults(run=_merge)


def _add_decode(decode: argparse.ArgumentParser) -> None:
    _common(decode)
    decode.add_argument("adapter", help="OWNER/NAME or OWNER/NAME@vN")
    decode.add_argument("--samples", type=int, default=512, help="sampled answers to open questions")
    decode.add_argument("--questions", type=int, default=4000, help="most questions about things that it may know")
    decode.add_argument("--min-confidence", type=float, default=0.5, help="least confidence that is kept, from 0 to 1")
    decode.add_argument("--seed", type=int, default=0, help="of what is sampled")
    decode.add_argument("--store", action="store_true", help="keep it as memories of the adapter's owner")
    decode.set_defaults(run=_decode)


def _train(args: argparse.Namespace) -> int:
    from memos_vllm.parameter.choosing import choose
    from memos_vllm.parameter.job import JobSpec
    from memos_vllm.vault import Vault

    kind, _, owner = args.source.partition(":")
    if kind != "owner" or not owner:
        raise BadInput(f"--from takes owner:NAME, not {args.source!r}.")
    with Vault.open(args.dir) as vault:
        cubes = choose(vault, owner, tags=[tag for tag in args.tags.split(",") if tag])
    return _run(
        args.dir,
        JobSpec(
            owner=owner,
            author=operator(),
            name=args.name,
            model=args.model,
            cubes=tuple(f"{cube.id}@{cube.version}" for cube in cubes),
            recipe=_recipe_of(args),
            activate=args.activate,
        ),
    )


def _retrain(args: argparse.Namespace) -> int:
    from memos_vllm.parameter.choosing import parted
    from memos_vllm.parameter.job import JobSpec

    with _registry(args) as (vault, registry):
        version = _resolved(registry, args.adapter)
        kept, forgotten = parted(vault, version, args.without)
    return _run(
        args.dir,
        JobSpec(
            owner=version.owner,
            author=operator(),
            name=version.name,
            model=args.model,
            cubes=kept,
            forgotten=forgotten,
            recipe=_recipe_of(args),
            tags=version.tags,
            activate=args.activate,
        ),
    )


def _resume(args: argparse.Namespace) -> int:
    from memos_vllm.parameter.job import FINAL, Jobs
    from memos_vllm.parameter.lora import check_peft

    jobs = Jobs(args.dir)
    status = jobs.status(args.owner, args.job)
    if status.state in FINAL:
        return _told(status)
    check_peft()
    return _work(jobs.folder / status.id)


def _cancel(args: argparse.Namespace) -> int:
    from memos_vllm.parameter.job import Jobs

    status = Jobs(args.dir).cancel(args.owner, args.job)
    plain(f"training {status.id}: {status.state if status.state == 'cancelled' else 'stops at its next step'}")
    return 0


def _run(memory_dir: Path, spec: JobSpec) -> int:
    """Do a job in this process, with a progress bar."""
    from memos_vllm.parameter.job import Jobs
    from memos_vllm.parameter.lora import check_peft

    check_peft()
    jobs = Jobs(memory_dir)
    status = jobs.create(spec)
    plain(f"training {status.id}: {len(spec.cubes)} memories; if this is stopped, go on with `adapter resume`")
    return _work(jobs.folder / status.id)


def _work(folder: Path) -> int:
    from memos_vllm.parameter.job_worker import job_lock, run

    with job_lock(folder) as mine, _bar() as tell:
        if not mine:
            raise BadInput("This training runs already, in another process.")
        status = run(folder, tell)
    return _told(status)


def _told(status: JobStatus) -> int:
    for name, value in status.figures.items():
        plain(f"  {name.replace('_', ' ')}: {value:g}")
    if status.state == "refused":
        plain(*(f"refused: {problem}" for problem in status.problems))
        plain("nothing is stored; --seed, --epochs or --rank make another one, --min-accuracy asks for less")
        return EXIT_REFUSED
    if status.state != "done":
        raise BadInput(f"The training {status.id} is {status.state}. {status.error}".strip())
    plain(f"stored as {status.owner}/{status.adapter}")
    return 0


def _merge(args: argparse.Namespace) -> int:
    from memos_vllm.parameter.lora import check_peft
    from memos_vllm.parameter.merge import Part, merge
    from memos_vllm.parameter.model import Model
    from memos_vllm.parameter.registry import AdapterFiles

    check_peft()
    with _registry(args) as (_, registry), tempfile.TemporaryDirectory(prefix="memos-merge-") as temporary:
        chosen = [_weighted(registry, word) for word in args.adapters]
        owners = {version.owner for version, _ in chosen}
        if len(owners) != 1:
            raise BadInput("Only adapters of one owner are merged: what they know would get another owner.")
        parts = [
            Part(_staged(registry, version, Path(temporary) / str(place)), weight)
            for place, (version, weight) in enumerate(chosen)
        ]
        out = Path(temporary) / "merged"
        how = {"method": args.method, "rank": args.rank, "density": args.density, "seed": args.seed}
        merge(Model.load(args.model), parts, out, **how)
        assert registry.base is not None
        made = registry.add(
            owners.pop(),
            args.name,
            AdapterFiles.read(out, base=registry.base.fingerprint),
            author=operator(),
            parents=[f"{version.cube_id}@{version.version}" for version, _ in chosen],
            metadata={**how, "weights": ",".join(f"{weight:g}" for _, weight in chosen)},
        )
    plain(f"stored as {made.owner}/{made.served}")
    return 0


def _decode(args: argparse.Namespace) -> int:
    from memos_vllm.parameter.choosing import decoded_cubes
    from memos_vllm.parameter.decode import DecodeOptions, decode
    from memos_vllm.parameter.lora import check_peft, with_adapter
    from memos_vllm.parameter.model import Model

    check_peft()
    options = DecodeOptions(
        samples=args.samples, questions=args.questions, min_confidence=args.min_confidence, seed=args.seed
    )
    with _registry(args) as (vault, registry), tempfile.TemporaryDirectory(prefix="memos-decode-") as temporary:
        version = _resolved(registry, args.adapter)
        model = with_adapter(Model.load(args.model), _staged(registry, version, Path(temporary) / "adapter"))
        with _bar() as tell:
            found = decode(model, options, tell)
        if args.store:
            vault.add(decoded_cubes(found, version), actor=operator())
    plain(*(f"{each.confidence:.2f}  {each.text}" for each in found))
    plain(f"{len(found)} memories{' stored' if args.store else ''}")
    return 0


@contextmanager
def _registry(args: argparse.Namespace) -> Iterator[tuple[Vault, AdapterRegistry]]:
    from memos_vllm.parameter.recipe import MAX_RANK
    from memos_vllm.parameter.registry import AdapterRegistry, BaseModel
    from memos_vllm.vault import Vault

    base = BaseModel.read(args.model)
    with Vault.open(args.dir) as vault:
        yield vault, AdapterRegistry(vault, base=base, max_rank=MAX_RANK)


def _resolved(registry: AdapterRegistry, word: str) -> AdapterVersion:
    """OWNER/NAME@vN, or of OWNER/NAME the active version, else the newest. Raises BadInput, NotFound."""
    from memos_vllm.parameter.names import parsed
    from memos_vllm.parameter.registry import Caller

    named = parsed(word)
    if named is None or not named.owner:
        raise BadInput(f"{word[:80]!r} names no adapter: write OWNER/NAME, or OWNER/NAME@vN for one version.")
    entry = registry.get(Caller(named.owner, bound=True), named.name)
    versions = {version.version: version for version in entry.versions}
    wanted = named.version or entry.active or max(versions, default=0)
    if wanted not in versions:
        raise NotFound(f"There is no version {wanted} of {word[:80]!r}.")
    return versions[wanted]


def _weighted(registry: AdapterRegistry, word: str) -> tuple[AdapterVersion, float]:
    name, equals, weight = word.partition("=")
    try:
        return _resolved(registry, name), float(weight) if equals else 1.0
    except ValueError as error:
        raise BadInput(f"{weight!r} is no weight: give a number, as in OWNER/NAME=0.5.") from error


def _staged(registry: AdapterRegistry, version: AdapterVersion, folder: Path) -> Path:
    registry.stage(version, folder)
    return folder


def _recipe_of(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of a recipe: the file's, and over them the flags'. Raises BadInput."""
    fields: Any = {}
    if args.recipe:
        try:
            fields = json.loads(args.recipe.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(f"The recipe {args.recipe} cannot be read: {error}.") from error
    if not isinstance(fields, dict):
        raise BadInput(f"The recipe {args.recipe} holds no JSON object.")
    return fields | {name: getattr(args, name) for name in RECIPE_FLAGS if getattr(args, name) is not None}


@contextmanager
def _bar() -> Iterator[Tell]:
    """A progress bar on stderr, where that is a terminal."""
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("loading", total=None)
        shown = ""

        def tell(what: str, done: int, total: int) -> None:
            nonlocal shown
            if what != shown:
                progress.reset(task, description=what)
                shown = what
            progress.update(task, completed=done, total=total or None)

        yield tell
