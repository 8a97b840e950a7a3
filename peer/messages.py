"""What a volunteer reads, in English and in 简体中文. One line each; keys are the steps that `peer.volunteer` names.

>>> text("verifying-genesis", "zh")
'正在验证创世检查点的签名……'
"""

from __future__ import annotations

import locale
import os

_MESSAGES = {
    "asking-coordinator": ("asking the coordinator what this run is …", "正在向协调者查询本次训练的信息……"),
    "coordinator-away": (
        "the coordinator is away; going on with what is on this disk",
        "暂时联系不上协调者；先用本机已有的文件继续",
    ),
    "fetching": ("fetching the model and the data …", "正在下载模型和数据……"),
    "verifying-genesis": ("verifying the signature of the genesis checkpoint …", "正在验证创世检查点的签名……"),
    "loading-model": ("loading the model …", "正在载入模型……"),
    "reading-data": ("reading the data …", "正在读取数据……"),
    "finding-members": ("looking for other members; training begins", "正在寻找其他成员；训练开始"),
    "reducing": (
        "reducing for the others; nothing is trained on this computer",
        "正在为其他成员做平均；本机不进行训练",
    ),
    "handing-in": ("the last round is done; handing in the last claims …", "最后一轮已完成；正在提交最后的声明……"),
    "claims-wait": (
        "some claims could not be handed in yet; they are kept, start again later to send them",
        "有些声明还没能提交；它们已保存在本机，稍后重新启动即可提交",
    ),
    "network-restarts": (
        "the network part (p2pd) has stopped; starting it again, training goes on from the last round",
        "网络组件（p2pd）已停止；正在重新启动，从上一轮继续训练",
    ),
    "swarm-restarts": (
        "the part of this program that makes rounds has stopped by an error; starting it again from the last round",
        "负责训练轮次的部分因错误停止；正在从上一轮重新启动",
    ),
    "part-failed": (
        "a part of this program has failed, {part}: {reason}. Please report this to the project",
        "本程序的一部分出错了（{part}）：{reason}。请向本项目报告",
    ),
    "part-clock": ("what makes the rounds", "推进训练轮次的部分"),
    "part-gossip": ("what tells the others how far this peer is", "向其他成员通报进度的部分"),
    "part-search": ("the search for other members", "查找其他成员的部分"),
    "part-swarm": ("the network thread", "网络线程"),
    "part-p2pd-watch": ("what watches p2pd", "监视 p2pd 的部分"),
    "part-task": ("an exchange with other members", "与其他成员的一次交换"),
    "part-coordinator-link": ("the link to the coordinator", "与协调者的连接"),
    "part-signals": ("what hears Ctrl-C", "接收 Ctrl-C 的部分"),
    "part-save-optimizer": ("the saving of the optimizer", "保存优化器的部分"),
    "leaving": (
        "leaving; the others are told … (Ctrl-C again leaves at once)",
        "正在退出并通知其他成员……（再按一次 Ctrl-C 立即退出）",
    ),
    "last-copy": (
        "only this peer has the newest state (round {round}): waiting until another member has it; "
        "Ctrl-C again leaves at once, and then the others wait until you come back",
        "只有本机拥有最新状态（第 {round} 轮）：正在等待另一名成员取得它；"
        "再按一次 Ctrl-C 会立即退出，其他成员将只能等您回来",
    ),
    "last-copy-offered": (
        "nobody else is here: giving the newest state (round {round}) to the coordinator; "
        "Ctrl-C again leaves at once, and then it is on this disk only",
        "没有其他成员在线：正在把最新状态（第 {round} 轮）交给协调者；再按一次 Ctrl-C 会立即退出，该状态将只保存在本机",
    ),
    "not-handed-on": (
        "no other member has got the newest state (round {round}): the others wait until you come back, by the same command",
        "其他成员都没有取得最新状态（第 {round} 轮）：他们将一直等待，直到您用同一命令回来",
    ),
    "alone-kept": (
        "nobody else is here: the run waits until you come back, by the same command; "
        "the coordinator has its newest state (round {round}), too",
        "没有其他成员在线：训练将等待您用同一命令回来；协调者也保存了最新状态（第 {round} 轮）",
    ),
    "alone": (
        "nobody else is here: the run waits until you come back, by the same command; "
        "its newest state (round {round}) is on this disk only",
        "没有其他成员在线：训练将等待您用同一命令回来；最新状态（第 {round} 轮）只保存在本机",
    ),
    "run-over": ("this run is over: all its {rounds} rounds are made", "本次训练已结束：全部 {rounds} 轮均已完成"),
    "run-over-credit": (
        "your credit: {tokens} tokens in {rounds} rounds; the receipts that prove it are in {folder}",
        "您的贡献：{rounds} 轮，共 {tokens} 个词元；证明它的凭据保存在 {folder}",
    ),
    "run-over-fetch": (
        "what came of it: potluck fetch INVITE brings its newest checkpoint here, and verifies it",
        "训练成果：用 potluck fetch 邀请码 可下载其最新检查点并加以验证",
    ),
    "identity-twin": (
        "another computer takes part with this peer's identity, and is told to stop: was this home folder copied? "
        "For both to take part, give the other one an identity of its own there: potluck identity new",
        "另一台电脑正在使用本节点的身份，已通知它停止：数据文件夹是否被复制过？"
        "若要两台都参加，请在另一台上生成新的身份：potluck identity new",
    ),
    "done": ("done. Thank you for the wood!", "完成。感谢您添的柴！"),
    "left": ("left. Your identity and your receipts stay on this disk.", "已退出。您的身份密钥和凭据仍保存在本机。"),
    "terms": ("This run wants to use your computer:", "本次训练希望使用您的电脑："),
    "run": ("run", "训练"),
    "model": ("model", "模型"),
    "data": ("data", "数据"),
    "licence": ("licence", "许可证"),
    "method": ("method", "方法"),
    "memory": ("memory needed", "所需内存"),
    "download": ("to download", "需下载"),
    "parameters": ("{total} parameters, {trainable} of them trained", "共 {total} 个参数，其中训练 {trainable} 个"),
    "ask": ("Take part? [y/N] ", "参加吗？[y/N] "),
    "declined": ("not joined; nothing was downloaded", "未参加；没有下载任何内容"),
    "round": ("round", "轮次"),
    "members": ("members", "成员"),
    "own-tokens": ("your tokens this round", "本轮您的词元"),
    "speed": ("tokens/s", "词元/秒"),
    "loss": ("your loss", "您的损失"),
    "credit": ("your credit, tokens in the ledger", "您的贡献（账本中的词元）"),
    "credit-pending": ("and {tokens} agreed, not there yet", "另有 {tokens} 已获认可，尚未入账"),
    "waited": ("waiting per round", "每轮等待"),
    "round-line": (
        "round {round}: {members} members, {tokens} tokens",
        "第 {round} 轮：{members} 名成员，{tokens} 个词元",
    ),
    "left-out-of": ("; left out {peers}", "；未计入 {peers}"),
    "left-out": ("left out", "未计入"),
    "because": ("…{peer}: {why}", "…{peer}：{why}"),
    "and": (", ", "，"),
    "now": ("now", "现在"),
    "working": ("working", "训练中"),
    "between-rounds": ("waiting for the others' next round", "正在等待其他成员的下一轮"),
    "averaging": ("averaging with the others", "正在与其他成员平均"),
    "paused": (
        "paused, your work is kept, it goes on by itself: {reason}",
        "已暂停，您的工作已保留，条件恢复后会自动继续：{reason}",
    ),
    "certificate-ended": (
        "the membership certificate has ended; waiting for the coordinator, who renews it",
        "成员证书已到期；正在等待协调者续期",
    ),
    "wants-more-peers": (
        "waiting for {missing} more peers; the host asked for {least}",
        "还需等待 {missing} 个节点；主办方要求至少 {least} 个",
    ),
    "wants-a-state": (
        "the run is at round {round}; waiting for a peer that can hand it over",
        "训练已进行到第 {round} 轮；正在等待能移交最新状态的节点",
    ),
    "wants-a-beginner": ("waiting for the coordinator to say who begins", "正在等待协调者指定由谁开始"),
    "wants-the-beginner": (
        "waiting for {peer}, who begins the run",
        "正在等待 {peer}，由它开始本次训练",
    ),
    "too-few": (
        "only {found} of the last round's {count} peers can be reached: too few to go on",
        "上一轮的 {count} 个节点中只能联系到 {found} 个，数量不足，无法继续",
    ),
    "coordinator-needed": (
        "waiting for the coordinator, which is needed here and does not answer ({reason}); trying again",
        "正在等待协调者：此步骤需要它，但它没有应答（{reason}）；会自动重试",
    ),
    "clock-ahead": (
        "this computer's clock is {offset} ahead of the coordinator's; set it ({how}), trying again",
        "本机时钟比协调者的快 {offset}；请校准（{how}），会自动重试",
    ),
    "clock-behind": (
        "this computer's clock is {offset} behind the coordinator's; set it ({how}), trying again",
        "本机时钟比协调者的慢 {offset}；请校准（{how}），会自动重试",
    ),
    "clock-right": ("this computer's clock is right again", "本机时钟已恢复正常"),
    "run-worse": (
        "the coordinator finds that the run is getting worse: held-out loss {now} at round {round}, and {before} at round "
        "{published}, the last published checkpoint; ask the host before you give more time to it",
        "协调者发现训练结果在变差：第 {round} 轮的留出损失为 {now}，而最近发布的检查点（第 {published} 轮）为 {before}；"
        "继续贡献之前，请先询问主办方",
    ),
    "run-better": (
        "the coordinator has published a checkpoint again; the run is no longer getting worse",
        "协调者已重新发布检查点；训练结果不再变差",
    ),
}


def text(key: str, language: str, **values: object) -> str:
    """The message `key` in "en" or "zh"."""
    english, chinese = _MESSAGES[key]
    return (chinese if language == "zh" else english).format(**values)


class Reason(str):
    """A message in English, for logs and `--json`, that people can be told in their own language.

    >>> reason = Reason("wants-more-peers", missing=2, least=3)
    >>> reason
    'waiting for 2 more peers; the host asked for 3'
    >>> told(reason, "zh")
    '还需等待 2 个节点；主办方要求至少 3 个'
    """

    key: str
    values: dict[str, object]

    def __new__(cls, key: str, **values: object) -> Reason:
        made = super().__new__(cls, text(key, "en", **values))
        made.key, made.values = key, values
        return made


def told(reason: str, language: str) -> str:
    """A reason in "en" or "zh"; whatever is no `Reason` stays as it is."""
    return text(reason.key, language, **reason.values) if isinstance(reason, Reason) else reason


def language() -> str:
    """ "zh" where the owner's locale is Chinese, else "en"."""
    named = os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or os.environ.get("LANG") or locale.getlocale()[0]
    return "zh" if (named or "").lower().startswith("zh") else "en"
