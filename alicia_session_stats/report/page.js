"use strict";
// Click a column's header to sort its table: numbers as numbers, empty cells last in both directions.
const collator = new Intl.Collator("en", { numeric: true });
const number = (text) => Number(text.replaceAll(",", "").replace("−", "-"));

function sort(table, header) {
  const text = (row) => row.cells[header.cellIndex].textContent;
  const ascending = header.ariaSort !== "ascending";
  const isNumber = header.classList.contains("number");
  const compare = (a, b) => isNumber ? number(text(a)) - number(text(b)) : collator.compare(text(a), text(b));
  const rows = [...table.tBodies[0].rows];
  const filled = rows.filter(text).sort((a, b) => (ascending ? compare(a, b) : compare(b, a)));
  table.tBodies[0].append(...filled, ...rows.filter((row) => !text(row)));
  for (const other of table.tHead.rows[0].cells) other.ariaSort = "none";
  header.ariaSort = ascending ? "ascending" : "descending";
}

for (const table of document.querySelectorAll("table")) {
  if (table.tBodies[0].rows.length < 2) continue;
  for (const header of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(table, header));
    header.append(button);
    header.ariaSort = "none";
  }
}

// Say that a table is wider than its place, and fade its edge until it is scrolled to the end.
for (const place of document.querySelectorAll(".scroll")) {
  const hint = () => {
    place.previousElementSibling.hidden = place.scrollWidth < place.clientWidth + 3;
    place.classList.toggle("more", place.scrollLeft + place.clientWidth < place.scrollWidth - 2);
  };
  new ResizeObserver(hint).observe(place);
  place.addEventListener("scroll", hint, { passive: true });
}

// Print the tables and definitions too: on paper they cannot be opened.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => (details.open = true)));
