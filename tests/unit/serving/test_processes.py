"""A real zygote and real model processes: how they are asked, how they end, and that nothing of them stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import pytest_asyncio

from airflow_mlops.serving import protos
from airflow_mlops.serving.embedded import model_process
from airflow_mlops.serving.embedded.frames import Kind
from airflow_mlops.serving.embedded.model_process import Crashed, End, ModelProcess, Result
from airflow_mlops.serving.embedded.orders import BatchingParameters, Order
from airflow_mlops.serving.embedded.processes import Zygote
from airflow_mlops.serving.embedded.refusal import Refusal
from airflow_mlops.serving.embedded.server import Starter
from airflow_mlops.serving.embedded.versions import Version
from airflow_mlops.serving.tensors import to_array, to_proto
from tests.serving_models import ROW

pytestmark = pytest.mark.asyncio(loop_scope="module")
CONFIG = protos.config_pb2.ConfigProto(device_count={"GPU": 0}, inter_op_parallelism_threads=-1).SerializeToString()
SECONDS = 20.0  # for what takes a few milliseconds on a machine with nothing else to do
MEGABYTE = 1 << 20


class Home:
    """One zygote for the tests of this module, and the models for its processes."""

    def __init__(self, models: Path) -> None:
        self.models = models
        self.zygote = Zygote()

    @property
    def process(self) -> psutil.Process:
        assert self.zygote._process is not None
        return psutil.Process(self.zygote._process.pid)

    def order(self, model: str, **options: Any) -> Order:
        return Order(model, 1, str(self.models / model), config=CONFIG, **options)

    async def spawn(self, model: str, **options: Any) -> ModelProcess:
        """Return the process of a model once it can answer."""
        process = await self.zygote.spawn(self.order(model, **options))
        await asyncio.wait_for(process.ready, SECONDS)
        await until(lambda: process.pid > 0)
        return process


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def home(serving_models: Path) -> AsyncIterator[Home]:
    home = Home(serving_models)
    home.zygote.start()
    home.zygote.listen()
    yield home
    running = [home.process, *home.process.children(recursive=True)]
    home.zygote.stop()
    assert psutil.wait_procs(running, SECONDS)[1] == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trouble(home: Home) -> ModelProcess:
    """A process of the model ``trouble``, which no test ends."""
    return await home.spawn("trouble")


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not check():
            await asyncio.sleep(0.01)


def request(*values: float, signature: str = "") -> bytes:
    message = protos.predict_pb2.PredictRequest()
    message.model_spec.signature_name = signature
    message.inputs["x"].CopyFrom(to_proto(np.array(values, np.float32)))
    return bytes(message.SerializeToString())


async def ask(process: ModelProcess, *values: float, signature: str = "") -> Result:
    return await asyncio.wait_for(process.ask(Kind.PREDICT, request(*values, signature=signature), 0.0), SECONDS)


async def answer(process: ModelProcess, *values: float, signature: str = "", output: str = "y") -> list[float]:
    response = protos.predict_pb2.PredictResponse.FromString((await ask(process, *values, signature=signature)).payload)
    return list(to_array(response.outputs[output]).tolist())


async def refusal(asking: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(Refusal) as refused:
        await asking
    return refused.value.code, str(refused.value)


async def ended(process: ModelProcess) -> str:
    """Return how a process ended, when nothing of it is there any more."""
    end = await asyncio.wait_for(asyncio.shield(process.gone), SECONDS)
    await until(lambda: not psutil.pid_exists(process.pid))
    return end.reason


def private_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


class TestAsking:
    async def test_a_new_process_tells_its_signatures_and_answers(self, home: Home, trouble: ModelProcess) -> None:
        signatures = protos.get_model_metadata_pb2.SignatureDefMap.FromString(trouble.ready.result()).signature_def
        assert set(signatures) >= {"serving_default", "crash", "hang", "slow"}
        assert signatures["slow"].inputs["x"].dtype == protos.types_pb2.DT_FLOAT
        assert await answer(trouble, 1.0, 2.0) == [1.0, 2.0]
        assert psutil.Process(trouble.pid).ppid() == home.process.pid
        assert not trouble.gone.done()

    async def test_many_at_once_get_their_own_answers(self, trouble: ModelProcess) -> None:
        answers = await asyncio.gather(*(answer(trouble, float(number)) for number in range(200)))
        assert answers == [[float(number)] for number in range(200)]

    async def test_a_large_question_and_its_answer_arrive_whole(self, trouble: ModelProcess) -> None:
        """16 MB each way, beside small ones."""
        values = np.arange(1 << 22, dtype=np.float32)
        message = protos.predict_pb2.PredictRequest()
        message.inputs["x"].CopyFrom(to_proto(values))
        large = trouble.ask(Kind.PREDICT, message.SerializeToString(), 0.0)
        found, *others = await asyncio.wait_for(asyncio.gather(large, *(answer(trouble, float(number)) for number in range(10))), SECONDS)
        assert np.array_equal(to_array(protos.predict_pb2.PredictResponse.FromString(found.payload).outputs["y"]), values)
        assert others == [[float(number)] for number in range(10)]

    async def test_the_time_of_the_run_comes_with_the_answer(self, trouble: ModelProcess) -> None:
        assert (await ask(trouble, 0.1, signature="slow")).run_micros >= 90_000

    async def test_what_the_model_refuses_is_refused_with_its_code(self, trouble: ModelProcess) -> None:
        code, words = await refusal(ask(trouble, 1.0, signature="nothing"))
        assert (code, words) == (grpc.StatusCode.FAILED_PRECONDITION, 'Serving signature key "nothing" not found.')

    async def test_who_went_away_does_not_disturb_the_others(self, trouble: ModelProcess) -> None:
        gone = asyncio.create_task(ask(trouble, 0.2, signature="slow"))
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert trouble._waiting == {}
        assert await answer(trouble, 3.0) == [3.0]
        await asyncio.sleep(0.3)  # the answer for nobody arrives
        assert await answer(trouble, 4.0) == [4.0]

    async def test_a_question_past_its_deadline_is_not_run(self, trouble: ModelProcess) -> None:
        past = asyncio.get_running_loop().time() - 1.0
        code, _ = await refusal(trouble.ask(Kind.PREDICT, request(1.0), past))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED

    async def test_requests_that_come_together_are_run_together_where_that_is_ordered(self, home: Home) -> None:
        process = await home.spawn("many", batching=BatchingParameters(max_batch_size=4, batch_timeout_micros=2_000_000, num_batch_threads=1))
        found = await asyncio.gather(*(answer(process, 1.0, signature="count", output="calls") for _ in range(4)))
        assert found == [[1]] * 4
        process.retire()
        await ended(process)

    async def test_more_questions_than_the_queue_holds_are_turned_away(self, home: Home) -> None:
        process = await home.spawn("trouble", batching=BatchingParameters(max_batch_size=1, max_enqueued_batches=2, num_batch_threads=1))
        first = [asyncio.create_task(ask(process, 0.2, signature="slow")) for _ in range(2)]
        await asyncio.sleep(0)
        code, words = await refusal(ask(process, 1.0))
        assert (code, words) == (grpc.StatusCode.UNAVAILABLE, "The queue of model trouble version 1 is full: 2 requests wait")
        await asyncio.gather(*first)
        assert await answer(process, 1.0) == [1.0]
        process.retire()
        await ended(process)


@pytest.mark.parametrize("batching", [None, BatchingParameters(num_batch_threads=1)], ids=["alone", "batched"])
class TestNobodyWaits:
    """The process is stopped meanwhile, so that what it was asked waits in its socket; the model counts its runs."""

    async def test_a_question_that_was_cancelled_while_it_waited_is_not_run(self, home: Home, batching: BatchingParameters | None) -> None:
        process = await home.spawn("many", batching=batching)
        os.kill(process.pid, signal.SIGSTOP)
        asking = [asyncio.create_task(answer(process, float(number), signature="count", output="calls")) for number in range(50)]
        await asyncio.sleep(0.1)
        for one in asking[:49]:
            one.cancel()
        await asyncio.gather(*asking[:49], return_exceptions=True)
        os.kill(process.pid, signal.SIGCONT)
        assert await asking[49] == [1]
        process.retire()
        await ended(process)

    async def test_a_question_whose_deadline_passed_while_it_waited_is_not_run(self, home: Home, batching: BatchingParameters | None) -> None:
        process = await home.spawn("many", batching=batching)
        os.kill(process.pid, signal.SIGSTOP)
        until = asyncio.get_running_loop().time() + 0.2
        late = [asyncio.create_task(process.ask(Kind.PREDICT, request(1.0, signature="count"), until)) for _ in range(5)]
        await asyncio.sleep(0.3)
        os.kill(process.pid, signal.SIGCONT)
        assert [code for code, _ in [await refusal(one) for one in late]] == [grpc.StatusCode.DEADLINE_EXCEEDED] * 5
        assert await answer(process, 1.0, signature="count", output="calls") == [1]
        process.retire()
        await ended(process)

    async def test_cancelled_runs_make_room_for_others_at_once(self, home: Home, batching: BatchingParameters | None) -> None:
        """Also large ones, which the process has not read whole when they are cancelled."""
        process = await home.spawn("trouble", num_threads=1, batching=batching)
        first = asyncio.create_task(answer(process, 0.5, signature="slow"))
        await asyncio.sleep(0.1)
        large = request(60.0, *np.zeros(1 << 18), signature="slow")
        waiting = [asyncio.create_task(process.ask(Kind.PREDICT, large, 0.0)) for _ in range(5)]
        await asyncio.sleep(0.1)
        for one in waiting:
            one.cancel()
        assert await answer(process, 1.0) == [1.0]
        assert await first == [pytest.approx(0.5)]
        process.retire()
        await ended(process)


class TestEnding:
    async def test_a_retired_process_ends_after_its_last_answer_and_not_before(self, home: Home) -> None:
        process = await home.spawn("trouble")
        asked = [asyncio.create_task(answer(process, 0.3, signature="slow")) for _ in range(2)]
        await asyncio.sleep(0.05)
        process.retire()
        assert await asyncio.gather(*asked) == [[pytest.approx(0.3)]] * 2
        assert await ended(process) == "ended"

    async def test_a_retired_process_that_nobody_waits_for_ends_at_once(self, home: Home) -> None:
        process = await home.spawn("linear1")
        process.retire()
        assert await ended(process) == "ended"
        process.retire()  # once more changes nothing
        code, words = await refusal(ask(process, 1.0))
        assert (code, words) == (grpc.StatusCode.UNAVAILABLE, "The process of model linear1 version 1 has ended; it is being restarted")

    @pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL], ids=lambda number: number.name)
    async def test_one_that_dies_says_by_which_signal_and_so_do_the_answers_that_are_waited_for(self, home: Home, number: signal.Signals) -> None:
        process = await home.spawn("trouble")
        waiting = asyncio.create_task(ask(process, 5.0, signature="slow"))
        await asyncio.sleep(0.05)
        os.kill(process.pid, number)
        code, words = await refusal(waiting)
        assert (code, words) == (grpc.StatusCode.UNAVAILABLE, f"The process of model trouble version 1 was killed by {number.name}")
        assert await ended(process) == f"was killed by {number.name}"

    async def test_a_request_that_crashes_tensorflow_ends_its_process_alone(self, home: Home, trouble: ModelProcess) -> None:
        process = await home.spawn("trouble")
        _, words = await refusal(ask(process, 1.0, signature="crash"))
        assert words.endswith("was killed by SIGABRT")
        assert await ended(process) == "was killed by SIGABRT"
        assert await answer(trouble, 1.0) == [1.0]

    async def test_of_several_requests_only_the_one_that_crashed_is_accused(self, home: Home) -> None:
        process = await home.spawn("trouble", num_threads=4)
        others = [asyncio.create_task(ask(process, 5.0, signature="slow")) for _ in range(3)]
        await asyncio.sleep(0.2)
        with pytest.raises(Crashed, match="was killed by SIGABRT"):
            await ask(process, 1.0, signature="crash")
        for other in others:
            with pytest.raises(Refusal) as refused:
                await other
            assert type(refused.value) is Refusal and refused.value.code is grpc.StatusCode.UNAVAILABLE
        assert await asyncio.shield(process.gone) == End("was killed by SIGABRT", by_request=True)

    @pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL], ids=lambda number: number.name)
    async def test_a_signal_from_outside_accuses_no_waiting_request(self, home: Home, number: signal.Signals) -> None:
        process = await home.spawn("trouble", num_threads=1)
        os.kill(process.pid, number)
        assert await asyncio.shield(process.gone) == End(f"was killed by {number.name}")

    async def test_a_run_that_takes_too_long_ends_the_process_with_that_reason(self, home: Home) -> None:
        process = await home.spawn("trouble", run_timeout_seconds=0.4)
        assert await answer(process, 0.1, signature="slow") == [pytest.approx(0.1)]
        _, words = await refusal(ask(process, 1.0, signature="hang"))
        assert words.endswith("was ended because a run took more than 0.4 s")
        assert (await ended(process)).startswith("was ended because")
        assert process.gone.result().by_request

    async def test_only_the_run_that_took_too_long_is_accused(self, home: Home) -> None:
        process = await home.spawn("trouble", run_timeout_seconds=0.6, num_threads=2)
        hanging = asyncio.create_task(ask(process, 1.0, signature="hang"))
        await asyncio.sleep(0.3)
        short = asyncio.create_task(ask(process, 5.0, signature="slow"))
        with pytest.raises(Crashed):
            await hanging
        with pytest.raises(Refusal) as refused:
            await short
        assert type(refused.value) is Refusal
        await ended(process)

    async def test_a_model_that_cannot_be_loaded_is_refused_with_the_reason_and_leaves_no_process(self, home: Home) -> None:
        process = await home.zygote.spawn(home.order("no_pb"))
        code, words = await refusal(asyncio.wait_for(process.ready, SECONDS))
        assert (code, "Could not find SavedModel .pb" in words) == (grpc.StatusCode.NOT_FOUND, True)
        assert await ended(process) == "ended with status 1"

    async def test_a_model_that_crashes_while_it_is_loaded_is_refused_with_the_signal(self, home: Home) -> None:
        process = await home.zygote.spawn(home.order("crash_at_load"))
        code, words = await refusal(asyncio.wait_for(process.ready, SECONDS))
        assert (code, words) == (grpc.StatusCode.UNAVAILABLE, "The process of model crash_at_load version 1 was killed by SIGABRT")

    async def test_a_load_that_hangs_is_killed_when_its_time_is_over(self, home: Home) -> None:
        starter = Starter(home.zygote, home.order(""), 0.5)
        entry: Version[ModelProcess] = Version("hang_at_load", 1, home.models / "hang_at_load")
        before = {child.pid for child in home.process.children()}
        code, words = await refusal(starter.start(entry))
        assert (code, words) == (grpc.StatusCode.DEADLINE_EXCEEDED, "It was not loaded within 0.5 s, and was ended")
        await until(lambda: {child.pid for child in home.process.children()} <= before)

    async def test_a_load_that_nobody_waits_for_any_more_ends(self, home: Home) -> None:
        """The server stops, or the version is no longer wanted."""
        starter = Starter(home.zygote, home.order(""), SECONDS)
        entry: Version[ModelProcess] = Version("hang_at_load", 1, home.models / "hang_at_load")
        before = {child.pid for child in home.process.children()}
        starting = asyncio.create_task(starter.start(entry))
        await until(lambda: {child.pid for child in home.process.children()} > before)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await until(lambda: {child.pid for child in home.process.children()} <= before)


@pytest_asyncio.fixture(scope="class", loop_scope="module")
async def strict(serving_models: Path) -> AsyncIterator[Home]:
    """A zygote that waits 3 s for a sign of life."""
    home = Home(serving_models)
    home.zygote = Zygote(still_looks=3)
    home.zygote.start()
    home.zygote.listen()
    yield home
    home.zygote.stop()


class TestStandingStill:
    async def test_a_stopped_process_that_is_waited_for_is_killed_and_those_who_wait_are_told(self, strict: Home) -> None:
        process, other = await strict.spawn("trouble"), await strict.spawn("trouble")
        os.kill(process.pid, signal.SIGSTOP)
        waiting = [asyncio.create_task(ask(process, 1.0)) for _ in range(3)]
        reason = "gave no sign of life for 3 s and was killed"
        for one in waiting:
            assert await refusal(one) == (grpc.StatusCode.UNAVAILABLE, f"The process of model trouble version 1 {reason}")
        assert await ended(process) == reason
        assert await answer(other, 1.0) == [1.0]
        other.retire()
        await ended(other)

    async def test_a_long_run_in_every_thread_is_no_standing_still(self, strict: Home) -> None:
        process = await strict.spawn("trouble", num_threads=2)
        asking = [answer(process, 5.5, signature="slow") for _ in range(2)]
        assert await asyncio.gather(*asking) == [[pytest.approx(5.5)]] * 2
        process.retire()
        await ended(process)

    async def test_a_stopped_process_that_nobody_waits_for_may_go_on(self, strict: Home) -> None:
        process = await strict.spawn("trouble")
        os.kill(process.pid, signal.SIGSTOP)
        await asyncio.sleep(5.5)
        os.kill(process.pid, signal.SIGCONT)
        assert await answer(process, 1.0) == [1.0]
        process.retire()
        await ended(process)

    async def test_a_stopped_process_that_is_retired_ends_all_the_same(self, home: Home) -> None:
        """One of which nobody has asked anything, and one that was sent more than its socket holds, by somebody who went away."""
        idle, asked = await home.spawn("trouble"), await home.spawn("trouble")
        for process in (idle, asked):
            os.kill(process.pid, signal.SIGSTOP)
        asking = asyncio.create_task(asked.ask(Kind.PREDICT, b"x" * (16 << 20), 0.0))
        await asyncio.sleep(0.1)
        asking.cancel()
        for process in (idle, asked):
            process.retire()
        await asyncio.gather(ended(idle), ended(asked))

    async def test_a_process_that_ended_leaves_nothing_open_in_the_front(self, home: Home) -> None:
        before = psutil.Process().num_fds()
        for _ in range(3):
            process = await home.spawn("linear1")
            process.retire()
            await ended(process)
        assert psutil.Process().num_fds() == before


class TestOrders:
    """What a process is told reaches the model."""

    @pytest.mark.parametrize(
        ("model", "options", "words"),
        [
            ("cold", {}, "Warm-up request 0 failed"),
            ("warm_garbage", {}, "tf_serving_warmup_requests"),
            ("linear1", {"libraries": ("/nothing.so",)}, "/nothing.so"),
            ("linear1", {"tags": ("train",)}, "{ train }"),
            ("linear1", {"config": b"\xff\xff"}, "Unparseable"),
        ],
    )
    async def test_what_cannot_be_done_is_the_end_of_the_load(self, home: Home, model: str, options: dict[str, Any], words: str) -> None:
        process = await home.zygote.spawn(home.order(model)._replace(**options))
        _, reason = await refusal(asyncio.wait_for(process.ready, SECONDS))
        assert words in reason
        assert await ended(process) == "ended with status 1"

    async def test_warm_up_can_be_left_out_and_answers_be_raw_bytes_of_the_version_that_was_ordered(self, home: Home) -> None:
        process = await home.zygote.spawn(home.order("cold")._replace(name="other", version=7, warm_up=False, as_content=True))
        await asyncio.wait_for(process.ready, SECONDS)
        message = protos.predict_pb2.PredictRequest()
        message.inputs["x"].CopyFrom(to_proto(np.array([ROW], np.float32)))
        found = await process.ask(Kind.PREDICT, message.SerializeToString(), 0.0)
        response = protos.predict_pb2.PredictResponse.FromString(found.payload)
        assert (response.model_spec.name, response.model_spec.version.value) == ("other", 7)
        assert np.frombuffer(response.outputs["output_0"].tensor_content, np.float32).tolist() == [4.0, 5.0]
        process.retire()
        await ended(process)

    async def test_warm_up_requests_are_answered_before_the_first_client(self, home: Home) -> None:
        """Three of them, which the model counts."""
        process = await home.spawn("warmed")
        assert await answer(process, 1.0, signature="count", output="calls") == [4]
        process.retire()
        await ended(process)

    async def test_as_many_requests_run_at_once_as_there_are_threads(self, home: Home) -> None:
        process = await home.spawn("trouble", num_threads=2)
        finished: list[str] = []

        async def noted(name: str, *asked: float, signature: str = "") -> None:
            await answer(process, *asked, signature=signature)
            finished.append(name)

        asking = [noted("short", 0.3, signature="slow"), noted("long", 0.9, signature="slow"), noted("quick", 1.0)]
        await asyncio.gather(*asking)
        assert finished == ["short", "quick", "long"]
        process.retire()
        await ended(process)


class TestForking:
    async def test_a_small_models_process_shares_most_of_its_memory(self, home: Home) -> None:
        process = await home.spawn("linear1")
        message = protos.predict_pb2.PredictRequest()
        message.inputs["x"].CopyFrom(to_proto(np.ones((1, 4), np.float32)))
        await process.ask(Kind.PREDICT, message.SerializeToString(), 0.0)
        assert private_bytes(process.pid) < 120 * MEGABYTE
        process.retire()
        await ended(process)

    async def test_the_zygote_has_one_thread_even_after_forks(self, home: Home, trouble: ModelProcess) -> None:
        assert home.process.num_threads() == 1

    async def test_forks_leave_nothing_open_and_nobody_unburied(self, home: Home) -> None:
        before = home.process.num_fds()
        processes = await asyncio.gather(*(home.spawn("linear1") for _ in range(4)))
        for process in processes:
            process.retire()
        for process in processes:
            assert await ended(process) == "ended"
        assert home.process.num_fds() == before
        assert [child for child in home.process.children() if child.status() == psutil.STATUS_ZOMBIE] == []

    async def test_threads_that_serve_have_the_priority_that_loading_has_not(self, trouble: ModelProcess) -> None:
        stats = [path.read_text().rsplit(")", 1)[1].split() for path in Path(f"/proc/{trouble.pid}/task").glob("*/stat")]
        assert len(stats) > 4
        assert {int(fields[16]) for fields in stats} == {0}

    async def test_if_memory_runs_out_a_model_goes_before_the_front(self, trouble: ModelProcess) -> None:
        ours, theirs = (int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in ("self", trouble.pid))
        assert theirs == 500 > ours

    async def test_an_interrupt_from_the_terminal_is_the_fronts_business(self, home: Home, trouble: ModelProcess) -> None:
        for pid in (home.process.pid, trouble.pid):
            os.kill(pid, signal.SIGINT)
        await asyncio.sleep(0.1)
        assert await answer(trouble, 1.0) == [1.0]
        process = await home.spawn("linear1")
        process.retire()
        await ended(process)


class TestALostZygote:
    async def test_models_answer_on_and_the_next_spawn_starts_a_new_one(self, home: Home) -> None:
        process, other = await home.spawn("trouble"), await home.spawn("trouble")
        old = home.process
        waiting = asyncio.create_task(answer(process, 0.3, signature="slow"))
        await asyncio.sleep(0.05)
        old.kill()
        await until(lambda: home.zygote._control is None)
        assert await waiting == [pytest.approx(0.3)]
        assert await answer(process, 1.0) == [1.0]
        new = await home.spawn("linear1")
        assert home.process.pid != old.pid and psutil.Process(new.pid).ppid() == home.process.pid
        assert await answer(process, 2.0) == [2.0]
        for one in (process, new):
            one.retire()
        home.zygote.kill(other)  # whom the new one does not know: its socket is closed, and that must do
        assert await asyncio.gather(*map(ended, (process, new, other))) == ["ended"] * 3

    async def test_a_spawn_before_that_is_known_succeeds_or_is_worth_another_try(self, home: Home) -> None:
        home.process.kill()
        home.process.wait()
        with contextlib.suppress(Refusal):
            process = await home.zygote.spawn(home.order("linear1"))
            with pytest.raises(Refusal) as refused:
                await asyncio.wait_for(process.ready, SECONDS)
            assert refused.value.code is grpc.StatusCode.UNAVAILABLE
        await until(lambda: home.zygote._control is None)
        process = await home.spawn("linear1")
        process.retire()
        await ended(process)


FRONT = """
import asyncio, json, sys
from airflow_mlops.serving.embedded import model_process
from airflow_mlops.serving.embedded.frames import Kind
from airflow_mlops.serving.embedded.orders import Order
from airflow_mlops.serving.embedded.processes import Zygote

