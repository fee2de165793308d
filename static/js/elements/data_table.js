const NUMBERS = new Set(["integer", "number"]);

/** A table of data whose heads sort its rows. The rows come from the server; without a script they stay in order. */
export class DataTable extends HTMLElement {
  #body = null;

  connectedCallback() {
    this.#body = this.querySelector("tbody");
    if (!this.#body || this.#body.rows.length < 2 || this.querySelector("th button")) return;
    for (const head of this.querySelectorAll("th")) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => this.#sort(head));
      head.append(button);
    }
  }

  #sort(head) {
    const isDown = head.ariaSort === "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", isDown ? "descending" : "ascending");
    const compare = comparison(NUMBERS.has(head.dataset.type));
    const rows = [...this.#body.rows].map((row) => ({ row, value: row.cells[head.cellIndex]?.textContent ?? "" }));
    rows.sort((one, other) => {
      // Empty cells come last, whichever way.
      if (!one.value || !other.value) return !one.value - !other.value;
      return isDown ? compare(other.value, one.value) : compare(one.value, other.value);
    });
    this.#body.replaceChildren(...rows.map(({ row }) => row));
  }
}

function comparison(isNumber) {
  if (isNumber) return (one, other) => Number(one) - Number(other);
  const { compare } = new Intl.Collator(undefined, { numeric: true });
  return compare;
}
