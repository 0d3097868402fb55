// Correcting cells in the viewer: another class, a cell deleted or added. The edits stay in the page until all cells are
// saved as a file that `wsiscore score MOSAIC --cells` reads.
const EDITED = 4, GONE = 8; // in the kind of a cell: somebody edited it; it is deleted
function editor({ root, data, cells, append, regionAt, nearest, chosen, choose, say, show, middle }) {
  const CLASSES = ['"Negative","color":[112,112,225]', '"Positive","color":[250,62,62]', '"Other","color":[160,160,160]'];
  const SAME = 2; // µm within which the command takes two cells for the same
  const bar = root.querySelector(".editing"), status = root.querySelector(".edits"), next = root.querySelector(".next");
  const history = []; // of each edit the cell, and its kind before
  let last = 1, unsaved = false;

  function count() {
    const before = new Map(), found = { added: 0, deleted: 0, changed: 0 };
    for (const [i, kind] of history) if (!before.has(i)) before.set(i, kind);
    for (const [i, kind] of before) {
      const was = !(kind & GONE), is = !(cells.kind[i] & GONE);
      if (was !== is) found[is ? "added" : "deleted"]++;
      else if (is && (kind ^ cells.kind[i]) & 3) found.changed++;
    }
    return Object.entries(found).filter(([, n]) => n);
  }
  function update(now) {
    const found = count(), n = found.reduce((sum, [, each]) => sum + each, 0);
    unsaved = now && n > 0;
    next.hidden = now || !n;
    const names = found.map(([name, each]) => `${each} ${name}`).join(", ");
    status.textContent = n ? `${n} edit${n > 1 ? "s" : ""}: ${names}, ${unsaved ? "not saved" : "saved"}` : "";
    root.dataset.edits = n;
  }
  function set(i, kind) {
    if (cells.kind[i] !== kind) {
      history.push([i, cells.kind[i]]);
      cells.kind[i] = kind;
      update(true);
    }
    choose(i);
  }
  const change = (use) => () => (chosen() < 0 ? say("Choose a cell first: click it, or press Enter.") : use(chosen()));
  const mark = (kind) => change((i) => {
    last = kind;
    const was = history.find(([each]) => each === i)?.[1] ?? cells.kind[i];
    set(i, was < EDITED && was === kind ? was : kind | EDITED);
  });

  function add(x, y) {
    if (!(x >= 0 && y >= 0 && x < data.width && y < data.height)) return say("There is no slide here.");
    const same = nearest(x, y, SAME);
    if (same >= 0) return choose(same, "There is a cell here");
    const roi = regionAt(x, y);
    set(append(Math.round(x * 10) / 10, Math.round(y * 10) / 10, GONE, roi < 0 ? 65535 : roi), last | EDITED);
    if (roi < 0) choose(chosen(), "Outside the regions, where cells do not count");
  }
  function undo() {
    if (!history.length) return say("There is no edit to undo.");
    const [i, kind] = history.pop();
    cells.kind[i] = kind;
    update(true);
    show(cells.x[i], cells.y[i]);
    choose(kind & GONE ? -1 : i);
  }
  function toggle(name) {
    root.querySelector(`[value="${name}"]`).setAttribute("aria-pressed", root.toggleAttribute(`data-${name}`));
  }

  // As cells.geojson has them, in pixels of the full resolution.
  function save() {
    const px = (um) => Number((Math.round(um * 10) / 10 / data.mpp).toFixed(3)), radius = px(4), parts = [];
    for (let i = 0; i < cells.n; i++)
      if (!(cells.kind[i] & GONE))
        parts.push(`${parts.length ? ",\n" : "\n"}{"type":"Feature","geometry":{"type":"Point","coordinates":[${px(cells.x[i])},${
          px(cells.y[i])}]},"properties":{"objectType":"detection","radius":${radius},"classification":{"name":${CLASSES[cells.kind[i] & 3]}}}}`);
    const link = document.createElement("a"), time = new Date().toISOString().replace(/\D/g, "").slice(0, 14);
    link.download = `${data.name}-edited-${time}.geojson`;
    link.href = URL.createObjectURL(new Blob(['{"type":"FeatureCollection","features":[', ...parts, "\n]}\n"]));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    const quoted = (text) => (/^[\w./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
    const here = location.protocol === "file:" ? decodeURIComponent(location.pathname.replace(/\/[^/]*\/[^/]*$/, "")) : "";
    next.querySelector("code").textContent =
      `${here && `cd ${quoted(here)} && `}${data.command} --cells ~/Downloads/${quoted(link.download)} --author 'Your Name'`;
    update(false);
  }

  window.addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });
  return {
    add,
    actions: {
      editing: () => {
        toggle("editing");
        bar.hidden = root.dataset.editing === undefined;
        if (bar.hidden && root.dataset.adding !== undefined) toggle("adding");
        show(...middle());
      },
      adding: () => toggle("adding"),
      markPositive: mark(1), markNegative: mark(0), markOther: mark(2), remove: change((i) => set(i, cells.kind[i] | GONE)),
      add: () => add(...middle()), undo, save,
    },
    keys: {
      p: "markPositive", b: "markNegative", x: "markOther", Delete: "remove", Backspace: "remove", a: "add", u: "undo",
      s: "save",
    },
  };
}
