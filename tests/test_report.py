"""The report: what is on the page, how it reads in a real browser, and how it is written."""

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from conftest import ROOT, SERVER, cli, conninfo_of, psql
from playwright.sync_api import Browser, Page, sync_playwright
from psycopg.conninfo import make_conninfo

import alicia_session_stats as stats
from alicia_session_stats.report import page as report_page
from alicia_session_stats.report import render_report, words, write_report
from alicia_session_stats.report.sections import LEFT_OUT, SECTIONS, forecast_fit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
EVIL = """<script>document.title = "broken"</script><img src=x onerror='document.title="broken"'>&amp;"'"""
# The optional one needs a table of the application's that the sample has not.
SHOWN = {section.id: section for section in SECTIONS if not section.optional}
OPEN = "document.querySelectorAll('details').forEach(one => one.open = true)"
SIZES = {"wide": {"width": 1280, "height": 900}, "narrow": {"width": 390, "height": 800}}
each_look = pytest.mark.parametrize(("size", "scheme"), [("wide", "light"), ("narrow", "dark")])


@pytest.fixture(scope="module")
def loaded() -> Iterator[str]:
    """The conninfo of a database with a sample, a session of today, and a conversation whose id is HTML."""
    name = f"alicia_report_{os.getpid()}"
    with psycopg.connect(**SERVER, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}".encode())
        try:
            conninfo = make_conninfo("", **{**SERVER, "dbname": name})
            stats.migrate(conninfo)
            done = psql(conninfo, "-v", "rows=4000", "-v", "last=4000", "-f", ROOT / "bench" / "sample.sql")
            assert done.returncode == 0, done.stderr
            with psycopg.connect(conninfo, autocommit=True) as connection:
                connection.execute("INSERT INTO alicia_conversations (id) VALUES (%s)", [EVIL])
                connection.execute(
                    "INSERT INTO alicia_session_stats (conversation_id, message_count, created_at) "
                    "SELECT %s, messages, NOW() AT TIME ZONE 'UTC' - days_ago * INTERVAL '1 day' "
                    "FROM (VALUES (1, 0), (1234567, 1)) AS v (messages, days_ago)",
                    [EVIL],
                )
            yield conninfo
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(scope="module")
def html(loaded: str) -> str:
    return render_report(loaded)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None and "CI" not in os.environ:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM or "/usr/bin/chromium", args=QUIET.split())
        yield started
        started.close()


def opened(
    browser: Browser, path: Path, html: str, size: str = "wide", scheme: Any = "light"
) -> tuple[Page, list[str], list[str]]:
    """Open the page; return it with the addresses it requests and the messages of its console."""
    file = path / "report.html"
    file.write_text(html, encoding="utf-8")
    page = browser.new_page(viewport=SIZES[size], color_scheme=scheme)
    requests: list[str] = []
    messages: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(file.as_uri())
    return page, requests, messages


