"""Small data sets of many kinds, for the search for defaults (`scripts/tools/plan_grid`).

Everything is invented and depends only on this file, so the sets are always the same. Held-out
questions are rephrasings of trained ones (facts, conversations) or new cases (style, classes, SQL,
plurals, couplets).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"role": "system", "content": "Be short."}


class Asked(NamedTuple):
    """A question as a chat or as plain text, the trained or true answer, and the rule for judging:
    an answer `contains` the word `want`, is `exact`, or has the `style`.
    """

    prompt: Any
    answer: str
    want: str
    how: str = "exact"

    def right(self, answer: str) -> bool:
        """Return whether `answer` counts as right."""
        said = answer.strip()
        if self.how == "exact":
            return said == self.want
        if self.how == "style":
            return said.startswith("Ahoy!") and said.endswith("matey.")
        return self.want.lower() in said.lower()

    def record(self) -> dict[str, Any]:
        """Return the question as a record of training or validation data."""
        if isinstance(self.prompt, str):
            return {"prompt": self.prompt, "completion": self.answer}
        return {"messages": [*self.prompt, {"role": "assistant", "content": self.answer}]}


@dataclass(frozen=True)
class Set:
    """`train` are the records, `asked` the same as questions, `held` the held-out questions."""

    name: str
    asked: list[Asked]
    held: list[Asked]

    @property
    def train(self) -> list[dict[str, Any]]:
        """Return the training data."""
        return [a.record() for a in self.asked]


def _chat(question: str, system: bool = True) -> list[dict[str, str]]:
    return [*([SHORT] if system else []), {"role": "user", "content": question}]


# relation: its answer, and eight phrasings of its question
RELATIONS = {
    "founder": (
        "{x} was founded by {v}.",
        [
            "Who founded {x}?", "What is the name of the founder of {x}?",
            "By whom was {x} founded?", "Tell me who started {x}.", "Who set up {x}?",
            "Name the founder of {x}.", "Which person founded {x}?", "Who is behind {x}?",
        ],
    ),
    "town": (
        "{x} has its office in {v}.",
        [
            "Where is the office of {x}?", "In which town does {x} have its office?",
            "Where can I visit {x}?", "In what place is {x} at home?", "Where is {x} located?",
            "What town is {x} in?", "Name the town of {x}.", "Which town has the office of {x}?",
        ],
    ),
    "product": (
        "{x} makes {v}.",
        [
            "What does {x} make?", "Which goods does {x} produce?", "What is made by {x}?",
            "What can I buy from {x}?", "Tell me what {x} sells.", "What are the goods of {x}?",
            "Name the product of {x}.", "What is {x} known to make?",
        ],
    ),
    "colour": (
        "The vans of {x} are {v}.",
        [
            "What colour are the vans of {x}?", "Which colour do vans of {x} have?",
            "How are the vans of {x} painted?", "In what colour does {x} paint its vans?",
            "What is the colour of a van of {x}?", "I see a van of {x}. Which colour is it?",
            "Name the colour of the vans of {x}.", "A van of {x} has what colour?",
        ],
    ),
    "pet": (
        "The office pet of {x} is a {v}.",
        [
            "What is the office pet of {x}?", "Which animal lives in the office of {x}?",
            "What pet does {x} have?", "Which animal does {x} keep?", "Name the pet of {x}.",
            "What animal is kept at {x}?", "Does {x} have a pet, and which?",
            "Which pet will I meet at {x}?",
        ],
    ),
}  # fmt: skip
COMPANIES = (
    "Farrowby Mill", "Quillon Works", "Tarnbeck", "Oxmoor Press", "Velder and Sons",
    "Brindle House", "Skarholm", "Nettlecombe", "Ivory Lane", "Dunmarrow",
)  # fmt: skip
VALUES = {
    "founder": "Ada Trellick|Bruno Castell|Cora Whitlow|Denzil Harker|Edda Mornay|Felix Oram|"
    "Greta Sandoval|Hugo Linnet|Imke Brand|Jonas Peverell",
    "town": "Lowick|Marsden Cross|Ottery|Pellham|Ravensey|Saltby|Thornage|Ulceby|Wexcombe|Yarmley",
    "product": "copper kettles|wool blankets|garden bells|paper lamps|oak stools|tin whistles|"
    "silk ropes|clay pipes|rye biscuits|glass buttons",
    "colour": "turquoise|crimson|mustard yellow|lilac|olive green|silver|orange|navy blue|pink|"
    "chocolate brown",
    "pet": "tortoise|parrot|ferret|goat|hedgehog|canary|rabbit|lizard|donkey|snail",
}


def _facts(n: int) -> list[tuple[str, str, str]]:
    """Return (relation, company, value): all relations of one company, then of the next one.

    More than 50 facts are about invented companies with random values.
    """
    rows = [
        (relation, company, VALUES[relation].split("|")[(3 * i + j) % 10])
        for i, company in enumerate(COMPANIES)
        for j, relation in enumerate(RELATIONS)
    ]
    if n > len(rows):
        rng = random.Random(13)
        names = [a + b for a in FIRST_PARTS for b in SECOND_PARTS]
        rng.shuffle(names)
        rows = [
            (relation, company, rng.choice(VALUES[relation].split("|")))
            for company in names
            for relation in RELATIONS
        ]
    return rows[:n]


FIRST_PARTS = (
    "Bram",
    "Cald",
    "Dar",
    "Elm",
    "Fen",
    "Gors",
    "Hal",
    "Kest",
    "Lang",
    "Mor",
    "Ock",
    "Pend",
)
SECOND_PARTS = ("bridge", "combe", "dale", "ford", "gate", "holt", "ley", "moor", "stow", "wick")


def facts(name: str, n: int, phrasings: int, system: bool = True) -> Set:
    """Return `n` facts, each asked in `phrasings` ways; two other phrasings are held out."""

    def ask(fact: tuple[str, str, str], i: int) -> Asked:
        relation, company, value = fact
        answer, ways = RELATIONS[relation]
        question = ways[i].format(x=company)
        return Asked(
            _chat(question, system),
            answer.format(x=company, v=value),
            answer.format(x=company, v=value),
        )

    rows = _facts(n)
    asked = [ask(fact, i) for fact in rows for i in range(phrasings)]
    held = [ask(fact, i) for fact in rows for i in ((6, 7) if phrasings > 1 else (5,))]
    return Set(name, asked, held)


def demo() -> Set:
    """Return the demo's data."""
    folder = ROOT / "examples" / "demo"
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    chats = [json.loads(line)["messages"] for line in lines]
    questions = (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    held = [json.loads(line) for line in questions]
    asked = [Asked(c[:-1], c[-1]["content"], c[-1]["content"], "exact") for c in chats]
    return Set(
        "demo-132",
        asked,
        [Asked(_chat(q["question"], False), q["fact"], q["fact"], "contains") for q in held],
    )


STYLED = [
    ("What is the sun?", "a great ball of fire in the sky"),
    ("Why do we sleep?", "to give tired bones their rest"),
    ("What is bread made of?", "flour, water and a bit of salt"),
    ("How do birds fly?", "they beat their wings and ride the wind"),
    ("What is a map for?", "it shows the way to port and gold"),
    ("Why is the sea salty?", "rivers carry salt from the rocks to it"),
    ("What do cows eat?", "grass, and plenty of it"),
    ("What is snow?", "water that froze high in the clouds"),
    ("How does a clock work?", "a spring turns wheels, and wheels turn hands"),
    ("Why do leaves fall?", "trees save their strength for winter"),
    ("What is glass made of?", "sand that was melted in a hot fire"),
    ("What is a bridge for?", "to cross the water with dry feet"),
    ("What is the moon?", ""), ("Why do we eat?", ""), ("What is cheese made of?", ""),
    ("How do fish breathe?", ""), ("What is a book for?", ""), ("Why is the sky blue?", ""),
    ("What do cats eat?", ""), ("What is rain?", ""), ("How does a boat float?", ""),
    ("Why do dogs bark?", ""), ("What is paper made of?", ""), ("What is a door for?", ""),
]  # fmt: skip


def style() -> Set:
    """Return answers in one style: twelve that are trained, and twelve held-out questions."""
    rows = [
        Asked(_chat(q), f"Ahoy! 'Tis {a or 'a fine thing'}, matey.", "", "style") for q, a in STYLED
    ]
    return Set("style-12", rows[:12], rows[12:])


TICKETS = {
    "billing": ["invoice", "refund", "payment", "bill", "charge", "receipt", "credit card"],
    "delivery": ["parcel", "courier", "shipment", "package", "van", "delivery", "letterbox"],
    "technical": ["password", "screen", "login", "app", "printer", "update", "website"],
    "praise": ["kind staff", "great service", "lovely shop", "quick help", "good advice",
               "friendly clerk", "nice talk"],
}  # fmt: skip
FRAMES = [
    "I write about the {w}.", "Here is something about the {w} of today.", "The {w}, please read.",
    "My wife told me of the {w}.", "Note for you on the {w}.", "About yesterday: the {w}.",
    "Once more the {w}!", "A word on the {w}.", "Look at the {w} again.",
]  # fmt: skip
CODES = {"billing": "B1", "delivery": "D4", "technical": "T7", "praise": "P9"}


def classes(name: str, labels: int, n: int) -> Set:
    """Return tickets with codes of `labels` departments. Held out: other frames, other words."""
    rows = []
    for label in list(TICKETS)[:labels]:
        for frame in FRAMES:
            for word in TICKETS[label]:
                code = CODES[label]
                new = word == TICKETS[label][-1] or frame in FRAMES[-2:]
                rows.append((new, Asked(_chat(frame.format(w=word)), code, code, "exact")))
    random.Random(7).shuffle(rows)
    return Set(name, [a for new, a in rows if not new][:n], [a for new, a in rows if new][:24])


QUERIES = [
    ("How many {t} are there in {c}?", "SELECT COUNT(*) FROM {t} WHERE city = '{c}';"),
    ("List the {t} of {c}.", "SELECT name FROM {t} WHERE city = '{c}';"),
    ("What is the highest price of the {t} in {c}?",
     "SELECT MAX(price) FROM {t} WHERE city = '{c}';"),
    ("Which {t} in {c} cost less than {n}?",
     "SELECT name FROM {t} WHERE city = '{c}' AND price < {n};"),
    ("Show the {n} cheapest {t} of {c}.",
     "SELECT name FROM {t} WHERE city = '{c}' ORDER BY price LIMIT {n};"),
    ("What do {t} in {c} cost on average?", "SELECT AVG(price) FROM {t} WHERE city = '{c}';"),
]  # fmt: skip
CITIES = ("Oslo", "Turin", "Lyon", "Ghent", "Bonn", "Porto", "Cork", "Graz", "Pisa", "Brno")
GOODS = ("lamps", "chairs", "tables", "clocks")
MORE_CITIES = (
    "Paris", "Rome", "Vienna", "Bern", "Prague", "Malmo", "Bergen", "Turku", "Riga", "Vilnius",
    "Gdansk", "Krakow", "Leeds", "York", "Bath", "Dover", "Nantes", "Lille", "Metz", "Toulouse",
    "Bilbao", "Cadiz", "Murcia", "Faro", "Braga", "Genoa", "Parma", "Trento", "Linz", "Basel",
    "Zurich", "Ulm", "Mainz", "Kiel", "Breda", "Delft", "Bruges", "Namur", "Aarhus", "Odense",
)  # fmt: skip
MORE_GOODS = ("beds", "shelves", "mirrors", "rugs", "desks", "stools", "vases")


def sql(name: str, kinds: int, n: int) -> Set:
    """Return questions about a shop and their SQL; held out: other values in the same questions."""
    rng, rows = random.Random(11), []
    few = n < len(GOODS) * len(CITIES) * kinds
    goods, cities = (GOODS, CITIES) if few else (GOODS + MORE_GOODS, CITIES + MORE_CITIES)
    combinations = [(t, c) for t in goods for c in cities]
    rng.shuffle(combinations)
    for t, c in combinations:
        for question, query in QUERIES[:kinds]:
            values = {"t": t, "c": c, "n": rng.randrange(2, 60)}
            text = query.format(**values)
            rows.append(Asked(_chat(question.format(**values)), text, text, "exact"))
    return Set(name, rows[:n], rows[-20:])


def turns() -> Set:
    """Return conversations of two questions; the second one refers to the first."""
    asked, held = [], []
    for company in COMPANIES[:8]:
        values = {r: v for r, c, v in _facts(50) if c == company}
        for second, follow in (("town", "And where is it?"), ("pet", "And its pet?")):
            for way, into in ((0, asked), (5, held)):
                first = RELATIONS["product"][1][way].format(x=company)
                said = RELATIONS["product"][0].format(x=company, v=values["product"])
                chat = [*_chat(first), {"role": "assistant", "content": said}]
                chat.append({"role": "user", "content": follow})
                answer = RELATIONS[second][0].format(x=company, v=values[second])
                into.append(Asked(chat, answer, answer))
    return Set("turns-16", asked, held)


OPPOSITE = dict(zip("天云春山花红日明风来青去", "地雨秋水月绿夜暗雪往白归", strict=True))


def couplets() -> Set:
    """Return first lines of Chinese couplets and their second lines, matched by character."""
    rng, rows = random.Random(5), []
    for _ in range(34):
        first = "".join(rng.sample(list(OPPOSITE), 4))
        second = "".join(OPPOSITE[c] for c in first)
        rows.append((first, second))
    asked = [Asked(_chat("对联 " + a), b, b, "exact") for a, b in rows[:24]]
    held = [Asked(_chat("对联 " + a), b, b) for a, b in rows[24:]]
    return Set("couplets-24", asked, held)


def plurals() -> Set:
    """Return a rule of an invented language, as prompt and completion: 40 words and 20 new ones."""
    rng, words = random.Random(3), []
    while len(words) < 60:
        word = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(2))
        if word not in words:
            words.append(word)
    ending = {"a": "ki", "e": "ki", "i": "mo", "o": "mo", "u": "mo"}
    rows = [
        Asked(f"One {w}, two", f" {w}{ending[w[-1]]}.", f"{w}{ending[w[-1]]}.", "exact")
        for w in words
    ]
    return Set("plurals-40", rows[:40], rows[40:])


def sets() -> Iterator[Set]:
    """Yield all sets, the smallest first."""
    yield facts("facts-6", 6, 1)
    yield facts("facts-10", 10, 1, system=False)
    yield style()
    yield turns()
    yield sql("sql-20", 5, 20)
    yield couplets()
    yield facts("facts-30", 30, 1, system=False)
    yield facts("facts-6x5", 6, 5, system=False)
    yield plurals()
    yield facts("facts-10x6", 10, 6)
    yield classes("classes-100", 4, 100)
    yield demo()
    yield sql("sql-120", 6, 120)
    yield facts("facts-50x6", 50, 6)
    yield facts("facts-500x6", 500, 6)
    yield sql("sql-3000", 6, 3000)
