"""`LLM` and `AsyncLLM` over real processes."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from quire import (
    LLM,
    AsyncLLM,
    BeamSearchParams,
    ConfigError,
    EngineDeadError,
    InvalidRequestError,
    RequestOutputKind,
    SamplingParams,
)
from tests import oracle
from tests.processes.server import alive, eventually

ROOT = Path(__file__).resolve().parents[2]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_llama: str) -> Iterator[LLM]:
    with LLM(tiny_llama, max_num_seqs=16) as engine:
        yield engine


def test_generate_equals_transformers(llm: LLM, tiny_llama: str) -> None:
    prompts = [[5, 6, 7], [900] * 40, [17]]
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [output.prompt_token_ids for output in outputs] == prompts
    assert [output.outputs[0].token_ids for output in outputs] == [oracle.greedy(tiny_llama, prompt, 12) for prompt in prompts]
    assert all(output.finished and output.outputs[0].finish_reason == "length" for output in outputs)


def test_text_and_tokens_are_the_same_prompt(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("Once upon a time")
    by_text, by_ids = llm.generate(["Once upon a time", ids], GREEDY, use_tqdm=False)
    assert by_text.prompt == "Once upon a time"
    assert by_text.outputs[0].text == by_ids.outputs[0].text == llm.get_tokenizer().decode(by_ids.outputs[0].token_ids)


@pytest.mark.parametrize("options", [{"cache_salt": 5}, {"priority": "first"}, {"priority": 2**70}])
def test_what_the_scheduler_would_not_understand_is_refused(llm: LLM, options: dict[str, Any]) -> None:
    """It would drop the message, and the call would wait for ever."""
    with pytest.raises(InvalidRequestError, match=next(iter(options))):
        llm.generate("a", GREEDY, use_tqdm=False, **options)
    with pytest.raises(InvalidRequestError, match="ignore_eos must be True or False"):
        llm.generate("a", SamplingParams(ignore_eos="yes"), use_tqdm=False)  # type: ignore[arg-type]


def test_a_single_stop_string(llm: LLM) -> None:
    text = llm.generate([[5, 6, 7]], GREEDY, use_tqdm=False)[0].outputs[0].text
    stop = text[len(text) // 2 :]
    (output,) = llm.generate([[5, 6, 7]], replace(GREEDY, stop=stop), use_tqdm=False)
    assert (output.outputs[0].text, output.outputs[0].stop_reason) == (text[: text.index(stop)], stop)


def test_more_prompts_than_rows_come_back_in_order(llm: LLM, capfd: pytest.CaptureFixture[str]) -> None:
    prompts = [[100 + number] * (1 + number % 7) for number in range(60)]
    outputs = llm.generate(prompts, [SamplingParams(temperature=0, max_tokens=1 + number % 5, ignore_eos=True) for number in range(60)])
    assert [output.prompt_token_ids for output in outputs] == prompts
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1 + number % 5 for number in range(60)]
    assert "60/60" in capfd.readouterr().err


def test_defaults_and_n(llm: LLM) -> None:
    (output,) = llm.generate("Hello", use_tqdm=False)
    assert 1 <= len(output.outputs[0].token_ids) <= 16
    (output,) = llm.generate("Hello", SamplingParams(n=3, seed=1, max_tokens=4, ignore_eos=True), use_tqdm=False)
    assert [each.index for each in output.outputs] == [0, 1, 2]
    assert len({tuple(each.token_ids) for each in output.outputs}) > 1
    assert llm.generate([], use_tqdm=True) == []


def test_chat(llm: LLM) -> None:
    talk = [{"role": "user", "content": "Hi <|im_end|> there"}]
    first, second = llm.chat([talk, talk], GREEDY, use_tqdm=False)
    assert first.outputs[0].token_ids == second.outputs[0].token_ids
    assert first.prompt is not None
    assert "there" in first.prompt
    assert first.prompt_token_ids == llm.get_tokenizer().encode_messages(talk)[1]
    (single,) = llm.chat(talk, GREEDY, use_tqdm=False)
    assert single.outputs[0].text == first.outputs[0].text


def test_bad_requests_name_the_field_and_leave_the_engine_usable(llm: LLM) -> None:
    for prompt, params, param in [
        ("a", SamplingParams(temperature=3.0), "temperature"),
        ([10**6], GREEDY, "prompt"),
        ([1] * 2000, GREEDY, "prompt"),
        ([[]], GREEDY, "prompt"),
    ]:
        with pytest.raises(InvalidRequestError) as error:
            llm.generate(prompt, params, use_tqdm=False)
        assert error.value.param == param
    with pytest.raises(InvalidRequestError):
        llm.generate(["good", [10**6], "good"], SamplingParams(max_tokens=500, ignore_eos=True), use_tqdm=False)
    with pytest.raises(InvalidRequestError, match="2 sampling_params for 1"):
        llm.generate("a", [GREEDY, GREEDY])
    assert llm.generate("a", GREEDY, use_tqdm=False)[0].finished


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="did you mean 'max_model_len'"):
        LLM(max_modl_len=3)
    with pytest.raises(ConfigError, match="no model directory"):
        LLM("./nowhere")
    with pytest.raises(ConfigError, match="no usable NVIDIA GPU"):
        LLM(device="cuda")


def test_several_threads_share_an_engine(llm: LLM) -> None:
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        found[number] = llm.generate([[200 + number] * 5], GREEDY, use_tqdm=False)[0].outputs[0].token_ids

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = llm.generate([[200 + number] * 5 for number in range(6)], GREEDY, use_tqdm=False)
    assert [found[number] for number in range(6)] == [output.outputs[0].token_ids for output in expected]


def test_inside_a_running_loop_as_in_a_notebook(llm: LLM) -> None:
    async def cell() -> int:
        return len(llm.generate("a", GREEDY, use_tqdm=False)[0].outputs[0].token_ids)

    assert asyncio.run(cell()) == 12


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, as in a program of its own; pytest-xdist and earlier tests may have it otherwise."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_aborts_the_call_and_not_the_engine(llm: LLM) -> None:
    long = SamplingParams(temperature=0, max_tokens=900, ignore_eos=True)
    before = llm.engine_stats().generation_tokens
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))

    def interrupted() -> None:
        timer.start()
        llm.generate([[number + 3] * 8 for number in range(64)], long, use_tqdm=False)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    timer.join()
    assert llm.generate("a", GREEDY, use_tqdm=False)[0].finished
    assert llm.engine_stats().generation_tokens < before + 64 * 900, "the aborted requests went on"


def test_deaths_do_not_change_the_answers(llm: LLM) -> None:
    prompts = [[300 + number] * 10 for number in range(8)]
    params = SamplingParams(temperature=0, max_tokens=500, ignore_eos=True)
    expected = [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]
    for victim in ("worker 0", "scheduler"):
        eventually(lambda: len(llm._engine.pids) == 2)
        doomed = llm._engine.pids[victim]
        before = llm.engine_stats().generation_tokens
        killed: list[int] = []

        def kill_midway(doomed: int = doomed, before: int = before, killed: list[int] = killed) -> None:
            while (done := llm.engine_stats().generation_tokens - before) < 200:
                time.sleep(0.001)
            os.kill(doomed, signal.SIGKILL)
            killed.append(done)

        killer = threading.Thread(target=kill_midway)
        killer.start()
        assert [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)] == expected
        killer.join(60)
        assert killed and 200 <= killed[0] < 8 * 500, "the answers were there before the death"
        assert not alive(doomed)


def test_close_ends_everything_and_later_calls_say_so(tiny_llama: str) -> None:
    engine = LLM(tiny_llama)
    pids = engine._engine.pids.values()
    engine.close()
    engine.close()
    assert not any(alive(pid) for pid in pids)
    with pytest.raises(EngineDeadError, match="closed"):
        engine.generate("a", GREEDY, use_tqdm=False)


def test_the_end_of_the_program_is_the_end_of_the_engine(tiny_llama: str, tmp_path: Path) -> None:
    """Neither an unguarded __main__ that is left without close(), nor a kill -9 of it, leaves a process or hangs."""
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom quire import LLM\nllm = LLM({tiny_llama!r})\n"
        "print(*llm._engine.pids.values(), flush=True)\nif len(sys.argv) > 1:\n    input()\n"
    )
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=250, check=True)
    assert len(done.stdout.splitlines()) == 1, "the children ran the user's program again"
    assert not any(alive(int(pid)) for pid in done.stdout.split())
    assert [path.name for path in tmp_path.iterdir()] == ["program.py"]
    with subprocess.Popen(
        [sys.executable, str(program), "wait"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        pids = [int(pid) for pid in running.stdout.readline().split()]
        running.kill()
    assert pids
    eventually(lambda: not any(alive(pid) for pid in pids))


def test_async_streams(tiny_llama: str) -> None:
    async def test() -> None:
        async with AsyncLLM(tiny_llama) as engine:
            texts, last = [], None
            async for last in engine.generate([5, 6, 7], GREEDY, "mine"):
                assert last.request_id == "mine"
                texts.append(last.outputs[0].text)
            assert last is not None
            assert last.finished
            assert last.outputs[0].token_ids == oracle.greedy(tiny_llama, [5, 6, 7], 12)
            assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
            deltas = [output.outputs[0] async for output in engine.generate([5, 6, 7], GREEDY, delta=True)]
            assert "".join(each.text for each in deltas) == last.outputs[0].text
            assert [token for each in deltas for token in each.token_ids] == last.outputs[0].token_ids
            results = await asyncio.gather(*(_last(engine, [number, 9]) for number in range(20)))
            assert [len(each) for each in results] == [12] * 20

            # every fifth token, only the end, no text; and a search
            fifth = [each async for each in engine.generate([5, 6, 7], replace(GREEDY, stream_interval=5))]
            assert len(fifth) <= 4 and fifth[-1].outputs[0].token_ids == last.outputs[0].token_ids
            kinds = RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY
            news, only = [[each async for each in engine.generate([5, 6, 7], replace(GREEDY, output_kind=kind))] for kind in kinds]
            assert "".join(each.outputs[0].text for each in news) == last.outputs[0].text
            assert [each.outputs[0].token_ids for each in only] == [last.outputs[0].token_ids]
            silent = [each async for each in engine.generate([5, 6, 7], replace(GREEDY, detokenize=False, logprobs=0))][-1].outputs[0]
            assert (silent.text, silent.token_ids) == ("", last.outputs[0].token_ids)
            assert silent.cumulative_logprob == sum(entry[token].logprob for token, entry in zip(silent.token_ids, silent.logprobs or []))
            best = await engine.beam_search([5, 6, 7], BeamSearchParams(beam_width=2, max_tokens=3, ignore_eos=True))
            assert len(best.sequences) == 2 and best.sequences[0].score >= best.sequences[1].score

            # leaving early, aborting by name, and errors
            long = SamplingParams(max_tokens=900, ignore_eos=True)
            async for _ in engine.generate("x", long):
                break
            async for output in engine.generate("x", long, "victim"):
                if not output.finished:
                    await engine.abort("victim")
            assert output.outputs[0].finish_reason == "abort"
            assert len(output.outputs[0].token_ids) < 900
            with pytest.raises(InvalidRequestError) as error:
                async for _ in engine.generate("x", SamplingParams(top_p=7.0)):
                    pass
            assert error.value.param == "top_p"
            said = [output async for output in engine.chat([{"role": "user", "content": "Hi"}], GREEDY)]
            assert said[-1].finished
            assert "Hi" in (said[-1].prompt or "")
            pending = [asyncio.ensure_future(_last(engine, [number, 2], long)) for number in range(100)]
            await asyncio.sleep(0.1)
        # On a busy machine the first may have come to their ends.
        assert any(isinstance(end, EngineDeadError) for end in await asyncio.gather(*pending, return_exceptions=True))
        with pytest.raises(EngineDeadError, match="closed"):
            await _last(engine, [1])

    asyncio.run(test())


async def _last(engine: AsyncLLM, prompt: list[int], params: SamplingParams = GREEDY) -> list[int]:
    tokens: list[int] = []
    async for output in engine.generate(prompt, params):
        tokens = output.outputs[0].token_ids
    return tokens


def test_a_thinking_budget(llm: LLM) -> None:
    """The demo tokenizer's template shows <think>, so the model counts as one that thinks."""
    tokenizer = llm.get_tokenizer()
    [begin], [end] = (tokenizer.encode(text, add_special_tokens=False) for text in ("<think>", "</think>"))
    free = SamplingParams(temperature=1.0, seed=3, n=2, max_tokens=12, ignore_eos=True, logit_bias={begin: -100, end: -100})
    prompt = [5, begin, 6]
    [plain] = llm.generate(prompt, free, use_tqdm=False)
    [limited, unlimited] = llm.generate(
        [prompt, [5, 6]], [replace(free, thinking_token_budget=4), replace(free, thinking_token_budget=0)], use_tqdm=False
    )
    for alone, cut in zip(plain.outputs, limited.outputs):
        assert cut.token_ids[:4] == alone.token_ids[:4] and cut.token_ids[4] == end and cut.token_ids.count(end) == 1
    assert all(end not in each.token_ids for each in unlimited.outputs), "what does not think is not ended"
