"""Kinds of questions: SQL, values for the gaps, and phrasings.

The words are in `phrasings/en.txt` and `phrasings/zh.txt`: every kind has different phrasings for
training, validation and test. In a phrasing, `[a|b]` is a choice and `{slot}` a gap.
"""

from __future__ import annotations

import datetime
import itertools
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from examples.text2sql import schema

SPLITS = ("train", "validation", "test")
LANGUAGES = ("en", "zh")
PHRASINGS = Path(__file__).resolve().parent / "phrasings"

_OF_CUSTOMERS = "from orders join customers using (customer_id)"
_SOLD = "from items join products using (product_id)"

# kind -> SQL; keywords are in lower case, because SmolLM2 needs fewer tokens for them
KINDS = {
    # orders: filters
    "orders_over": "select order_id from orders where amount > {amount}",
    "orders_over_in": "select order_id from orders where {period} and amount > {amount}",
    "orders_between": "select order_id from orders where amount between {low} and {high}",
    "orders_status": "select order_id from orders where status = '{status}'",
    "orders_status_in": "select order_id from orders where {period} and status = '{status}'",
    "order_status": "select status from orders where order_id = {order}",
    # orders: dates
    "orders_on": "select order_id from orders where day = '{day}'",
    "orders_since": "select order_id from orders where day >= '{day}'",
    "orders_month": "select order_id from orders where day like '{month}%'",
    "orders_days": "select order_id from orders where day between '{start}' and '{end}'",
    "open_older": "select order_id from orders where status = 'open' and months_ago > {few}",
    # orders: joins
    "orders_of_customer": f"select order_id {_OF_CUSTOMERS} where customer = '{{customer}}'",
    "orders_from_city": f"select order_id {_OF_CUSTOMERS} where city = '{{city}}'",
    # orders: first n
    "latest_orders": "select order_id from orders order by day desc limit {n}",
    "largest_orders_in": (
        "select order_id from orders where {period} order by amount desc limit {n}"
    ),
    # orders: aggregates
    "count_orders": "select count(*) from orders where {period}",
    "count_status": "select count(*) from orders where status = '{status}'",
    "sales_total": "select sum(amount) from orders where {period}",
    "average_order": "select avg(amount) from orders where {period}",
    "sales_of_customer": (
        f"select sum(amount) {_OF_CUSTOMERS} where {{period}} and customer = '{{customer}}'"
    ),
    # groups
    "count_by_status": "select status, count(*) from orders group by status",
    "sales_by_city": f"select city, sum(amount) {_OF_CUSTOMERS} group by city",
    "sales_by_segment_in": (
        f"select segment, sum(amount) {_OF_CUSTOMERS} where {{period}} group by segment"
    ),
    "sales_by_month": (
        "select substr(day, 1, 7), sum(amount) from orders where day like '{year}%' group by 1"
    ),
    "sales_by_category": f"select category, sum(quantity * price) {_SOLD} group by category",
    "cities_over": f"select city {_OF_CUSTOMERS} group by city having sum(amount) > {{big}}",
    "frequent_customers": (
        f"select customer {_OF_CUSTOMERS} group by customer_id having count(*) > {{count}}"
    ),
    "top_customers": (
        f"select customer {_OF_CUSTOMERS} group by customer_id "
        "order by sum(amount) desc limit {n}"
    ),
    "top_products": (
        f"select product {_SOLD} group by product_id order by sum(quantity) desc limit {{n}}"
    ),
    # products
    "product_price": "select price from products where product = '{product}'",
    "product_stock": "select stock from products where product = '{product}'",
    "products_in_category": "select product from products where category = '{category}'",
    "low_stock": "select product from products where stock < {stock}",
    "dearest_products": "select product from products order by price desc limit {n}",
    "cheapest_in_category": (
        "select product from products where category = '{category}' order by price limit {few}"
    ),
    "products_per_category": "select category, count(*) from products group by category",
    "average_price": "select avg(price) from products where category = '{category}'",
    "units_sold": (
        f"select sum(quantity) {_SOLD} join orders using (order_id) "
        "where {period} and product = '{product}'"
    ),
    "unsold_products": (
        "select product from products where product_id not in "
        "(select product_id from items join orders using (order_id) where {period})"
    ),
    # customers
    "customers_in_city": "select customer from customers where city = '{city}'",
    "customers_city_segment": (
        "select customer from customers where city = '{city}' and segment = '{segment}'"
    ),
    "customers_joined": "select customer from customers where joined >= '{day}'",
    "customers_per_city": "select city, count(*) from customers group by city",
    "idle_customers": (
        "select customer from customers where customer_id not in "
        "(select customer_id from orders where {period})"
    ),
    "buyers_of_category": (
        f"select distinct customer {_OF_CUSTOMERS} join items using (order_id) "
        "join products using (product_id) where category = '{category}'"
    ),
}


