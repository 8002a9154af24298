for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, index) => row.cells[index].dataset.value ?? row.cells[index].textContent.trim();
  heads.forEach((head, index) => {
    head.querySelector("button").addEventListener("click", () => {
      const rows = [...body.rows];
      const numbers = rows.every((row) => !isNaN(value(row, index)));
      const before = head.getAttribute("aria-sort");
      const ascending = before ? before === "descending" : !numbers;
      const sign = ascending ? 1 : -1;
      rows.sort((a, b) => {
        const x = value(a, index), y = value(b, index);
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (numbers ? x - y : x.localeCompare(y));
      });
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      body.append(...rows);
    });
  });
}
