"""What the addresses of the page answer, with a model made of arithmetic and without a browser."""

import json

import cv2
import numpy as np
import pytest
from small_set import dataset, viewer
from starlette.testclient import TestClient

from mammoclip_jax.viewer import guard
from mammoclip_jax.viewer.error_slices import Slice


def opened(page):
    return TestClient(page.app(guard.names_of("127.0.0.1")), base_url="http://127.0.0.1:8090")


@pytest.fixture(scope="module")
def page():
    made = viewer(dataset(bits=16), stored=True)
    yield made
    made.sides[0].survey.stop()


@pytest.fixture(scope="module")
def client(page):
    return opened(page)


def framed(answer):
    line, _, rest = answer.content.partition(b"\n")
    return json.loads(line), rest


def test_the_page_and_its_files(client):
    page = client.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    for name, kind in (("main.js", "text/javascript"), ("style.css", "text/css")):
        assert client.get(f"/static/{name}").headers["content-type"].startswith(kind)
    asked = [part.split('"')[0] for part in page.text.split('src="')[1:] + page.text.split('href="')[1:]]
    assert asked and all(path.startswith("/static/") or path == "data:," for path in asked)


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static/..%5capp.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/..%2f..%2fetc/passwd",
        "/api/exams/..%2f..%2fetc%2fpasswd",
        "/api/images/..%2fx/pixels",
        "/static/app.py",
        "/static/",
    ],
)
def test_no_way_leads_out_of_the_folder(client, path):
    answer = client.get(path)
    assert answer.status_code == 404 and "root:" not in answer.text and "import" not in answer.text


def test_about(client):
    about = client.get("/api/about").json()
    assert about["exams"] == 6 and about["images"] == 24 and about["dataset"] == "phantom" and not about["real"]
    (side,) = about["sides"]
    assert side["model"]["labels"] == ["mass"] and side["model"]["phrases"] and side["scored"] == {"mass": "a test"}
    assert side["model"]["methods"]["grad_cam"]["stages"] == ["head", "stage_3"] and len(about["colours"]) == 768


def test_the_list_is_sent_in_parts(client, page):
    whole = client.get("/api/exams", params={"by": "mass", "order": "highest"}).json()
    part = client.get("/api/exams", params={"by": "mass", "order": "highest", "start": 2, "count": 3}).json()
    assert whole["count"] == part["count"] == 6 and part["exams"] == whole["exams"][2:5]
    highest = [exam["scores"]["mass"]["score"] for exam in whole["exams"]]
    assert highest == sorted(highest, reverse=True)
    found = client.get("/api/exams", params={"count": 1, "find": page.catalogue.exams[4]}).json()
    assert found["found"] == 4
    filtered = client.get("/api/exams", params={"vendor": "Maker A", "label.density": "B"}).json()
    assert [exam["vendor"] for exam in filtered["exams"]] == ["Maker A"] * filtered["count"] and filtered["count"] == 2
    narrow = client.get("/api/exams", params={"by": "mass", "low": 0.9}).json()
    assert narrow["count"] == sum(score >= 0.9 for score in highest)


@pytest.mark.parametrize(
    "query", [{"order": "sideways"}, {"start": "-1"}, {"label.age": "3"}, {"start": "x"}, {"slice": "7"}, {"side": "2"}]
)
def test_odd_queries_are_told(client, query):
    answer = client.get("/api/exams", params=query)
    assert answer.status_code in (400, 404) and answer.json()["error"]


def test_an_exam(client, page):
    exam = client.get(f"/api/exams/{page.catalogue.exams[1]}").json()
    assert [row["view"] for row in exam["rows"]] == ["CC", "MLO"] and len(exam["images"]) == 4
    assert exam["scores"][0]["mass"]["views"] == [image.max() / 255 for image in page.catalogue.dataset.images[4:8]]
    assert len(exam["reports"]) >= 1 and exam["others"] == []
    assert client.get("/api/exams/0123456789abcdef").status_code == 404


def test_pixels_come_whole_in_16_bits(client, page):
    place = 5
    about, content = framed(client.get(f"/api/images/{page.catalogue.images[place]}/pixels"))
    assert about == {"height": 64, "width": 48, "bits": 16}
    got = np.frombuffer(content, "<u2").reshape(64, 48)
    np.testing.assert_array_equal(got, page.catalogue.dataset.images[place])
    assert client.get("/api/images/p000_LCC/pixels").status_code == 404


def test_thumbnails_hang_as_their_images(client, page):
    views = page.catalogue.dataset.index["laterality"][:4]
    for place, side in enumerate(views):
        content = client.get(f"/api/images/{page.catalogue.images[place]}/thumbnail").content
        small = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
        dark_side = small[:, :5] if side == "R" else small[:, -5:]
        assert dark_side.mean() < small.mean() / 2


def test_maps_of_a_label_and_of_a_phrase(client, page):
    exam = page.catalogue.exams[2]
    about, content = framed(client.get(f"/api/exams/{exam}/map", params={"label": "mass", "method": "grad_cam"}))
    assert about == {"shape": [4, 64, 48]}
    maps = np.frombuffer(content, np.uint8).reshape(4, 64, 48)
    for heat, image in zip(maps, page.catalogue.dataset.images[8:12]):
        np.testing.assert_allclose(heat / 255, image / image.max(), atol=0.003)
    other = client.get(
        f"/api/exams/{exam}/map", params={"phrase": "no mass", "method": "hires_cam", "stage": "stage_3"}
    )
    assert other.status_code == 200
    for query in (
        {"label": "mas"},
        {"label": "mass", "method": "gradcam"},
        {"label": "mass", "method": "grad_cam", "stage": "x"},
    ):
        answer = client.get(f"/api/exams/{exam}/map", params={"method": "grad_cam"} | query)
        assert answer.status_code == 400 and answer.json()["error"]


