"""Language models: answers are data, checked, kept and never run; patients' sentences stay here."""

import json
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import transformers

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.slices import language_model
from mammoclip_jax.evaluation.slices.language_model import LanguageModel, Malformed, ask, parse

ONE = {"name": "surgical clip", "positive": ["There is a clip."], "negative": ["There is no clip."]}
GOOD = json.dumps({"hypotheses": [ONE, ONE | {"name": "implant"}]})


def asked(*answers, name="m", patient_text=True):
    """(a model that gives these answers in turn, the prompts it saw)."""
    seen = []

    def answer(prompt):
        seen.append(prompt)
        return answers[min(len(seen), len(answers)) - 1]

    return LanguageModel(name, answer, patient_text), seen


def test_an_answer_of_the_form_becomes_hypotheses():
    model, seen = asked(f"```json\n{GOOD}\n```")
    found = ask(model, "cancer", "no cancer", ["Right {sentence}."], ["Wrong sentence."])
    assert [one.name for one in found] == ["surgical clip", "implant"] and found[0].source == "language model m"
    assert found[0].positive == ("There is a clip.",) and found[0].negative == ("There is no clip.",)
    assert "- Right {sentence}." in seen[0] and "- Wrong sentence." in seen[0] and '"no cancer"' in seen[0]


@pytest.mark.parametrize(
    "answer, fault",
    [
        ("Sure! Here you are.", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no object"),
        ('{"hypotheses": [], "run": 1}', "no object"),
        ('{"hypotheses": []}', "1 to 10"),
        (json.dumps({"hypotheses": [ONE | {"name": str(k)} for k in range(11)]}), "1 to 10"),
        (json.dumps({"hypotheses": [ONE, ONE | {"name": "Surgical Clip"}]}), "one name"),
        (json.dumps({"hypotheses": [ONE | {"code": "1"}]}), "other keys"),
        (json.dumps({"hypotheses": ["clip"]}), "other keys"),
        (json.dumps({"hypotheses": [ONE | {"name": 3}]}), "a name is no text"),
        (json.dumps({"hypotheses": [ONE | {"positive": "There is a clip."}]}), "positive of 'surgical clip'"),
        (json.dumps({"hypotheses": [ONE | {"negative": []}]}), "negative of 'surgical clip'"),
        (json.dumps({"hypotheses": [ONE | {"negative": ["x" * 201]}]}), "at most 200"),
        (json.dumps({"hypotheses": [ONE | {"negative": ["a\x00b"]}]}), "negative of 'surgical clip'"),
    ],
)
def test_an_answer_of_another_form_is_refused_and_shown(answer, fault):
    with pytest.raises(Malformed, match=fault):
        parse(answer)
    model, seen = asked(answer)
    with pytest.raises(UserError, match=f"(?s){fault}.*Its last answer: ") as error:
        ask(model, "cancer", "cancer", [], [])
    assert answer[:20] in str(error.value).replace("\\\\", "\\").replace("\\x00", "\x00") or "\\" in answer
    assert len(str(error.value)) < 1500 and len(seen) == 2 and "could not be used" in seen[1]


def test_no_answer_is_ever_executed(tmp_path):
    trap = tmp_path / "trap"
    code = f"hypothesis_dict = {{'H1': open({str(trap)!r}, 'w')}}"
    model, _ = asked(code)
    with pytest.raises(UserError, match="hypothesis_dict"):
        ask(model, "cancer", "cancer", [], [])
    inside = json.dumps({"hypotheses": [ONE | {"name": f"__import__('os').mkdir({str(trap)!r})"}]})
    assert parse(inside)[0].name.startswith("__import__")
    assert not trap.exists()


def test_a_second_answer_may_mend_the_first():
    model, seen = asked("no", GOOD)
    assert len(ask(model, "cancer", "cancer", [], [])) == 2 and len(seen) == 2


def test_answers_are_kept_by_prompt_and_model_and_bad_ones_are_not(tmp_path):
    model, seen = asked(GOOD)
    for _ in range(2):
        found = ask(model, "cancer", "cancer", ["a"], ["b"], folder=tmp_path)
    assert len(seen) == 1 and len(found) == 2 and len(list(tmp_path.iterdir())) == 1
    ask(model, "cancer", "cancer", ["other"], ["b"], folder=tmp_path)
    other, seen_other = asked(GOOD, name="n")
    ask(other, "cancer", "cancer", ["a"], ["b"], folder=tmp_path)
    assert len(seen) == 2 and len(seen_other) == 1 and len(list(tmp_path.iterdir())) == 3
    for path in tmp_path.iterdir():
        path.write_text('{"answer": "damaged"')
    ask(model, "cancer", "cancer", ["a"], ["b"], folder=tmp_path)
    assert len(seen) == 3
    bad, seen_bad = asked("no", name="bad")
    for _ in range(2):
        with pytest.raises(UserError):
            ask(bad, "cancer", "cancer", ["a"], ["b"], folder=tmp_path)
    assert len(seen_bad) == 4 and len(list(tmp_path.iterdir())) == 3


def test_a_model_elsewhere_sees_names_of_phrases_and_no_sentence():
    model, seen = asked(GOOD, patient_text=False)
    secret = "Mrs Example has a clip."
    ask(model, "cancer", "cancer", [secret], [secret], phrases=(["surgical clip"], ["no surgical clip"]))
    assert secret not in seen[0] and "- surgical clip" in seen[0] and "- no surgical clip" in seen[0]


@pytest.fixture
def service():
    """(address, what was asked, what is answered: a list of one) of a service on this machine."""
    asked, reply = [], [json.dumps({"choices": [{"message": {"content": GOOD}}]})]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((json.loads(body), self.headers.get("Authorization")))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply[0].encode())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/chat/completions", asked, reply
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_service_behind_http_gets_no_patients_text_unless_it_may(service, monkeypatch):
    address, asked, _ = service
    secret, phrases = "Mrs Example has a clip.", (["surgical clip"], [])
    model = language_model.http(address, "big")
    assert len(ask(model, "cancer", "cancer", [secret], [secret], phrases=phrases)) == 2
    body, key = asked[0]
    assert secret not in json.dumps(body) and "surgical clip" in json.dumps(body) and key is None
    assert body["model"] == "big" and body["temperature"] == 0
    monkeypatch.setenv("A_KEY", "abc")
    told = language_model.http(address, "big", key="A_KEY", patient_text=True)
    ask(told, "cancer", "cancer", [secret], [], phrases=phrases)
    assert secret in json.dumps(asked[1][0]) and asked[1][1] == "Bearer abc"


