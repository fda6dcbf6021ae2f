"""How the cost of a vault grows with the memories in it: start, get, search, add, disk and resident memory.

    python benchmarks/bench_vault.py --out benchmarks/results/vault

For every size a vault is filled, with 100 memories for each user unless `--per-user` says otherwise; then a fresh
process opens it and measures, so that nothing is warm but the page cache. Searches are of users drawn from all, gets of
memories drawn from all. Before anything is reported, memories of many users must be found by their own words.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from memos_vllm.bench.arguments import counts
from memos_vllm.bench.machine import describe, in_words
from memos_vllm.bench.people import HARD, Fact, make_facts
from memos_vllm.bench.progress import make_progress
from memos_vllm.cube import MemCube
from memos_vllm.retrieval import MemOperator
from memos_vllm.vault import Vault

SIZES = (1_000, 10_000, 100_000, 1_000_000)
BATCH = 1_000
"""Memories in one transaction while a vault is filled."""
GETS, SEARCHES, ADDS = 20_000, 2_000, 300
TOP_K = 10
MIB = 1 << 20


@dataclass(frozen=True)
class Row:
    """One size; times in seconds, sizes in bytes. `first`: the first search after the start."""

    memories: int
    users: int
    fill_seconds: float
    start: float
    first: float
    get_p50: float
    get_p99: float
    search_p50: float
    search_p99: float
    add_p50: float
    add_p99: float
    disk: int
    resident: int


def facts_of(user: int, count: int, seed: int) -> list[Fact]:
    """The facts of one user, the same in every process."""
    rng, facts = random.Random(f"{seed} {user}"), list[Fact]()
    while len(facts) < count:
        facts += make_facts(rng, min(24, count - len(facts)), True, HARD)
    return facts


def cubes_of(users: range, per_user: int, seed: int) -> Iterator[MemCube]:
    for user in users:
        for fact in facts_of(user, per_user, seed):
            yield MemCube.plaintext(fact.statement, owner=f"user-{user}")


def fill(folder: Path, memories: int, per_user: int, seed: int, tell: Callable[[int], None]) -> float:
    """Fill a new vault; returns seconds in the vault, those of making up texts not counted.

    Ids of memories drawn from all are left for `measure` in a file beside the vault.
    """
    spent, batch, ids = 0.0, list[MemCube](), list[str]()
    drawn = {*random.Random(seed).sample(range(1, memories + 1), min(GETS, memories))}
    with Vault.open(folder) as vault:
        for number, cube in enumerate(cubes_of(range(memories // per_user), per_user, seed), 1):
            batch.append(cube)
            if number in drawn:
                ids.append(cube.id)
            if len(batch) == BATCH or number == memories:
                began = time.perf_counter()
                vault.add(batch, actor="bench")
                spent += time.perf_counter() - began
                tell(len(batch))
                batch = []
    ids_of(folder).write_text("\n".join(ids), encoding="ascii")
    return spent


def ids_of(folder: Path) -> Path:
    """The file of the ids that are got from a vault, outside of it: its disk is measured."""
    return folder.with_suffix(".ids")


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def percentile(times: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(times)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def measure(folder: Path, memories: int, per_user: int, seed: int) -> dict[str, float]:
    """All figures of a filled vault, in this process, which must be new. Exits where it answers wrongly."""
    rng, users = random.Random(seed), memories // per_user
    asked = [(user, rng.choice(facts_of(user, per_user, seed))) for user in rng.choices(range(users), k=SEARCHES)]
    began = time.perf_counter()
    vault = Vault.open(folder)
    operator = MemOperator(vault)
    started = time.perf_counter() - began
    searches = [
        timed(lambda user=user, fact=fact: operator.search(f"user-{user}", fact.question, top_k=TOP_K))  # type: ignore[misc]
        for user, fact in asked
    ]
    for user, fact in asked[:200]:
        hits = operator.search(f"user-{user}", fact.statement, top_k=TOP_K)
        if fact.statement not in [hit.cube.text for hit in hits] or any(
            hit.cube.owner != f"user-{user}" for hit in hits
        ):
            sys.exit(f"a memory of user-{user} is not among the first {TOP_K} for its own words; nothing is reported")
    ids = ids_of(folder).read_text(encoding="ascii").split()
    ids = [*ids, *rng.choices(ids, k=GETS - len(ids))] if len(ids) < GETS else ids
    rng.shuffle(ids)
    gets = [timed(lambda cube_id=cube_id: vault.get(cube_id)) for cube_id in ids]  # type: ignore[misc]
    new = [MemCube.plaintext(fact.statement, owner=f"user-{user}") for user, fact in asked[:ADDS]]
    adds = [timed(lambda cube=cube: vault.add([cube], actor="bench")) for cube in new]  # type: ignore[misc]
    vault.close()
    return {
        "start": started, "first": searches[0],
        "get_p50": percentile(gets, 50), "get_p99": percentile(gets, 99),
        "search_p50": percentile(searches, 50), "search_p99": percentile(searches, 99),
        "add_p50": percentile(adds, 50), "add_p99": percentile(adds, 99),
        "resident": float(psutil.Process().memory_info().rss),
    }  # fmt: skip


def run(args: argparse.Namespace, console: Console) -> list[Row]:
    rows = []
    with make_progress(console) as progress, tempfile.TemporaryDirectory(prefix="memos-bench-") as temporary:
        for memories in args.sizes:
            folder = Path(temporary) / str(memories)
            task = progress.add_task(f"{memories:,} memories", total=memories)
            spent = fill(folder, memories, args.per_user, args.seed, partial(progress.advance, task))
            words = ["--measure", str(folder), "--sizes", str(memories), "--per-user", str(args.per_user)]
            child = subprocess.run(  # noqa: S603
                [sys.executable, __file__, *words, "--seed", str(args.seed)],
                capture_output=True,
                text=True,
                check=False,
            )
            if child.returncode:
                sys.exit(child.stderr[-2000:])
            disk = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
            figures = json.loads(child.stdout)
            resident = int(figures.pop("resident"))
            rows.append(Row(memories, memories // args.per_user, spent, disk=disk, resident=resident, **figures))
    return rows


def report(args: argparse.Namespace, rows: Sequence[Row], console: Console) -> None:
    """vault.json, vault.csv, vault.png, and a table."""
    args.out.mkdir(parents=True, exist_ok=True)
    machine = describe(())
    sizes = ",".join(map(str, args.sizes))
    command = f"python benchmarks/bench_vault.py --sizes {sizes} --per-user {args.per_user} --seed {args.seed}"
    told = {"command": command, "machine": machine, "rows": [asdict(row) for row in rows]}
    (args.out / "vault.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    with (args.out / "vault.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [column.name for column in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    draw(rows, f"{args.per_user} memories a user; {in_words(machine)}", args.out / "vault.png")
    table = Table(box=box.SIMPLE_HEAD, title="Times in ms", title_justify="left")
    names = ("start", "first search", "get P50", "get P99", "search P50", "search P99", "add P50", "add P99")
    for name in ("memories", *names, "disk MiB", "resident MiB", "filled at /s"):
        table.add_column(name, justify="right")
    for row in rows:
        times = (
            row.start, row.first, row.get_p50, row.get_p99, row.search_p50, row.search_p99, row.add_p50, row.add_p99,
        )  # fmt: skip
        sizes_of = (f"{row.disk / MIB:.1f}", f"{row.resident / MIB:.0f}", f"{row.memories / row.fill_seconds:.0f}")
        table.add_row(f"{row.memories:,}", *(f"{seconds * 1e3:.3f}" for seconds in times), *sizes_of)
    console.print(table)


def draw(rows: Sequence[Row], subtitle: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    sizes = [row.memories for row in rows]
    for name, label in (
        ("start", "start"),
        ("add_p99", "add, P99"),
        ("search_p99", "search, P99"),
        ("get_p99", "get, P99"),
    ):
        panel.plot(sizes, [getattr(row, name) * 1e3 for row in rows], "o-", label=label)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("memories in the vault")
    panel.set_ylabel("ms")
    panel.grid(color="#dddddd", linewidth=0.8)
    panel.legend(frameon=False)
    figure.suptitle(f"Cost of a vault by its size\n{subtitle}", fontsize=11)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--sizes", type=counts, default=SIZES, help="memories in the vault")
    parser.add_argument("--per-user", type=int, default=100, help="memories of each user")
    parser.add_argument("--seed", type=int, default=0, help="of texts and of what is asked")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/vault"), help="folder of the results")
    parser.add_argument("--measure", type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.sizes[0], args.per_user, args.seed)))
        return
    console = Console(width=None if sys.stdout.isatty() else 150)
    report(args, run(args, console), console)


if __name__ == "__main__":
    main()