class Value(NamedTuple):
    """The value of a gap: in SQL, in English and in Chinese."""

    sql: str
    en: str
    zh: str


_PERIODS = (
    Value("months_ago = 0", "this month", "本月"),
    Value("months_ago = 1", "last month", "上个月"),
    Value("quarters_ago = 0", "this quarter", "本季度"),
    Value("quarters_ago = 1", "last quarter", "上个季度"),
    Value("years_ago = 0", "this year", "今年"),
    Value("years_ago = 1", "last year", "去年"),
)
_MONTHS = (
    "January February March April May June July August September October November December"
).split()
_WORDS = "zero one two three four five six seven eight nine ten".split()
_DIGITS = "零一二三四五六七八九"


def chinese_number(n: int) -> str:
    """Return 1 to 99999999 in Chinese numerals: 10500 is 一万零五百."""
    if n >= 10000:
        high, rest = divmod(n, 10000)
        text = ("两" if high == 2 else chinese_number(high)) + "万"
        if not rest:
            return text
        return text + ("零" if rest < 1000 else "") + _below_10000(rest)
    text = _below_10000(n)
    return text[1:] if text.startswith("一十") else text


def _below_10000(n: int) -> str:
    text, gap = "", False
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = n // unit % 10
        if digit == 0:
            gap = bool(text)
            continue
        text += "零" if gap else ""
        text += "两" if digit == 2 and unit > 100 else _DIGITS[digit]
        text, gap = text + name, False
    return text


def _named(words: dict[str, str]) -> Callable[[random.Random], Value]:
    def draw(rng: random.Random) -> Value:
        value = rng.choice(list(words))
        return Value(value, value, words[value])

    return draw


def _name(names: tuple[str, ...]) -> Callable[[random.Random], Value]:
    return _named({name: name for name in names})


def _money(low: int, high: int, step: int) -> Callable[[random.Random], Value]:
    def draw(rng: random.Random) -> Value:
        n = rng.randrange(low, high + 1, step)
        return Value(str(n), rng.choice((f"{n:,}", str(n))), chinese_number(n) + "元")

    return draw


def _number(low: int, high: int) -> Callable[[random.Random], Value]:
    def draw(rng: random.Random) -> Value:
        n = rng.randint(low, high)
        word = _WORDS[n] if n <= 10 else str(n)
        zh = "两" if n == 2 else chinese_number(n)
        return Value(str(n), rng.choice((word, str(n))), rng.choice((zh, str(n))))

    return draw


def _day(first: int, last: int) -> Callable[[random.Random], Value]:
    """Return a function that chooses a day between `first` and `last` days before today."""

    def draw(rng: random.Random) -> Value:
        d = schema.TODAY - datetime.timedelta(days=rng.randint(last, first))
        month = _MONTHS[d.month - 1]
        en = rng.choice((f"{d.day} {month} {d.year}", f"{month} {d.day}, {d.year}", str(d)))
        return Value(str(d), en, f"{d.year}年{d.month}月{d.day}日")

    return draw