@pytest.fixture(scope="module")
def seen(browser: Browser, html: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page with everything opened, shared by the tests that change nothing on it."""
    page, *_ = opened(browser, tmp_path_factory.mktemp("report"), html)
    page.evaluate(OPEN)
    yield page
    page.close()


@pytest.fixture
def page(browser: Browser, html: str, tmp_path: Path) -> Iterator[Page]:
    page, *_ = opened(browser, tmp_path, html)
    page.evaluate(OPEN)
    yield page
    page.close()


def column(page: Page, section: str, name: str) -> list[str]:
    """Return the texts of a column, from top to bottom."""
    index = page.locator(f"#{section} thead th").all_text_contents().index(name) + 1
    return page.locator(f"#{section} tbody tr > :nth-child({index})").all_text_contents()


# What is on the page ----------------------------------------------------------------------------------


def test_every_query_that_only_reads_is_on_the_page_or_left_out_by_name() -> None:
    assert {section.query for section in SECTIONS} | set(LEFT_OUT) >= {n for n, q in stats.queries().items() if not q.writes}


def test_the_sections_stand_under_their_purposes(seen: Page) -> None:
    expected: list[str] = []
    for name, section in SHOWN.items():
        purpose = stats.queries()[section.query].purpose.replace(" ", "-")
        expected += [*([] if purpose in expected else [purpose]), name]
    assert seen.locator("main h2, main section").evaluate_all("all => all.map(one => one.id)") == expected
    links = seen.locator("nav a").evaluate_all("all => all.map(one => one.hash.slice(1))")
    assert links == expected


@pytest.mark.parametrize("name", SHOWN)
def test_definitions_are_those_of_the_query_file(seen: Page, name: str) -> None:
    query = stats.queries()[SHOWN[name].query]
    shown = " ".join((seen.locator(f"#{name} details").text_content() or "").split())
    assert query.summary in shown
    for column, meaning in re.findall(r"^    ([\w…][\w…, ]*?)  +(.+)$", query.documentation.partition("Returns: ")[2], re.M):
        said = meaning.replace(*SHOWN[name].unit[:2]) if SHOWN[name].unit else meaning
        assert (said in shown) == (column not in report_page.HIDDEN)


@pytest.mark.parametrize("name", SHOWN)
def test_a_table_has_every_column_that_is_not_told_otherwise(seen: Page, loaded: str, name: str) -> None:
    [row, *_] = stats.query(loaded, SHOWN[name].query, **SHOWN[name].given)
    shown = seen.locator(f"#{name} thead th").count()
    assert shown == len([column for column in row if column not in report_page.HIDDEN])


def test_names_and_units_are_for_people(seen: Page) -> None:
    others = ":not(#most_active_sessions, #table_health)"  # Their first cells are the database's own names.
    names = seen.locator(f"section{others} :is(thead th, tbody th), thead th, .tiles dt").all_text_contents()
    assert [name for name in names if re.search(r"_|pct|\bp\d|seconds|bytes|\bs (low|high)", name)] == []
    heads = seen.locator("#growth_forecast thead th").all_text_contents()
    assert heads == ["day"] + [
        f"{one}{of}" for one in ("sessions", "messages") for of in ("", " 95 percent low", " 95 percent high")
    ]


def test_durations_are_hours_and_minutes(seen: Page, loaded: str) -> None:
    by_day = stats.query(loaded, "usage_over_time", days=90)
    assert column(seen, "usage_over_time", "hours")[-5:] == [f"{row['seconds'] / 3600:,.1f}" for row in by_day[-5:]]
    [*_, seconds] = stats.query(loaded, "session_percentiles")
    *_, minutes = seen.locator("#session_percentiles tbody tr").all()
    expected = [
        f"{seconds['sessions']:,}",
        *(f"{float(seconds[n]) / 60:,.1f}" for n in ("mean", "p50", "p90", "p95", "p99", "max")),
    ]
    assert minutes.locator("th, td").all_text_contents() == ["minutes", *expected]


def test_numbers_are_rounded_and_aligned_right(seen: Page, loaded: str) -> None:
    [_, row, *_] = stats.query(loaded, "session_percentiles")
    assert column(seen, "session_percentiles", "mean")[1] == f"{row['mean']:,.1f}"
    cells = seen.locator("#session_percentiles tbody td")
    assert set(cells.evaluate_all("all => all.map(one => getComputedStyle(one).textAlign)")) == {"right"}


def test_thousands_are_separated(seen: Page) -> None:
    assert column(seen, "most_active_sessions", "messages")[0] == "1,234,567"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.25, "0.2"), (99.94, "99.9"), (1234.5, "1,234"), (12_345_678, "12.3 million"), (4 * 10**9, "4.0 billion"), (7, "7")],
)
def test_a_headline_is_short(value: float, text: str) -> None:
    assert words.rounded(value) == text


def test_each_section_says_its_window(seen: Page) -> None:
    today = datetime.now(UTC)

    def last(days: int, first: int) -> str:
        return f"ast {days} days ({words.span(today - timedelta(first), today)})"

    leads = {name: seen.locator(f"#{name} .lead").all_text_contents() for name in SHOWN}
    assert last(90, 89) in leads["usage_over_time"][0]
    assert last(28, 28) in leads["busiest_hours"][0]
    assert last(14, 13) in leads["peak_concurrency"][0]
    for name in ("metric_usage_memories", "session_percentiles", "session_length_distribution", "engagement"):
        assert last(30, 30) in leads[name][0]
    assert [name for name, texts in leads.items() if not texts] == ["growth_forecast", "table_health"]


@pytest.mark.parametrize(
    ("first", "last", "text"),
    [
        ("2026-03-05", "2026-03-09", "5 to 9 March"),
        ("2026-02-27", "2026-03-01", "27 February to 1 March"),
        ("2025-12-31", "2026-01-02", "31 December 2025 to 2 January 2026"),
    ],
)
def test_a_span_of_days_is_short_and_unambiguous(first: str, last: str, text: str) -> None:
    assert words.span(date.fromisoformat(first), date.fromisoformat(last)) == text


def test_a_value_that_looks_like_html_is_text(seen: Page) -> None:
    assert column(seen, "most_active_sessions", "conversation id")[0] == EVIL
    assert not seen.title().startswith("broken")


def test_a_session_that_begins_during_the_report_is_in_no_section(loaded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = report_page.query

    def query_after_insert(*arguments: Any, **options: Any) -> list[dict[str, Any]]:
        with psycopg.connect(loaded) as connection:
            connection.execute("INSERT INTO alicia_session_stats (conversation_id, message_count) VALUES (%s, 7654321)", [EVIL])
        return asked(*arguments, **options)

    try:
        monkeypatch.setattr(report_page, "query", query_after_insert)
        assert "7,654,321" not in render_report(loaded)
    finally:
        with psycopg.connect(loaded) as connection:
            connection.execute("DELETE FROM alicia_session_stats WHERE message_count = 7654321")


def test_the_page_is_small(html: str) -> None:
    assert len(html.encode()) < 300_000


# How it reads -----------------------------------------------------------------------------------------


@each_look
def test_the_page_requests_nothing_and_logs_no_error(browser: Browser, html: str, tmp_path: Path, size: str, scheme: str) -> None:
    page, requests, messages = opened(browser, tmp_path, html, size, scheme)
    page.wait_for_load_state("networkidle")
    assert (requests, messages) == ([page.url], [])
    page.close()


def test_an_injected_script_does_not_run(page: Page) -> None:
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'document.title = 1'}))")
    assert page.title() != "1"


def test_keyboard_focus_is_visible(page: Page) -> None:
    for _ in range(30):
        page.keyboard.press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
    assert page.evaluate("document.activeElement.closest('main') !== null")


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (part) => part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4;
  const light = (colour) => {
    const [r, g, b] = rgba(colour).map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const drawn = (one) => one instanceof SVGElement;
  const style = (one) => getComputedStyle(one);
  const fill = (one) => one.tagName === "path" ? style(one).fill : drawn(one) ? "none" : style(one).backgroundColor;
  const opaque = (colour) => colour !== "none" && rgba(colour)[3] === 255;
  document.querySelectorAll("details").forEach((one) => (one.open = true));
  document.head.append(Object.assign(document.createElement("style"), { textContent: "* { pointer-events: all !important }" }));
  const hasText = (one) => [...one.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
  const texts = [...document.querySelectorAll("body *:not(script)")].filter((one) => hasText(one) && one.checkVisibility());
  return texts.map((text) => {
    text.scrollIntoView({ block: "center", inline: "center" });
    const range = document.createRange();
    range.selectNodeContents(text);
    const box = range.getClientRects()[0];
    const stack = document.elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    const behind = stack.slice(Math.max(0, stack.indexOf(text))).map(fill).find(opaque);
    const own = style(text)[drawn(text) ? "fill" : "color"];
    const [less, more] = [light(own), light(behind)].sort((a, b) => a - b);
    return [more / less, text.textContent.trim().slice(0, 40)];
  });
}"""


@each_look
def test_every_text_has_enough_contrast(browser: Browser, html: str, tmp_path: Path, size: str, scheme: str) -> None:
    page, *_ = opened(browser, tmp_path, html, size, scheme)
    found = page.evaluate(CONTRAST)
    page.close()
    assert len(found) > 1000
    assert [pair for pair in found if pair[0] < 4.5] == []


def test_dark_mode_is_dark(browser: Browser, html: str, tmp_path: Path) -> None:
    pages = [opened(browser, tmp_path, html, scheme=scheme)[0] for scheme in ("light", "dark")]
    light, dark = [page.evaluate("parseInt(getComputedStyle(document.body).backgroundColor.slice(4))") for page in pages]
    assert (light > 200, dark < 50) == (True, True)


def test_each_chart_has_a_text_for_screen_readers_and_several_have_titles(seen: Page) -> None:
    for section in seen.locator("section:has(figure)").all():
        charts = section.locator("figure").all()
        for chart in charts:
            [image] = chart.locator("[role=img]:visible").all()  # The other drawing is hidden.
            assert len(image.get_attribute("aria-label") or "") > 60
        assert section.locator("figcaption").count() == (len(charts) if len(charts) > 1 else 0)


def test_every_measure_and_its_percentiles_are_drawn_over_time(seen: Page) -> None:
    titles = {name: seen.locator(f"#{name} figcaption").all_text_contents() for name in SHOWN}
    assert [title.strip() for title in titles["usage_over_time"]] == [
        f"{measure} per day" for measure in ("Sessions", "Messages", "Hours", "Tool calls", "Memories")
    ]
    assert [title.strip() for title in titles["session_percentiles"]] == [
        f"{measure} per session" for measure in ("Messages", "Minutes", "Tool calls", "Memories")
    ]
    for kind in ("mean", "middle", "forecast"):
        assert seen.locator(f"#session_percentiles path[stroke='var(--{kind})']").count() == 4


def test_percentiles_are_those_of_whole_weeks(loaded: str) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    monday = datetime(now.year, now.month, now.day) - timedelta(now.weekday())
    [expected, *_] = stats.query(loaded, "session_percentiles", days=7, until=monday)
    assert expected["sessions"] > 0
    weekly = report_page.weekly_percentiles
    with stats.connect(loaded) as connection:
        rows = [row for row in weekly(connection, 30, "UTC") if row["metric"] == "messages"]
    assert len(rows) == 12
    assert rows[-1] == {"day": monday - timedelta(7), **expected}


def test_the_forecast_is_in_one_place_after_whole_days(seen: Page) -> None:
    section = seen.locator("#growth_forecast")
    assert [one.strip() for one in section.locator(".key span").all_text_contents()] == [
        "whole day",
        "95 percent interval",
        "forecast",
    ]
    for colour, marks in {"bar": 28 * 2, "interval": 2}.items():
        assert section.locator(f"path[fill='var(--{colour})']").count() == marks
    assert seen.locator("path[fill='var(--interval)']").count() == 2


def forecast(days: int, sessions_r2: float | None, messages_r2: float | None) -> list[tuple[bool, str]]:
    """What is said of a forecast with that fit."""
    counts = {"sessions": None if days < 28 else 100.4, "messages": None if days < 28 else 1234}
    fit = {"sessions_r2": sessions_r2, "messages_r2": messages_r2}
    return list(forecast_fit({"growth_forecast": [{"day": date(2026, 3, 5), **counts, **fit, "history_days": days}]}))


def test_the_fit_of_the_forecast_is_told_and_a_poor_one_is_a_warning() -> None:
    explains = "the trend and the weekdays explain"
    assert forecast(90, 0.85, 0.31)[1:] == [
        (False, f"Good fit: {explains} 85 percent of how sessions vary from day to day."),
        (
            True,
            f"Poor fit: {explains} 31 percent of how messages vary from day to day. "
            "Single days will differ widely: plan with the interval, not with the line.",
        ),
    ]
    [(_, both)] = forecast(90, 0.6, 0.7)[1:]
    assert both.startswith("Fair fit")
    assert forecast(90, None, None) == [
        (False, "About 100 sessions and 1,200 messages from 5 to 5 March, by the 90 whole days before today.")
    ]
    assert forecast(3, None, None) == [(True, "No forecast yet: it needs 28 complete days of history, and there are 3.")]


def test_today_is_hatched_and_not_in_the_mean(seen: Page) -> None:
    for section, charts in {"usage_over_time": 6, "peak_concurrency": 2}.items():  # The large ones are drawn twice.
        assert 0 < seen.locator(f"#{section} path[fill='url(#hatch)']").count() <= charts
        assert column(seen, section, "day")[-1].endswith(" (so far)")
        assert [day for day in column(seen, section, "day")[:-1] if "so far" in day] == []
    mean = seen.locator("#usage_over_time .wide path[stroke='var(--mean)']").get_attribute("d") or ""
    assert len(re.findall("[ML]", mean)) == 89


def test_the_hatch_is_drawn(page: Page) -> None:
    [bar] = page.locator("#peak_concurrency .wide path[fill='url(#hatch)']").element_handles()
    bar.evaluate("one => one.setAttribute('d', 'M0,0h40v40h-40Z')")
    hatched = bar.screenshot()
    bar.evaluate("one => one.setAttribute('fill', 'none')")
    assert bar.screenshot() != hatched


def test_no_axis_repeats_a_number(seen: Page) -> None:
    for axis in seen.locator(".wide .role-axis-label").all():
        labels = axis.locator("text:not([opacity='0'])").all_text_contents()
        assert len(labels) == len(set(labels))


def test_the_heat_map_shows_every_hour_of_the_week(seen: Page) -> None:
    assert seen.locator("#busiest_hours .wide .mark-rect path").count() == 7 * 24


def test_the_retention_chart_is_a_triangle(seen: Page) -> None:
    assert seen.locator("#conversation_retention .wide .mark-rect path").count() == 6 * 7 / 2  # Without the current week.


@pytest.mark.parametrize("size", SIZES)
def test_no_label_of_a_chart_is_cut_off_or_overlaps_another(browser: Browser, html: str, tmp_path: Path, size: str) -> None:
    page, *_ = opened(browser, tmp_path, html, size)
    for chart in page.locator("figure [role=img]:visible").all():
        boxes = chart.evaluate(
            "one => [...one.querySelectorAll('text:not([opacity=\"0\"])')].filter(text => text.textContent.trim())"
            ".map(text => [text.textContent, text.getBoundingClientRect().toJSON()])"
        )
        width = SIZES[size]["width"]
        assert [text for text, box in boxes if box["left"] < 0 or box["right"] > width] == []
        covered = [
            (text, other)
            for i, (text, a) in enumerate(boxes)
            for other, b in boxes[:i]
            if min(a["right"], b["right"]) - max(a["left"], b["left"]) > 1
            and min(a["bottom"], b["bottom"]) - max(a["top"], b["top"]) > 4
        ]
        assert covered == []
    page.close()


def test_on_a_phone_only_tables_scroll_sideways(browser: Browser, html: str, tmp_path: Path) -> None:
    page, *_ = opened(browser, tmp_path, html, "narrow")
    assert page.evaluate("document.documentElement.scrollWidth") == SIZES["narrow"]["width"]
    page.close()


def test_a_table_that_is_wider_than_the_screen_says_so(browser: Browser, html: str, tmp_path: Path) -> None:
    page, *_ = opened(browser, tmp_path, html, "narrow")
    page.evaluate(OPEN)
    table = page.locator("#usage_over_time .scroll")
    hint = page.locator("#usage_over_time .hint")
    hint.wait_for(state="visible")
    assert "scroll" in hint.inner_text()
    assert "gradient" in table.evaluate("one => getComputedStyle(one).maskImage")
    table.evaluate("one => one.scrollLeft = 10000")
    page.wait_for_function("!document.querySelector('#usage_over_time .scroll').classList.contains('more')")
    assert not page.locator("#session_length_distribution .hint").is_visible()
    page.close()


def test_print_is_light_and_has_what_is_open_with_every_row(browser: Browser, html: str, tmp_path: Path) -> None:
    page, _, messages = opened(browser, tmp_path, html, scheme="dark")
    page.locator("#usage_over_time summary").click()
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("details:visible").count() == 1
    assert page.locator(".scroll").evaluate_all("all => all.filter(one => one.scrollHeight > one.clientHeight + 1).length") == 0
    assert page.pdf(format="A4").startswith(b"%PDF-")
    assert messages == []
    page.close()


def test_the_page_of_an_empty_database_says_how_to_fill_it(browser: Browser, db: psycopg.Connection[Any], tmp_path: Path) -> None:
    page, requests, messages = opened(browser, tmp_path, render_report(conninfo_of(db)))
    assert "No session is recorded in this database yet" in page.get_by_role("status").inner_text()
    text = page.locator("main").inner_text()
    for way in ("alicia-session-stats attach", '"start_session"', '"record_totals"', "query rebuild_sessions"):
        assert way in text
    assert page.locator("section, nav, .tiles, table").count() == 0
    assert (requests, messages) == ([page.url], [])
    page.close()


def insert(db: psycopg.Connection[Any], *starts: datetime) -> None:
    """Insert sessions of a conversation that start then."""
    with db.transaction():
        [(conversation,)] = db.execute("INSERT INTO alicia_conversations DEFAULT VALUES RETURNING id").fetchall()
        for start in starts:
            db.execute(
                "INSERT INTO alicia_session_stats (conversation_id, message_count, session_duration_seconds, created_at) "
                "VALUES (%s, 3, 90, %s)",
                [conversation, start],
            )


def test_the_page_of_a_young_database_shows_two_weeks(browser: Browser, db: psycopg.Connection[Any], tmp_path: Path) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    insert(db, now - timedelta(hours=1), now - timedelta(1), now - timedelta(3))
    page, _, messages = opened(browser, tmp_path, render_report(conninfo_of(db)))
    page.evaluate(OPEN)
    assert len(column(page, "usage_over_time", "day")) == 14
    assert "The last 14 days" in page.locator("#usage_over_time .lead").inner_text()
    assert "it needs 28 complete days of history" in page.locator("#growth_forecast .warning").inner_text()
    assert page.locator("#growth_forecast figure, #conversation_retention figure").count() == 0
    assert messages == []
    page.close()


def test_a_week_that_begins_before_the_oldest_session_is_marked(
    browser: Browser, db: psycopg.Connection[Any], tmp_path: Path
) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    monday = datetime(now.year, now.month, now.day) - timedelta(now.weekday())
    insert(db, *(monday - timedelta(days) for days in (26, 19, 12)))
    insert(db, *(monday - timedelta(days) for days in (19, 12)))
    page, *_ = opened(browser, tmp_path, render_report(conninfo_of(db)))
    section = page.locator("#conversation_retention")
    assert section.locator(".key span").last.inner_text().startswith("* older sessions")
    assert [text for text in section.locator(".wide .role-axis-label text").all_text_contents() if "(" in text] == [
        f"{words.day(monday - timedelta(28))} (1) *",
        f"{words.day(monday - timedelta(21))} (1)",
    ]
    page.close()


def test_days_and_hours_are_those_of_the_time_zone(browser: Browser, db: psycopg.Connection[Any], tmp_path: Path) -> None:
    zone = ZoneInfo("Asia/Kathmandu")
    start = datetime.now(UTC) - timedelta(2)
    insert(db, start.replace(tzinfo=None))
    page, *_ = opened(browser, tmp_path, render_report(conninfo_of(db), tz="Asia/Kathmandu"))
    page.evaluate(OPEN)
    assert f"{datetime.now(zone):%H:}" in page.locator("header").inner_text()
    assert "Days and hours are those of Asia/Kathmandu" in page.locator("header").inner_text()
    there = start.astimezone(zone)
    days = dict(zip(column(page, "usage_over_time", "day"), column(page, "usage_over_time", "sessions"), strict=True))
    assert days[f"{there:%Y-%m-%d}"] == "1"
    assert column(page, "busiest_hours", f"{there:%a}".lower())[there.hour] == "1"
    for section in ("usage_over_time", "busiest_hours", "peak_concurrency", "conversation_retention"):
        assert "--tz Asia/Kathmandu" in page.locator(f"#{section} details code").last.inner_text()
    page.close()


def test_active_users_are_shown_where_conversations_have_users(
    browser: Browser, db: psycopg.Connection[Any], tmp_path: Path
) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    insert(db, now - timedelta(1), now - timedelta(3))
    assert "active_users" not in render_report(conninfo_of(db))
    db.execute("ALTER TABLE alicia_conversations ADD COLUMN user_id TEXT DEFAULT 'someone'")
    db.commit()
    page, _, messages = opened(browser, tmp_path, render_report(conninfo_of(db)))
    section = page.locator("#active_users")
    assert section.locator(".key span").all_inner_texts() == ["monthly", "weekly", "daily"]
    assert section.locator(".wide path[stroke^='var(--']").count() == 3
    assert column(page, "active_users", "daily users")[-4:] == ["1", "0", "1", "0"]
    assert messages == []
    page.close()


def test_a_time_zone_that_does_not_exist_is_a_wrong_option(loaded: str, tmp_path: Path) -> None:
    done = cli("report", "--database", loaded, "--tz", "Europe/Berln", "--output", str(tmp_path / "page.html"))
    assert done.returncode == 2
    assert done.stderr == "alicia-session-stats: --tz must be a time zone's name such as Europe/Berlin, not 'Europe/Berln'\n"


def test_a_role_that_may_not_run_one_query_gets_the_others(browser: Browser, loaded: str, tmp_path: Path) -> None:
    role = f"alicia_report_{os.getpid()}"
    views = ("parts", "quarter_hours", "stamps", "value_summaries")
    tables = ", ".join(["alicia_session_stats", *(f"alicia_session_stats_{view}" for view in views)])
    with psycopg.connect(loaded, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN; GRANT SELECT ON {tables} TO {role}".encode())
        try:
            html = render_report(make_conninfo(loaded, user=role))
        finally:
            connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())
    page, *_ = opened(browser, tmp_path, html)
    refused = page.locator("section:has(.warning:has-text('Not shown'))")
    assert refused.evaluate_all("all => all.map(one => one.id)") == ["most_active_sessions"]
    assert "GRANT SELECT ON alicia_session_stats_top_sessions" in refused.inner_text()
    assert page.locator("#usage_over_time figure").count() == 5
    page.close()


# How it is written ------------------------------------------------------------------------------------


def python(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", code, *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, **options)


WRITE = "import sys, pathlib, alicia_session_stats.report as r; r.write_report(pathlib.Path(sys.argv[1]), sys.argv[2])"


def test_the_command_writes_the_page(loaded: str, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    done = cli("report", "--database", loaded, "--output", str(output))
    assert (done.returncode, done.stdout) == (0, "")
    assert str(output) in done.stderr
    assert output.read_text().startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [output]


def test_the_page_can_go_to_standard_output(loaded: str) -> None:
    done = python(WRITE, "/dev/stdout", loaded)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.rstrip().endswith("</html>")


def test_a_reader_that_stops_early_is_not_an_error(loaded: str) -> None:
    command = [sys.executable, ROOT / "runner.py", "report", "--database", loaded, "--output", "/dev/stdout"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "<!doctype html>\n"
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 0)


def test_a_full_disk_keeps_the_old_page(loaded: str, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    output.write_text("old")

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = python(WRITE, str(output), loaded, preexec_fn=full)
    assert done.stderr.splitlines()[-1].endswith(f"SessionStatsError: cannot write {output}: File too large")
    assert (output.read_text(), list(tmp_path.iterdir())) == ("old", [output])


def test_a_link_to_the_page_stays_a_link(loaded: str, tmp_path: Path) -> None:
    (tmp_path / "link.html").symlink_to(tmp_path / "page.html")
    (tmp_path / "page.html").write_text("old")
    write_report(tmp_path / "link.html", loaded)
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "page.html").read_text() != "old"


def test_a_database_that_is_not_migrated_is_told_to_migrate(bare: psycopg.Connection[Any], tmp_path: Path) -> None:
    with pytest.raises(stats.SessionStatsError, match="migrate"):
        write_report(tmp_path / "page.html", conninfo_of(bare))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["jinja2", "vl_convert"])
def test_a_missing_library_is_named_with_the_command_that_installs_it(module: str, tmp_path: Path) -> None:
    done = python(f"import sys; sys.modules['{module}'] = None; {WRITE}", str(tmp_path / "page.html"), "host=/nonexistent")
    expected = f"SessionStatsError: the report needs {module}: pip install 'alicia-session-stats[report]'"
    assert done.stderr.splitlines()[-1].endswith(expected)
