"""What the coordinator's tests share: a tiny real model and text, a run.toml, and a swarm of identities that signs rounds."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from coordinator.host import Host
from peer.coordinator_client import CoordinatorClient, RunDescription
from peer.training.state import SharedState
from protocol.claim import Agreement, Claim, UpdateDigest, Vote, group_digest, weights
from protocol.envelope import Envelope
from protocol.keys import PeerIdentity

WORDS = ["the", "fire", "burns", "high", "when", "everyone", "brings", "wood", "and", "night", "is", "long"]


def write_model(folder: Path, seed: int = 0) -> Path:
    """A random Llama of two layers over words, with its tokenizer, as a transformers folder."""
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<eos>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")
    fast.save_pretrained(str(folder))
    (folder / "LICENSE").write_text("as free as air\n")
    return folder


def write_text(path: Path, words: int = 4000) -> Path:
    """Text with a little structure, the same each time."""
    choose = random.Random(7)
    lines = [" ".join(choose.choices(WORDS, k=8)) for _ in range(words // 8)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_run(
    folder: Path,
    *,
    rounds: int = 4,
    every: int = 2,
    lora: bool = False,
    code: str | None = "wood",
    max_worse: float = 0.1,
) -> Path:
    """A folder with model, text and run.toml; returns the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / "model")
    write_text(folder / "text.txt")
    config = folder / "run.toml"
    method = '[method]\nkind = "lora"\nrank = 2\n' if lora else ""
    config.write_text(
        f"""
[run]
name = "campfire"
rounds = {rounds}
[model]
path = "model"
license = "MIT"
[data]
path = "text.txt"
license = "CC0-1.0"
sequence_length = 16
held_out = 0.1
{method}
[sync]
round_tokens = 1000
[publish]
every_rounds = {every}
max_worse = {max_worse}
[host]
listen = "127.0.0.1:0"
swarm_listen = "127.0.0.1:0"
{f'code = "{code}"' if code else ""}
"""
    )
    return config


@dataclass
class Member:
    """A peer with its certificate."""

    identity: PeerIdentity
    certificate: str = ""

    @property
    def peer_id(self) -> str:
        return self.identity.peer_id


@dataclass
class Swarm:
    """Members that agree on one round after another; states are real tensors."""

    run: str
    members: list[Member]
    state: SharedState
    previous: dict[str, int] = field(default_factory=dict)
    states: dict[int, SharedState] = field(default_factory=dict)

    @classmethod
    def joined(cls, client: CoordinatorClient, run: RunDescription, state: SharedState, count: int = 3) -> Swarm:
        """Enroll `count` new identities."""
        members = [Member(PeerIdentity.generate()) for _ in range(count)]
        for member in members:
            member.certificate = client.enroll(member.identity).certificate
        return cls(run.card.run, members, state)

    def next_state(self, seed: int, scale: float = 0.01) -> SharedState:
        torch.manual_seed(seed)
        noise = scale * torch.randn_like(self.state.parameters)
        return SharedState(self.state.round + 1, self.state.names_shapes, self.state.parameters + noise)

    def round(self, *, seed: int = 0, tokens: int = 100, scale: float = 0.01) -> Agreement:
        """Work and agree on the next round."""
        state = self.next_state(seed, scale)
        agreement = self.agree(state.digest, self.members, tokens=tokens)
        self.previous, self.state = dict(agreement.weights), state
        self.states[state.round] = state
        return agreement

    def agree(
        self,
        state: str,
        members: Iterable[Member],
        *,
        tokens: int = 100,
        voters: Iterable[Member] | None = None,
        round: int | None = None,
        base: str | None = None,
    ) -> Agreement:
        """An agreement of `members` on `state`, from the current base."""
        members = list(members)
        number, base = round or self.state.round + 1, base or self.state.digest
        signed: list[Envelope] = []
        claims: dict[str, Claim] = {}
        for index, member in enumerate(members):
            claim = Claim(
                run=self.run,
                round=number,
                base=base,
                tokens=tokens + index,
                flops=1000,
                first_batch=0,
                batches=4,
                update=UpdateDigest(root="0" * 64, values=8, chunk_values=8, codec="fp32"),
            )
            claims[member.peer_id] = claim
            signed.append(claim.sign(member.identity))
        vote = Vote(run=self.run, round=number, attempt=0, group=group_digest(signed), base=base, state=state)
        return Agreement(
            run=self.run,
            round=number,
            base=base,
            state=state,
            weights=weights(claims, self.previous),
            claims=claims,
            claim_envelopes=tuple(signed),
            vote_envelopes=tuple(vote.sign(member.identity) for member in (voters or members)),
            certificates={member.peer_id: member.certificate for member in members},
        )


def start_host(config: Path, folder: Path) -> Host:
    """A host in this process, without a rendezvous."""
    host = Host(config, folder, rendezvous=False)
    host.start()
    return host
