"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const kind = head.dataset.sort;
    if (!kind) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => {
        const cell = row.cells[column];
        if (kind === "text") return cell.textContent.trim();
        return cell.dataset.value ? Number(cell.dataset.value) : null;
      };
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        const order = kind === "text" ? x.localeCompare(y) : x - y;
        return down ? -order : order;
      };
      for (const body of table.tBodies) {
        const rows = [...body.rows].filter((row) => !("fixed" in row.dataset));
        body.append(...rows.sort(compare));
      }
    });
  });
}
