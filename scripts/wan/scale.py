"""How `scripts/bench wan` makes a small model on two cores stand for a large one on home lines. Pure.

Four cards at 1,500 tokens/s each, a local step of 8 sequences of 512 tokens: 2.73 s a step. What decides an arm's fate
is how many steps one exchange costs. All-reducing N values of b bytes among n peers takes an uplink

    2 (n - 1) / n * N * b / (up / 8)      seconds; in fp16, four peers, 20 Mbit/s:

    LoRA, 1B     11.27 M values (rank 16 on all linear layers of Llama 3.2 1B)      13.5 s     5.0 steps
    full, 0.5B   494.0 M values (Qwen2.5 0.5B)                                       593 s     217 steps

Kept: the number of optimizer steps, each with its real batch replaced by a small one (LoRA: 8 sequences of 32 tokens;
full: 2), and the number of steps that an exchange costs. Two knobs keep it: our model has fewer trainable values, so
rates are scaled by ours/real; and all times are divided by `compress` (8), so rates are multiplied by it. Round trips,
matchmaking times and time limits of the other arms are divided too, as far as they can be. Speeding up the card instead
of slowing the line (a 100 times smaller model, 100 times the tokens/s) is beyond two cores. The larger our model, the
less the line has to be slowed, so a full fine-tune takes the demo's model made larger (`model`).

What does not scale falls on every arm: packets have their real size, so a scaled line's queue holds at least 16 of
them; bytes that the protocols send beside the tensors weigh real/ours times more; constants inside the libraries (ours,
hivemind's, TCP's) are not divided, so they weigh `compress` times more. These make the table pessimistic for whoever
sends often. And TCP's throughput under loss does not fall as the rate does: 0.5 % loss is milder here than on the real
line.

    >>> full = Scale("full", trainable=3_998_336)
    >>> round(full.step_s, 3), round(full.rate, 5)
    (0.341, 0.06475)
    >>> line = full.line("20/100")
    >>> round(line.up_mbit, 4), round(line.down_mbit, 4), line.delay_ms
    (1.2949, 6.4746, 1.25)
    >>> round(full.exchange_s("20/100", 2) / full.step_s)  # as in reality
    217
"""

from __future__ import annotations

from dataclasses import dataclass

from lab.wan.link import Host

REAL_TRAINABLE = {"lora": 11_272_192, "full": 494_032_768}
REAL_NAME = {"lora": "a 1B model's LoRA, rank 16", "full": "a 0.5B model, full"}
CARD_TOKENS_PER_S = 1500.0
SEQUENCE_LENGTH = 32  # ours
REAL_BATCH = 8  # sequences of 512 tokens in a local step
BATCH = {"lora": 8, "full": 2}  # of ours, in their place: the larger model gets fewer, for two cores do not do more
PEERS = 4
LINES = {  # as they are in reality; delay_ms is a quarter of the round trip between two homes
    "20/100": Host(delay_ms=10, up_mbit=20, down_mbit=100),
    "10/50": Host(delay_ms=20, up_mbit=10, down_mbit=50, loss=0.005),
    "loopback": Host(),
}
LEAST_QUEUE_BYTES = 16 * 1400
VARIANTS = {"plain": (1.0,) * PEERS, "killed": (1.0,) * PEERS, "4:2:1:1": (2.0, 1.0, 0.5, 0.5)}  # speeds, mean 1


@dataclass(frozen=True)
class Scale:
    """How one method's real case is scaled.

    Args:
        kind: "lora" or "full".
        trainable: values of our model that travel.
        compress: by how much every time is shorter than in reality.
    """

    kind: str
    trainable: int
    compress: float = 8.0

    @property
    def step_s(self) -> float:
        """One local step of a card of the mean speed."""
        return REAL_BATCH * 512 / CARD_TOKENS_PER_S / self.compress

    @property
    def tokens_per_step(self) -> int:
        """Predicted: the first of a sequence never is."""
        return BATCH[self.kind] * (SEQUENCE_LENGTH - 1)

    @property
    def tokens_per_s(self) -> float:
        """Predicted, of a card of the mean speed."""
        return self.tokens_per_step / self.step_s

    @property
    def rate(self) -> float:
        """Our line's rates against the real ones."""
        return self.compress * self.trainable / REAL_TRAINABLE[self.kind]

    def line(self, name: str) -> Host:
        """The line of this name, scaled."""
        real = LINES[name]
        queue = real.queue_bytes * self.trainable / REAL_TRAINABLE[self.kind]
        if not real.up_mbit:
            return real
        return Host(
            delay_ms=real.delay_ms / self.compress,
            up_mbit=real.up_mbit * self.rate,
            down_mbit=real.down_mbit * self.rate,
            loss=real.loss,
            queue_bytes=max(LEAST_QUEUE_BYTES, round(queue)),
        )

    def exchange_s(self, name: str, bytes_per_value: float) -> float:
        """The least that one all-reduce takes on our line, by its uplink; 0 without a limit."""
        up_mbit = self.line(name).up_mbit
        sent = 2 * (PEERS - 1) / PEERS * self.trainable * bytes_per_value
        return sent * 8e-6 / up_mbit if up_mbit else 0.0

    def tell(self) -> str:
        """For people: what stands for what."""
        lines = ", ".join(
            f"{name}: {self.line(name).up_mbit:.2f}/{self.line(name).down_mbit:.2f} Mbit/s, a fp16 all-reduce "
            f"{self.exchange_s(name, 2):.1f} s = {self.exchange_s(name, 2) / self.step_s:.1f} steps"
            for name, real in LINES.items()
            if real.up_mbit
        )
        return (
            f"{self.kind}: {self.trainable:,} values stand for the {REAL_TRAINABLE[self.kind]:,} of "
            f"{REAL_NAME[self.kind]}; times are 1/{self.compress:g}; a local step takes {self.step_s:.3f} s "
            f"({self.tokens_per_s:.0f} tokens/s); {lines}"
        )
