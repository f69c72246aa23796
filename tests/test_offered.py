"""What page and API offer of models and of what their adapters learned, around a session that plays scripts."""

import pytest
from gradio_client import Client

import app
from selfspan_core.models import registry
from selfspan_core.models.learned import Learned
from selfspan_core.models.registry import DEFAULT_MODEL, MODELS, AdaptersIn, Folder, ModelSpec
from selfspan_core.tasks.registry import get_task
from tests.support.fake_session import FakeSession
from tests.support.registered import only_the_default
from tests.support.tiny_models import record_learned

ARTICLE = get_task("summarize").examples[0]
TASKS = ("arithmetic", "summarize")
LANES = ("summarize-span", "summarize-plain")
BOTH = Learned({"form": ("shorten", "rewrite")}, 7500)


@pytest.fixture
def two(tmp_path, monkeypatch):
    """A model "both" whose adapters learned both forms is the usual one for summaries; no weights."""
    only_the_default(monkeypatch)
    for name in LANES:
        (tmp_path / name).mkdir()
    record_learned(tmp_path, BOTH, *LANES)
    monkeypatch.setitem(MODELS, "both", ModelSpec("both", Folder(tmp_path), AdaptersIn(tmp_path)))
    monkeypatch.setattr(registry, "PREFERRED", {"summarize": ("both",)})
    return tmp_path


@pytest.fixture
def articles(serve, open_tab):
    """The tab for articles, around a session."""

    def start(session):
        tab = open_tab(serve(session, TASKS))
        tab.turn("Articles")
        tab.page.wait_for_selector("#run-article")
        return tab

    return start


def summarize(tab):
    tab.page.fill("#article textarea", ARTICLE)
    tab.page.click("#run-article")
    tab.page.wait_for_selector('.ss[data-task="summarize"]')
    tab.wait("done")


@pytest.mark.browser
def test_a_link_names_the_model(two, serve, open_tab):
    """Would catch a link that runs another model than its sender's, and a choice that is shown and not asked for."""
    session = FakeSession(dense=2000, sparse=2000)
    url = serve(session, TASKS)
    tab = open_tab(f"{url}?task=summarize&model={DEFAULT_MODEL}")
    tab.page.wait_for_selector(f'#model-article input[value="{DEFAULT_MODEL}"]:checked', state="attached")
    summarize(tab)
    assert session.model == DEFAULT_MODEL
    tab.clipboard()
    tab.page.click(".ss-keep summary")
    tab.page.click(".ss-link")
    assert f"model={DEFAULT_MODEL}" in tab.copied
    assert f"no model “{DEFAULT_MODEL}x” here" in _said(open_tab(f"{url}?task=summarize&model={DEFAULT_MODEL}x"))


def _said(tab) -> str:
    tab.page.wait_for_selector(".ss-said:not(:empty)")
    return tab.text(".ss-said")


@pytest.mark.browser
def test_the_forms_of_the_chosen_model(two, articles):
    """Would catch a form offered of a model that has not learned it, asked for and forgotten, or kept for another."""
    session = FakeSession(dense=2000, sparse=2000)
    tab = articles(session)
    tab.open_options()
    models = [label.strip() for label in tab.page.locator("#model-article label").all_text_contents()]
    assert models == ["both", DEFAULT_MODEL]
    form = tab.page.locator("#form-article")
    assert [label.strip() for label in form.locator("label").all_text_contents()] == [
        "The article's",
        "The model's own",
    ]
    form.get_by_label("The model's own").check()
    summarize(tab)
    assert session.asked == {"length": "medium", "form": "rewrite"} and session.model is None
    tab.page.click("#article textarea")  # the form is a bar since the run
    tab.page.locator("#model-article").get_by_label(DEFAULT_MODEL).check()
    form.wait_for(state="hidden")
    counted = "document.querySelector('.ss-history summary').textContent"  # a run may be over before anybody looks
    before = tab.page.evaluate(counted)
    tab.page.click("#run-article")
    tab.page.wait_for_function(f"before => {counted} !== before", arg=before)
    assert session.asked == {"length": "medium"} and session.model == DEFAULT_MODEL
    tab.page.click("#article textarea")
    tab.page.locator("#model-article").get_by_label("both").check()
    form.wait_for(state="visible")
    assert form.get_by_label("The article's").is_checked()


@pytest.mark.browser
def test_a_model_of_one_form_has_no_choice_of_it(articles, monkeypatch):
    """Would catch a control with nothing to choose, where nobody learned a second form."""
    only_the_default(monkeypatch)
    session = FakeSession(dense=2000, sparse=2000)
    tab = articles(session)
    assert tab.page.locator("#form-article").count() == 0
    summarize(tab)
    assert session.asked == {"length": "medium"}


@pytest.mark.browser
def test_a_replaced_model_is_said_beside_the_answer(articles):
    """Would catch a notice that nobody sees, that is markup, or that stays for the next answer."""
    session = FakeSession(dense=2000, sparse=2000, notice="big is not here: <b>pip install it</b>. small answers.")
    tab = articles(session)
    summarize(tab)
    assert tab.text(".ss-notice") == "big is not here: <b>pip install it</b>. small answers."
    assert tab.page.is_visible(".ss-notice")
    session.options["notice"] = ""
    tab.page.click("#run-article")
    tab.page.wait_for_selector(".ss-notice", state="hidden")
    tab.wait("done")


def test_the_api_takes_a_form_where_a_model_learned_it(two, serve):
    """Would catch a form that is taken and forgotten, asked of those who gave none, or that moves older arguments."""
    session = FakeSession(dense=2000, sparse=2000)
    client = Client(serve(session, TASKS), verbose=False)
    parameters = client.view_api(return_format="dict")["named_endpoints"]["/compare"]["parameters"]
    assert [one["parameter_name"] for one in parameters][-5:] == ["length", "drafts", "model", "clean", "form"]
    client.predict("summarize", ARTICLE, form="rewrite", api_name="/compare")
    assert session.asked == {"length": "medium", "form": "rewrite"}
    client.predict("summarize", ARTICLE, api_name="/compare")
    assert session.asked == {"length": "medium"}
    client.predict("arithmetic", "1+1", form="rewrite", api_name="/compare")
    assert session.asked == {}


def test_a_damaged_record_keeps_the_app_up(two):
    """Would catch a server that does not start because of one adapter; its runs say what is wrong."""
    (two / "summarize-span" / "training.json").write_text("{")
    assert registry.offered("summarize")["both"] == Learned()
    assert app.build_app(FakeSession(), TASKS)
