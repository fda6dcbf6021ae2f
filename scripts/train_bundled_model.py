"""Train the bundled tiny model: a Llama-architecture chat model that answers from memories in its prompt.

    python scripts/train_bundled_model.py --out first --minutes 66 --max-facts 16
    python scripts/train_bundled_model.py --out second --init first --minutes 17 --max-facts 16 \
        --lr 5e-4 --long-every 4
    python scripts/train_bundled_model.py --out third --init second --minutes 54 --max-facts 16 \
        --lr 1e-3 --long-every 16 --muon
    python scripts/train_bundled_model.py --out memos_vllm/assets/tiny --init third --minutes 13 --max-facts 16 \
        --lr 6e-4 --long-every 2 --muon

The first two runs teach recall of single facts, the third what several memories tell together, the last one
attention over long prompts. The data of the third were still changing in its first half, so the same commands need
not give the same weights.

The data are synthetic personal facts in English. Some people and values are held out: the model never sees them in
training, so that it can only answer about them by reading the prompt. At first half of the loss is that of a random
token span that is repeated: recall (an induction circuit) forms from it long before it would from facts alone. In
the same way grids (see `grid_sample`) teach to find a value by person and thing before stories need it. The number of
facts in a prompt doubles as accuracy grows. Position ids jump forward at random places ("PoSE", arXiv 2309.10400), so
a short sequence trains every distance up to 8,192 tokens.

A run is seeded, uses a GPU when there is one, and resumes from its checkpoint. The times are those of one or two busy
cores.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundled_model_data import (
    BEGIN,
    END,
    MAX_POSITIONS,
    Sample,
    chat_sample,
    copy_sample,
    grid_sample,
    jumping_positions,
    some_kinds,
    story_sample,
)
from bundled_model_net import make_model, save_tokenizer, train_tokenizer

from memos_vllm.bench.people import EASY, HARD
from memos_vllm.bench.stories import KINDS, Kind

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

FILLER_TOKENS = 16
"""About as many as a filler sentence has."""
PADDING = 4
"""The id of the end token, which is the fifth special one."""

Batch = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]
"""Token ids, loss weights and position ids, each `[sequences, tokens]`."""


def batch_tensors(rng: random.Random, samples: list[Sample], device: torch.device, reach: int = MAX_POSITIONS) -> Batch:
    import torch

    length = max(len(sample.ids) for sample in samples)
    gaps = [length - len(sample.ids) for sample in samples]
    pairs = list(zip(samples, gaps, strict=True))
    ids = torch.tensor([sample.ids + [PADDING] * gap for sample, gap in pairs], device=device)
    weights = torch.tensor([sample.weights + [0.0] * gap for sample, gap in pairs], device=device)
    positions = torch.tensor([jumping_positions(rng, length, reach) for _ in samples], device=device)
    return ids, weights, positions


def logits_at(model: Any, ids: torch.Tensor, positions: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Logits at the chosen places (bool, like ids); the explicit mask keeps transformers from reading position
    jumps as packed sequences.
    """
    import torch

    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        hidden = model.model(
            input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False
        )
        logits: torch.Tensor = model.lm_head(hidden.last_hidden_state[chosen])
        return logits


