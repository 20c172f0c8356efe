"""Beam search over real processes gives the sequences and scores of the Transformers library's `generate(num_beams=...)`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from quire import LLM, BeamSearchParams, InvalidRequestError, StructuredOutputsParams
from tests import oracle

LENGTH = 6
PROMPTS = [[5, 6, 7], list(range(300, 333))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its probabilities are neither flat nor steep, so that beams change places."""
    return oracle.make_model(tmp_path_factory.mktemp("beams"), seed=3, initializer_range=0.12)


@pytest.fixture(scope="module")
def llm(model: str) -> Iterator[LLM]:
    with LLM(model, max_num_seqs=16, block_size=4) as engine:
        yield engine


def expected(path: str, prompt: list[int], width: int, stop: int, **options: Any) -> list[tuple[list[int], float]]:
    import torch

    found = oracle.load(path).generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=LENGTH,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )
    results = []
    for row, score in zip(found.sequences.tolist(), found.sequences_scores.tolist()):
        ids = row[len(prompt) :]
        results.append((ids[: ids.index(stop) + 1] if stop in ids else ids, score))
    return results


@cache
def likely_stop(path: str, prompt: tuple[int, ...]) -> int:
    """A token in the middle of a good result, so that a search that stops there has results of several lengths."""
    return expected_alone(path, prompt)[1][0][LENGTH // 2]


@cache
def expected_alone(path: str, prompt: tuple[int, ...]) -> list[tuple[list[int], float]]:
    return expected(path, list(prompt), 4, 2)


@pytest.mark.parametrize("early_stopping, length_penalty", [(False, 1.0), (True, -1.0), ("never", 0.0)])
def test_sequences_and_scores(llm: LLM, model: str, early_stopping: bool | str, length_penalty: float) -> None:
    lengths = set()
    for prompt in PROMPTS:
        stop = likely_stop(model, tuple(prompt))
        wanted = expected(model, prompt, 4, stop, early_stopping=early_stopping, length_penalty=length_penalty)
        params = BeamSearchParams(
            beam_width=4,
            max_tokens=LENGTH,
            ignore_eos=True,
            stop_token_ids=[stop],
            early_stopping=early_stopping,
            length_penalty=length_penalty,
        )
        [output] = llm.beam_search([prompt], params)
        assert [each.tokens[len(prompt) :] for each in output.sequences] == [ids for ids, _ in wanted]
        assert [each.score for each in output.sequences] == pytest.approx([score for _, score in wanted], abs=1e-4)
        for each in output.sequences:
            assert each.finish_reason == ("stop" if each.tokens[-1] == stop else "length")
            total = sum(entry[token].logprob for token, entry in zip(each.tokens[len(prompt) :], each.logprobs))
            assert each.cum_logprob == pytest.approx(total, abs=1e-4)
        lengths |= {len(ids) for ids, _ in wanted}
    assert len(lengths) > 1, "the stop token never mattered"


def test_stop_strings(llm: LLM, model: str) -> None:
    """A stop string ends a beam as in the Transformers library, and the text ends before it."""
    import transformers

    tokenizer, prompt, filler = llm.get_tokenizer(), PROMPTS[1], oracle.VOCAB_SIZE - 1
    best = expected(model, prompt, 4, filler)[0][0]
    stop = tokenizer.decode(best[2:4])[1:]  # of two tokens, and not from the first one's beginning
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend)
    wanted = expected(model, prompt, 4, filler, stop_strings=[stop], tokenizer=theirs)
    [output] = llm.beam_search([prompt], BeamSearchParams(beam_width=4, max_tokens=LENGTH, ignore_eos=True, stop=stop))
    found = [each.tokens[len(prompt) :] for each in output.sequences]
    assert found == [[token for token in ids if token != filler] for ids, _ in wanted]
    assert [each.score for each in output.sequences] == pytest.approx([score for _, score in wanted], abs=1e-4)
    ended = [each for each in output.sequences if each.finish_reason == "stop"]
    assert ended, "the stop string never mattered"
    for each in ended:
        assert each.stop_reason == stop
        assert each.text + stop == tokenizer.decode(each.tokens[len(prompt) :])[: len(each.text + stop)]


class OutputPenalties:
    """OpenAI's presence and frequency penalties as a processor of the Transformers library's, which has none."""

    def __init__(self, num_prompt: int, presence: float, frequency: float) -> None:
        self.num_prompt, self.presence, self.frequency = num_prompt, presence, frequency

    def __call__(self, ids: Any, scores: Any) -> Any:
        import torch

        output = ids[:, self.num_prompt :]
        times = torch.zeros_like(scores).scatter_add_(1, output, torch.ones_like(output, dtype=scores.dtype))
        return scores - self.frequency * times - self.presence * (times > 0)