def test_how_like_a_phrase_the_views_are(client, page):
    exam = page.catalogue.exams[2]
    said = [client.get(f"/api/exams/{exam}/said", params={"phrase": words}).json() for words in ("a mass", "no mass")]
    model = page.sides[0].reader.model
    vectors = model.embed_image(np.stack(page.catalogue.dataset.images[8:12]))
    for one, words in zip(said, ("a mass", "no mass")):
        expected = vectors @ model.embed_text([words])[0]
        np.testing.assert_allclose([view["cosine"] for view in one["views"]], expected, rtol=1e-5)
    assert client.get(f"/api/exams/{exam}/said", params={"phrase": "  "}).status_code == 400


def test_nearest_exams_and_reports(client, page):
    survey, catalogue = page.sides[0].survey, page.catalogue
    client.get("/api/survey", params={"start": 1})
    survey.wait()
    assert client.get("/api/survey").json()["images"] == 24
    near = client.get("/api/near", params={"image": catalogue.images[9]}).json()
    assert catalogue.exams[2] not in [one["exam"] for one in near["exams"]] and len(near["exams"]) == 5
    cosines = [one["cosine"] for one in near["exams"]]
    assert cosines == sorted(cosines, reverse=True)
    near = client.get("/api/near", params={"phrase": "no mass"}).json()
    assert near["reports"][0]["text"].startswith("No mass") and near["reports"][0]["count"] >= 1
    assert client.get("/api/near", params={"image": "x"}).status_code == 404
    exam = client.get(f"/api/exams/{catalogue.exams[2]}/said", params={"phrase": "a mass"}).json()
    assert all(0 <= view["above"] <= 1 for view in exam["views"])


def test_scores_that_are_not_stored_are_computed():
    page = viewer()
    client, exam = opened(page), page.catalogue.exams[0]
    assert client.get(f"/api/exams/{exam}").json()["scores"] == [{}]
    found = client.get(f"/api/exams/{exam}/scores").json()["scores"]["mass"]
    assert len(found["views"]) == 4 and found["score"] == max(found["views"]) and found["truth"] in (0, 1)
    page.sides[0].survey.start()
    page.sides[0].survey.wait()
    listed = client.get("/api/exams", params={"by": "mass", "order": "wrong first"}).json()["exams"]
    assert listed[0]["scores"]["mass"]["wrong"] >= listed[-1]["scores"]["mass"]["wrong"]
    shown = client.get(f"/api/exams/{exam}").json()["scores"][0]["mass"]
    np.testing.assert_allclose(shown["views"], found["views"], rtol=1e-5)


def test_predictions_alone_have_no_maps_and_say_so():
    page = viewer(models=("",), stored=True)
    client, exam = opened(page), page.catalogue.exams[0]
    assert client.get("/api/about").json()["sides"][0]["model"] is None
    answer = client.get(f"/api/exams/{exam}/map", params={"label": "mass", "method": "grad_cam"})
    assert answer.status_code == 404 and "no model" in answer.json()["error"]
    assert client.get("/api/survey").status_code == 404


def test_two_models(page):
    both = viewer(models=("one", "two"), stored=True)
    client, catalogue = opened(both), both.catalogue
    (one,) = both.sides[1]._stored
    other = one.score.copy()
    lowest = int(other.argmin())
    other[lowest] = 9  # which the second model puts highest
    both.sides[1]._stored = [one._replace(score=other)]
    about = client.get("/api/about").json()
    assert [side["name"] for side in about["sides"]] == ["one", "two"] and about["orders"][-1] == "most apart"
    query = {"by": "mass", "order": "most apart", "side": 1}
    first = client.get("/api/exams", params=query).json()["exams"][0]
    assert first["id"] == catalogue.exams[catalogue.exam_of[lowest]] and first["scores"]["mass"]["score"] == 9
    assert client.get("/api/exams", params={"order": "most apart", "by": "cancer"}).json()["count"] == 6
    assert opened(page).get("/api/exams", params={"order": "most apart"}).status_code == 400


def test_error_slices_are_an_entry():
    inside = np.zeros(24, bool)
    inside[[9, 10, 21]] = True
    page = viewer(slices=[Slice("mass, without marker", inside, inside & (np.arange(24) > 20))])
    client = opened(page)
    assert client.get("/api/about").json()["slices"] == [{"title": "mass, without marker", "images": 3, "wrong": 1}]
    names = lambda **query: [exam["id"] for exam in client.get("/api/exams", params=query).json()["exams"]]  # noqa: E731
    assert names(slice="0") == [page.catalogue.exams[2], page.catalogue.exams[5]]
    assert names(slice="0", slice_wrong="wrong") == [page.catalogue.exams[5]]


def test_nobody_is_named_anywhere(client, page):
    """Every answer that has words is read for every identifier of the data set."""
    names = {str(value) for column in ("patient", "study", "image") for value in page.catalogue.dataset.index[column]}
    paths = ["/api/about", "/api/exams", f"/api/near?image={page.catalogue.images[0]}"]
    paths += [f"/api/exams/{exam}" for exam in page.catalogue.exams]
    paths += [f"/api/exams/{page.catalogue.exams[0]}/said?phrase=mass"]
    for path in paths:
        text = client.get(path).text
        assert not [name for name in names if name in text], path
