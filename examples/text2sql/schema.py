"""The database of an invented wholesale company: its tables, and rows that depend on a seed.

`orders` is a view. For each order it contains the number of months, quarters and years since the
booking, counted from the day in `clock`, so that "last quarter" is `quarters_ago = 1` on any day.
"""

from __future__ import annotations

import datetime
import os
import random
import sqlite3
from pathlib import Path
from typing import Any

TODAY = datetime.date(2025, 8, 15)  # the day from which the example's data counts "last quarter"
N_CUSTOMERS, N_ORDERS = 40, 420
DAYS_BACK = 900
UNSOLD = 3  # number of products without orders

TABLES = """\
create table customers (customer_id integer primary key, customer text, city text, segment text,
  joined text);
create table products (product_id integer primary key, product text, category text, price real,
  stock integer);
create table booked (order_id integer primary key, customer_id integer references customers,
  day text, amount real, status text);
create table items (order_id integer references booked, product_id integer references products,
  quantity integer);
create table clock (today text);
create view orders as
  with parts as (
    select booked.*, substr(day, 1, 4) + 0 as y, substr(day, 6, 2) + 0 as m,
      substr(today, 1, 4) + 0 as ty, substr(today, 6, 2) + 0 as tm
    from booked, clock)
  select order_id, customer_id, day, amount, status, 12 * (ty - y) + tm - m as months_ago,
    4 * (ty - y) + (tm - 1) / 3 - (m - 1) / 3 as quarters_ago, ty - y as years_ago
  from parts;
"""

# Values that questions can mention: as in the database, and in Chinese.
CITIES = {
    "Leeds": "利兹", "York": "约克", "Bristol": "布里斯托", "Oxford": "牛津",
    "Dover": "多佛", "Derby": "德比", "Perth": "珀斯", "Cardiff": "加的夫",
}  # fmt: skip
SEGMENTS = {"hotel": "酒店", "school": "学校", "restaurant": "餐厅", "shop": "商店"}
CATEGORIES = {
    "tea": "茶叶", "coffee": "咖啡", "spices": "香料", "soap": "肥皂",
    "paper": "纸张", "glass": "玻璃",
}  # fmt: skip
STATUSES = {"open": "未处理", "shipped": "已发货", "paid": "已付款", "cancelled": "已取消"}
PRODUCTS = {
    "tea": ("Green Tea", "Black Tea", "Mint Tea", "White Tea", "Rose Tea"),
    "coffee": ("Dark Roast", "House Blend", "Espresso", "Light Roast", "Decaf"),
    "spices": ("Pepper", "Cinnamon", "Saffron", "Ginger", "Paprika"),
    "soap": ("Lemon Soap", "Hand Soap", "Pine Soap", "Milk Soap", "Dish Soap"),
    "paper": ("Copy Paper", "Napkins", "Wrapping Paper", "Labels", "Notebooks"),
    "glass": ("Wine Glass", "Tumbler", "Water Jug", "Vase", "Tea Glass"),
}
PRODUCT_NAMES = tuple(name for names in PRODUCTS.values() for name in names)
_FIRST = ("Miller", "Baker", "Hunter", "Fisher", "Carter", "Turner", "Mason", "Cooper", "Parker",
          "Archer")  # fmt: skip
_SECOND = ("Brothers", "Trading", "House", "Partners")
CUSTOMER_NAMES = tuple(f"{a} {b}" for a in _FIRST for b in _SECOND)


def create(path: str | os.PathLike[str], seed: int) -> None:
    """Write a new database, with rows that depend only on `seed`."""
    target = Path(path)
    target.unlink(missing_ok=True)
    db = sqlite3.connect(target)
    try:
        db.executescript(TABLES)
        for table, rows in rows_of(seed).items():
            marks = ", ".join("?" * len(rows[0]))
            db.executemany(f"insert into {table} values ({marks})", rows)
        db.commit()
    finally:
        db.close()


def rows_of(seed: int) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows by table. An order's amount is the sum of its items. No two orders have the
    same day and no two products the same price, so that every "order by" has one answer.
    """
    rng = random.Random(f"rows {seed}")
    customers = [
        (i, name, rng.choice(list(CITIES)), rng.choice(list(SEGMENTS)), _day(rng, 2400))
        for i, name in enumerate(CUSTOMER_NAMES, 1)
    ]
    prices = rng.sample(range(8, 480), len(PRODUCT_NAMES))
    categories = [category for category, names in PRODUCTS.items() for _ in names]
    products = [
        (i, name, category, price / 4, rng.randint(0, 400))
        for i, (name, category, price) in enumerate(
            zip(PRODUCT_NAMES, categories, prices, strict=True), 1
        )
    ]
    sold = rng.sample(products, len(products) - UNSOLD)
    # The newest customers have not bought yet, and some buy much more often than others.
    buyers = sorted(customers, key=lambda c: c[4])[: N_CUSTOMERS - 4]
    weights = [rng.uniform(0.2, 3.0) for _ in buyers]
    booked, items = [], []
    ages = sorted(rng.sample(range(DAYS_BACK), N_ORDERS), reverse=True)
    for order_id, age in enumerate(ages, 1001):
        lines = rng.sample(sold, rng.randint(1, 4))
        scale = rng.choice((1, 1, 3, 8))
        total = 0.0
        for product in lines:
            quantity = rng.randint(2, 30) * scale
            items.append((order_id, product[0], quantity))
            total += quantity * product[3]
        buyer = rng.choices(buyers, weights)[0]
        day = (TODAY - datetime.timedelta(days=age)).isoformat()
        booked.append((order_id, buyer[0], day, total, rng.choice(list(STATUSES))))
    return {
        "customers": customers,
        "products": products,
        "booked": booked,
        "items": items,
        "clock": [(TODAY.isoformat(),)],
    }


def _day(rng: random.Random, most_days: int) -> str:
    return (TODAY - datetime.timedelta(days=rng.randrange(most_days))).isoformat()
