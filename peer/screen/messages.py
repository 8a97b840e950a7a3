"""What a volunteer's peer says: keys, which stand in `--json` too, and the English.

The Chinese is in `protocol/zh.txt`.

>>> text("fetching", "zh")
'正在下载并验证模型和数据……'
"""

from __future__ import annotations

import datetime

from protocol import words

_MESSAGES = {
    "starting": "starting {release}; loading the program takes some seconds …",
    "loading-part": "starting: loading {name} ({number} of {count}) …",
    "asking-coordinator": "asking the coordinator what this run is …",
    "coordinator-away": "the coordinator is away; going on with what is on this disk",
    "fetching": "fetching the model and the data, and verifying them …",
    "loading-model": "loading the model …",
    "reading-data": "reading the data …",
    "trying-passes": "trying how this computer trains best; a minute or two on a slow one …",
    "finding-members": "looking for other members; training begins",
    "measuring": "the host has this computer measure the held-out loss of its checkpoints, between rounds",
    "reducing": "reducing for the others; nothing is trained on this computer",
    "handing-in": "the last round is done; handing in the last claims …",
    "claims-wait": "some claims could not be handed in yet; they are kept, start again later to send them",
    "network-restarts": "the network part (p2pd) has stopped; starting it again, training goes on from the last round",
    "swarm-restarts": (
        "the part of this program that makes rounds has stopped by an error; starting it again from the last round"
    ),
    "card-out": "{card} does not train any more: {reason}. The others go on; start again to try it again",
    "part-failed": "a part of this program has failed, {part}: {reason}. Please report this to the project",
    "part-clock": "what makes the rounds",
    "part-gossip": "what tells the others how far this peer is",
    "part-search": "the search for other members",
    "part-swarm": "the network thread",
    "part-p2pd-watch": "what watches p2pd",
    "part-task": "an exchange with other members",
    "part-coordinator-link": "the link to the coordinator",
    "part-awake": "what notices that this computer slept",
    "part-signals": "what hears Ctrl-C",
    "part-save-optimizer": "the saving of the optimizer",
    "leaving": "leaving; the others are told … (Ctrl-C again leaves at once)",
    "last-copy": (
        "only this peer has the newest state (round {round}): waiting until another member has it; Ctrl-C again "
        "leaves at once, and then the others wait until you come back"
    ),
    "last-copy-offered": (
        "nobody else is here: giving the newest state (round {round}) to the coordinator; Ctrl-C again leaves at "
        "once, and then it is on this disk only"
    ),
    "not-handed-on": (
        "no other member has got the newest state (round {round}): the others wait until you come back, by the "
        "same command"
    ),
    "alone-kept": (
        "nobody else is here: the run waits until you come back, by the same command; the coordinator has its "
        "newest state (round {round}), too"
    ),
    "alone": (
        "nobody else is here: the run waits until you come back, by the same command; its newest state (round "
        "{round}) is on this disk only"
    ),
    "run-over": "this run is over: all its {rounds} rounds are made",
    "run-over-credit": "your credit: {tokens} tokens in {rounds} rounds; the receipts that prove it are in {folder}",
    "run-over-fetch": "what came of it: potluck fetch INVITE brings its newest checkpoint here, and verifies it",
    "ledger-two-ways": (
        "the host has shown its ledger two ways: what does not fit is kept as {name} in this run's folder. Your "
        "receipts stay; ask the host, and the other members, what it is"
    ),
    "identity-twin": (
        "another computer takes part with this peer's identity, and is told to stop: was the home folder copied, or "
        "the identity imported there? For both to take part, give the other one an identity of its own: potluck "
        "identity new. To move the peer there, leave here, then join there again. If it is no computer of yours, "
        "somebody has a copy of your key: leave, take a new one (potluck identity new), and join again"
    ),
    "identity-not-exported": (
        "your credit ({tokens} tokens) belongs to this peer's identity, a key of which there is no copy: with this "
        "disk both would be lost. `{command}` writes one, under a passphrase"
    ),
    "card-tokens": "{tokens} tokens",
    "card-lines": "trained on some lines of text, in {rounds} of the run's rounds",
    "card-pages": "trained on as much text as about {count} pages hold, in {rounds} of the run's rounds",
    "card-novels": "trained on as much text as about {count} novels hold, in {rounds} of the run's rounds",
    "card-model": "computer time given to {model}, a model that many train together",
    "card-peer": "peer",
    "card-ledger": "ledger",
    "card-leaves": "{size} leaves, root hash",
    "card-check": "potluck verify FILE checks the proof that this file carries, offline; the proof ends in {check}",
    "done": "done. Thank you for the wood!",
    "left": "left. Your identity and your receipts stay on this disk.",
    "terms": "This run wants to use your computer:",
    "run": "run",
    "host": "host",
    "host-is": "{address}, key {root}…",
    "model": "model",
    "model-whole": "{name}: {total} parameters, all of them trained",
    "model-part": "{name}: {total} parameters, {trainable} of them trained",
    "with-licence": "{what}; licence {licence}",
    "data": "data",
    "data-text": "plain text, {size}",
    "data-jsonl": "texts, {size}",
    "data-chat": "conversations, {size}",
    "data-prepared": "{names}, fetched in parts as they are needed",
    "data-from": "{data}, from {place}",
    "download": "to download",
    "partly-here": " (besides {size} that are here already)",
    "disk": "disk needed",
    "memory": "memory needed",
    "about": "about {what}",
    "traffic": "traffic",
    "traffic-by-hour": "up to about {size} an hour, each way (an estimate)",
    "traffic-by-round": (
        "up to about {size} each way, as often as the members average; how often that is shows in training"
    ),
    "lasts": "will last",
    "until-host-ends": "until the host ends it",
    "so-many-rounds": "{rounds} rounds",
    "so-much-longer": "about {time} more, for {rounds} rounds in all (an estimate)",
    "now-at": "; it is at round {round} now",
    "sent": "is sent",
    "what-is-sent": "what the model learns here, how much work this was, how fast this computer is, "
    "and its network address",
    "what-is-sent-reducing": "averages of what others send, how much work this was, "
    "and this computer's network address",
    "never-sent": "never sent",
    "what-is-never-sent": "your files, and whatever else you do on this computer",
    "details": "details",
    "ask": "Take part? [y/N] ",
    "nobody-to-ask": "hint: nobody is there to be asked; give --yes to agree",
    "declined": "not joined; nothing was downloaded",
    "round": "round",
    "members": "members",
    "speed": "tokens/s",
    "loss": "your loss",
    "rate": "learning rate",
    "waited": "waiting per round",
    "round-line": "round {round}: {members} members, {tokens} tokens",
    "left-out-of": "; left out {peers}",
    "left-out": "left out",
    "because": "…{peer}: {why}",
    "and": ", ",
    "working": "working",
    "between-rounds": "waiting for the others' next round",
    "averaging": "averaging with the others",
    "paused": "paused, your work is kept, it goes on by itself: {reason}",
    "held": "not working: {reason}{until}",
    "held-until": "; until {time}",
    "owner-paused": "paused by you; `potluck resume` goes on",
    "not-now": "outside the hours that you allow",
    "month-used": "this month's traffic of {most} is used up",
    "owner-is-here": "you are using this computer",
    "on-battery": "on battery",
    "on-metered": "on a line that is paid by volume",
    "program-runs": "{name} is running",
    "full-screen": "a program fills the screen",
    "too-hot": "the card is hot (your limit: {degrees} °C)",
    "disk-low": "less than {least} is free on the disk",
    "limits-wrong": "limits.toml has a mistake, the limits stay as they were: {reason}",
    "part-limits": "what looks after your limits",
    "part-control": "what answers potluck status and potluck pause",
    "finding-good": "ok",
    "finding-note": "note",
    "finding-bad": "NO",
    "doctor-yes": "This computer can take part.",
    "doctor-notes": "This computer can take part; the notes say what would make it better.",
    "doctor-no": "As it is now, this computer cannot take part: see what is marked NO.",
    "finishing": "working; leaves when this round is made",
    "round-of": "round {round} of {rounds}",
    "round-at": "round {round}",
    "in-round": "round {round}: {who}",
    "now-round": "this round",
    "tokens-so-far": "{tokens} tokens so far",
    "own-part": "yours {tokens}",
    "who-is-in": "{count} here",
    "speed-label": "work",
    "after-round": "shows when a round is made",
    "traffic-up": "up {speed}/s, {total} in all",
    "traffic-down": "down {speed}/s, {total} in all",
    "traffic-month": "{total} this month",
    "card": "card",
    "credit-label": "credit",
    "credit-line": "credit {tokens} and {pending} pending",
    "verified": "{tokens} tokens verified, {rounds} rounds",
    "pending": "{tokens} pending",
    "granted": "last granted {time} ago",
    "none-granted": "none granted yet",
    "credit-late": "! agreed work has waited {time} for its credit: ask the host",
    "next-limit": "next limit",
    "next-month-used": "this month's traffic, {near} used",
    "next-too-hot": "temperature, at {near} of your limit",
    "next-disk-low": "free disk, at {near} of your limit",
    "next-not-now": "your hours end, {time}",
    "share": "share of time",
    "this-peer": "this peer",
    "others": "others here",
    "keys": "Keys",
    "key-p": "pause",
    "key-r": "resume",
    "key-f": "finish",
    "key-l": "leave",
    "key-d": "details",
    "key-help": "help",
    "key-p-long": "pause: no work within two seconds, until you resume; kept over a restart",
    "key-r-long": "resume: take back pause and finish; your limits still hold",
    "key-f-long": "finish: leave once the round in hand is made",
    "key-l-long": "leave, after a second l: as Ctrl-C, it takes seconds and costs the others no round",
    "key-d-long": "details: learning rate, waiting, who is here and what they have done in this round",
    "key-help-long": "this help; any key closes it",
    "key-q-long": "close this view; the peer works on",
    "press-again": "l again leaves; any other key stays",
    "asked-p": "paused; r goes on",
    "asked-r": "goes on",
    "asked-f": "leaves when this round is made; r takes that back",
    "asked-l": "leaving …",
    "part-screen": "what draws the screen",
    "certificate-ended": "the membership certificate has ended; waiting for the coordinator, who renews it",
    "wants-more-peers": "waiting for {missing} more peers; the host asked for {least}",
    "wants-a-state": "the run is at round {round}; waiting for a peer that can hand it over",
    "wants-a-beginner": "waiting for the coordinator to say who begins",
    "wants-the-beginner": "waiting for {peer}, who begins the run",
    "waits-for-turn": "; this peer waits for its turn, and its work counts in full when it comes",
    "too-few": "only {found} of the last round's {count} peers can be reached: too few to go on",
    "coordinator-needed": (
        "waiting for the coordinator, which is needed here and does not answer ({reason}); trying again"
    ),
    "slept": "this computer slept for {time}; connecting to the others again",
    "network-changed": "this computer is elsewhere in the network now; connecting to the others again",
    "network-not-watched": (
        "this system does not tell its network addresses ({reason}): another network is noticed only after some time"
    ),
    "back": "back: this computer took part in round {round}",
    "left-behind": (
        "{rounds} rounds in a row were made without this computer: its line or its card is too slow for rounds this "
        "short"
    ),
    "left-behind-by-limit": (
        "{rounds} rounds in a row were made without this computer; your limit of {mbit} Mbit/s for its upload may be "
        "why: `potluck limits` changes it"
    ),
    "clock-ahead": "this computer's clock is {offset} ahead of the coordinator's; set it ({how}), trying again",
    "clock-behind": "this computer's clock is {offset} behind the coordinator's; set it ({how}), trying again",
    "clock-right": "this computer's clock is right again",
    "run-worse": (
        "the coordinator finds that the run is getting worse: held-out loss {now} at round {round}, and {before} "
        "at round {published}, the last published checkpoint; ask the host before you give more time to it"
    ),
    "run-better": "the coordinator has published a checkpoint again; the run is no longer getting worse",
}


def text(key: str, language: str, **values: object) -> str:
    """The message `key` in "en" or "zh"."""
    english = _MESSAGES[key]
    return words.catalogue().text(english, values) if language == "zh" else english.format(**values)


def told_time(at: datetime.datetime) -> str:
    """A time of today as 14:30, another as 2026-12-24 14:30; the same in all languages."""
    today = at.date() == datetime.datetime.now().astimezone().date()
    return f"{at:%H:%M}" if today else f"{at:%Y-%m-%d %H:%M}"


class Reason(str):
    """A message in English, as it stands in logs and `--json`; `words.told` says it in the owner's language.

    >>> Reason("wants-more-peers", missing=2, least=3)
    'waiting for 2 more peers; the host asked for 3'
    """

    def __new__(cls, key: str, **values: object) -> Reason:
        return super().__new__(cls, text(key, "en", **values))
