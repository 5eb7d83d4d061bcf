"""The report: what is on the page, how it reads in a real browser, and how it is written."""

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import ROOT, SERVER, cli, conninfo_of, psql
from playwright.sync_api import Browser, Page, sync_playwright
from psycopg.conninfo import make_conninfo

import alicia_session_stats as stats
from alicia_session_stats.report import page as report_page
from alicia_session_stats.report import render_report, write_report
from alicia_session_stats.report.charts import CHARTS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
EVIL = """<script>document.title = "broken"</script><img src=x onerror='document.title="broken"'>&amp;"'"""
LEFT_OUT = ("session_stats", "list_sessions", "active_users", "verify", "verify_rollup")
SHOWN = {
    name + suffix: query
    for name, query in stats.queries().items()
    if not query.writes and name not in LEFT_OUT
    for suffix in (("_tool_calls", "_memories") if name == "metric_usage" else ("",))
}
SIZES = {"wide": {"width": 1280, "height": 900}, "narrow": {"width": 390, "height": 800}}


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
    """The page, shared by the tests that change nothing on it."""
    page, *_ = opened(browser, tmp_path_factory.mktemp("report"), html)
    yield page
    page.close()


@pytest.fixture
def page(browser: Browser, html: str, tmp_path: Path) -> Iterator[Page]:
    page, *_ = opened(browser, tmp_path, html)
    yield page
    page.close()


def column(page: Page, section: str, name: str) -> list[str]:
    """Return the texts of a column, from top to bottom."""
    index = page.locator(f"#{section} thead th").all_inner_texts().index(name) + 1
    return page.locator(f"#{section} tbody tr > :nth-child({index})").all_text_contents()


def header(page: Page, section: str, name: str) -> Any:
    return page.locator(f"#{section} thead").get_by_role("button", name=name, exact=True)


# What is on the page ----------------------------------------------------------------------------------


def test_every_query_that_only_reads_is_on_the_page_under_its_purpose(seen: Page) -> None:
    expected: list[str] = []
    for section, query in SHOWN.items():
        expected += [*([] if query.purpose in expected else [query.purpose]), section]
    assert seen.locator("main h2, main section").evaluate_all("all => all.map(one => one.id || one.textContent)") == expected
    links = seen.locator("nav a").evaluate_all("all => all.map(one => one.hash)")
    assert links == [f"#{section}" for section in SHOWN]


@pytest.mark.parametrize("section", SHOWN)
def test_definitions_are_those_of_the_query_file(seen: Page, section: str) -> None:
    query = SHOWN[section]
    shown = " ".join((seen.locator(f"#{section}").text_content() or "").split())
    returns = re.search(r"^Returns: (.+?)\nReads:", query.documentation, re.M | re.S)
    assert returns
    assert query.summary in shown
    without_bar = re.sub(r"\n    bar  .+", "", returns[1])
    assert "".join(without_bar.split()) in shown.replace(" ", "")
    for param in query.params:
        assert re.search(rf"{param.name} is \S+: {re.escape(param.description)}", shown)


def test_each_returned_column_is_a_line_of_the_definitions(seen: Page) -> None:
    names = seen.locator("#usage_over_time details dt").all_text_contents()
    assert {"sessions", "sessions_7d_mean", "is_partial"} <= set(names)
    assert len(names) == seen.locator("#usage_over_time details dd:not(.sentence)").count()


def test_two_sections_show_the_usage_of_two_metrics(seen: Page) -> None:
    titles = [seen.locator(f"#metric_usage_{metric} h3").text_content() for metric in ("tool_calls", "memories")]
    assert titles == ["Metric usage: tool calls", "Metric usage: memories"]
    tables = [seen.locator(f"#metric_usage_{metric} tbody").text_content() for metric in ("tool_calls", "memories")]
    assert tables[0] != tables[1]


