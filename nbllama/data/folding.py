"""Recognise different spellings of names, including full-width characters, and Chinese names.

`canonical` converts the name of a column or key to the English name with the same meaning, and
`speaker` does this for the name of a speaker. Names that are not listed are only folded.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_LONGEST = 64  # no known name is longer
# Characters that have no width: byte-order marks, joiners and marks of direction.
_UNSEEN = "\u200b-\u200f\u2060\ufeff"
_BLANK = re.compile(rf"^[\s{_UNSEEN}]+|[\s{_UNSEEN}]+$")
_AROUND = re.compile(rf"^[\s{_UNSEEN}]+|[\s:{_UNSEEN}]+$")

# English name: Chinese names, first in simplified, then in traditional characters if they differ.
_COLUMNS = {
    "question": "问题 问 提问 问句 询问 题目 用户问题  問題 問 提問 問句 詢問 題目 用戶問題",
    "query": "查询  查詢",
    "instruction": "指令 指示",
    "prompt": "提示 提示词  提示詞",
    "input": "输入  輸入",
    "user": "用户 使用者 客户 顾客  用戶 客戶 顧客",
    "human": "人类  人類",
    "answer": "回答 答案 答 答复 解答 标准答案 参考答案  答覆 答復 標準答案 參考答案",
    "reply": "回复 机器人回复 助手回复 客服回复  回覆 回復 機器人回覆",
    "response": "响应 回应 应答  響應 回應 應答",
    "output": "输出  輸出",
    "completion": "补全 续写  補全 續寫",
    "assistant": "助手 助理 客服",
    "bot": "机器人  機器人",
    "context": "上下文 背景",
    "system": "系统 系统提示 系统提示词 系统消息  系統 系統提示 系統提示詞 系統訊息 系統消息",
    "history": "历史 历史对话  歷史 歷史對話",
    "role": "角色",
    "content": "内容  內容",
    "speaker": "说话人 说话者 发言人 发送者  說話人 說話者 發言人 發送者",
    "from": "来自  來自",
    "value": "值",
    "message": "消息  訊息",
    "text": "文本",
    "id": "编号 序号  編號 序號",
}
_SPEAKERS = {
    "user": "用户 使用者 人类 提问者 客户 顾客 问  用戶 人類 提問者 客戶 顧客 問",
    "assistant": "助手 助理 模型 机器人 人工智能 回答者 客服 答  機器人 人工智慧",
    "system": "系统 系统提示 系统提示词  系統 系統提示 系統提示詞",
    "tool": "工具",
    "developer": "开发者  開發者",
}
CHINESE_COLUMNS = {word: name for name, words in _COLUMNS.items() for word in words.split()}
CHINESE_SPEAKERS = {word: name for name, words in _SPEAKERS.items() for word in words.split()}


def fold(name: str) -> str:
    """Convert a name to lower case, full-width characters to ASCII, and spaces and hyphens to "_".

    White space and zero-width characters around the name are removed, as is a final colon.
    """
    return _fold(name) if len(name) <= _LONGEST else name


@lru_cache(4096)
def _fold(name: str) -> str:
    text = _AROUND.sub("", unicodedata.normalize("NFKC", name)).lower()
    return text.replace(" ", "_").replace("-", "_")


def canonical(name: str) -> str:
    """Return the English name for a column or key, or the folded name if it is not listed."""
    folded = fold(name)
    return CHINESE_COLUMNS.get(folded, folded)


def speaker(name: str) -> str:
    """Return the English name for a speaker, or the folded name if it is not listed."""
    folded = fold(name)
    return CHINESE_SPEAKERS.get(folded, folded)


def trimmed(name: str) -> str:
    """Return a name without the white space and zero-width characters around it."""
    return _BLANK.sub("", name)
