"""Tables in each format: what a reader of LaTeX, Markdown and CSV would trip over."""

import csv
import io
import re
from dataclasses import replace

import pytest

from inspection.page import environment
from studies.markup import escape, latex, markdown, table_csv
from studies.report import TEMPLATE
from studies.tables import Cell, Row, Table, number
from tests.inspection.test_pages import Balance

TABLE = Table(
    "t",
    "50 % of a_b & #1",
    [[("zero-shot", 2), ("VQA", 1)], [("63 %", 1), ("75 %", 1), ("63 %", 1)]],
    [
        Row("dense", [Cell("70.4", span=2), Cell("80.0", "1.0")], "dense"),
        Row("omp_x", [Cell("60.2", "0.5", "85.5", 1, "*", "2", "p = <0.01>"), Cell("50.0", rank=2), Cell()]),
        Row("75 %", [], "section"),
        Row("a|b*", [Cell("1.0"), Cell("2.0"), Cell("−3.0")]),
    ],
    notes=["a 100 % note_"],
)


def columns_of(line: str) -> int:
    """Columns that a line of a LaTeX table fills."""
    cells = re.split(r"(?<!\\)&", line.removesuffix(r"\\"))
    spans = [re.match(r"\s*\\multicolumn\{(\d+)\}", cell) for cell in cells]
    return sum(int(span[1]) if span else 1 for span in spans)


def check_latex(text: str) -> None:
    """Balanced braces and environments, nothing special unescaped, lines of one width, rules within the table."""
    bare = re.sub(r"\\[\\%_&#${}]", "", re.sub(r"^%.*$", "", text, flags=re.MULTILINE))
    depth = 0
    for sign in bare:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        assert depth >= 0
    assert depth == 0
    assert bare.count("$") % 2 == 0
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        assert opened.pop() == name if kind == "end" else opened.append(name) is None
    assert not opened
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    rules = re.compile(r"\\(midrule|cmidrule\(lr\)\{\d+-\d+\})")
    lines = [rules.sub("", line).strip() for line in body.splitlines()]
    lines = [line for line in lines if line]
    width = len(re.search(r"\\begin\{tabular\}\{(l r* *|lr*)\}", text)[1])
    for line in lines:
        assert line.endswith(r"\\"), line
        assert columns_of(line) == width, line
        assert not re.search(r"(?<!\\)[%#]", line), line
        assert not re.search(r"(?<!\\)_", line), line
    for start, end in re.findall(r"cmidrule\(lr\)\{(\d+)-(\d+)\}", text):
        assert 2 <= int(start) <= int(end) <= width
    assert [text.count(rule) for rule in (r"\toprule", r"\bottomrule")] == [1, 1]


def test_latex():
    text = latex(TABLE)
    check_latex(text)
    assert r"\caption{50 \% of a\_b \& \#1. a 100 \% note\_}" in text
    assert r"omp\_x & \textbf{60.2}$^{*}${\scriptsize$\pm$0.5}{\scriptsize~(2)} & \underline{50.0} & -- \\" in text
    assert r"dense & \multicolumn{2}{c}{70.4} & 80.0{\scriptsize$\pm$1.0} \\" in text
    assert r" & \multicolumn{2}{c}{zero-shot} & VQA \\" in text
    assert r"\cmidrule(lr){2-3}\cmidrule(lr){4-4}" in text
    assert r"$-$3.0" in text


@pytest.mark.parametrize(
    ("wrong", "to"),
    [(r"\%", "%"), (r"\end{table}", ""), ("& --", ""), (r"a\_b", "a_b}"), (r"{2-3}", "{2-9}"), ("omp\\_x", "omp_x")],
)
def test_this_check_sees_what_is_wrong(wrong, to):
    text = latex(TABLE)
    assert wrong in text
    with pytest.raises(AssertionError):
        check_latex(text.replace(wrong, to) if wrong != r"\%" else text.replace(r"63 \%", "63 %"))


def test_escape():
    assert escape(r"50% a_b {x} \ ~ ^ $ & #") == (
        r"50\% a\_b \{x\} \textbackslash{} \textasciitilde{} \textasciicircum{} \$ \& \#"
    )
    assert escape("p < 1 > 0 | −1") == r"p $<$ 1 $>$ 0 \textbar{} $-$1"


def test_markdown_has_one_width():
    text = markdown(TABLE)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}
    assert rows[0] == "| pruner | zero-shot 63 % | zero-shot 75 % | VQA 63 % |"
    assert rows[2] == "| dense | 70.4 |  | 80.0 ± 1.0 |"
    assert rows[3] == r"| omp\_x | **60.2**\* ± 0.5 [85.5 %] (2) | <u>50.0</u> | – |"
    assert rows[5] == r"| a\|b\* | 1.0 | 2.0 | −3.0 |"


def test_csv_is_read_back():
    rows = list(csv.DictReader(io.StringIO(table_csv(TABLE))))
    assert [row["pruner"] for row in rows] == ["dense", "omp_x", "a|b* 75 %"]
    assert (rows[1]["zero-shot 63 %"], rows[1]["zero-shot 63 % sd"], rows[1]["VQA 63 %"]) == ("60.2", "0.5", "")
    assert rows[0]["VQA 63 % sd"] == "1.0"


def html(table: Table) -> str:
    """The table as pages have it."""
    text = '{% import "table.html" as t with context %}{{ t.table(table, {}) }}'
    return environment(TEMPLATE.parent).from_string(text).render(table=table)


def test_html_is_balanced_and_says_what_it_shows():
    parser = Balance()
    parser.feed(html(TABLE))
    parser.close()
    assert parser.open == []
    text = html(TABLE)
    assert '<td title="p = &lt;0.01&gt;" class="new"><b>60.2</b><sup>*</sup>' in text
    assert "<u>50.0</u>" in text
    assert '<th scope="col" class="new over">VQA</th>' in text
    assert '<td colspan="2" class="new">70.4</td>' in text
    assert "<i>(1)</i>" in html(replace(TABLE, rows=[Row("dense", [Cell("70.4", seeds="1", span=2)], "dense")]))


def test_numbers_have_three_digits_that_count():
    assert [number(value) for value in (0.0312, 4.512, 45.12, 1234.5)] == ["0.031", "4.51", "45.1", "1,234"]
    assert number(0.5, like=45.12) == "0.5"