async def main():
    zygote = Zygote()
    zygote.start()
    zygote.listen()
    processes = [await zygote.spawn(Order(name, 1, f"{sys.argv[1]}/{name}")) for name in ("linear1", "trouble", "hang_at_load")]
    for process in processes[:2]:
        await process.ready
    hanging = [asyncio.create_task(processes[1].ask(Kind.REST_PREDICT, b'{"signature_name": "hang", "instances": [1]}', 0.0)) for _ in range(8)]
    while not all(process.pid for process in processes):
        await asyncio.sleep(0.01)
    print(json.dumps([zygote._process.pid, *(process.pid for process in processes)]), flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


async def test_a_front_that_is_killed_leaves_neither_zygote_nor_models(home: Home) -> None:
    """One of which waits, one runs what never ends in every thread, and one never ends loading."""
    root = Path(__file__).parents[3]
    front = subprocess.Popen([sys.executable, "-c", FRONT, str(home.models)], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert front.stdout is not None
        pids = [int(pid) for pid in (await asyncio.to_thread(front.stdout.readline)).strip("[]\n ").split(",")]
        running = [psutil.Process(pid) for pid in pids]
        assert len(running) == 4 and all(process.is_running() for process in running)
        await asyncio.sleep(0.2)  # the runs begin
    finally:
        front.kill()
        front.communicate()
    gone, alive = await asyncio.to_thread(psutil.wait_procs, running, 5.0)
    for process in alive:
        process.kill()
    assert (len(gone), alive) == (4, [])


class TestLargeRequests:
    """They go their own way to the process, one at a time."""

    @staticmethod
    def large(value: float = 0.0, signature: str = "") -> bytes:
        return request(value, *np.zeros(1 << 19), signature=signature)

    async def test_small_ones_are_answered_while_a_large_one_is_run_or_waits(self, home: Home) -> None:
        process = await home.spawn("trouble", num_threads=1)
        waiting = [asyncio.create_task(process.ask(Kind.PREDICT, self.large(1.0, "slow"), 0.0)) for _ in range(2)]
        for number in range(20):
            assert await answer(process, float(number)) == [float(number)]
        assert not any(one.done() for one in waiting)
        await asyncio.gather(*waiting)
        process.retire()
        assert await ended(process) == "ended"

    async def test_a_process_that_is_retired_answers_those_that_wait_first(self, home: Home) -> None:
        process = await home.spawn("trouble")
        waiting = [asyncio.create_task(process.ask(Kind.PREDICT, self.large(0.2, "slow"), 0.0)) for _ in range(2)]
        await asyncio.sleep(0.05)
        process.retire()
        assert [bool(one.payload) for one in await asyncio.gather(*waiting)] == [True, True]
        assert await ended(process) == "ended"

    async def test_more_of_them_than_memory_is_there_for_are_turned_away_with_a_sentence(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(model_process, "_MAX_LARGE", 5 << 20)
        process = await home.spawn("trouble")
        waiting = [asyncio.create_task(process.ask(Kind.PREDICT, self.large(0.3, "slow"), 0.0)) for _ in range(2)]
        await asyncio.sleep(0.05)
        code, words = await refusal(process.ask(Kind.PREDICT, self.large(), 0.0))
        assert (code, words) == (
            grpc.StatusCode.UNAVAILABLE,
            "model trouble version 1 has 4 MB of large requests to answer; try again later, or send smaller ones",
        )
        assert await answer(process, 1.0) == [1.0]
        await asyncio.gather(*waiting)
        process.retire()
        await ended(process)

    async def test_one_that_ends_the_process_is_accused_and_the_next_gets_an_error(self, home: Home) -> None:
        process = await home.spawn("trouble")
        crash, other = (asyncio.create_task(process.ask(Kind.PREDICT, self.large(1.0, signature), 0.0)) for signature in ("crash", ""))
        with pytest.raises(Crashed):
            await crash
        code, words = await refusal(other)
        assert (code, words) == (grpc.StatusCode.UNAVAILABLE, "The process of model trouble version 1 has ended; it is being restarted")
        await ended(process)

    async def test_one_whose_client_goes_away_makes_room(self, home: Home) -> None:
        process = await home.spawn("trouble")
        first = asyncio.create_task(process.ask(Kind.PREDICT, self.large(0.3, "slow"), 0.0))
        second = asyncio.create_task(process.ask(Kind.PREDICT, self.large(0.3, "slow"), 0.0))
        await asyncio.sleep(0.05)
        for one in (second, first):
            one.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert process.lane.num_bytes == 0
        assert (await process.ask(Kind.PREDICT, self.large(), 0.0)).payload
        process.retire()
        await ended(process)
