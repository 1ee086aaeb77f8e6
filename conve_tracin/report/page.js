"use strict";
// Tables stand as they are without this script; with it, their columns sort, their rows can be searched, and what the
// page shows can be saved.
for (const table of document.querySelectorAll("table.sortable")) {
  const rows = [...table.tBodies[0].rows];
  makeSortable(table, rows);
  const controls = table.previousElementSibling;
  if (controls?.classList.contains("search")) makeSearchable(controls, rows);
  table.classList.add("active");
}

function makeSortable(table, rows) {
  const headers = [...table.tHead.rows[0].cells];
  const valueOf = (row, column, kind) => {
    const cell = row.cells[column];
    return kind === "number" ? Number(cell.dataset.value ?? "-Infinity") : cell.textContent;
  };
  headers.forEach((header, column) => {
    const kind = header.dataset.sort;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      // The largest influence comes first at the first click; names, places and ranks begin at their start.
      const isSize = ["influence", "weakest", "score"].some((name) => header.classList.contains(name));
      const first = isSize ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = header.getAttribute("aria-sort") === first ? other : first;
      const sign = order === "ascending" ? 1 : -1;
      headers.forEach((each) => each.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", order);
      const compare = kind === "number"
        ? (a, b) => (a === b ? 0 : a - b)
        : (a, b) => a.localeCompare(b, undefined, { numeric: true });
      rows.sort((a, b) => sign * compare(valueOf(a, column, kind), valueOf(b, column, kind)));
      table.tBodies[0].append(...rows);
    });
  });
}

function makeSearchable(controls, rows) {
  const input = controls.querySelector("input");
  const choice = controls.querySelector("select");
  const source = controls.querySelector("select.source-choice");
  const count = controls.querySelector(".count");
  const texts = new Map(rows.map((row) => [row, textOf(row)]));
  const filter = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const hasPredicate = !choice.value || row.dataset.relations.split(" ").includes(choice.value);
      const hasSource = !source?.value || JSON.parse(row.dataset.sources).includes(source.value);
      row.hidden = !hasPredicate || !hasSource || !words.every((word) => texts.get(row).includes(word));
      // A word that is found in a folded list is to be seen.
      for (const details of row.querySelectorAll("details:not(.more)")) {
        const list = textOf(details.querySelector("ul"));
        details.open = words.length > 0 && words.some((word) => list.includes(word));
      }
    }
    const shown = rows.filter((row) => !row.hidden).length;
    count.textContent = words.length || choice.value || source?.value ? `${shown} of ${rows.length} shown` : "";
  };
  input.addEventListener("input", filter);
  choice.addEventListener("change", filter);
  source?.addEventListener("change", filter);
  controls.hidden = false;
}

// Names and, where they differ, the identifiers behind them.
function textOf(element) {
  const titles = [...element.querySelectorAll("[title]")].map((each) => each.title);
  const parts = element.cells ? [...element.cells] : [element];
  return [...parts.map((part) => part.textContent), ...titles].join(" ").toLowerCase();
}

// On paper nothing can be unfolded.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const each of folded) each.open = true;
});
addEventListener("afterprint", () => {
  for (const each of folded) each.open = false;
});

// ---------------------------------------------------------------------------------------------------------------
// Downloads: files made of what the page holds. Nothing is asked of a server.

for (const buttons of document.querySelectorAll(".downloads")) {
  buttons.hidden = false;
  const article = buttons.closest("article");
  for (const button of buttons.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      const { download, as } = button.dataset;
      const name = `${article.id}-${download}.${as}`;
      if (as === "json") return save(name, JSON.stringify(everythingOf(article), null, 2), "application/json");
      const records = download === "paths" ? pathsOf(article).map(flat) : influencesOf(article);
      return save(name, asTable(records), "text/tab-separated-values");
    });
  }
}

function everythingOf(article) {
  return {
    prediction: JSON.parse(article.dataset.prediction),
    paths: pathsOf(article),
    influences: influencesOf(article),
  };
}

// In the order of the page at first, whatever it is sorted by and whatever is folded or filtered.
function influencesOf(article) {
  const rows = [...(article.querySelector("table.influences")?.tBodies[0].rows ?? [])];
  return inOrder(rows).flatMap((row) => {
    const [, head, relation, tail] = [...row.cells].map((cell) => named(cell.querySelector("bdi")));
    const influence = row.querySelector("td.influence");
    const folded = [...row.querySelectorAll("details:not(.more) > ul > li")];
    const models = row.cells[4].dataset.value;
    if (!folded.length) return [record(head, relation, tail, influence.dataset.value, row.cells.length > 5 ? models : null)];
    const many = row.cells[1].querySelector("details") ? "head" : "tail";
    return folded.map((item) => {
      const one = named(item.querySelector("bdi"));
      const ends = many === "head" ? [one, relation, tail] : [head, relation, one];
      return record(...ends, item.dataset.value, item.dataset.models);
    });
  });
}

function record(head, relation, tail, influence, models) {
  return {
    head: head.key, head_name: head.name, relation: relation.key, relation_name: relation.name,
    tail: tail.key, tail_name: tail.name, influence: Number(influence),
    ...(models == null ? {} : { models: Number(models) }),
  };
}

function named(bdi) {
  if (!bdi) return null;
  const name = bdi.textContent.trim();
  return { name, key: bdi.dataset.key ?? (bdi.title || name) };
}

function pathsOf(article) {
  const rows = [...(article.querySelector("table.path-table")?.tBodies[0].rows ?? [])];
  return inOrder(rows).map((row) => ({
    path: withoutNotes(row.cells[1]).textContent.trim().replace(/\s+/g, " "),
    triples: JSON.parse(row.dataset.path).map(([head, relation, tail, influence]) => ({ head, relation, tail, influence })),
  }));
}

function withoutNotes(cell) {
  const copy = cell.cloneNode(true);
  for (const note of copy.querySelectorAll(".note")) note.remove();
  return copy;
}

function flat({ path, triples }) {
  const text = triples.map(({ head, relation, tail }) => `${head} ${relation} ${tail}`).join(" | ");
  return { path, triples: text, influences: triples.map((one) => one.influence).join(" | ") };
}

function inOrder(rows) {
  return rows.sort((a, b) => a.cells[0].dataset.value - b.cells[0].dataset.value);
}

function asTable(records) {
  const columns = Object.keys(records[0] ?? {});
  // A spreadsheet would run a text that begins like a formula.
  const cell = (value) => (typeof value === "number" ? String(value) : value.replace(/[\t\r\n]/g, " ").replace(/^(?='*[=+\-@])/, "'"));
  return [columns, ...records.map((one) => columns.map((column) => cell(one[column])))].map((line) => line.join("\t") + "\n").join("");
}

function save(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
