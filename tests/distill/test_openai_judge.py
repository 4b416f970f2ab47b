"""The OpenAI-compatible judge against a real server that misbehaves."""

import contextlib
import email.utils
import socket
import threading
import time

import pytest

from efficient_empathy.distill.endpoint import shown_url
from efficient_empathy.distill.judges import NoAnswerError, Usage, open_judge
from efficient_empathy.distill.options import JudgeOptions
from efficient_empathy.distill.retries import backoff, retry_after
from efficient_empathy.distill.rubric import Rubric
from efficient_empathy.errors import EmpathyError

RUBRIC = Rubric.load()
CANARY = "sk-canary-0123456789abcdef"


@pytest.fixture
def ask(judge_server, example, monkeypatch):
    """Asks one question of the server."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)

    def call(**options):
        judge = open_judge(JudgeOptions("openai:m", **{"base_url": judge_server.url, "attempts": 3, **options}))
        try:
            return judge.ask(example, RUBRIC)
        finally:
            judge.close()

    return call


def test_one_structured_call_for_all_dimensions(ask, judge_server):
    answer = ask()
    assert (answer.scores, answer.reason) == ({"sensibility": 7, "rationality": 3}, None)
    assert answer.usage == Usage(100, 10, 0)
    (request,) = judge_server.requests
    assert request["temperature"] == 0
    assert request["response_format"]["json_schema"] == {
        "name": "verdict",
        "strict": True,
        "schema": RUBRIC.json_schema(),
    }


def test_a_query_of_the_address_goes_with_each_request_and_is_told_to_nobody(ask, judge_server, reply):
    url = f"{judge_server.url}/deployments/d?api-version=2024-10-21&key={CANARY}"
    assert ask(base_url=url).scores is not None
    assert judge_server.paths == [f"/v1/deployments/d/chat/completions?api-version=2024-10-21&key={CANARY}"]
    judge_server.behave = lambda request, times: reply(content=f"you sent {CANARY}")
    assert ask(base_url=url).raw == "you sent [key]"


def test_busy_and_failing_servers_are_asked_again(ask, judge_server, reply):
    script = {1: reply(status=429, headers={"Retry-After": "0.4"}), 2: reply(status=500), 3: reply()}
    judge_server.behave = lambda request, times: script[times]
    started = time.monotonic()
    assert ask().scores is not None
    assert time.monotonic() - started >= 0.4
    assert judge_server.asked.total() == 3


def test_gives_up_after_the_last_attempt_and_says_why(ask, judge_server, reply):
    judge_server.behave = lambda request, times: reply(status=503, message="overloaded", headers={"Retry-After": "0"})
    with pytest.raises(NoAnswerError, match=r"http-503: .*overloaded"):
        ask()
    assert judge_server.asked.total() == 3


@pytest.mark.parametrize(
    ("status", "lost"),
    [(502, 2), (503, 2), (504, 2), (500, 0), (429, 0)],
)
def test_attempts_that_may_be_billed_are_told_of(judge_server, example, reply, status, lost):
    told = []
    retried = reply(status=status, headers={"Retry-After": "0"})
    judge_server.behave = lambda request, times: retried if times < 3 else reply()
    judge = open_judge(JudgeOptions("openai:m", base_url=judge_server.url, attempts=3))
    assert judge.ask(example, RUBRIC, lambda: told.append(1) or True).scores is not None
    judge.close()
    assert len(told) == lost


def test_a_lost_connection_may_be_billed_and_one_that_never_was_may_not(judge_server, example, reply):
    told = []
    # The server reads the question, and what it sends is no HTTP.
    judge_server.behave = lambda request, times: (
        reply(body=b"", headers={"Content-Length": "1"}) if times == 1 else reply()
    )
    judge = open_judge(JudgeOptions("openai:m", base_url=judge_server.url, attempts=3))
    assert judge.ask(example, RUBRIC, lambda: told.append(1) or True).scores is not None
    judge.close()
    assert told == [1]
    judge = open_judge(JudgeOptions("openai:m", base_url="http://127.0.0.1:9/v1", attempts=2))
    with pytest.raises(EmpathyError, match="cannot reach the judge"):
        judge.ask(example, RUBRIC, lambda: told.append(2) or True)
    judge.close()
    assert told == [1]


def test_what_may_be_billed_is_sent_again_only_while_it_is_allowed(judge_server, example, reply):
    judge_server.behave = lambda request, times: reply(status=503, headers={"Retry-After": "0"})
    judge = open_judge(JudgeOptions("openai:m", base_url=judge_server.url, attempts=6))
    answers = iter([True, False])
    with pytest.raises(NoAnswerError, match="http-503"):
        judge.ask(example, RUBRIC, lambda: next(answers))
    judge.close()
    assert judge_server.asked.total() == 2


def test_does_not_wait_for_hours(ask, judge_server, reply):
    judge_server.behave = lambda request, times: reply(status=429, headers={"Retry-After": "86400"})
    with pytest.raises(NoAnswerError, match="asked-to-wait"):
        ask()
    assert judge_server.asked.total() == 1


def test_slow_answers_time_out(ask, judge_server, reply):
    def slow(request, times):
        time.sleep(0.5)
        return reply()

    judge_server.behave = slow
    with pytest.raises(NoAnswerError, match="timeout"):
        ask(timeout=0.1, attempts=1)


def test_a_server_that_is_never_connected_to_bills_nothing(example):
    with socket.socket() as full, contextlib.ExitStack() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # its queue is full then, and Linux drops what asks for a connection
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        judge = open_judge(JudgeOptions("openai:m", base_url=url, timeout=0.2, attempts=2))
        lost = []
        with pytest.raises(EmpathyError, match=f"cannot reach the judge at {url}"):
            judge.ask(example, RUBRIC, lambda: lost.append(1) or True)
        judge.close()
    assert lost == []


def test_stopping_ends_the_wait(judge_server, example, reply):
    judge_server.behave = lambda request, times: reply(status=429, headers={"Retry-After": "60"})
    judge = open_judge(JudgeOptions("openai:m", base_url=judge_server.url))
    threading.Timer(0.2, judge.stop).start()
    started = time.monotonic()
    with pytest.raises(NoAnswerError, match="stopped"):
        judge.ask(example, RUBRIC)
    judge.close()
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(("status", "message"), [(401, "refused the key"), (404, "does not know")])
def test_what_no_repetition_mends_stops_at_once(ask, judge_server, reply, status, message):
    judge_server.behave = lambda request, times: reply(status=status)
    with pytest.raises(EmpathyError, match=message):
        ask()
    assert judge_server.asked.total() == 1


def test_an_account_without_credit_stops_at_once(ask, judge_server, reply):
    body = b'{"error": {"message": "quota", "code": "insufficient_quota"}}'
    judge_server.behave = lambda request, times: reply(status=429, body=body)
    with pytest.raises(EmpathyError, match="no credit"):
        ask()
    assert judge_server.asked.total() == 1


def test_a_server_that_is_not_there(ask):
    with pytest.raises(EmpathyError, match=r"cannot reach the judge at http://127\.0\.0\.1:9/v1"):
        ask(base_url="http://127.0.0.1:9/v1", attempts=2)


def test_falls_back_from_schema_to_object_to_text_and_remembers(judge_server, examples, reply):
    def plain(request, times):
        form = request.get("response_format")
        return reply(status=400, message=f"response_format {form['type']} is not supported") if form else reply()

    judge_server.behave = plain
    judge = open_judge(JudgeOptions("openai:m", base_url=judge_server.url))
    answers = [judge.ask(example, RUBRIC) for example in examples[:3]]
    judge.close()
    assert [answer.form for answer in answers] == ["text"] * 3
    # Three tries for the first example, one for each of the others.
    assert judge_server.asked.total() == 5


def test_models_that_think_get_what_they_accept(ask, judge_server, reply):
    def thinking(request, times):
        if "max_tokens" in request:
            return reply(
                status=400, message="Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            )
        if "temperature" in request:
            return reply(status=400, message="Unsupported value: 'temperature' does not support 0 with this model.")
        return reply()

    judge_server.behave = thinking
    assert ask().form == "json_schema, the server's own temperature"
    assert judge_server.requests[-1]["max_completion_tokens"] == 4096


def test_a_dialogue_that_is_too_long_says_so_and_changes_no_form(ask, judge_server, reply):
    judge_server.behave = lambda request, times: reply(
        status=400, message="maximum context length is 4096 tokens, json"
    )
    with pytest.raises(NoAnswerError, match="too-long"):
        ask()
    assert judge_server.asked.total() == 1


@pytest.mark.parametrize(
    ("changes", "reason", "raw"),
    [
        ({"content": "no idea"}, "no-verdict", "no idea"),
        ({"content": ""}, "empty-answer", ""),
        ({"body": b"{broken"}, "bad-response", "{broken"),
        ({"body": b'{"choices": []}'}, "no-choices", None),
    ],
)
def test_what_cannot_be_read_is_kept_unscored(ask, judge_server, reply, changes, reason, raw):
    judge_server.behave = lambda request, times: reply(**changes)
    answer = ask()
    assert (answer.scores, answer.reason) == (None, reason)
    assert raw is None or answer.raw == raw


def test_a_server_of_ones_own_needs_no_key(ask, judge_server):
    ask()
    assert judge_server.authorizations == ["Bearer no-key"]


def test_openai_itself_needs_one(ask):
    with pytest.raises(EmpathyError, match="environment variable OPENAI_API_KEY"):
        ask(base_url=None)


def test_a_mangled_key_is_refused_without_being_shown(ask, monkeypatch):
    monkeypatch.setenv("MY_KEY", f"{CANARY} {CANARY}")
    with pytest.raises(EmpathyError, match="MY_KEY") as caught:
        ask(api_key_env="MY_KEY")
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("status", [200, 400, 401, 404, 429, 500])
def test_the_key_is_sent_and_shows_up_nowhere(ask, judge_server, reply, monkeypatch, caplog, status):
    caplog.set_level("DEBUG")
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)

    def echo(request, times):
        said = judge_server.authorizations[-1]
        return reply(status=status, message=f"you sent {said}", content=f"you sent {said}")

    judge_server.behave = echo
    try:
        told = repr(ask(attempts=1))
    except (EmpathyError, NoAnswerError) as error:
        told = f"{error!r} {error} {error.__cause__} {vars(error)}"
    assert judge_server.authorizations == [f"Bearer {CANARY}"]
    assert CANARY not in told + caplog.text


def test_retry_after_in_seconds_milliseconds_and_as_a_date():
    now = 1_700_000_000.0
    date = email.utils.formatdate(now + 90, usegmt=True)
    assert retry_after({"retry-after": "7"}, now) == 7
    assert retry_after({"retry-after-ms": "1500", "retry-after": "2"}, now) == 1.5
    assert retry_after({"retry-after": date}, now) == 90
    assert retry_after({"retry-after": email.utils.formatdate(now - 90, usegmt=True)}, now) == 0
    assert retry_after({"retry-after": "soon"}, now) is None
    assert retry_after({}, now) is None


def test_backoff_doubles_to_a_bound_and_is_spread():
    assert [backoff(attempt, 0) for attempt in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff(3, 1) == 1


def test_shown_addresses_hold_no_password_or_query():
    assert shown_url("https://user:secret@host:8443/v1/?key=secret#x") == "https://host:8443/v1"
    assert shown_url("http://[::1]:80/v1") == "http://[::1]:80/v1"


@pytest.mark.parametrize("judge", ["gpt-4o", "openai:", "local:", "other:x", ""])
def test_refuses_an_unknown_kind(judge):
    with pytest.raises(EmpathyError, match="--judge must be"):
        open_judge(JudgeOptions(judge))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("budget", 0),
        ("concurrency", 0),
        ("attempts", 21),
        ("timeout", 0),
        ("max_usd", -1),
        ("base_url", "localhost:80"),
    ],
)
def test_options_out_of_range_are_named(field, value):
    with pytest.raises(EmpathyError, match=f"{field} must"):
        JudgeOptions("openai:m", **{field: value})


def test_a_prompt_too_long_for_vllm_does_not_make_its_model_one_that_thinks(judge_server, examples, reply):
    message = (
        "'max_tokens' or 'max_completion_tokens' is too large: 256. This model's maximum context length is 4096 tokens "
        "and your request has 3900 input tokens"
    )
    judge_server.behave = lambda request, times: (
        reply(status=400, message=message) if judge_server.asked.total() == 1 else reply()
    )
    judge = open_judge(JudgeOptions("openai:m", base_url=judge_server.url))
    with pytest.raises(NoAnswerError, match="too-long"):
        judge.ask(examples[0], RUBRIC)
    assert judge.ask(examples[1], RUBRIC).scores is not None
    assert judge_server.requests[-1]["max_tokens"] == 256
    judge.close()


def test_a_403_is_about_the_question_in_whatever_run_it_comes(judge_server, examples, reply):
    judge_server.behave = lambda request, times: reply(status=403) if judge_server.asked.total() == 1 else reply()
    judge = open_judge(JudgeOptions("openai:m", base_url=judge_server.url))
    with pytest.raises(NoAnswerError, match="http-403"):
        judge.ask(examples[0], RUBRIC)
    assert judge.ask(examples[1], RUBRIC).scores is not None
    judge.close()


def test_a_question_that_timed_out_is_not_sent_again(judge_server, examples, reply):
    judge_server.behave = lambda request, times: (time.sleep(0.5), reply())[1]
    judge = open_judge(JudgeOptions("openai:m", base_url=judge_server.url, timeout=0.1))
    with pytest.raises(NoAnswerError, match="timeout"):
        judge.ask(examples[0], RUBRIC)
    judge.close()
    assert judge_server.asked.total() == 1


def test_a_base_url_without_its_scheme_is_not_repeated():
    with pytest.raises(EmpathyError, match="must start with http") as caught:
        JudgeOptions("openai:m", base_url="user:SECRET@host/v1")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://localhost:80a0/v1", "http://[::1/v1", "http://user:secret@:80/v1", "https://"])
def test_an_address_that_is_none_is_one_sentence_without_it(ask, monkeypatch, url):
    with pytest.raises(EmpathyError, match="--base-url is no web address") as caught:
        ask(base_url=url)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("OPENAI_BASE_URL", "localhost:8000/v1")
    with pytest.raises(EmpathyError, match="variable OPENAI_BASE_URL is no web address"):
        ask(base_url=None)
