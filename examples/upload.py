"""Upload a file with httpx: read ahead while the network is busy, and try again when the server is.

python examples/upload.py FILE URL
"""

from __future__ import annotations

import argparse

import httpx
import trio

from trio_aio import open_aio


async def upload(client: httpx.AsyncClient, path: str, url: str, *, attempts: int = 5, pause: float = 0.5) -> httpx.Response:
    """PUT a file, and return the response. httpx.HTTPStatusError if the server refuses it, and its errors after the last attempt.

    pause: seconds before the second attempt; twice as many before each further one.
    """
    async with open_aio(path) as file:
        size = await file.size()
        for attempt in range(attempts):
            try:
                # Each attempt needs chunks of its own, from the beginning. `stop`: what is appended meanwhile is not announced.
                chunks = file.chunks(1 << 20, stop=size)
                response = await client.put(url, content=chunks, headers={"Content-Length": str(size)})
                if response.status_code < 500:
                    return response.raise_for_status()
                if attempt == attempts - 1:
                    response.raise_for_status()
            except httpx.TransportError:
                if attempt == attempts - 1:
                    raise
            await trio.sleep(pause * 2**attempt)
    raise ValueError("attempts must be at least 1")


async def main(path: str, url: str) -> None:
    """Upload a file, and print the status."""
    async with httpx.AsyncClient(timeout=60) as client:
        print((await upload(client, path, url)).status_code)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("url")
    arguments = parser.parse_args()
    trio.run(main, arguments.file, arguments.url)
