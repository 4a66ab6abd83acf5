"""The stock OpenAI client, with the address and token that `boot` printed."""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ["MICROKERNEL_URL"] + "/v1", api_key=os.environ["MICROKERNEL_TOKEN"])

chunks = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[{"role": "user", "content": "Name three colours."}],
    max_tokens=64,
    stream=True,
)
for chunk in chunks:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
