"""Synthetic records with known personal data in them, and near misses: what `privacy` is measured on.

Every name, number and address is drawn from a seed. A record is a few sentences of a note, letter, form or mail; some
carry personal data, each with its kind and place, and some carry decoys that look like it: doses, references, numbers
that fail their check digit, dates that are nobody's birthday, addresses without a secret. The formats were written down
before the patterns that find them, but by the same hand, so they say whether the patterns do what they are meant to.
Those marked `hard` are known to be beyond them: a number without any label, an address spelled out in words, a date
that only its place in a line makes a birthday. `foreign` takes the values from the library Faker instead.
"""

import random
import string
from collections.abc import Callable
from dataclasses import dataclass


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST = words("""
    Ada Amina Björn Carla Chen Dmitri Elif Fatima Grace Hugo Ines Jamal Jane Kofi Lena Maeve Nia Omar Priya Rosa
""")
LAST = words("""
    Abara Brown Castillo Doe Eriksen Fischer Gupta Haddad Ito Jones Kowalski Lee Müller Novak Okafor Patel Roe
""")
HOSTS = words("""
    example.org example.com mail.example.net clinic.example.co.uk uni-beispiel.example
""")
MONTHS = words("""
    January February March April May June July August September October November December
""")

Draw = random.Random
Make = Callable[[Draw], str]


@dataclass(frozen=True)
class Gold:
    """A piece of personal data in a record's text."""

    kind: str
    start: int
    end: int
    hard: bool


@dataclass(frozen=True)
class Record:
    """A text and all personal data in it that is of a kind under test."""

    text: str
    gold: tuple[Gold, ...]


def digits(rng: Draw, count: int) -> str:
    return "".join(rng.choices(string.digits, k=count))


def token(rng: Draw, count: int) -> str:
    return "".join(rng.choices(string.ascii_letters + string.digits, k=count))


def with_luhn(body: str) -> str:
    total = sum(int(d) if i % 2 else sum(divmod(2 * int(d), 10)) for i, d in enumerate(reversed(body)))
    return body + str(-total % 10)


def nhs_number(rng: Draw) -> str:
    while True:
        body = rng.choice("46") + digits(rng, 8)
        check = 11 - sum(int(d) * (10 - i) for i, d in enumerate(body)) % 11
        if check != 10:
            return body + str(check % 11)


def ssn(rng: Draw) -> tuple[str, str, str]:
    area = rng.choice([n for n in range(1, 900) if n != 666])
    return f"{area:03}", f"{rng.randint(1, 99):02}", f"{rng.randint(1, 9999):04}"


def date(rng: Draw, years: tuple[int, int] = (1925, 2015)) -> str:
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(*years)
    name = MONTHS[month - 1]
    return rng.choice(
        [
            f"{month:02}/{day:02}/{year}",
            f"{day}.{month}.{year}",
            f"{year}-{month:02}-{day:02}",
            f"{day} {name} {year}",
            f"{name} {day}, {year}",
            f"{day:02}-{name[:3]}-{year}",
            f"{month}/{day}/{year % 100:02}",
            f"{day}th of {name} {year}",
        ]
    )


def local(rng: Draw) -> str:
    first, last = rng.choice(FIRST).lower(), rng.choice(LAST).lower()
    return rng.choice([f"{first}.{last}", f"{first[0]}{last}", f"{first}_{last}{rng.randint(1, 99)}", f"{last}+med"])


def us(rng: Draw) -> tuple[str, str, str]:
    return f"{rng.randint(201, 989)}", f"{rng.randint(200, 999)}", digits(rng, 4)


def card(rng: Draw) -> str:
    brand = rng.choice(["4", "51", "55", "2221", "6011", "37"])
    length = 15 if brand == "37" else 16
    return with_luhn(brand + digits(rng, length - 1 - len(brand)))


def grouped_card(rng: Draw, sign: str) -> str:
    number = card(rng)
    sizes = (4, 6, 5) if len(number) == 15 else (4, 4, 4, 4)
    parts, at = [], 0
    for size in sizes:
        parts.append(number[at : at + size])
        at += size
    return sign.join(parts)


def site(rng: Draw) -> str:
    return f"https://{rng.choice(HOSTS)}/{rng.choice(['share', 'files/scan.pdf', 'api/v2/notes', 'r'])}"


