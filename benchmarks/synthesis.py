"""Measures `synthesize` with a teacher behind an endpoint (a stand-in server): `python -m benchmarks.synthesis`.

`faults`: 300 articles of the demo at concurrency 16, a fifth of all requests failing in seven ways: what is lost, what
is asked twice. `kills`: the process is killed at ten moments spread over the run and started again each time: whether
the bytes are those of an undisturbed run, and how often a kept reply is asked for again. `rules`: pairs that quote the
demo's articles, sound ones and ones spoilt in four ways: what the rules throw out. A number is spoilt to one that
stands nowhere: two numbers that change places pass the rules.
"""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.engine.stand_in import StandIn, serving

from benchmarks.rows import Row, write
from metier.core.fingerprint import file_digest, tree
from metier.synthesize.chunks import passages, sentences
from metier.synthesize.grounding import Grounding, Lengths, numbers, screen
from metier.synthesize.pair import Pair, Passage
from metier.text.nouns import Document

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "recipes/data/marine/corpus.jsonl"
ARTICLES = 300
KILLS = 10
CONCURRENCY = 16
RECIPE = """
name: syn
steps:
  texts: {{kind: documents, sources: [{{path: texts.jsonl}}]}}
  pairs:
    kind: synthesize
    documents: texts
    teacher: {{endpoint: "{url}", model: tiny, concurrency: {concurrency}, tries: 20, timeout_seconds: 2}}
"""
Body = dict[str, Any]


def main() -> None:
    command = "python -m benchmarks.synthesis"
    write("synthesis", command, [*faults(), *kills(), *rules()])


def articles(count: int) -> list[Document]:
    rows = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()[:count]]
    return [Document(row["id"], row["text"]) for row in rows]


def teacher(body: Body) -> str:
    """Asks about the passage's sentences, one each, and denies nothing."""
    text = body["messages"][1]["content"]
    found = re.search(r"The passage:\n(<<\w+>>)\n(.*?)\n\1\n", text, re.DOTALL)
    kinds = re.findall(r"^\d+\. (\w+) \(.*?\), (\w+)", text, re.MULTILINE)
    if not kinds or found is None:
        return json.dumps({"answerable": True, "supported": True, "clear": True, "note": ""})
    said = [one for one in sentences(found[2]) if len(one.split()) > 4]
    pairs = [
        {
            "question": f"What is known of this: {' '.join(one.split()[:-2])}?",
            "answer": one,
            "evidence": [one],
            "type": kind,
            "difficulty": hardness,
        }
        for (kind, hardness), one in zip(kinds, said, strict=False)
    ]
    return json.dumps({"pairs": pairs})