def weighted_loss(model: Any, ids: torch.Tensor, weights: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    import torch.nn.functional as F

    counted = weights[:, 1:] > 0
    chosen = F.pad(counted, (0, 1))
    losses = F.cross_entropy(logits_at(model, ids, positions, chosen).float(), ids[:, 1:][counted], reduction="none")
    kept = weights[:, 1:][counted]
    return (losses * kept).sum() / kept.sum()


def accuracy(
    model: Any, rng: random.Random, samples: list[Sample], device: torch.device, reach: int = MAX_POSITIONS
) -> float:
    """Share of answers whose every token is the model's first choice (teacher forced, so equal to greedy decoding)."""
    import torch

    hits = total = 0
    with torch.no_grad():
        for start in range(0, len(samples), 8):
            part = samples[start : start + 8]
            ids, _, positions = batch_tensors(rng, part, device, reach)
            best = logits_at(model, ids, positions, torch.ones_like(ids, dtype=torch.bool)).argmax(-1).view_as(ids)
            for row, sample in enumerate(part):
                for begin, end in sample.answers:
                    hits += bool((best[row, begin - 1 : end - 1] == ids[row, begin:end]).all())
                    total += 1
    return hits / total


@dataclass
class Progress:
    """Where training stands: the task grows in `length` (tokens) and in `facts` as accuracy does; `best` and `grids`
    are the best accuracies of chats and of grids.
    """

    step: int = 0
    length: int = 64
    facts: int = 2
    best: float = 0.0
    grids: float = 0.0
    seconds: float = 0.0


class Trainer:
    """Model, optimizer and data of one run; everything that a resume needs is in its checkpoint."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        torch.manual_seed(args.seed)
        self.args, self.rng, self.progress = args, random.Random(args.seed), Progress()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.checkpoint = args.out / "checkpoint.pt"
        self.tokenizer = self.make_tokenizer()
        self.vocab = self.tokenizer.get_vocab_size()
        self.model = make_model(
            self.vocab, end_id=self.tokenizer.token_to_id(END), begin_id=self.tokenizer.token_to_id(BEGIN)
        ).to(self.device)
        self.optimizers = self.make_optimizers()
        if self.checkpoint.exists():
            self.resume()
        elif args.init:
            self.continue_from(args.init)

    def make_optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW, or Muon (https://kellerjordan.github.io/posts/muon/) for the matrices between embedding and norms."""
        import torch

        parameters = dict(self.model.named_parameters())
        chosen = [name for name, value in parameters.items() if value.ndim == 2 and "embed" not in name]
        matrices = [parameters.pop(name) for name in chosen if self.args.muon]
        adam = torch.optim.AdamW(parameters.values(), lr=self.args.lr, betas=(0.9, 0.98), weight_decay=0.05)
        if not matrices:
            return [adam]
        return [adam, torch.optim.Muon(matrices, self.args.lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")]

    def make_tokenizer(self) -> Tokenizer:
        """A run that goes on keeps its tokens."""
        from tokenizers import Tokenizer

        if self.args.init:
            return Tokenizer.from_file(str(self.args.init / "tokenizer.json"))
        return train_tokenizer(random.Random(self.args.seed), self.args.vocab)

    def resume(self) -> None:
        import torch

        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.progress = Progress(**state["progress"])
        self.rng.seed(self.args.seed + self.progress.step)

    def continue_from(self, trained: Path) -> None:
        """Take the weights and the task of a finished run; optimizer and clock start anew."""
        from transformers import AutoModelForCausalLM

        weights = AutoModelForCausalLM.from_pretrained(trained).float().state_dict()
        self.model.load_state_dict(weights)
        record = json.loads((trained / "training.json").read_text())
        self.progress = Progress(
            length=record["length"], facts=record["facts"], best=record["best"], grids=record.get("grids", 0.0)
        )
        self.rng.seed(f"{self.args.seed} after {record['step']}")

    def save(self) -> None:
        import torch

        parts = {"model": self.model.state_dict(), "optimizers": [each.state_dict() for each in self.optimizers]}
        torch.save(parts | {"progress": vars(self.progress)}, self.checkpoint)

    @property
    def reach(self) -> int:
        return MAX_POSITIONS if self.progress.best >= 0.5 else self.progress.length

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text).ids)

    def chat(self, held: bool, mixed: bool) -> Sample:
        """A chat within the present length; `mixed`: with any number of facts up to the present one, some hidden."""
        progress, rng = self.progress, self.rng
        mix = HARD if progress.best >= 0.5 else EASY
        missing = 0.1 if mixed and progress.facts >= 8 else 0.0
        while True:
            facts = rng.randint(1, progress.facts) if mixed else progress.facts
            sample = chat_sample(rng, self.encode, facts, rng.randint(1, 8), held, mix, 1.0, missing)
            if len(sample.ids) <= progress.length * (1 if mixed else 2):
                return sample

    def chats(self, tokens: int) -> list[Sample]:
        """Chats that fill `tokens` once they are padded to the longest."""
        made = [self.chat(held=False, mixed=True)]
        while (len(made) + 1) * max(len(sample.ids) for sample in made) <= tokens:
            made.append(self.chat(held=False, mixed=True))
        return made

    def copies(self, tokens: int) -> list[Sample]:
        length = self.progress.length
        return [copy_sample(self.rng, length, self.vocab) for _ in range(max(1, tokens // length))]

    def grids(self, tokens: int, held: bool = False) -> list[Sample]:
        made: list[Sample] = []
        while sum(len(sample.ids) for sample in made) < tokens:
            made.append(grid_sample(self.rng, self.encode, held))
        return made

    def batches(self) -> list[list[Sample]]:
        """Repeated spans alone at first, then chats. Once eight facts are learned: grids, and when these are, stories
        and now and then one long prompt.
        """
        progress, tokens = self.progress, self.args.tokens
        if progress.length < 128:
            return [self.copies(tokens)]
        if progress.facts < 8:
            return [self.copies(tokens // 4), self.chats(3 * tokens // 4)]
        if progress.grids < 0.85:
            return [self.grids(5 * tokens // 16), self.chats(tokens // 8)]
        if progress.step % self.args.long_every == 0:
            long = self.long_story if progress.step // self.args.long_every % 2 else self.long_chat
            return [[long()]]
        shares = (self.copies(tokens // 32), self.grids(tokens // 4), self.chats(3 * tokens // 16))
        return [*shares, self.stories(tokens // 2)]

    def story(self, held: bool, kinds: list[Kind] | None = None) -> Sample:
        rng = self.rng
        while True:
            some, fillers = kinds or some_kinds(rng, 2), rng.choice((0, 0, 0, 1, 2, 4))
            mix = rng.choice((EASY, HARD))
            sample = story_sample(rng, self.encode, rng.choice((2, 2, 3, 4, 6)), some, fillers, held, mix)
            if len(sample.ids) <= self.progress.length:
                return sample

    def stories(self, tokens: int) -> list[Sample]:
        """Stories that fill `tokens` once they are padded to the longest."""
        made = [self.story(held=False)]
        while (len(made) + 1) * max(len(sample.ids) for sample in made) <= tokens:
            made.append(self.story(held=False))
        return made

    def long_story(self) -> Sample:
        """A story of up to MAX_POSITIONS tokens."""
        rng = self.rng
        while True:
            memories = rng.randint(2, 8)
            fillers = int(rng.randint(1000, 2 * MAX_POSITIONS) / FILLER_TOKENS / memories)
            sample = story_sample(rng, self.encode, memories, some_kinds(rng, 4), fillers, held=False, mix=HARD)
            if len(sample.ids) <= MAX_POSITIONS:
                return sample

    def long_chat(self) -> Sample:
        """A chat among up to MAX_POSITIONS tokens of filler: jumps alone do not teach attention to stay sharp."""
        rng = self.rng
        while True:
            facts = rng.randint(2, self.progress.facts)
            noise = rng.randint(1000, 4 * MAX_POSITIONS) / FILLER_TOKENS / facts
            sample = chat_sample(rng, self.encode, facts, 8, held=False, mix=HARD, noise=noise, missing=0.1)
            if len(sample.ids) <= MAX_POSITIONS:
                return sample

    def rate(self) -> float:
        """Learning rate: 100 steps of warm-up, a fall to 2 % over the last 30 % of the time."""
        done = self.progress.seconds / (60 * self.args.minutes)
        warm = min(1.0, (self.progress.step + 1) / 100)
        return float(self.args.lr * warm * (1.0 if done < 0.7 else max(0.02, (1 - done) / 0.3)))

    def step(self) -> float:
        """One step; returns the mean loss of its batches."""
        import torch

        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = self.rate()
        losses = []
        for samples in self.batches():
            loss = weighted_loss(self.model, *batch_tensors(self.rng, samples, self.device, self.reach))
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        return sum(losses) / len(losses)

    def accuracy(self, held: bool) -> float:
        samples = [self.chat(held, mixed=False) for _ in range(16)]
        return accuracy(self.model, self.rng, samples, self.device, self.reach)

    def story_accuracy(self) -> str:
        """Held-out accuracy of every kind of task, two of a kind in each story."""
        found = []
        for kind in KINDS:
            samples = [self.story(held=True, kinds=[kind]) for _ in range(12)]
            found.append(f"{kind} {accuracy(self.model, self.rng, samples, self.device, self.reach):.2f}")
        grids = accuracy(self.model, self.rng, self.grids(self.args.tokens, held=True), self.device, self.reach)
        self.progress.grids = max(self.progress.grids, grids)
        found.append(f"grid {grids:.2f}")
        return ", ".join(found)

    def evaluate(self, loss: float) -> None:
        """Say where training stands, and make the task harder once the present one is learned."""
        import torch

        progress = self.progress
        with torch.no_grad():
            copies = batch_tensors(self.rng, self.copies(self.args.tokens), self.device, self.reach)
            copying = weighted_loss(self.model, *copies).item()
        seen, unseen = self.accuracy(held=False), self.accuracy(held=True)
        print(
            f"step {progress.step}, {progress.seconds / 60:.1f} min: length {progress.length}, facts {progress.facts}, "
            f"loss {loss:.3f}, copying {copying:.3f}, accuracy {seen:.2f}, held out {unseen:.2f}",
            flush=True,
        )
        if progress.facts >= 8:
            print(f"    held-out stories: {self.story_accuracy()}", flush=True)
        progress.best = max(progress.best, seen)
        if copying < 1.5 and progress.length < self.args.length and (progress.length < 128 or unseen >= 0.7):
            progress.length *= 2
        if unseen >= 0.7 and progress.facts < self.args.max_facts and progress.facts * 24 < progress.length:
            progress.facts *= 2

    def run(self) -> None:
        progress = self.progress
        began = time.monotonic() - progress.seconds
        while progress.seconds < 60 * self.args.minutes:
            loss = self.step()
            progress.seconds = time.monotonic() - began
            if progress.step % 100 == 0:
                self.evaluate(loss)
                self.save()


def train(args: argparse.Namespace) -> None:
    import torch

    args.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(args)
    trainer.run()
    save_tokenizer(trainer.tokenizer, args.out)
    trainer.model.to(torch.bfloat16).save_pretrained(args.out)
    record = {"seed": args.seed, "minutes": args.minutes, **vars(trainer.progress)}
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    trainer.checkpoint.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, tokenizer and checkpoint")
    parser.add_argument(
        "--minutes", type=float, default=60, help="training time; the learning rate falls over the last 30 %%"
    )
    parser.add_argument("--init", type=Path, help="folder of a finished run to train further")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--length", type=int, default=512, help="longest training sequence, in tokens")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens in a step")
    parser.add_argument(
        "--long-every", type=int, default=8, help="steps from one chat of up to 8,192 tokens to the next"
    )
    parser.add_argument("--max-facts", type=int, default=32, help="largest number of facts in a prompt")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--muon", action="store_true", help="train the matrices with Muon")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