# Kind -> (text with {} where the value stands, the value, hard). What is inside {} is what has to be covered.
FORMATS: dict[str, list[tuple[str, Make, bool]]] = {
    "email": [
        ("Write to {} before Friday.", lambda r: f"{local(r)}@{r.choice(HOSTS)}", False),
        ("Contact: <{}>", lambda r: f"{local(r)}@{r.choice(HOSTS)}", False),
        ("E-mail {}, then wait.", lambda r: f"{local(r)}@{r.choice(HOSTS)}".upper(), False),
        ("mailto:{}", lambda r: f"{local(r)}@{r.choice(HOSTS)}", False),
        ("reach me at {}", lambda r: f"{local(r)} [at] {r.choice(HOSTS).replace('.', ' [dot] ')}", False),
        ("reach me at {}", lambda r: f"{local(r)}(at){r.choice(HOSTS)}", False),
        ("my address is {}", lambda r: f"{local(r)} at {r.choice(HOSTS).replace('.', ' dot ')}", True),
    ],
    "phone": [
        ("Call {} after six.", lambda r: "({}) {}-{}".format(*us(r)), False),
        ("Her number: {}", lambda r: "-".join(us(r)), False),
        ("Fax {}.", lambda r: ".".join(us(r)), False),
        ("Mobile {}", lambda r: "+1 " + " ".join(us(r)), False),
        ("toll-free {}", lambda r: f"1-8{r.choice(['00', '88', '77'])}-" + "-".join(us(r)[1:]), False),
        ("Tel. {} (work)", lambda r: "".join(us(r)), False),
        ("Phone: {}", lambda r: "-".join(us(r)) + f" ext. {r.randint(10, 9999)}", False),
        ("Ring {} any time", lambda r: f"07{digits(r, 3)} {digits(r, 6)}", False),
        ("Surgery: {}", lambda r: f"020 {r.choice('378')}{digits(r, 3)} {digits(r, 4)}", False),
        ("{} is the mother's number", lambda r: f"+44 7{digits(r, 3)} {digits(r, 6)}", False),
        ("Praxis {}", lambda r: f"+49 {r.randint(30, 89)} {digits(r, 7)}", False),
        ("Tel: {}", lambda r: f"0{r.randint(30, 89)}/{digits(r, 7)}", False),
        ("joindre au {}", lambda r: "0" + r.choice("123456") + "".join(f" {digits(r, 2)}" for _ in range(4)), False),
        ("he left {} with reception", lambda r: "".join(us(r)), True),
        ("ask for her at {}", lambda r: f"{r.randint(200, 999)}-{digits(r, 4)}", True),
    ],
    "ssn": [
        ("SSN: {}", lambda r: "-".join(ssn(r)), False),
        ("His social security number is {}.", lambda r: " ".join(ssn(r)), False),
        ("SSN {}", lambda r: "".join(ssn(r)), False),
        ("on file as {}", lambda r: "-".join(ssn(r)), False),
        ("Social Security No. {}", lambda r: ".".join(ssn(r)), False),
        ("on file as {}", lambda r: "".join(ssn(r)), True),
    ],
    "nhs": [
        ("NHS number: {}", lambda r: spaced(nhs_number(r), " "), False),
        ("NHS No {}", nhs_number, False),
        ("NHS no. {}", lambda r: spaced(nhs_number(r), "-"), False),
        ("Patient {} attended.", lambda r: spaced(nhs_number(r), " "), False),
        ("Patient {} attended.", nhs_number, True),
    ],
    "mrn": [
        ("MRN: {}", lambda r: digits(r, 8), False),
        ("MRN# {}", lambda r: r.choice("ABKM") + digits(r, 7), False),
        ("Medical record number {}", lambda r: f"{digits(r, 3)}-{digits(r, 2)}-{digits(r, 2)}", False),
        ("Patient ID: {}", lambda r: "P" + digits(r, 8), False),
        ("Hospital No. {}", lambda r: "K" + digits(r, 6), False),
        ("Chart #: {}", lambda r: digits(r, 6), False),
        ("The medical record number is {}.", lambda r: digits(r, 7), False),
        ("MRN (Epic) {}", lambda r: digits(r, 8), False),
        ("record {} was pulled", lambda r: digits(r, 7), True),
    ],
    "card": [
        ("Paid by card {}", lambda r: grouped_card(r, " "), False),
        ("Visa/MC {}", lambda r: grouped_card(r, "-"), False),
        ("card no {} exp 04/31", card, False),
        ("charge {}, please", card, False),
        ("Paid by card {}", lambda r: grouped_card(r, "\n"), True),
    ],
    "birth_date": [
        ("DOB: {}", date, False),
        ("D.O.B. {}", date, False),
        ("Date of birth: {}", date, False),
        ("She was born on {} in Leeds.", date, False),
        ("(born {})", date, False),
        ("Birthdate {}", date, False),
        ("Geburtsdatum: {}", date, False),
        ("DOB is {}", date, False),
        ("Jane Roe, {}, female", date, True),
    ],
    "secret_url": [
        ("Download: {}", lambda r: f"{site(r)}?token={token(r, 24)}", False),
        ("see {}.", lambda r: f"{site(r)}?id=7&access_token={token(r, 32)}", False),
        ("({})", lambda r: f"{site(r)}?X-Amz-Date=20250101&X-Amz-Signature={token(r, 40).lower()}", False),
        ("{}", lambda r: f"https://{local(r).replace('+', '.')}:{token(r, 9)}@{r.choice(HOSTS)}/x", False),
        ("API {}", lambda r: f"{site(r)}?api_key={token(r, 20)}", False),
        ("Log in at {}", lambda r: f"{site(r)}#id_token={token(r, 40)}", False),
        ("Reset: {}", lambda r: f"https://{r.choice(HOSTS)}/reset/{token(r, 32)}", False),
        ("join {}", lambda r: f"https://{r.choice(HOSTS)}/j/{digits(r, 10)}?pwd={token(r, 16)}", False),
        ("open {}", lambda r: f"https://{r.choice(HOSTS)}/{token(r, 28)}", True),
    ],
}

