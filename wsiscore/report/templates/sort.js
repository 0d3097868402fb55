for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row, at) => row.cells[at]?.dataset.sort ?? "";
  heads.forEach((head, at) => {
    if (!body.querySelector(`tr > :nth-child(${at + 1})[data-sort]`)) return;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const numbers = head.dataset.kind === "number";
      const compare = (a, b) => numbers ? a - b : a.localeCompare(b, "en", { numeric: true });
      const rows = [...body.rows].sort((one, other) => {
        const a = key(one, at), b = key(other, at);
        if (a === "" || b === "") return (a === "") - (b === "");
        return down ? compare(b, a) : compare(a, b);
      });
      body.append(...rows);
    });
  });
}
