for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, place) => row.cells[place].dataset.value ?? row.cells[place].textContent.trim();
  heads.forEach((head, place) => {
    head.querySelector("button").addEventListener("click", () => {
      const rows = [...body.rows];
      const numbers = rows.every((row) => !isNaN(value(row, place)));
      const before = head.getAttribute("aria-sort");
      const rising = before ? before === "descending" : !numbers;
      const sign = rising ? 1 : -1;
      rows.sort((a, b) => {
        const x = value(a, place), y = value(b, place);
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (numbers ? x - y : x.localeCompare(y));
      });
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      body.append(...rows);
    });
  });
}
