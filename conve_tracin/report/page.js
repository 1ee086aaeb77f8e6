"use strict";
// Tables stand as they are without this script; with it, their columns sort and their rows can be searched.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];

  const valueOf = (row, column, kind) => {
    const cell = row.cells[column];
    return kind === "number" ? Number(cell.dataset.value) : cell.textContent;
  };

  headers.forEach((header, column) => {
    const kind = header.dataset.sort;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      // The largest influence comes first at the first click; names and places begin at their start.
      const first = header.classList.contains("influence") ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = header.getAttribute("aria-sort") === first ? other : first;
      const sign = order === "ascending" ? 1 : -1;
      headers.forEach((each) => each.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", order);
      const compare = kind === "number"
        ? (a, b) => a - b
        : (a, b) => a.localeCompare(b, undefined, { numeric: true });
      rows.sort((a, b) => sign * compare(valueOf(a, column, kind), valueOf(b, column, kind)));
      body.append(...rows);
    });
  });

  const search = table.previousElementSibling;
  const input = search.querySelector("input");
  const count = search.querySelector(".count");
  const texts = new Map(rows.map((row) => [row, rowText(row)]));
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every((word) => texts.get(row).includes(word));
    const shown = rows.filter((row) => !row.hidden).length;
    count.textContent = words.length ? `${shown} of ${rows.length} shown` : "";
  });
  search.hidden = false;
  table.classList.add("active");
}

// Names and, where they differ, the identifiers behind them.
function rowText(row) {
  const titles = [...row.querySelectorAll("[title]")].map((each) => each.title);
  return [...[...row.cells].map((cell) => cell.textContent), ...titles].join(" ").toLowerCase();
}
