"""The same over the websocket; address and token are found where `boot` has left them."""

import asyncio

import microkernel as mk


async def main() -> None:
    async with mk.connect() as system:
        question = [{"role": "user", "content": "Name three colours."}]
        async for piece in system.stream("inference.chat", messages=question, max_tokens=64):
            print(piece.text, end="", flush=True)
        print()
        for process in await system.call("scheduler.list", ended=True):
            print(process.pid, process.state, process.title, process.tokens_out)


asyncio.run(main())