def test_a_service_that_answers_otherwise_or_not_at_all_is_an_error(service, monkeypatch):
    address, _, reply = service
    for wrong in ("<html>", '{"choices": []}', '{"choices": [{"message": {"content": 3}}]}'):
        reply[0] = wrong
        with pytest.raises(UserError, match="another form than OpenAI's"):
            language_model.http(address, "big").answer("hello")
    with pytest.raises(UserError, match="gave no answer"):
        language_model.http("http://127.0.0.1:9/", "big", seconds=1).answer("hello")
    with pytest.raises(UserError, match="no address"):
        language_model.http("file:///etc/passwd", "big")
    monkeypatch.delenv("A_KEY", raising=False)
    with pytest.raises(UserError, match="A_KEY is not set"):
        language_model.http(address, "big", key="A_KEY")


def test_a_local_model_says_its_likeliest_words_and_nothing_is_downloaded(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    given = []

    class Ids(list):
        shape = (1, 3)

    class Model:
        config = types.SimpleNamespace(model_type="tiny", max_position_embeddings=10)
        eval = lambda self: self

        def generate(self, **options):
            given.append(options)
            return [[1, 2, 3, 4, 5]]

    class Tokenizer:
        chat_template = "x"
        apply_chat_template = staticmethod(lambda messages, **options: f"<{messages[0]['content']}>")
        decode = staticmethod(lambda ids, skip_special_tokens: f"answer {ids}")

        def __call__(self, text, **options):
            given.append(text)
            return {"input_ids": Ids([[1, 2, 3]])}

    def loaded(made):
        def from_pretrained(folder, local_files_only, trust_remote_code):
            assert local_files_only and not trust_remote_code and folder == tmp_path
            return made()

        return types.SimpleNamespace(from_pretrained=from_pretrained)

    assert hasattr(transformers, "AutoModelForCausalLM")
    fake = types.ModuleType("transformers")
    fake.AutoTokenizer, fake.AutoModelForCausalLM = loaded(Tokenizer), loaded(Model)
    utils = types.ModuleType("transformers.utils")
    utils.is_torch_available = lambda: True
    monkeypatch.setitem(sys.modules, "transformers", fake)
    monkeypatch.setitem(sys.modules, "transformers.utils", utils)
    model = language_model.local(tmp_path, tokens=50)
    assert model.patient_text and model.name.startswith("tiny ") and str(tmp_path) not in model.name
    assert model.answer("hello") == "answer [4, 5]" and given[0] == "<hello>"
    assert given[1]["do_sample"] is False and given[1]["max_new_tokens"] == 7  # of 10 positions 3 are taken
    Ids.shape = (1, 10)
    with pytest.raises(UserError, match="10 tokens, the language model takes 10"):
        model.answer("hello")
    utils.is_torch_available = lambda: False
    with pytest.raises(UserError, match="needs torch"):
        language_model.local(tmp_path)
    with pytest.raises(UserError, match="no config.json"):
        language_model.local(tmp_path / "nowhere")


@pytest.mark.parity
def test_a_real_local_model_answers_and_nonsense_is_refused(tmp_path):
    pytest.importorskip("torch")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: k for k, word in enumerate(["[UNK]", "a", "mass", "is", "seen", "the", "{", "}"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]").save_pretrained(tmp_path)
    config = transformers.GPT2Config(vocab_size=8, n_positions=600, n_embd=8, n_layer=1, n_head=1, eos_token_id=7)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = language_model.local(tmp_path, tokens=12)
    first = model.answer("a mass is seen")
    assert first == language_model.local(tmp_path, tokens=12).answer("a mass is seen")
    with pytest.raises(UserError, match="no JSON"):
        ask(model, "cancer", "cancer", ["a mass"], [])