class House:
    """A folder with the recipe, run by processes of their own against a server."""

    def __init__(self, root: Path, server: StandIn) -> None:
        self.root = root
        rows = [{"id": d.id, "text": d.text} for d in articles(ARTICLES)]
        (root / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (root / "r.yaml").write_text(RECIPE.format(url=server.url, concurrency=CONCURRENCY), encoding="utf-8")

    def start(self) -> subprocess.Popen[bytes]:
        command = [str(Path(sys.executable).with_name("metier")), "run", "r.yaml"]
        return subprocess.Popen(command, cwd=self.root, stdout=subprocess.DEVNULL)

    def run(self) -> None:
        code = self.start().wait()
        if code:
            raise SystemExit(f"the run ended with {code}")

    def files(self) -> dict[str, str]:
        (artifact,) = (self.root / ".metier/objects").glob("examples-*")
        return {path: file_digest(file) for path, file in tree(artifact / "files").items()}

    def about(self) -> dict[str, Any]:
        (artifact,) = (self.root / ".metier/objects").glob("examples-*")
        return dict(json.loads((artifact / "files/about.json").read_text(encoding="utf-8")))

    def forget(self) -> None:
        shutil.rmtree(self.root / ".metier")


def key(body: Body) -> str:
    return json.dumps(body["messages"])


def faults() -> list[Row]:
    """All articles with a fifth of the requests failing."""
    with tempfile.TemporaryDirectory() as folder, serving(StandIn(faults=0.2, seed=1, slow=3.0)) as server:
        server.answer = teacher
        house = House(Path(folder), server)
        house.run()
        answered = Counter(map(key, server.whole))
        facts = house.about()["synthesis"]
        print(f"requests {len(server.asked)}, failed {len(server.failed)}, answered {len(server.whole)}")
        lost = facts["asked"] - facts["answered"]
        twice = sum(count - 1 for count in answered.values())
    n = len(answered)
    return [
        Row("a fifth of requests failing: passages lost", lost, 0, "passages", "lower", n=ARTICLES),
        Row("a fifth of requests failing: questions answered twice", twice, 0, "questions", "lower", n=n),
    ]


def kills() -> list[Row]:
    """Killed at moments spread over the run, each time in a new store, and started again."""
    same = again = 0
    with tempfile.TemporaryDirectory() as folder, serving(StandIn()) as server:
        server.answer = teacher
        house = House(Path(folder), server)
        house.run()
        whole, total = house.files(), len(server.asked)
        for number in range(KILLS):
            house.forget()
            server.asked.clear()
            process = house.start()
            while len(server.asked) < (number + 0.5) * total / KILLS and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
            time.sleep(0.2)
            before = {key(body) for body in server.asked}
            server.asked.clear()
            house.run()
            same += house.files() == whole
            repeated = sum(key(body) in before for body in server.asked)
            again += max(0, repeated - CONCURRENCY)
            print(f"killed at {len(before)} of {total}: same {house.files() == whole}, asked again {repeated}")
    return [
        Row("killed and started again: the same bytes", same, KILLS, "kills", "higher", n=KILLS),
        Row("killed and started again: asked twice, beyond those under way", again, 0, "questions", "lower", n=KILLS),
    ]


def rules() -> list[Row]:
    """What the plain rules throw out of sound and of spoilt pairs."""
    luck = random.Random(7)
    found = passages(articles(1000), size=600, name="articles")
    usable = [(p, [s for s in sentences(p.text) if len(s.split()) > 4]) for p in found]
    usable = [(p, said) for p, said in usable if said]
    thrown: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for passage, said in usable:
        one = luck.choice(said)
        other = luck.choice(luck.choice(usable)[1])
        for name, pair in spoilt(passage, one, other).items():
            asked[name] += 1
            thrown[name] += screen(pair, {passage.id: passage}, Grounding(), Lengths(400, 1200)) is not None
    bars = {"a quotation that is not there": 1.0, "a number changed": 1.0, "an answer from another article": 0.9}
    bars["a made-up answer beside a true quotation"] = 0.9
    rows = [
        Row("rules: sound pairs thrown out", thrown["sound"] / asked["sound"], 0.02, "share", "lower", n=asked["sound"])
    ]
    for name, bar in bars.items():
        rows.append(
            Row(f"rules: thrown out, {name}", thrown[name] / asked[name], bar, "share", "higher", n=asked[name])
        )
    return rows


def spoilt(passage: Passage, one: str, other: str) -> dict[str, Pair]:
    """A sound pair about a sentence, and what can be wrong with it. other: a sentence of some other article."""
    question = f"What is told of the {' '.join(one.split()[1:3])}?"

    def pair(answer: str, evidence: str) -> Pair:
        return Pair(question, answer, (evidence,), "factual", "easy", (passage.id,), "simulated", "here")

    made = {"sound": pair(one, one)}
    words = one.split()
    made["a quotation that is not there"] = pair(one, " ".join([*words[:-1], "instead"]))
    if other not in passage.text:
        made["an answer from another article"] = pair(other, one)
    made["a made-up answer beside a true quotation"] = pair("Its colony divides labour among specialised castes.", one)
    if digits := sorted(n for n in numbers(one) if n.isdigit() and n in one):
        changed = one.replace(digits[0], str(int(digits[0]) + 17), 1)
        made["a number changed"] = pair(changed, one)
    return made


if __name__ == "__main__":
    main()