DECOYS: list[Make] = [
    lambda r: f"Give {r.randint(1, 900)}.{r.randint(0, 9)} mg, {digits(r, 3)}-{digits(r, 4)} IU.",
    lambda r: f"BP {r.randint(90, 180)}/{r.randint(50, 110)}, pulse {r.randint(50, 120)}, SpO2 {r.randint(88, 100)} %.",
    lambda r: f"Seen on {date(r, (2010, 2025))} and again on {date(r, (2010, 2025))}.",
    lambda r: f"doi:10.{r.randint(1000, 9999)}/s{digits(r, 5)}-{digits(r, 3)}-{digits(r, 4)}-{r.randint(0, 9)}",
    lambda r: f"PMID {digits(r, 8)}; NCT{digits(r, 8)}; ISBN 978-{digits(r, 1)}-{digits(r, 3)}-{digits(r, 5)}-1",
    lambda r: f"Grant R01-{digits(r, 6)}-0{r.randint(1, 9)}, invoice {digits(r, 9)}, order {digits(r, 10)}.",
    lambda r: f"chr{r.randint(1, 22)}:{digits(r, 8)}-{digits(r, 8)}, rs{digits(r, 9)}",
    lambda r: f"See https://{r.choice(HOSTS)}/guide?page={r.randint(1, 90)}&lang=en and {site(r)}.",
    lambda r: f"ICD-10 {r.choice('ABCEF')}{r.randint(10, 99)}.1, lot {digits(r, 4)}-{digits(r, 4)}-{digits(r, 4)}.",
    lambda r: f"Ratio {r.random():.16f}, p = {r.random():.10f}, n = {r.randint(1000, 10**9)}.",
    lambda r: f"Server 192.168.{r.randint(0, 255)}.{r.randint(0, 255)}, build 4.{digits(r, 2)}.{digits(r, 4)}.",
    lambda r: f"Tracking {wrong_card(r)}; the medical record was reviewed in {r.randint(1990, 2025)}.",
    lambda r: f"Reference {wrong_nhs(r)} ({year(r)}-{year(r)}), {digits(r, 3)} {digits(r, 3)} {digits(r, 3)}.",
    lambda r: f"He was born in {year(r)}; {year(r)} {digits(r, 4)} cases; @{r.choice(FIRST).lower()} posted it.",
    lambda r: (
        f"Part {digits(r, 2)}-{digits(r, 3)}-{digits(r, 4)}, code 9{digits(r, 2)}-00-1234, 000-12-{digits(r, 4)}."
    ),
    lambda r: f"Patient number {r.randint(2, 40)} of the trial; call back in {r.randint(2, 12)} weeks; chart 7.",
    lambda r: f"In {year(r)}, {r.randint(1, 9)} {digits(r, 3)} {digits(r, 3)} people; 1-{r.randint(2, 9)}00 pg/mL.",
]
PROSE = [
    "The patient was seen in clinic today and is doing well.",
    "No known allergies. Non-smoker, walks two miles a day.",
    "Plan: continue current treatment and review bloods.",
    "Thank you for referring this pleasant lady.",
    "Symptoms began three weeks ago and have slowly improved.",
    "Advised on diet, exercise and sleep.",
]