@pytest.mark.parametrize("section", SHOWN)
def test_a_table_has_every_column_but_the_bar(seen: Page, loaded: str, section: str) -> None:
    query = SHOWN[section]
    given = {"metric": section.removeprefix("metric_usage_")} if query.name == "metric_usage" else {}
    [row, *_] = stats.query(loaded, query.name, **given)
    shown = seen.locator(f"#{section} thead th").all_inner_texts()
    assert [name.replace(" ", "_") for name in shown] == [name for name in row if name != "bar"]


def test_numbers_are_rounded_and_aligned_right(seen: Page, loaded: str) -> None:
    [row] = stats.query(loaded, "average_session_metrics")
    assert column(seen, "average_session_metrics", "avg messages") == [f"{row['avg_messages']:,.2f}"]
    cells = seen.locator("#session_percentiles tbody td")
    assert set(cells.evaluate_all("all => all.map(one => getComputedStyle(one).textAlign)")) == {"right"}


def test_thousands_are_separated(seen: Page) -> None:
    assert column(seen, "most_active_sessions", "message count")[0] == "1,234,567"


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_requests_nothing_and_logs_no_error(browser: Browser, html: str, tmp_path: Path, size: str, scheme: str) -> None:
    page, requests, messages = opened(browser, tmp_path, html, size, scheme)
    page.wait_for_load_state("networkidle")
    assert (requests, messages) == ([page.url], [])
    page.close()


def test_an_injected_script_does_not_run(page: Page) -> None:
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'document.title = 1'}))")
    assert page.title() != "1"


def test_every_column_can_be_sorted_with_the_keyboard(page: Page) -> None:
    name_of = "one.closest('section').id + one.textContent"
    focus = f"(one => one.matches('th button') && {name_of})(document.activeElement)"
    buttons = page.locator("th button")
    expected = buttons.evaluate_all(f"all => all.map(one => {name_of})")
    rows = "all => all.filter(one => one.tBodies[0].rows.length > 1).map(one => one.tHead.rows[0].cells.length)"
    assert len(expected) == sum(page.locator("table").evaluate_all(rows))
    reached: list[str] = []
    for _ in range(300):
        page.keyboard.press("Tab")
        if name := page.evaluate(focus):
            reached.append(name)
            page.keyboard.press("Enter")
            header = "document.activeElement.closest('tr')"
            sorts = page.evaluate(f"[...{header}.cells].map(one => one.ariaSort).filter(one => one !== 'none')")
            assert sorts == ["ascending"], name
            assert page.evaluate("document.activeElement.closest('th').ariaSort") == "ascending"
        if reached[-1:] == expected[-1:]:
            break
    assert reached == expected


def test_keyboard_focus_is_visible(page: Page) -> None:
    header(page, "usage_over_time", "sessions").focus()
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.textContent") == "period start"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_numbers_sort_as_numbers(page: Page) -> None:
    def numbers() -> list[float]:
        return [float(text.replace(",", "")) for text in column(page, "usage_over_time", "messages")]

    before = numbers()
    header(page, "usage_over_time", "messages").click()
    assert numbers() == sorted(before) != sorted(before, key=str)
    header(page, "usage_over_time", "messages").click()
    assert numbers() == sorted(before, reverse=True)


def test_sorting_moves_whole_rows(page: Page) -> None:
    rows = page.locator("#usage_over_time tbody tr")
    before = rows.all_text_contents()
    header(page, "usage_over_time", "messages").click()
    assert rows.all_text_contents() != before
    assert sorted(rows.all_text_contents()) == sorted(before)


def test_cells_without_a_value_sort_last_both_ways(page: Page) -> None:
    for _ in range(2):
        header(page, "conversation_retention", "week 3 pct").click()
        texts = column(page, "conversation_retention", "week 3 pct")
        assert "" in texts
        assert texts == [text for text in texts if text] + [text for text in texts if not text]


