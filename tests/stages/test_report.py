"""The page needs nothing but itself, runs nothing, and takes no text for markup."""

import dataclasses
import html.parser
import re

import pytest

from stages.report import Asked, Report, Shown, render
from stages.scoring import Comparison, Estimate, Interval, Measured, Score
from stages.summary import Fact, Origin, Quarantine, headline, percent, points, probability, span
from tests.stages import questions

EVIL = "<script>alert('1')</script>\"&.mp4"
TITLES = {
    "pretrained": "pretrained encoder",
    "untrained": "same encoder, untrained",
    "knn": "nearest neighbours",
    "fine_tuning": "fine-tuning",
    "retrieval": "retrieval",
}


class Page(html.parser.HTMLParser):
    """Collects every tag with its attributes, and the text."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\N{NO-BREAK SPACE}", " ")


def scored(features: str, accuracy: float) -> Score:
    return Score("class", "knn", features, accuracy, Interval(0.2, 0.6), (accuracy,), None, 12, 30)


def compared(p_value: float, difference: float = 0.2) -> Comparison:
    return Comparison("class", "knn", "pretrained", "untrained", difference, p_value)


def asked() -> Asked:
    question = questions.asked([0, 1, 0, 1], [((0, 1), (2, 3))], label=EVIL, names=["a", "b"])
    chart = Shown("accuracy-00", f"Accuracy on {EVIL}", "A caption.", b"png bytes")
    retrieval = Measured("class", "retrieval", "pretrained", {"recall@5": Estimate(0.62, Interval(0.5, 0.7))})
    own = dataclasses.replace(scored("pretrained", 0.4), calibration_error=Estimate(0.123, Interval(0.1, 0.2)))
    fine_tuned = dataclasses.replace(scored("pretrained", 0.55), probe="fine_tuning")
    scores = [own, scored("untrained", 0.2), fine_tuned]
    return Asked(question, [f"About {EVIL}."], scores, [compared(0.01)], [retrieval], [chart])


def report() -> Report:
    return Report(
        dataset=EVIL,
        facts=[Fact("Data", EVIL)],
        asked=[asked(), asked()],
        examples=[Shown("example-00", f"Right: {EVIL}", EVIL, b"png bytes of an example")],
        pictures=[Shown("clip-00", EVIL, EVIL, b"more png bytes")],
        curves=[Shown("curve-pretrain", "Curve", "A caption.", b"yet more")],
        origins=[Origin("shard", "f" * 16, "d" * 64, EVIL, (Fact("clips", "3"),), {"path": EVIL})],
        quarantine=Quarantine((("corrupt", 1),), ((EVIL, "corrupt", EVIL),), 2),
        titles=TITLES,
    )


@pytest.fixture
def page() -> bytes:
    return render(report())


def test_no_name_becomes_markup(page: bytes) -> None:
    tags = {tag for tag, _ in Page(page).tags}
    assert "script" not in tags
    assert b"<script" not in page
    assert Page(page).text.count(EVIL) >= 8


def test_nothing_is_loaded_from_anywhere(page: bytes) -> None:
    sources = [value for _, attributes in Page(page).tags for name, value in attributes.items() if name in ("src", "href")]
    icon, *pictures = sources
    assert icon == "data:,", "an icon that asks for none"
    assert len(pictures) == 5
    assert all(source is not None and source.startswith("data:image/png;base64,") for source in pictures)
    assert not re.search(rb"url\(|@import|https?://", page)
    policies = [attributes for tag, attributes in Page(page).tags if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert str(policies[0]["content"]).startswith("default-src 'none'; img-src data:;")


def test_the_table_holds_the_accuracies_beside_chance(page: bytes) -> None:
    text = Page(page).text
    for words in ("40.0 %", "20.0 to 60.0 %", "+20.0 points", "beyond chance, p = 0.010", "Blind guess 50.0 %"):
        assert words in text
    assert "and 2 more" in text


def test_a_reader_may_have_read_some_of_the_features_alone(page: bytes) -> None:
    text = Page(page).text
    assert "fine-tuning" in text
    assert "55.0 %" in text


def test_calibration_retrieval_and_examples_are_told(page: bytes) -> None:
    text = Page(page).text
    for words in ("12.3 %", "10.0 to 20.0 %", "retrieval: recall@5", "62.0 %", "Clips it told rightly and wrongly", "Right: "):
        assert words in text


def test_the_same_findings_give_the_same_page(page: bytes) -> None:
    assert render(report()) == page


def test_the_headline_claims_no_more_than_the_clips_allow() -> None:
    question = asked().question
    scores = [scored("pretrained", 0.4), scored("untrained", 0.2)]
    certain = [
        sentence.replace("\N{NO-BREAK SPACE}", " ") for sentence in headline(question, scores, [compared(0.0001)], TITLES)
    ]
    assert certain[0].startswith(f"“{EVIL}”, 2 classes: ")
    assert "(nearest neighbours) names the right class for 40.0 % of 30 test clips (95 % interval 20.0 to 60.0 %)" in certain[0]
    assert certain[1] == "Same encoder, untrained: 20.0 %, below the pretrained encoder, and not by chance (p < 0.001)."
    assert "Not told apart" in headline(question, scores, [compared(0.2)], TITLES)[1]
    assert ", above the pretrained encoder" in headline(question, scores, [compared(0.01, difference=-0.2)], TITLES)[1]


def test_numbers_are_written_for_people() -> None:
    written = percent(1 / 3)
    assert written == "33.3\N{NO-BREAK SPACE}%"
    assert (points(-0.05), probability(0.0004), probability(0.5)) == (
        "−5.0 points", "p < 0.001", "p = 0.500",
    )  # fmt: skip
    assert span(Interval(0.1, 1.0)) == "10.0 to 100.0\N{NO-BREAK SPACE}%"