def letters(llm: LLM) -> list[int]:
    """Tokens of small ASCII letters and spaces, and nothing else."""
    tokenizer = llm.get_tokenizer()
    texts = (tokenizer.token_bytes(token) for token in range(3, oracle.VOCAB_SIZE))
    return [token for token, text in enumerate(texts, 3) if text and all(byte in b"abcdefghijklmnopqrstuvwxyz " for byte in text)]


def changes(llm: LLM, prompt: list[int], best: list[int], kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the request asks for, and what does the same in the Transformers library. best: the result without."""
    allowed, tokenizer = list(range(1, oracle.VOCAB_SIZE, 3)), llm.get_tokenizer()
    penalties = OutputPenalties(len(prompt), 0.75, 0.5)
    bias = {best[0]: -3.5, best[2]: -1.25, 77: 6.0}
    may = letters(llm)

    def allow(_: int, ids: Any) -> list[int]:
        return may + [2] * (len(ids) > len(prompt))

    match kind:
        case "repetition":
            return {"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}
        case "presence, frequency":
            return {"presence_penalty": 0.75, "frequency_penalty": 0.5}, {"logits_processor": [penalties]}
        case "bias":
            return {"logit_bias": bias}, {"sequence_bias": [[[token], value] for token, value in bias.items()]}
        case "bad words":
            texts = [tokenizer.decode([token]) for token in best]
            word = next(text for token, text in zip(best, texts) if tokenizer.encode(text, add_special_tokens=False) == [token])
            spelled = {tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (word, " " + word.lstrip())}
            return {"bad_words": [word]}, {"bad_words_ids": [list(ids) for ids in spelled]}
        case "grammar":
            return {"structured_outputs": StructuredOutputsParams(regex="[a-z ]{1,99}")}, {"prefix_allowed_tokens_fn": allow}
    both = {"prefix_allowed_tokens_fn": lambda *_: allowed, "repetition_penalty": 0.8}
    return {"allowed_token_ids": allowed, "repetition_penalty": 0.8}, both


@pytest.mark.parametrize("kind", ["repetition", "presence, frequency", "bias", "bad words", "allowed, repetition", "grammar"])
def test_what_changes_how_likely_a_token_is(llm: LLM, model: str, kind: str) -> None:
    """As logits processors do, which the Transformers library applies to log-probabilities and does not normalise after."""
    prompt = [5, 6, 7, 5, 6, 9]
    plain = expected_alone(model, tuple(prompt))
    mine, theirs = changes(llm, prompt, plain[0][0], kind)
    wanted = expected(model, prompt, 4, 2, **theirs)
    [output] = llm.beam_search([prompt], BeamSearchParams(beam_width=4, max_tokens=LENGTH, **mine))
    assert [each.tokens[len(prompt) :] for each in output.sequences] == [ids for ids, _ in wanted] != [ids for ids, _ in plain]
    assert [each.score for each in output.sequences] == pytest.approx([score for _, score in wanted], abs=1e-4)


def test_fewer_results_than_beams_and_none(llm: LLM) -> None:
    three = StructuredOutputsParams(choice=["a", "b", "c"])
    [output] = llm.beam_search([PROMPTS[0]], BeamSearchParams(beam_width=5, max_tokens=4, structured_outputs=three))
    assert sorted(each.text for each in output.sequences) == ["a", "b", "c"]
    assert all(each.finish_reason == "stop" for each in output.sequences)
    unending = BeamSearchParams(beam_width=5, max_tokens=4, ignore_eos=True, structured_outputs=three)
    [output] = llm.beam_search([PROMPTS[0]], unending)
    assert {each.text for each in output.sequences} == {"a", "b", "c"}
    nothing = BeamSearchParams(beam_width=2, max_tokens=4, structured_outputs=three, allowed_token_ids=[2])
    with pytest.raises(InvalidRequestError, match="left no token") as caught:
        llm.beam_search([PROMPTS[0]], nothing)
    assert caught.value.param == "use_beam_search"


def test_many_prompts_and_one_beam(llm: LLM, model: str) -> None:
    params = BeamSearchParams(beam_width=1, max_tokens=4, ignore_eos=True)
    outputs = llm.beam_search(PROMPTS * 6, params)
    assert [output.sequences[0].tokens for output in outputs] == [prompt + oracle.greedy(model, prompt, 4) for prompt in PROMPTS] * 6
    first = outputs[0].sequences[0]
    assert first.text == llm.get_tokenizer().decode(first.tokens[3:])


@pytest.mark.parametrize(
    "change, param",
    [
        ({"beam_width": 0}, "beam_width"),
        ({"beam_width": 11}, "n"),
        ({"temperature": 1.0}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"min_tokens": 5}, "min_tokens"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"logit_bias": {9999: 1.0}}, "logit_bias"),
        ({"structured_outputs": StructuredOutputsParams(regex="(")}, "structured_outputs"),
    ],
)
def test_what_cannot_be_searched(llm: LLM, change: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        llm.beam_search(["a b"], BeamSearchParams(**{"beam_width": 2, "max_tokens": 4, **change}))
    assert caught.value.param == param
