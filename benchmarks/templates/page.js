// The page, asked: without this script everything is there already, nothing is fetched, and nothing is kept.
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const make = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

// Limits: the sliders move the verdict, the marked row and point, and the lines in the plots.
function ask(section) {
  const form = section.querySelector(".ask");
  if (!form) return;
  const asked = JSON.parse(section.querySelector("script.asked").textContent);
  const sliders = Object.fromEntries(["drop", "latency", "size"].map(name => [name, form.elements[name]]));
  const start = () => {
    Object.values(sliders).forEach((slider, at) => { slider.max = asked[slider.name].length - 1; slider.value = asked.start[at]; });
    form.elements.accept.checked = asked.accept;
  };
  const move = () => {
    const at = { accept: form.elements.accept.checked }, options = [];
    for (const [name, slider] of Object.entries(sliders)) {
      const [limit, text] = asked[name][at[name] = +slider.value];
      const told = text ? `${text}${{ drop: ` ${asked.short}`, latency: " ms", size: "" }[name]}` : "no limit";
      slider.parentElement.querySelector("output").value = told;
      slider.setAttribute("aria-valuetext", told);
      if (limit !== null) options.push(`--max-${name} ${limit}`);
    }
    if (at.accept) options.push("--accept-unproved");
    form.querySelector("code").textContent = `compress report ${options.join(" ")}`;
    const found = decide(asked, at);
    section.querySelector(".verdict").textContent = found.headline;
    section.querySelector(".reasons").replaceChildren(...found.reasons.map(reason => make("li", {}, reason)));
    all("tr[data-ships]", section).forEach(row => row.classList.toggle("chosen", row.dataset.ships === found.ship));
    all("g[data-ships]", section).forEach(mark => mark.classList.toggle("ship", JSON.parse(mark.dataset.ships).includes(found.ship)));
    const size = asked.size[at.size][0];
    const limits = { y: asked.score - asked.drop[at.drop][0], latency: asked.latency[at.latency][0], size: size && size / 1e3 };
    all(".limit", section).forEach(line => place(line, line.dataset.limit === "y" ? limits.y : limits[line.ownerSVGElement.dataset.axis]));
  };
  form.addEventListener("input", move);
  form.querySelector("button").addEventListener("click", () => { start(); move(); });
  start();
  move();
  form.hidden = false;
}

// Puts a line of a plot where its axis has that value; where there is none, or it lies outside, nowhere.
function place(line, value) {
  const which = line.dataset.limit, [low, high, from, to, kind] = line.ownerSVGElement.dataset[which].split(" ");
  const bent = { linear: one => one, log: Math.log, error: one => -Math.log(Math.max(100 - one, 1e-9)) }[kind];
  const inside = value !== null && value > +low && value < +high;
  line.setAttribute("display", inside ? "inline" : "none");
  if (!inside) return;
  const at = +from + (to - from) * (bent(value) - bent(+low)) / (bent(+high) - bent(+low));
  line.setAttribute("transform", which === "x" ? `translate(${at} 0)` : `translate(0 ${at})`);
}

// Legends: an entry hides its runtime; where those that squeeze the rest are hidden, the plot without them is shown.
function legend(plot) {
  const entries = all(".legend li", plot), hidden = new Set();
  const squeezing = entries.filter(entry => "squeezes" in entry.dataset).map(entry => entry.dataset.kind);
  const show = () => {
    const rest = squeezing.length > 0 && squeezing.every(kind => hidden.has(kind));
    all(".layout", plot).forEach(layout => { layout.hidden = (layout.dataset.layout === "rest") !== rest; });
    all(".point, .name", plot).forEach(mark => mark.setAttribute("display", hidden.has(mark.dataset.kind) ? "none" : "inline"));
    entries.forEach(entry => entry.firstChild.setAttribute("aria-pressed", !hidden.has(entry.dataset.kind)));
  };
  for (const entry of entries) {
    const kind = entry.dataset.kind, button = make("button", { type: "button", title: "show or hide" }, ...entry.childNodes);
    button.addEventListener("click", () => { hidden.delete(kind) || hidden.add(kind); show(); });
    entry.replaceChildren(button);
  }
  if (entries.length > squeezing.length) squeezing.forEach(kind => hidden.add(kind));
  show();
}

// Points tell their figures where the pointer or the keyboard is.
function hover() {
  const tip = document.body.appendChild(make("div", { className: "tip", hidden: true }));
  const tell = event => {
    const point = event.target.closest && event.target.closest(".point");
    tip.hidden = !point;
    if (!point) return;
    tip.textContent = point.getAttribute("aria-label");
    const { left, right, top, bottom } = point.querySelector(".reach").getBoundingClientRect();
    const beside = Math.max(8, Math.min(innerWidth - tip.offsetWidth - 8, (left + right - tip.offsetWidth) / 2));
    const above = top - tip.offsetHeight - 4;
    tip.style.left = `${beside}px`;
    tip.style.top = `${above > 4 ? above : bottom + 4}px`;
  };
  for (const point of all(".point")) {
    const title = point.querySelector("title");
    point.setAttribute("aria-label", title.textContent);
    point.setAttribute("role", "img");
    point.setAttribute("tabindex", "0");
    title.remove();
  }
  for (const name of ["pointerover", "focusin"]) document.addEventListener(name, tell);
  for (const name of ["focusout", "scroll"]) document.addEventListener(name, () => { tip.hidden = true; }, true);
  document.addEventListener("keydown", event => { if (event.key === "Escape") tip.hidden = true; });
}