def test_only_the_sorted_column_is_marked_as_sorted(page: Page) -> None:
    sorts = "all => all.map(one => one.ariaSort).filter(one => one !== 'none')"
    header(page, "usage_over_time", "messages").click()
    header(page, "usage_over_time", "period start").click()
    header(page, "usage_over_time", "period start").click()
    assert page.locator("#usage_over_time th[scope=col]").evaluate_all(sorts) == ["descending"]


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
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


def test_each_chart_has_a_title_labelled_axes_and_a_text_for_screen_readers(seen: Page) -> None:
    charts = seen.locator("figure")
    assert charts.count() == len(CHARTS) == 6
    for chart in charts.all():
        [image] = chart.locator("[role=img]:visible").all()  # The other drawing is hidden.
        assert len(image.get_attribute("aria-label") or "") > 60
        assert chart.locator("figcaption b").inner_text()
        assert len([one for one in image.locator(".role-axis-title text").all_text_contents() if one]) == 2
        assert chart.locator("xpath=ancestor::section").locator("table").count() == 1


def test_the_trend_shows_sessions_their_mean_and_the_forecast(seen: Page) -> None:
    chart = seen.locator("#usage_over_time figure")
    assert chart.locator("figcaption span").all_inner_texts() == [
        "whole day",
        "today so far",
        "mean of 7 days",
        "95 % interval",
        "forecast",
    ]
    for colour, marks in {"bar": 89, "partial": 1, "interval": 1}.items():
        assert chart.locator(f".wide path[fill='var(--{colour})']").count() == marks
    for colour in ("mean", "forecast"):
        assert chart.locator(f".wide path[stroke='var(--{colour})']").count() == 1
    assert "sessions a day" in chart.locator(".wide .role-axis-title text").all_text_contents()


def test_today_is_drawn_lighter_and_is_not_in_the_mean(seen: Page) -> None:
    for section in ("usage_over_time", "peak_concurrency"):
        assert seen.locator(f"#{section} .wide path[fill='var(--partial)']").count() == 1
    mean = seen.locator("#usage_over_time .wide path[stroke='var(--mean)']").get_attribute("d") or ""
    assert len(re.findall("[ML]", mean)) == 89


def test_no_axis_repeats_a_number(seen: Page) -> None:
    for axis in seen.locator(".wide .role-axis-label").all():
        labels = axis.locator("text:not([opacity='0'])").all_text_contents()
        assert len(labels) == len(set(labels))


def test_the_heat_map_shows_every_hour_of_the_week(seen: Page) -> None:
    assert seen.locator("#busiest_hours .wide .mark-rect path").count() == 7 * 24


def test_the_retention_chart_is_a_triangle(seen: Page) -> None:
    assert seen.locator("#conversation_retention .wide .mark-rect path").count() == 7 * 8 / 2


@pytest.mark.parametrize("size", SIZES)
def test_no_label_of_a_chart_is_cut_off_or_overlaps_another(browser: Browser, html: str, tmp_path: Path, size: str) -> None:
    page, *_ = opened(browser, tmp_path, html, size)
    for chart in page.locator(f"figure .{size}").all():
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


def test_print_is_light_and_has_every_row_and_definition(browser: Browser, html: str, tmp_path: Path) -> None:
    page, _, messages = opened(browser, tmp_path, html, scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".scroll").evaluate_all("all => all.filter(one => one.scrollHeight > one.clientHeight + 1).length") == 0
    assert page.pdf(format="A4").startswith(b"%PDF-")
    assert page.locator("details:not([open])").count() == 0
    assert messages == []
    page.close()


def test_the_page_of_an_empty_database_says_so(browser: Browser, db: psycopg.Connection[Any], tmp_path: Path) -> None:
    page, requests, messages = opened(browser, tmp_path, render_report(conninfo_of(db)))
    assert "No session is recorded in this database yet" in page.get_by_role("status").inner_text()
    assert page.locator("main section").count() == len(SHOWN)
    assert page.locator("svg").count() == 0
    assert (requests, messages) == ([page.url], [])
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
