"""Several answers to one prompt, and how much of it was known: the stock client, a real engine, a tiny model."""

from __future__ import annotations

ASKED = {
    "model": "",
    "messages": [{"role": "user", "content": "Hello, and what a long way to say it"}],
    "temperature": 1.0,
    "seed": 5,
    "max_tokens": 20,
}


async def alone(client, seed: int) -> str:
    answer = await client.chat.completions.create(**(ASKED | {"seed": seed}))
    return answer.choices[0].message.content


async def test_each_of_n_answers_is_what_its_seed_gives_alone(client):
    answer = await client.chat.completions.create(**ASKED, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == [await alone(client, seed) for seed in (5, 6, 7)]
    assert answer.usage.completion_tokens == 60
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 60


async def test_a_stream_of_n_answers_says_of_each_chunk_whose_it_is(client):
    texts, roles, reasons = ["", "", ""], [], []
    stream = await client.chat.completions.create(**ASKED, n=3, stream=True, stream_options={"include_usage": True})
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles += [choice.index] if choice.delta.role else []
            reasons += [choice.index] if choice.finish_reason else []
    assert chunk.usage.completion_tokens == 60
    assert texts == [await alone(client, seed) for seed in (5, 6, 7)]
    assert sorted(roles) == sorted(reasons) == [0, 1, 2]


async def test_usage_says_how_much_of_the_prompt_was_known(client):
    first = await client.chat.completions.create(**ASKED)
    again = await client.chat.completions.create(**ASKED)
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    known = again.usage.prompt_tokens_details.cached_tokens
    assert 0 < known < again.usage.prompt_tokens
    assert known % 16 == 0