// The number that a cell begins with, sizes in bytes; null where it has none.
function number(text) {
  const found = /^\s*<?\s*([+-]?[\d,]*\.?\d+)\s*(kB|MB|GB)?/.exec(text);
  return found && +found[1].replaceAll(",", "") * ({ kB: 1e3, MB: 1e6, GB: 1e9 }[found[2]] || 1);
}

// Rows in the order of a column, by its numbers where it has any; what has none stays at the end.
function sorted(rows, cell, descending) {
  const numeric = rows.some(row => number(cell(row)) !== null);
  const key = row => numeric ? number(cell(row)) : cell(row) || null;
  return [...rows].sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a === null || b === null) return (a === null) - (b === null);
    const order = numeric ? a - b : a.localeCompare(b);
    return descending ? -order : order;
  });
}

// The rows that are seen, as lists of [value, interval]; the first is that of the titles.
function cells(table) {
  const value = cell => {
    if (!cell) return ["", ""];
    const copy = cell.cloneNode(true), small = copy.querySelector("small"), folded = all("details", copy), tag = copy.querySelector(".tag");
    const interval = small ? small.textContent.trim() : "";
    const ships = tag && cell.parentElement.classList.contains("chosen") ? " (ship)" : "";
    [small, tag, ...folded].forEach(one => one && one.remove());
    return [copy.textContent.trim().replace(/\s+/g, " ") + ships, interval];
  };
  return [[...table.tHead.rows], [...table.tBodies[0].rows].filter(row => !row.hidden)].flat().map(row => [...row.cells].map(value));
}

function asMarkdown(table) {
  const [titles, ...rows] = cells(table);
  const line = row => `| ${titles.map((_, at) => row[at] || ["", ""]).map(([value, interval]) =>
    (interval ? `${value} (${interval})` : value).replace(/[\\|]/g, "\\$&")).join(" | ")} |`;
  return [line(titles), `|${titles.map((_, at) => at < 2 ? "---" : "---:").join("|")}|`, ...rows.map(line)].join("\n") + "\n";
}

function asCsv(table) {
  const [titles, ...rows] = cells(table);
  const quoted = value => {
    const safe = /^[=+\-@\t\r]/.test(value) && !/^[+-]?[\d.]+$/.test(value) ? `'${value}` : value; // a spreadsheet would compute it
    return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const wide = titles.map((_, at) => rows.some(row => row[at] && row[at][1]));
  const line = (row, first) => titles.flatMap((_, at) => {
    const [value, interval] = row[at] || ["", ""];
    return wide[at] ? [value, first ? `${value}, interval` : interval] : [value];
  }).map(quoted).join(",");
  return [line(titles, true), ...rows.map(row => line(row))].join("\n") + "\n";
}

async function copy(text, button) {
  const said = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.body.appendChild(make("textarea", { value: text }));
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = said; }, 1500);
}

// Tools over a table: filter, order, copies.
function tools(table) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const filter = make("input", { type: "search", placeholder: "Filter rows", ariaLabel: "Filter rows" }), count = make("span");
  const order = make("select", { ariaLabel: "Order of the rows" }, make("option", { value: "" }, "as measured"));
  heads.forEach((head, at) => order.append(...["up", "down"].map(way => make("option", { value: `${at} ${way}` }, `${head.textContent}, ${way}`))));
  filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase().split(/\s+/);
    rows.forEach(row => { row.hidden = !wanted.every(word => row.textContent.toLowerCase().includes(word)); });
    const seen = rows.filter(row => !row.hidden).length;
    count.textContent = seen < rows.length ? `${seen} of ${rows.length}` : "";
  });
  const sort = (at, way) => {
    heads.forEach((head, index) => index === at && way ? head.setAttribute("aria-sort", `${way}ending`) : head.removeAttribute("aria-sort"));
    const cell = row => row.cells[at] ? (row.cells[at].querySelector("span:not(.tag)") || row.cells[at]).textContent.trim() : "";
    body.append(...(way ? sorted(rows, cell, way === "desc") : rows));
    order.value = way ? `${at} ${way === "desc" ? "down" : "up"}` : "";
  };
  order.addEventListener("change", () => {
    const [at, way] = order.value.split(" ");
    sort(+at, { up: "asc", down: "desc" }[way]);
  });
  heads.forEach((head, at) => {
    const button = make("button", { type: "button", title: "sort" }, ...head.childNodes);
    button.addEventListener("click", () => sort(at, { ascending: "desc", descending: "" }[head.getAttribute("aria-sort")] ?? "asc"));
    head.replaceChildren(button);
  });
  const buttons = Object.entries({ Markdown: asMarkdown, CSV: asCsv }).map(([name, write]) => {
    const button = make("button", { type: "button" }, `Copy ${name}`);
    button.addEventListener("click", () => copy(write(table), button));
    return button;
  });
  table.parentElement.before(make("div", { className: "tools" }, filter, order, ...buttons, count));
}

function begin() {
  all("section").forEach(ask);
  all(".plot").forEach(legend);
  hover();
  all(".asks").forEach(tools);
  addEventListener("beforeprint", () => all("details").forEach(one => { one.open = true; }));
}
if (typeof document !== "undefined") begin();
