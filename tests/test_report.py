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
from conftest import ROOT, SERVER, conninfo_of
from playwright.sync_api import Browser, Page, sync_playwright
from psycopg.conninfo import make_conninfo

import report
import runner

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
EVIL = """<script>document.title = "broken"</script><img src=x onerror='document.title="broken"'>&amp;"'"""
LEFT_OUT = ("session_stats", "verify", "verify_sums")
SHOWN = [query for query in runner.named_queries().values() if not query.writes and query.name not in LEFT_OUT]
SIZES = {"wide": {"width": 1280, "height": 900}, "narrow": {"width": 390, "height": 800}}


@pytest.fixture(scope="module")
def loaded() -> Iterator[str]:
    """The conninfo of a database with a sample, and a conversation whose id tries to be more than text."""
    name = f"alicia_report_{os.getpid()}"
    with psycopg.connect(**SERVER, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}".encode())
        try:
            conninfo = make_conninfo("", **{**SERVER, "dbname": name})
            runner.migrate(conninfo)
            sample = runner.read_query(ROOT / "bench" / "sample.sql")
            runner.run_query(conninfo, sample, {"rows": 4000, "last": 4000})
            with runner.connect(conninfo) as connection:
                connection.execute("INSERT INTO alicia_conversations (id) VALUES (%s)", [EVIL])
                connection.execute(
                    "INSERT INTO alicia_session_stats (conversation_id, message_count, created_at) "
                    "VALUES (%s, 1234567, NOW() AT TIME ZONE 'UTC' - INTERVAL '1 day')",
                    [EVIL],
                )
            yield conninfo
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(scope="module")
def html(loaded: str) -> str:
    return report.report(loaded)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None and "CI" not in os.environ:
        pytest.skip("there is no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM or "/usr/bin/chromium", args=QUIET.split())
        yield started
        started.close()


def opened(
    browser: Browser, path: Path, html: str, size: str = "wide", scheme: Any = "light"
) -> tuple[Page, list[str], list[str]]:
    """The page in the browser, what it asks for and what it complains of."""
    file = path / "report.html"
    file.write_text(html, encoding="utf-8")
    page = browser.new_page(viewport=SIZES[size], color_scheme=scheme)
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(file.as_uri())
    return page, requests, complaints


@pytest.fixture(scope="module")
def seen(browser: Browser, html: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page for those who only look."""
    page, *_ = opened(browser, tmp_path_factory.mktemp("report"), html)
    yield page
    page.close()


@pytest.fixture
def page(browser: Browser, html: str, tmp_path: Path) -> Iterator[Page]:
    page, *_ = opened(browser, tmp_path, html)
    yield page
    page.close()


def column(page: Page, query: str, name: str) -> list[str]:
    """The texts of a column, from top to bottom."""
    index = page.locator(f"#{query} thead th").all_inner_texts().index(name) + 1
    return page.locator(f"#{query} tbody tr > :nth-child({index})").all_text_contents()


def header(page: Page, query: str, name: str) -> Any:
    return page.locator(f"#{query} thead").get_by_role("button", name=name, exact=True)


# What is on it ----------------------------------------------------------------------------------------


def test_every_query_that_only_reads_is_on_the_page_under_its_purpose(seen: Page) -> None:
    expected: list[str] = []
    for query in SHOWN:
        expected += [*([] if query.purpose in expected else [query.purpose]), query.name]
    assert seen.locator("main h2, main section").evaluate_all("all => all.map(one => one.id || one.textContent)") == expected
    links = seen.locator("nav a").evaluate_all("all => all.map(one => one.hash)")
    assert links == [f"#{query.name}" for query in SHOWN]


@pytest.mark.parametrize("query", SHOWN, ids=lambda query: query.name)
def test_the_definitions_are_those_of_the_query_file(seen: Page, query: runner.Query) -> None:
    words = " ".join(seen.locator(f"#{query.name}").text_content().split())  # pyright: ignore
    header = " ".join(query.documentation.split())
    assert query.summary in words
    assert re.search(r"Returns: (.+?) Reads: ", header)[1] in words  # pyright: ignore
    for param in query.params:
        assert re.search(rf"{param.name} is \S+: {re.escape(param.description)}", words)


@pytest.mark.parametrize("query", SHOWN, ids=lambda query: query.name)
def test_a_table_has_every_column_but_the_bar(seen: Page, loaded: str, query: runner.Query) -> None:
    columns, _ = runner.run_query(loaded, query, {})
    shown = seen.locator(f"#{query.name} thead th").all_inner_texts()
    assert [name.replace(" ", "_") for name in shown] == [name for name in columns if name != "bar"]


def test_numbers_are_rounded_and_set_to_the_right(seen: Page, loaded: str) -> None:
    [row, *_] = runner.query(loaded, "session_percentiles")
    assert row["mean"] != round(row["mean"], 2)
    assert column(seen, "session_percentiles", "mean")[0] == f"{row['mean']:,.2f}"
    cells = seen.locator("#session_percentiles tbody td")
    assert set(cells.evaluate_all("all => all.map(one => getComputedStyle(one).textAlign)")) == {"right"}


def test_thousands_are_set_apart(seen: Page) -> None:
    assert column(seen, "most_active_sessions", "message count")[0] == "1,234,567"


def test_a_value_that_looks_like_html_is_text(seen: Page) -> None:
    assert column(seen, "most_active_sessions", "conversation id")[0] == EVIL
    assert not seen.title().startswith("broken")


def test_it_is_small(html: str) -> None:
    assert len(html.encode()) < 300_000


# How it reads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_asked_of_the_network_and_nothing_goes_wrong(
    browser: Browser, html: str, tmp_path: Path, size: str, scheme: str
) -> None:
    page, requests, complaints = opened(browser, tmp_path, html, size, scheme)
    page.wait_for_load_state("networkidle")
    assert (requests, complaints) == ([page.url], [])
    page.close()


def test_the_policy_of_the_page_lets_no_other_script_run(page: Page) -> None:
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'document.title = 1'}))")
    assert page.title() != "1"


def test_every_header_is_reached_with_tab_and_sorts_with_enter(page: Page) -> None:
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


def test_the_focus_is_seen(page: Page) -> None:
    header(page, "daily_usage", "sessions").focus()
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.textContent") == "day"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_numbers_sort_as_numbers(page: Page) -> None:
    def numbers() -> list[float]:
        return [float(text.replace(",", "")) for text in column(page, "daily_usage", "messages")]

    before = numbers()
    header(page, "daily_usage", "messages").click()
    assert numbers() == sorted(before) != sorted(before, key=str)
    header(page, "daily_usage", "messages").click()
    assert numbers() == sorted(before, reverse=True)


def test_rows_stay_whole_when_sorted(page: Page) -> None:
    rows = page.locator("#daily_usage tbody tr")
    before = rows.all_text_contents()
    header(page, "daily_usage", "messages").click()
    assert rows.all_text_contents() != before
    assert sorted(rows.all_text_contents()) == sorted(before)


def test_cells_without_a_value_sort_last_both_ways(page: Page) -> None:
    for _ in range(2):
        header(page, "conversation_retention", "week 3").click()
        texts = column(page, "conversation_retention", "week 3")
        assert "" in texts
        assert texts == [text for text in texts if text] + [text for text in texts if not text]


def test_sorting_one_column_says_so_and_takes_it_back_from_the_other(page: Page) -> None:
    sorts = "all => all.map(one => one.ariaSort).filter(one => one !== 'none')"
    header(page, "daily_usage", "messages").click()
    header(page, "daily_usage", "day").click()
    header(page, "daily_usage", "day").click()
    assert page.locator("#daily_usage th[scope=col]").evaluate_all(sorts) == ["descending"]


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
def test_every_text_stands_out_from_what_is_behind_it(
    browser: Browser, html: str, tmp_path: Path, size: str, scheme: str
) -> None:
    page, *_ = opened(browser, tmp_path, html, size, scheme)
    found = page.evaluate(CONTRAST)
    page.close()
    assert len(found) > 1000
    assert [pair for pair in found if pair[0] < 4.5] == []


def test_dark_is_dark(browser: Browser, html: str, tmp_path: Path) -> None:
    pages = [opened(browser, tmp_path, html, scheme=scheme)[0] for scheme in ("light", "dark")]
    light, dark = [page.evaluate("parseInt(getComputedStyle(document.body).backgroundColor.slice(4))") for page in pages]
    assert (light > 200, dark < 50) == (True, True)


def test_each_chart_has_a_title_labelled_axes_and_a_text_for_who_does_not_see_it(seen: Page) -> None:
    charts = seen.locator("figure")
    assert charts.count() == len(report.DRAWN) == 6
    for chart in charts.all():
        [image] = chart.locator("[role=img]:visible").all()  # The other size is not there for anybody.
        assert len(image.get_attribute("aria-label") or "") > 60
        assert chart.locator("figcaption b").inner_text()
        assert len([one for one in image.locator(".role-axis-title text").all_text_contents() if one]) == 2
        assert chart.locator("xpath=ancestor::section").locator("table").count() == 1


def test_the_trend_shows_sessions_their_mean_and_the_forecast_in_its_interval(seen: Page) -> None:
    chart = seen.locator("#daily_usage figure")
    assert chart.locator("figcaption span").all_inner_texts() == ["each day", "mean of 7 days", "forecast", "its 95 % interval"]
    for colour, marks in {"bar": 90, "band": 1}.items():
        assert chart.locator(f".wide path[fill='var(--{colour})']").count() == marks
    for colour in ("accent", "ahead"):
        assert chart.locator(f".wide path[stroke='var(--{colour})']").count() == 1
    assert "sessions a day" in chart.locator(".wide .role-axis-title text").all_text_contents()


def test_the_heat_map_shows_every_hour_of_the_week(seen: Page) -> None:
    assert seen.locator("#busiest_hours .wide .mark-rect path").count() == 7 * 24


def test_the_retention_chart_is_a_triangle(seen: Page) -> None:
    assert seen.locator("#conversation_retention .wide .mark-rect path").count() == 7 * 8 / 2


@pytest.mark.parametrize("size", SIZES)
def test_no_label_of_a_chart_is_cut_off_or_covers_another(browser: Browser, html: str, tmp_path: Path, size: str) -> None:
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


def test_it_prints_in_light_colours_with_every_row_and_definition(browser: Browser, html: str, tmp_path: Path) -> None:
    page, _, complaints = opened(browser, tmp_path, html, scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".scroll").evaluate_all("all => all.filter(one => one.scrollHeight > one.clientHeight + 1).length") == 0
    assert page.pdf(format="A4").startswith(b"%PDF-")
    assert page.locator("details:not([open])").count() == 0
    assert complaints == []
    page.close()


def test_an_empty_database_says_that_there_is_nothing_yet(browser: Browser, db: psycopg.Connection[Any], tmp_path: Path) -> None:
    page, requests, complaints = opened(browser, tmp_path, report.report(conninfo_of(db)))
    assert "There is nothing yet" in page.get_by_role("status").inner_text()
    assert page.locator("main section").count() == len(SHOWN)
    assert page.locator("svg").count() == 0
    assert (requests, complaints) == ([page.url], [])
    page.close()


# How it is written ------------------------------------------------------------------------------------


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "report", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, **options)


def test_the_command_writes_the_page_and_says_where(loaded: str, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    done = command("--database", loaded, "--output", str(output))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"alicia-session-stats: wrote {output}\n")
    assert output.read_text().startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [output]


def test_the_page_can_go_to_standard_output(loaded: str) -> None:
    done = command("--database", loaded, "--output", "/dev/stdout")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert done.stdout.rstrip().endswith("</html>")


def test_a_full_disk_leaves_the_old_page_and_nothing_else(loaded: str, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    output.write_text("old")

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = command("--database", loaded, "--output", str(output), preexec_fn=full)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"alicia-session-stats: cannot write {output}: File too large\n"
    assert (output.read_text(), list(tmp_path.iterdir())) == ("old", [output])


def test_who_has_the_old_page_open_reads_it_to_its_end(loaded: str, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    output.write_text("old")
    with output.open() as old:
        assert report.main(["--database", loaded, "--output", str(output)]) == 0
        assert old.read() == "old"


def test_a_link_to_the_page_stays_a_link(loaded: str, tmp_path: Path) -> None:
    (tmp_path / "link.html").symlink_to(tmp_path / "page.html")
    (tmp_path / "page.html").write_text("old")
    assert report.main(["--database", loaded, "--output", str(tmp_path / "link.html")]) == 0
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "page.html").read_text() != "old"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--database", "host=/nonexistent"], 1, "cannot connect"),
        (["--database", "postgresql://u:s3cret@h:x/db"], 2, "the database URL is malformed"),
        (["postgresql://u:s3cret@h/db"], 2, "it may hold a password"),
        (["--timeout", "soon"], 2, "expected seconds"),
    ],
)
def test_an_error_is_one_line_with_the_exit_code_of_the_runner(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main(arguments) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert "s3cret" not in err


def test_a_database_that_is_not_migrated_is_told_to_migrate(
    bare: psycopg.Connection[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main(["--database", conninfo_of(bare), "--output", str(tmp_path / "page.html")]) == 1
    assert "Run migrate" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_its_libraries_it_says_what_to_install() -> None:
    code = "import runpy, sys; sys.modules['vl_convert'] = None; runpy.run_module('report', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    expected = "alicia-session-stats: the report needs vl_convert: pip install 'alicia-session-stats[report]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


def test_it_works_inside_the_package_too(loaded: str, tmp_path: Path) -> None:
    package = tmp_path / "alicia_session_stats"
    shutil.copytree(ROOT / "queries", package / "queries")
    shutil.copy(ROOT / "runner.py", package / "__init__.py")
    for name in ("report.py", "report.html.j2"):
        shutil.copy(ROOT / name, package)
    line = [sys.executable, "-m", "alicia_session_stats.report", "--database", loaded]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "alicia-session-stats: wrote report.html\n")
