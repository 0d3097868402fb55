// The viewer of a slide: tiles, cells, regions and the local index on a canvas. Lengths are micrometres unless named _px.
(async () => {
  "use strict";
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const root = document.getElementById("viewer"), canvas = root.querySelector("canvas");
  const pen = canvas.getContext("2d", { alpha: false });
  const layer = document.createElement("canvas"), layerPen = layer.getContext("2d");
  const RING = 4, DOT = 1.4, LEAST_RING_PX = 2.5, BIN = 100, MOST_IMAGES = 400, LARGEST_SCALE = 16;
  const KINDS = ["negative", "positive", "other"], INK = ["#005ce6", "#d7191c", "#444"];
  const on = { positive: true, negative: true, other: true, regions: true, index: false };
  const view = { x: data.width / 2, y: data.height / 2, scale: 1 }; // the middle, and CSS pixels per µm
  const step = { places: -1, doubtful: -1 };
  let ratio = 1, width = 1, height = 1, chosen = -1, waiting = false, bare = false, shownMpp = 0;

  // Cells: planes of bytes as pack_cells writes them, and square bins that find those in view.
  async function unpack({ n, packed }) {
    const text = atob(packed), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const flat = new Uint8Array(await new Response(stream).arrayBuffer());
    const [x0, x1, x2, y0, y1, y2, confidence, positivity, density, kind, roi0, roi1] = Array.from(
      { length: 12 }, (_, at) => flat.subarray(at * n, (at + 1) * n));
    const x = new Float32Array(n), y = new Float32Array(n), roi = new Uint16Array(n);
    for (let i = 0, below = 0; i < n; i++) {
      x[i] = (x0[i] | (x1[i] << 8) | (x2[i] << 16)) / 10;
      below += y0[i] | (y1[i] << 8) | (y2[i] << 16);
      y[i] = below / 10;
      roi[i] = roi0[i] | (roi1[i] << 8);
    }
    return binned({ n, x, y, roi, confidence, positivity, density, kind });
  }
  function binned(cells) {
    const cols = Math.floor(data.width / BIN) + 1, rows = Math.floor(data.height / BIN) + 1, { n, x, y } = cells;
    const bin = new Uint32Array(n), first = new Uint32Array(cols * rows + 1), order = new Uint32Array(n);
    for (let i = 0; i < n; i++) {
      bin[i] = Math.min(rows - 1, Math.floor(y[i] / BIN)) * cols + Math.min(cols - 1, Math.floor(x[i] / BIN));
      first[bin[i] + 1]++;
    }
    for (let i = 0; i < cols * rows; i++) first[i + 1] += first[i];
    const next = first.slice();
    for (let i = 0; i < n; i++) order[next[bin[i]]++] = i;
    return Object.assign(cells, { cols, rows, first, order });
  }
  // Adds a cell of which nothing is measured, and returns its number.
  function append(x, y, kind, roi) {
    const added = { x, y, kind, roi, confidence: 255, positivity: 255, density: 255 };
    for (const [name, value] of Object.entries(added)) {
      const longer = new cells[name].constructor(cells.n + 1);
      longer.set(cells[name]);
      longer[cells.n] = value;
      cells[name] = longer;
    }
    cells.n++;
    binned(cells);
    return cells.n - 1;
  }
  const isShown = (kind) => !(kind & GONE) && on[KINDS[kind & 3]];

  // Calls back with where in cells.order the cells of each row of bins begin and end that a rectangle touches.
  function within(left, top, right, bottom, use) {
    const bin = (value, count) => Math.max(0, Math.min(count - 1, Math.floor(value / BIN)));
    const from = bin(left, cells.cols), to = bin(right, cells.cols);
    for (let row = bin(top, cells.rows); row <= bin(bottom, cells.rows); row++)
      use(cells.first[row * cells.cols + from], cells.first[row * cells.cols + to + 1]);
  }

  function nearest(x, y, reach, wanted = () => true) {
    let best = -1, least = reach * reach;
    within(x - reach, y - reach, x + reach, y + reach, (from, to) => {
      for (let at = from; at < to; at++) {
        const i = cells.order[at], away = (cells.x[i] - x) ** 2 + (cells.y[i] - y) ** 2;
        if (away < least && isShown(cells.kind[i]) && wanted(i)) [best, least] = [i, away];
      }
    });
    return best;
  }

  // Tiles: embedded in the page, or asked for where the page is served. The least recently used is dropped first.
  const images = new Map();
  function tileImage(level, col, row) {
    const embedded = data.levels[level].images, key = `${level}/${col}/${row}`;
    if (embedded && !embedded[`${col}_${row}`]) return null;
    let found = images.get(key);
    images.delete(key);
    if (!found) {
      found = new Image();
      found.src = embedded ? `data:image/jpeg;base64,${embedded[`${col}_${row}`]}` : `tile/${key}.jpg`;
      found.decode().then(() => { found.ready = true; draw(); }, () => {});
    }
    images.set(key, found);
    if (images.size > MOST_IMAGES) images.delete(images.keys().next().value);
    return found.ready ? found : null;
  }

  const left = () => view.x - width / 2 / view.scale, top = () => view.y - height / 2 / view.scale;
  const right = () => view.x + width / 2 / view.scale, bottom = () => view.y + height / 2 / view.scale;
  const xPx = (x) => (x - left()) * view.scale * ratio, yPx = (y) => (y - top()) * view.scale * ratio;

  // Each tile of the level that the scale wants; where there is none, the part of the coarser tile that covers it.
  function drawTiles() {
    const wanted = data.levels.findIndex(({ mpp }) => mpp <= 1.01 / (view.scale * ratio));
    const level = wanted < 0 ? data.levels.length - 1 : wanted, side = data.levels[level].mpp * data.tile;
    const last = (length, edge) => Math.min(Math.ceil(length / side - 1e-6) - 1, Math.floor(edge / side));
    const [toCol, toRow] = [last(data.width, right()), last(data.height, bottom())];
    shownMpp = data.levels[level].mpp;
    for (let row = Math.max(0, Math.floor(top() / side)); row <= toRow; row++)
      for (let col = Math.max(0, Math.floor(left() / side)); col <= toCol; col++) {
        let up = 0, found = tileImage(level, col, row);
        while (!found && up < level) found = tileImage(level - ++up, col >> up, row >> up);
        if (!found) continue;
        const parts = 2 ** up, px = data.tile / parts, mpp = data.levels[level - up].mpp;
        const sx = (col % parts) * px, sy = (row % parts) * px;
        const w = Math.min(px, found.naturalWidth - sx), h = Math.min(px, found.naturalHeight - sy);
        if (w <= 0 || h <= 0) continue;
        const x = Math.round(xPx(col * side)), y = Math.round(yPx(row * side)); // whole pixels, so that no seam is seen
        const x1 = Math.round(xPx(col * side + w * mpp)), y1 = Math.round(yPx(row * side + h * mpp));
        pen.drawImage(found, sx, sy, w, h, x, y, x1 - x, y1 - y);
        shownMpp = Math.max(shownMpp, mpp);
      }
  }

  // A mark as pixels around its middle: first the white ones, which hide no mark, then those of the mark itself.
  function makeStamp(kind, px) { // px: radius of a ring
    const small = px < LEAST_RING_PX, ring = (kind & 3) === 1, line = Math.max(1.4, px / 8) * Math.min(1.5, ratio);
    const radius = ring ? (small ? Math.max(px / 2, 1.3) : px) : small ? 0.8 : Math.max((px * DOT) / RING, 1.5);
    const half = Math.ceil(Math.max(px, radius) + 3 * line + 3), size = 2 * half + 1;
    const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    paint.canvas.width = paint.canvas.height = size;
    const pixels = () => new Uint32Array(paint.getImageData(0, 0, size, size).data.buffer);
    const trace = (colour, more) => {
      paint.strokeStyle = paint.fillStyle = colour;
      paint.lineWidth = line + more;
      paint.beginPath();
      if ((kind & 3) === 2 && !small) { // a cross
        for (const way of [-1, 1]) {
          paint.moveTo(half + 0.5 - radius * 1.3, half + 0.5 - way * radius * 1.3);
          paint.lineTo(half + 0.5 + radius * 1.3, half + 0.5 + way * radius * 1.3);
        }
        paint.stroke();
      } else {
        paint.arc(half + 0.5, half + 0.5, radius + (ring ? 0 : more / 2), 0, 7);
        if (ring && !small) paint.stroke();
        else paint.fill();
      }
      const corner = half + 0.5 - px - line, side = 2 * (px + line);
      if (kind & EDITED && !small) paint.strokeRect(corner, corner, side, side);
    };
    trace(INK[kind & 3], 0);
    const mark = pixels();
    paint.clearRect(0, 0, size, size);
    if (!small) trace("#fff", 2.4 * Math.min(1.5, ratio));
    trace(INK[kind & 3], 0);
    const both = pixels(), white = [], inked = [];
    for (let at = 0; at < size * size; at++)
      if (mark[at] >>> 24 > 90) inked.push(at);
      else if (both[at] >>> 24 > 40) white.push(at);
    const pack = (list) => ({
      dx: Int16Array.from(list, (at) => (at % size) - half),
      dy: Int16Array.from(list, (at) => Math.floor(at / size) - half),
      step: Int32Array.from(list, (at) => (Math.floor(at / size) - half) * canvas.width + (at % size) - half),
      colour: Uint32Array.from(list, (at) => both[at]),
    });
    return { half, white: pack(white), inked: pack(inked) };
  }

  const stamps = new Map();
  function stampOf(kind, px) {
    const key = px * 8 + kind;
    if (!stamps.has(key)) stamps.set(key, makeStamp(kind, px));
    return stamps.get(key);
  }
  let buffer = null;
  function drawCells() {
    const W = canvas.width, H = canvas.height, px = Math.round(RING * view.scale * ratio * 4) / 4;
    if (!buffer || buffer.width !== W || buffer.height !== H) {
      [layer.width, layer.height, buffer] = [W, H, new ImageData(W, H)];
      stamps.clear();
    }
    const pixels = new Uint32Array(buffer.data.buffer).fill(0), zoom = view.scale * ratio, x0 = left(), y0 = top();
    const put = ({ dx, dy, step, colour }, x, y, half, over) => {
      const at = y * W + x, n = colour.length;
      if (x >= half && y >= half && x < W - half && y < H - half) {
        for (let j = 0; j < n; j++) if (over || pixels[at + step[j]] === 0) pixels[at + step[j]] = colour[j];
      } else {
        for (let j = 0; j < n; j++) {
          const ax = x + dx[j], ay = y + dy[j];
          if (ax >= 0 && ay >= 0 && ax < W && ay < H && (over || pixels[at + step[j]] === 0)) pixels[at + step[j]] = colour[j];
        }
      }
    };
    const own = new Array(8), visible = Array.from({ length: 16 }, (_, kind) => isShown(kind));
    let drawn = 0;
    const margin = 2 * RING;
    within(x0 - margin, y0 - margin, right() + margin, bottom() + margin, (from, to) => {
      for (let at = from; at < to; at++) {
        const i = cells.order[at], kind = cells.kind[i];
        if (!visible[kind]) continue;
        const stamp = (own[kind] ??= stampOf(kind, px));
        const x = Math.floor((cells.x[i] - x0) * zoom), y = Math.floor((cells.y[i] - y0) * zoom);
        if (x < -stamp.half || y < -stamp.half || x > W + stamp.half || y > H + stamp.half) continue;
        if (stamp.white.colour.length) put(stamp.white, x, y, stamp.half, false);
        put(stamp.inked, x, y, stamp.half, true);
        drawn++;
      }
    });
    if (stamps.size > 200) stamps.clear();
    layerPen.putImageData(buffer, 0, 0);
    pen.drawImage(layer, 0, 0);
    return drawn;
  }

  const shape = (paths) => {
    const path = new Path2D();
    for (const ring of paths) {
      for (let i = 0; i < ring.length; i += 2) path[i ? "lineTo" : "moveTo"](ring[i], ring[i + 1]);
      path.closePath();
    }
    return path;
  };
  const outlines = data.regions.map(({ rings }) => shape(rings));

  function cased(path, colour, dash = []) {
    for (const [ink, px] of [["#1e1e1e", 4], [colour, 2]]) {
      pen.strokeStyle = ink;
      pen.lineWidth = px / view.scale;
      pen.setLineDash(ink === colour ? dash.map((length) => length / view.scale) : []);
      pen.stroke(path);
    }
    pen.setLineDash([]);
  }

  function toSlide() { // draw in µm from here on
    const zoom = view.scale * ratio;
    pen.setTransform(zoom, 0, 0, zoom, -left() * zoom, -top() * zoom);
  }

  function drawRegions() {
    toSlide();
    for (const path of outlines) cased(path, "#ffd200");
    for (const place of data.places.filter(({ random }) => !random)) {
      const circle = new Path2D();
      circle.arc(place.x, place.y, place.r, 0, 7);
      cased(circle, "#fff", place.hot ? [7, 4] : []);
    }
    pen.setTransform(1, 0, 0, 1, 0, 0);
  }

  // Squares below the marks, within the regions; and above the marks their numbers, where there is space.
  function drawIndex(numbers) {
    const { side, steps, rows } = data.squares, size = side * view.scale * ratio;
    if (numbers && size < 44 * ratio) return;
    pen.save();
    if (!numbers) {
      toSlide();
      const whole = new Path2D();
      for (const path of outlines) whole.addPath(path);
      pen.clip(whole, "evenodd");
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.globalAlpha = 0.6;
    }
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    for (let i = 0; i < rows.length; i += 4) {
      const x = xPx(rows[i]), y = yPx(rows[i + 1]);
      if (x > canvas.width || y > canvas.height || x < -size || y < -size) continue;
      if (numbers) label(`${Math.round(rows[i + 2])} %`, x + size / 2, y + size / 2, 14);
      else {
        pen.fillStyle = steps.at(steps.findIndex(([, high]) => rows[i + 2] < high))[0]; // 100 % is in the last step
        pen.fillRect(x, y, size, size);
      }
    }
    pen.restore();
  }

  function label(words, x, y, size) {
    pen.font = `600 ${size * ratio}px "Segoe UI", Arial, sans-serif`;
    pen.lineJoin = "round";
    pen.lineWidth = 4 * ratio;
    pen.strokeStyle = "#fff";
    pen.fillStyle = "#111";
    pen.strokeText(words, x, y);
    pen.fillText(words, x, y);
  }

  function drawScale() {
    const lengths = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000];
    const long = lengths.findLast((um) => um * view.scale < width / 5) ?? 1, um = 1 / view.scale;
    const px = long * view.scale * ratio, x = canvas.width - 14 * ratio - px, y = canvas.height - 14 * ratio;
    pen.fillStyle = "#fff";
    pen.fillRect(x - 2 * ratio, y - 2 * ratio, px + 4 * ratio, 8 * ratio);
    pen.fillStyle = "#111";
    pen.fillRect(x, y, px, 4 * ratio);
    pen.textBaseline = "alphabetic";
    pen.textAlign = "center";
    label(long < 1000 ? `${long} µm` : `${long / 1000} mm`, x + px / 2, y - 6 * ratio, 13);
    if (shownMpp / ratio > 1.8 * um) {
      pen.textAlign = "left";
      label(`picture here: ${Number(shownMpp.toPrecision(2))} µm/px`, 12 * ratio, canvas.height - 12 * ratio, 13);
    }
  }

  function drawChosen() {
    const x = xPx(cells.x[chosen]), y = yPx(cells.y[chosen]), r = Math.max(RING * view.scale * 1.7, 9) * ratio;
    for (const [ink, px] of [["#1e1e1e", 5], ["#ffd200", 2.5]]) {
      pen.strokeStyle = ink;
      pen.lineWidth = px * ratio;
      pen.strokeRect(x - r, y - r, 2 * r, 2 * r);
    }
  }

  function drawMiddle() {
    const x = canvas.width / 2, y = canvas.height / 2;
    for (const [ink, px] of [["#fff", 4], ["#1e1e1e", 1.5]]) {
      pen.strokeStyle = ink;
      pen.lineWidth = px * ratio;
      pen.beginPath();
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        pen.moveTo(x + 5 * dx * ratio, y + 5 * dy * ratio);
        pen.lineTo(x + 12 * dx * ratio, y + 12 * dy * ratio);
      }
      pen.stroke();
    }
  }

  function draw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      pen.fillStyle = "#e8eaec";
      pen.fillRect(0, 0, canvas.width, canvas.height);
      drawTiles();
      const index = on.index && data.squares && !bare;
      if (index) drawIndex(false);
      root.dataset.drawn = bare ? 0 : drawCells();
      if (on.regions && !bare) drawRegions();
      if (index) drawIndex(true);
      if (chosen >= 0) drawChosen();
      if (root.dataset.editing !== undefined) drawMiddle();
      drawScale();
      root.dataset.view = [view.x, view.y, view.scale].map((value) => value.toFixed(3)).join(" ");
    });
  }

  const smallest = () => 0.5 * Math.min(width / data.width, height / data.height);
  function go(x, y, scale = view.scale) {
    view.scale = Math.min(LARGEST_SCALE, Math.max(smallest(), scale));
    view.x = Math.min(data.width, Math.max(0, x));
    view.y = Math.min(data.height, Math.max(0, y));
    draw();
  }
  const whole = () => go(data.width / 2, data.height / 2, 0.97 * Math.min(width / data.width, height / data.height));
  // Zooms by a factor so that the point under (x, y), in CSS pixels from the middle, stays there.
  function zoom(by, x = 0, y = 0) {
    const scale = Math.min(LARGEST_SCALE, Math.max(smallest(), view.scale * by)), less = 1 / view.scale - 1 / scale;
    go(view.x + x * less, view.y + y * less, scale);
  }

  const says = root.querySelector(".says");
  function say(title, pairs = []) {
    const list = document.createElement("dl"), head = document.createElement("strong");
    head.textContent = title;
    for (const [name, value] of pairs) {
      const row = document.createElement("div"), term = document.createElement("dt"), text = document.createElement("dd");
      [term.textContent, text.textContent] = [name, value];
      row.append(term, text);
      list.append(row);
    }
    says.replaceChildren(head, list);
  }

  function choose(i, title = "Cell") {
    chosen = i;
    draw();
    if (i < 0) return say("No cell is chosen.");
    const kind = cells.kind[i], density = cells.density[i];
    const of = (value) => (value === 255 ? "not known" : (value / 250).toFixed(2));
    say(title, [
      ["Class", kind & GONE ? "deleted" : ["negative", "positive", "other, not counted"][kind & 3] + (kind & EDITED ? ", edited by hand" : "")],
      ["Confidence", of(cells.confidence[i])],
      ["Positivity", of(cells.positivity[i])],
      ["DAB density", density === 255 ? "not known" : `${density === 254 ? "2.54 or more" : (density / 100).toFixed(2)} OD`],
      ["Region", data.regions[cells.roi[i]]?.name ?? "–"],
      ["x, y", `${cells.x[i].toFixed(1)}, ${cells.y[i].toFixed(1)} µm`],
    ]);
  }

  function stepTo(list, by) {
    const of = list === "places" ? data.places : data.cells.doubtful, n = of.length;
    if (!n) return say(list === "places" ? "There are no fields." : "There is no such cell.");
    step[list] = step[list] < 0 ? (by > 0 ? 0 : n - 1) : (step[list] + by + n) % n;
    const at = of[step[list]], number = `${step[list] + 1} of ${n}`;
    if (list === "doubtful") {
      go(cells.x[at], cells.y[at], Math.max(view.scale, Math.min(width, height) / 120));
      return choose(at, `Least certain cell ${number}`);
    }
    chosen = -1;
    go(at.x, at.y, Math.min(width, height) / (2.2 * at.r));
    say(at.name, [["Field", number], ["Middle", `${at.x.toFixed(0)}, ${at.y.toFixed(0)} µm`]]);
  }

  const show = (x, y) => { if (x < left() || x > right() || y < top() || y > bottom()) go(x, y); };
  // From the chosen cell to the nearest one in a direction; without one, the cell nearest to the middle.
  function neighbour(dx, dy) {
    if (chosen < 0) return pick(view.x, view.y, Infinity);
    const x = cells.x[chosen], y = cells.y[chosen];
    const ahead = (i) => (cells.x[i] - x) * dx + (cells.y[i] - y) * dy > 0.7 * Math.hypot(cells.x[i] - x, cells.y[i] - y);
    const found = [50, 200, 1000, 5000].reduce((best, reach) => (best < 0 ? nearest(x, y, reach, ahead) : best), -1);
    if (found < 0) return;
    show(cells.x[found], cells.y[found]);
    choose(found);
  }
  function pick(x, y, reach = Math.max(6, 14 / view.scale)) {
    choose(bare ? -1 : nearest(x, y, Math.min(reach, data.width + data.height)));
  }

  function toggle(name) {
    const box = root.querySelector(`input[name="${name}"]`);
    if (!box) return;
    box.checked = on[name] = !on[name];
    if (chosen >= 0 && !isShown(cells.kind[chosen])) choose(-1);
    root.querySelector(".key")?.toggleAttribute("hidden", !on.index);
    draw();
  }
  const actions = {
    whole, in: () => zoom(1.5), out: () => zoom(1 / 1.5), bare: () => { bare = !bare; draw(); },
    hot: () => { step.places = -1; stepTo("places", 1); },
    nextPlace: () => stepTo("places", 1), lastPlace: () => stepTo("places", -1),
    nextDoubt: () => stepTo("doubtful", 1), lastDoubt: () => stepTo("doubtful", -1),
    pick: () => pick(view.x, view.y, Infinity), none: () => choose(-1),
    positive: () => toggle("positive"), negative: () => toggle("negative"), other: () => toggle("other"),
    regions: () => toggle("regions"), index: () => toggle("index"),
  };
  const keys = {
    "+": "in", "=": "in", "-": "out", _: "out", 0: "whole", Home: "whole", " ": "bare", h: "hot", f: "nextPlace",
    F: "lastPlace", n: "nextDoubt", N: "lastDoubt", Enter: "pick", Escape: "none", 1: "positive", 2: "negative", 3: "other",
    4: "regions", 5: "index", e: "editing",
  };
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  canvas.addEventListener("keydown", (event) => {
    const key = (event.ctrlKey || event.metaKey) && event.key === "z" ? "u" : event.key;
    if (key === event.key && (event.ctrlKey || event.metaKey || event.altKey)) return;
    const arrow = arrows[key], known = root.dataset.editing === undefined ? keys : { ...keys, ...edit.keys };
    const action = known[key] ?? known[key.toLowerCase()];
    if (arrow && event.shiftKey) neighbour(...arrow);
    else if (arrow) go(view.x + (arrow[0] * width) / 6 / view.scale, view.y + (arrow[1] * height) / 6 / view.scale);
    else if (action) actions[action]();
    else return;
    event.preventDefault();
  });
  for (const button of root.querySelectorAll("button")) button.addEventListener("click", () => actions[button.value]());
  for (const box of root.querySelectorAll("input")) {
    box.checked = on[box.name];
    box.addEventListener("change", () => toggle(box.name));
  }

  // In a report the wheel scrolls the page until the viewer has the focus; where it fills the page it always zooms.
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && document.activeElement !== canvas && root.dataset.whole === undefined) return;
    event.preventDefault();
    const box = canvas.getBoundingClientRect(), lines = event.deltaMode ? 30 : 1;
    const by = Math.exp(-Math.max(-300, Math.min(300, event.deltaY * lines)) / 400);
    zoom(by, event.clientX - box.left - width / 2, event.clientY - box.top - height / 2);
  }, { passive: false });

  const fingers = new Map();
  let moved = 0;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, event);
    if (fingers.size === 1) moved = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const other = [...fingers.values()].find(({ pointerId }) => pointerId !== event.pointerId);
    const dx = event.clientX - before.clientX, dy = event.clientY - before.clientY, box = canvas.getBoundingClientRect();
    moved += Math.abs(dx) + Math.abs(dy) + (other ? 100 : 0);
    fingers.set(event.pointerId, event);
    if (!other) return moved > 4 ? go(view.x - dx / view.scale, view.y - dy / view.scale) : undefined;
    const apart = (one) => Math.max(20, Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY));
    const middle = (a, b, edge, size) => (a + b) / 2 - edge - size / 2;
    zoom(apart(event) / apart(before), middle(event.clientX, other.clientX, box.left, width),
      middle(event.clientY, other.clientY, box.top, height));
    go(view.x - dx / 2 / view.scale, view.y - dy / 2 / view.scale);
  });
  for (const name of ["pointerup", "pointercancel"])
    canvas.addEventListener(name, (event) => {
      if (!fingers.delete(event.pointerId) || name === "pointercancel" || moved > 4) return;
      const box = canvas.getBoundingClientRect();
      const use = root.dataset.adding === undefined ? pick : edit.add;
      use(left() + (event.clientX - box.left) / view.scale, top() + (event.clientY - box.top) / view.scale);
    });

  const cells = await unpack(data.cells);
  const regionAt = (x, y) => outlines.findIndex((path) => pen.isPointInPath(path, x, y, "evenodd"));
  const edit = data.command === null ? null : editor({
    root, data, cells, append, regionAt, nearest, choose, say, show, chosen: () => chosen, middle: () => [view.x, view.y],
  });
  Object.assign(actions, edit?.actions ?? { editing: () => say("This page does not hold all cells.") });
  root.hidden = false;
  document.getElementById("viewer-off")?.remove();
  let started = false;
  new ResizeObserver(() => {
    const box = canvas.getBoundingClientRect();
    if (!box.width || !box.height) return; // as in print
    [width, height, ratio] = [box.width, box.height, Math.min(2, window.devicePixelRatio || 1)];
    [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (!started) whole();
    started = true;
    draw();
  }).observe(canvas);
  if (root.dataset.whole !== undefined) canvas.focus();
})();
