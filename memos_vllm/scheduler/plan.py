"""The memories of one prompt: what the search finds, as far as the token budget goes."""

from collections.abc import Callable

from memos_vllm.cube import MemCube, Plaintext
from memos_vllm.errors import StartError
from memos_vllm.retrieval import Operator


class MemScheduler:
    """top_k: cubes asked of the search; token_budget: tokens that their texts may take together."""

    def __init__(self, operator: Operator, *, top_k: int, token_budget: int) -> None:
        if top_k < 1 or token_budget < 1:
            raise StartError(f"top_k ({top_k}) and token_budget ({token_budget}) must be at least 1.")
        self._operator = operator
        self._top_k = top_k
        self.token_budget = token_budget

    def choose(self, principal: str, query: str, count_tokens: Callable[[MemCube], int]) -> list[MemCube]:
        """The best cubes that fit, in id order: the same set gives the same prompt, whatever the query.

        Only the principal's own cubes: a grant lets others offer text, not put it into somebody's prompts unasked.
        A cube that does not fit is passed over, a smaller one after it may still get in.
        `count_tokens` gives the tokens that a cube takes in the prompt. Raises VaultUnavailable.
        """
        room = self.token_budget
        chosen = []
        for hit in self._operator.search(principal, query, top_k=self._top_k, filters={"owner": principal}):
            if isinstance(hit.cube.payload, Plaintext):
                tokens = count_tokens(hit.cube)
                if tokens <= room:
                    room -= tokens
                    chosen.append(hit.cube)
        return sorted(chosen, key=lambda cube: cube.id)