def _month(rng: random.Random) -> Value:
    d = schema.TODAY - datetime.timedelta(days=rng.randrange(840))
    return Value(
        f"{d.year}-{d.month:02}", f"{_MONTHS[d.month - 1]} {d.year}",
        f"{d.year}年{d.month}月",
    )  # fmt: skip


def _year(rng: random.Random) -> Value:
    year = str(rng.choice((2023, 2024, 2025)))
    return Value(year, year, f"{year}年")


def _order(rng: random.Random) -> Value:
    n = str(1000 + rng.randint(1, schema.N_ORDERS))
    return Value(n, n, n)


SLOTS: dict[str, Callable[[random.Random], Value]] = {
    "amount": _money(500, 20000, 250),
    "low": _money(500, 4000, 250),
    "high": _money(5000, 15000, 500),
    "big": _money(100000, 600000, 10000),
    "period": lambda rng: rng.choice(_PERIODS),
    "status": _named(schema.STATUSES),
    "city": _named(schema.CITIES),
    "segment": _named(schema.SEGMENTS),
    "category": _named(schema.CATEGORIES),
    "customer": _name(schema.CUSTOMER_NAMES),
    "product": _name(schema.PRODUCT_NAMES),
    "day": _day(500, 1),
    "start": _day(800, 500),
    "end": _day(450, 1),
    "month": _month,
    "year": _year,
    "order": _order,
    "n": _number(2, 10),
    "few": _number(2, 4),
    "count": _number(5, 20),
    "stock": _number(20, 90),
}

Phrasings = dict[str, dict[str, list[str]]]  # kind -> split -> phrasings


def load_phrasings(language: str) -> Phrasings:
    """Return the phrasings of a language. Raises `ValueError`, with the line, for a malformed file,
    and for a kind or a split without a phrasing.
    """
    path = PHRASINGS / f"{language}.txt"
    found: Phrasings = {kind: {split: [] for split in SPLITS} for kind in KINDS}
    kind = split = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("== "):
            kind, split = line[3:], ""
            if kind not in KINDS:
                raise ValueError(f"{path.name}, line {number}: no such kind: {kind}")
        elif line.rstrip(":") in SPLITS:
            split = line.rstrip(":")
        elif not kind or not split:
            raise ValueError(f"{path.name}, line {number}: a phrasing before its kind or split")
        elif set(gaps(line)) != set(gaps(KINDS[kind])):
            raise ValueError(f"{path.name}, line {number}: gaps differ from those of {kind}'s SQL")
        else:
            found[kind][split].append(line)
    for kind, splits in found.items():
        for split, phrasings in splits.items():
            if not phrasings:
                raise ValueError(f"{path.name}: no phrasing of {kind} for {split}")
    return found


def gaps(text: str) -> list[str]:
    """Return the names of the `{slot}` gaps of a phrasing or an SQL text."""
    return re.findall(r"\{(\w+)\}", text)


_CHOICE = re.compile(r"\[([^\[\]]*)\]")


def choose(phrasing: str, rng: random.Random) -> str:
    """Return a phrasing with one option chosen for each `[a|b]`."""
    return _CHOICE.sub(lambda m: rng.choice(m[1].split("|")), phrasing)


def variants(phrasing: str) -> Iterator[str]:
    """Yield all results that `choose` can return for a phrasing."""
    parts = _CHOICE.split(phrasing)
    choices = [p.split("|") if i % 2 else [p] for i, p in enumerate(parts)]
    return ("".join(words) for words in itertools.product(*choices))


def fill(text: str, values: dict[str, Value], form: str) -> str:
    """Return `text` with its gaps filled; `form` is "sql", "en" or "zh"."""
    return text.format(**{name: getattr(value, form) for name, value in values.items()})