def year(rng: Draw) -> int:
    return rng.randint(1990, 2025)


def spaced(number: str, sign: str) -> str:
    return f"{number[:3]}{sign}{number[3:6]}{sign}{number[6:]}"


def wrong_card(rng: Draw) -> str:
    number = card(rng)
    return number[:-1] + str((int(number[-1]) + rng.randint(1, 9)) % 10)


def wrong_nhs(rng: Draw) -> str:
    while True:
        number = "1" + digits(rng, 9)
        if (11 - sum(int(d) * (10 - i) for i, d in enumerate(number[:9])) % 11) % 11 != int(number[9]):
            return spaced(number, " ")


def records(count: int, *, seed: int) -> list[Record]:
    """`count` records of two to nine sentences, three in five with personal data, hard formats as often as others."""
    rng = random.Random(seed)
    return [_record(rng) for _ in range(count)]


def _record(rng: Draw) -> Record:
    pieces: list[tuple[str, str | None, str, bool]] = [
        (rng.choice(PROSE), None, "", False) for _ in range(rng.randint(1, 3))
    ]
    pieces += [(rng.choice(DECOYS)(rng), None, "", False) for _ in range(rng.randint(1, 3))]
    for _ in range(rng.choice([0, 0, 1, 2, 3])):
        kind = rng.choice(list(FORMATS))
        frame, make, hard = rng.choice(FORMATS[kind])
        pieces.append((frame, kind, make(rng), hard))
    rng.shuffle(pieces)
    text, gold = "", []
    for frame, kind, value, hard in pieces:
        if kind:
            start = len(text) + frame.index("{}")
            gold.append(Gold(kind, start, start + len(value), hard))
            frame = frame.replace("{}", value)
        text += frame + rng.choice([" ", "\n", "  ", "\n\n"])
    return Record(text, tuple(gold))


BIRTH_DATES = ["%d/%m/%Y", "%Y/%m/%d", "%Y%m%d", "%m-%d-%y", "%B %d, %Y", "%d %b %y", "%A, %d %B %Y", "%b. %d %Y"]
PHONE_LOCALES = words("en_US en_GB en_CA en_AU en_IE de_DE fr_FR es_ES it_IT nl_NL")


def foreign(count: int, *, seed: int) -> list[tuple[str, Record]]:
    """`count` records for each kind that Faker knows, each with its case: values in forms that others wrote."""
    from faker import Faker

    fakes = {}
    for place in PHONE_LOCALES:
        fakes[place] = Faker(place)
        fakes[place].seed_instance(seed)
    rng, american = random.Random(seed), fakes["en_US"]
    made: list[tuple[str, Record]] = []
    for i in range(count):
        phone = fakes[PHONE_LOCALES[i % len(PHONE_LOCALES)]].phone_number()
        born = american.date_of_birth().strftime(BIRTH_DATES[i % len(BIRTH_DATES)])
        label = rng.choice(["DOB: {}.", "She was born on {}."])
        made += [
            ("phone, labelled", _framed("Tel: {}.", "phone", phone)),
            ("phone, bare", _framed("She gave {} as hers.", "phone", phone)),
            ("email", _framed("Mail {} now.", "email", american.ascii_email())),
            ("ssn", _framed("On file as {}.", "ssn", american.ssn())),
            ("card", _framed("Card {}.", "card", american.credit_card_number())),
            ("birth_date", _framed(label, "birth_date", born)),
        ]
    return made


def _framed(frame: str, kind: str, value: str) -> Record:
    start = frame.index("{}")
    return Record(frame.replace("{}", value), (Gold(kind, start, start + len(value), False),))
