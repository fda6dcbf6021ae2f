"""What a user of mem0's hosted API does, with mem0's own client: `python mem0_session.py URL KEY USER`.

Run by an interpreter that has `mem0ai`; prints what each call answered, as JSON.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from typing import Any

mem0 = importlib.import_module("mem0")


def session(url: str, key: str, user: str) -> dict[str, Any]:
    client = mem0.MemoryClient(api_key=key, host=url)
    told: dict[str, Any] = {}
    messages = [{"role": "user", "content": "My favourite tea is oolong."}, {"role": "assistant", "content": "Noted."}]
    told["add"] = client.add(messages, user_id=user, run_id="s1", metadata={"topic": "tea"}, infer=False)
    told["add_text"] = client.add("I live in Lisbon.", filters={"user_id": user}, infer=False)
    first = told["add"]["results"][0]["id"]
    second = told["add_text"]["results"][0]["id"]
    told["search"] = client.search("tea", filters={"AND": [{"user_id": user}, {"metadata": {"topic": "tea"}}]}, top_k=3)
    told["get"] = client.get(first)
    told["get_all"] = client.get_all(filters={"user_id": user})
    told["page"] = client.get_all(filters={"AND": [{"user_id": user}, {"run_id": "s1"}]}, page=1, page_size=1)
    told["update"] = client.update(first, text="My favourite tea is sencha.", metadata={"topic": "teas"})
    told["history"] = client.history(first)
    told["users"] = client.users()
    told["batch_update"] = client.batch_update([{"memory_id": second, "text": "I live in Porto."}])
    told["moved"] = client.get(second)["memory"]
    told["delete"] = client.delete(first)
    told["batch_delete"] = client.batch_delete([{"memory_id": second}])
    client.add("Said in a run.", user_id=user, run_id="s9", infer=False)
    client.add("Said in another.", user_id=user, run_id="s8", infer=False)
    told["delete_run"] = client.delete_all(user_id=user, run_id="s9")
    told["delete_all"] = client.delete_all(user_id=user)
    told["left"] = client.get_all(filters={"user_id": user})["count"]
    try:
        client.get(first)
    except Exception as error:  # noqa: BLE001 - whatever the client makes of a 404 is what is looked at
        told["missing"] = type(error).__name__
    told["async"] = asyncio.run(asynchronous(url, key, user))
    return told


async def asynchronous(url: str, key: str, user: str) -> list[str]:
    async with mem0.AsyncMemoryClient(api_key=key, host=url) as client:
        await client.add("I row on Sundays.", user_id=user, infer=False)
        found = await client.search("row", filters={"user_id": user})
        await client.delete_all(user_id=user)
    return [memory["memory"] for memory in found["results"]]


if __name__ == "__main__":
    json.dump(session(*sys.argv[1:4]), sys.stdout)
