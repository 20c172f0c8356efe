"""How well a draft guesses: python -m bench.demo_model.agreement --model quire/demo_model --draft quire/demo_model/draft.

The model answers held-out prompts greedily; the draft then predicts each token of those answers from the tokens before it.
The share it gets right is the share of first guesses that greedy speculative decoding would accept.
"""

from __future__ import annotations

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bench.demo_model.evaluate import EXAMINED, answers, questions
from bench.demo_model.tokenizer import TURN_END


@torch.no_grad()
def agreement(model: PreTrainedModel, draft: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str, count: int) -> tuple[int, int]:
    """Tokens of the model's answers that the draft predicts, and all tokens of them."""
    prompts = [example.prompt() for example in questions(kind, count)]
    agreed = tokens = 0
    for prompt, answer in zip(prompts, answers(model, tokenizer, prompts, 160)):
        before = tokenizer(prompt, add_special_tokens=False).input_ids
        after = tokenizer(answer + TURN_END, add_special_tokens=False).input_ids
        guesses = draft(torch.tensor([before + after])).logits[0].argmax(-1).tolist()
        agreed += sum(guess == token for guess, token in zip(guesses[len(before) - 1 :], after))
        tokens += len(after)
    return agreed, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how often a draft guesses the model's next token.")
    parser.add_argument("--model", default="quire/demo_model")
    parser.add_argument("--draft", default="quire/demo_model/draft")
    parser.add_argument("--n", type=int, default=50, help="prompts of each kind")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model, draft = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in (options.model, options.draft))
    all_agreed = all_tokens = 0
    for kind in EXAMINED:
        agreed, tokens = agreement(model, draft, tokenizer, kind, options.n)
        all_agreed, all_tokens = all_agreed + agreed, all_tokens + tokens
        print(f"{kind:24} {agreed:6} of {tokens:6} tokens  {100 * agreed / tokens:6.2f} %")
    print(f"{'all':24} {all_agreed:6} of {all_tokens:6} tokens  {100 * all_agreed / all_tokens:6.2f} %")


if __name__ == "__main__":
    main()
