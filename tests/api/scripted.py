"""A worker that says what the last user message says, whatever the template puts around it."""

from __future__ import annotations

import numpy as np

from frontend.tokenizer import Tokenizer
from ipc.arena import RowSetup
from tests.api.server import DEMO
from tests.paged_toy import NextToken


def last_user_message() -> NextToken:
    """Special tokens inside of the message are text in a prompt, and text in the answer."""
    tokenizer = Tokenizer.load(str(DEMO))
    opens = tokenizer.encode("<|im_start|>user\n", add_special_tokens=False)
    end = tokenizer.encode("<|im_end|>", add_special_tokens=False)[0]
    tokenizer.close()

    def choose(tokens: np.ndarray, setup: RowSetup) -> int:
        prompt = tokens[: setup.num_prompt].tolist()
        places = [at for at in range(len(prompt)) if prompt[at : at + len(opens)] == opens]
        start = places[-1] + len(opens) if places else 0
        said = prompt[start : prompt.index(end, start)] if places else prompt
        done = len(tokens) - setup.num_prompt
        if done < len(said):
            return int(said[done])
        return end if setup.stop_ids else int(said[done % len(said)])

    return choose
