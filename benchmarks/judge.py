"""512 grades through an endpoint that fails 30 % of requests: ``python -m benchmarks.judge``.

The endpoint is a real HTTP server on 127.0.0.1, in this process, that takes half a second for each
request and knows the right grade of each answer. Ideal is the time in which the same number of
requests would be over if all 64 slots were always busy: requests x 0.5 s / 64. The judge has its
default settings; one 429 in its faults asks for a wait of a second.
"""

import asyncio
import random
import time

from rich.console import Console
from rich.table import Table

from grpo_ao.chat import ChatSettings
from grpo_ao.judges.api import ApiJudge
from grpo_ao.judges.protocol import GradeRequest
from grpo_ao.judges.rubric import GRADES
from tests.judges.endpoint import DROP, Behaviour, Request, Response, error, grade, reply, serving

GRADES_ASKED = 512
CONCURRENCY = 64
LATENCY = 0.5
FAULTS = 0.3
FAILURES = [
    error(429, "busy", retry_after="1"),
    error(500, "broken"),
    error(503, "overloaded"),
    DROP,
    Response(body='{"choices": [{"mess'),
]
UNREADABLE = [
    reply('The grade is {"grade": "A"}.'),
    reply('{"score": 7}'),
    reply('{"grade": "A"'),
]


def answer_number(request: Request) -> int:
    return int(request.prompt.rpartition("answer number ")[2].split()[0])


def letter(number: int) -> str:
    return "ABCDE"[number % 5]


def faulty(faults: list[Response], rate: float) -> Behaviour:
    draw = random.Random(0)

    def behave(request: Request) -> Response:
        response = grade(letter(answer_number(request)))
        if draw.random() < rate:
            response = draw.choice(faults)
        return Response(response.status, response.body, response.headers, LATENCY, response.drop)

    return behave


def measure(behaviour: Behaviour) -> list[str]:
    """Grade, and return the table's cells: grades, without, wrong, requests, seconds, ideal."""
    requests = [
        GradeRequest("A text.", "A question?", f"answer number {n}", "open", None)
        for n in range(GRADES_ASKED)
    ]
    with serving(behaviour) as endpoint:
        settings = ChatSettings(
            model="a-model", base_url=endpoint.base_url, api_key_env=None, concurrency=CONCURRENCY
        )
        started = time.perf_counter()
        grades = asyncio.run(ApiJudge(settings).grade(requests))
        seconds = time.perf_counter() - started
    scores = [found.score for found in grades]
    right = [GRADES["open"][letter(n)] for n in range(GRADES_ASKED)]
    invented = sum(s is not None and s != r for s, r in zip(scores, right, strict=True))
    ideal = len(endpoint.seen) * LATENCY / CONCURRENCY
    return [
        str(len(grades)),
        str(scores.count(None)),
        str(invented),
        str(len(endpoint.seen)),
        f"{seconds:.1f} s",
        f"{ideal:.1f} s",
        f"{seconds / ideal:.2f}",
    ]


def main() -> None:
    table = Table(title=f"{GRADES_ASKED} grades, {CONCURRENCY} at a time, {LATENCY} s a request")
    columns = ("endpoint", "grades", "None", "invented", "requests", "wall", "ideal", "wall/ideal")
    for name in columns:
        table.add_column(name, justify="left" if name == "endpoint" else "right")
    table.add_row("no faults", *measure(faulty([], 0.0)))
    table.add_row("30 % failures", *measure(faulty(FAILURES, FAULTS)))
    mixed = FAILURES * 2 + UNREADABLE * 2
    table.add_row("30 % failures and unreadable replies", *measure(faulty(mixed, FAULTS)))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
