
const DARK = matchMedia("(prefers-color-scheme: dark)");
const LONG = 25; // rows of a page of a long table
const SHORT = 5; // rows that need no search

function followColours() {
  document.documentElement.classList.toggle("dark", DARK.matches); // DataTables' own dark colours
}

async function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const url = URL.createObjectURL(new Blob([await new Response(stream).arrayBuffer()], { type: "text/javascript" }));
  try {
    return await import(url);
  } finally {
    URL.revokeObjectURL(url);
  }
}

function options(table) {
  const rows = table.tBodies[0].rows.length;
  const searched = "searched" in table.dataset && rows > SHORT;
  const long = searched && rows > LONG;
  return {
    order: [],
    autoWidth: false,
    ordering: rows > 1,
    paging: long,
    pageLength: LONG,
    lengthMenu: [LONG, 100, { label: "all", value: -1 }],
    layout: {
      topStart: searched ? "search" : null,
      topEnd: long ? "pageLength" : null,
      bottomStart: searched ? "info" : null,
      bottomEnd: long ? "paging" : null,
    },
    columnDefs: searched
      ? [
          { targets: "text", columnControl: [["searchList"]] },
          { targets: "number", columnControl: ["searchDropdown"] },
        ]
      : [],
  };
}

function scrollable(table) {
  const outer = table.closest(".table");
  const cell = table.closest(".dt-layout-cell"); // the search box stays when the table moves
  for (const name of ["role", "tabindex", "aria-label"]) {
    cell.setAttribute(name, outer.getAttribute(name));
    outer.removeAttribute(name);
  }
}

async function enliven() {
  const { ITable } = await unpacked("datatables");
  const elements = [...document.querySelectorAll("main table")];
  const tables = elements.map((table) => new ITable(table, options(table)).dt);
  elements.forEach(scrollable);
  addEventListener("beforeprint", () => tables.forEach((table) => table.page.len(-1).draw()));
  addEventListener("afterprint", () => tables.forEach((table) => table.page.len(LONG).draw()));
  document.documentElement.dataset.ready = tables.length;
}

function enlarging() {
  const dialog = document.getElementById("zoom");
  const image = document.getElementById("zoomed");
  const show = (factor) => {
    image.style.width = factor ? `${factor * image.naturalWidth}px` : "100%";
    for (const button of dialog.querySelectorAll("[data-zoom]")) {
      button.setAttribute("aria-pressed", button.dataset.zoom === String(factor));
    }
  };
  for (const button of dialog.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => show(Number(button.dataset.zoom)));
  }
  for (const button of document.querySelectorAll("button.enlarge")) {
    button.addEventListener("click", () => {
      const small = button.querySelector("img");
      image.src = small.src;
      image.alt = small.alt;
      document.getElementById("zoom-title").textContent = button.getAttribute("aria-label").replace("Enlarge: ", "");
      show(0);
      dialog.showModal();
    });
  }
}

followColours();
DARK.addEventListener("change", followColours);
enlarging();
await enliven();
